import math
import re

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segkit.errors import OfflineError, UsageError
from segkit.models import DECODERS, Backbone, backbone, create_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fppn", "num_classes": 2}, "did you mean 'fpn'"),
        ({"name": "fpn", "num_classes": 2, "backbone": "resnet81"}, "did you mean 'resnet18'"),
        ({"name": "fpn", "num_classes": 2, "chanels": 8}, "unknown option of fpn 'chanels'; did you mean 'channels'"),
        ({"name": "fpn", "num_classes": 0}, "at least 1"),
        ({"name": "fpn"}, "at least 1"),
        (
            {"name": "fpn", "num_classes": 2, "in_channels": 0},
            "`in_channels` must be a whole number",
        ),
        ({"name": "fpn", "num_classes": "3"}, "`num_classes` must be a whole number of at least 1, got '3'"),
        ({"name": "fpn", "num_classes": 3.0}, "`num_classes` must be a whole number of at least 1, got 3.0"),
        ({"name": "fpn", "class_names": "sky"}, "`class_names` must be a list of names, got 'sky'"),
        ({"name": "fpn", "class_names": ["sky", "tree", "sky"]}, "the same name twice: sky, tree, sky"),
        ({"name": "fpn", "num_classes": 2, "class_names": ["a"]}, "`num_classes` is 2, but `class_names` has 1"),
        ({"name": "fpn", "num_classes": 2, "output_stride": 5}, "8, 16 or 32"),
        ({"name": "fpn", "num_classes": 2, "backbone": "vgg11", "output_stride": 16}, "use `output_stride=32`"),
    ],
)
def test_a_wrong_argument_is_one_sentence_that_names_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_an_option_of_a_decoder_that_is_no_keyword_only_argument_is_explained(monkeypatch):
    class Narrow(nn.Module):
        def __init__(self, in_channels, strides, channels=8):
            super().__init__()

    monkeypatch.setitem(DECODERS, "narrow", Narrow)
    with pytest.raises(UsageError, match=r"`channels` of narrow is not an option: .* keyword-only .*\*"):
        create_model("narrow", num_classes=2, channels=16)
    with pytest.raises(UsageError, match=r"unknown option of narrow 'width'. Known: none"):
        create_model("narrow", num_classes=2, width=16)


def test_a_decoder_sets_the_kernel_of_its_head(monkeypatch):
    def kernel(name):
        return create_model(name, backbone="test_resnet", num_classes=2).head.kernel_size

    class Wide(DECODERS["fpn"]):
        head_kernel_size = 5

    monkeypatch.setitem(DECODERS, "wide", Wide)
    assert [kernel(name) for name in ("fpn", "deeplabv3plus", "unet", "wide")] == [(1, 1), (1, 1), (3, 3), (5, 5)]


def test_the_deepest_features_have_the_output_stride():
    for stride in (8, 16, 32):
        pyramid = Backbone("resnet18", output_stride=stride)
        assert pyramid.strides[-1] == stride
        assert pyramid(torch.randn(1, 3, 64, 64))[-1].shape[-1] == 64 // stride


def test_mean_and_std_come_from_the_backbone():
    assert create_model("fpn", backbone="tf_efficientnet_lite0", num_classes=2).preprocessing.mean == (0.5, 0.5, 0.5)
    preprocessing = create_model("fpn", backbone="resnet18", num_classes=2).preprocessing
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    expected = torch.tensor([[-0.485 / 0.229, 0.515 / 0.229], [-0.456 / 0.224, 0.544 / 0.224]])
    torch.testing.assert_close(preprocessing(images)[0, :2, 0], expected)


def test_an_array_is_normalised_as_the_same_tensor_is():
    preprocessing = create_model("fpn", backbone="test_resnet", num_classes=2).preprocessing
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)[:, ::-1]
    expected = preprocessing(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
    assert torch.equal(preprocessing(image), expected)
    assert torch.equal(preprocessing(np.stack([image, image])), expected.expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((1, 3, 4, 5), np.uint8), r"\(1, 3, 4, 5\) uint8"),
        (np.zeros((4, 5), np.uint8), r"\(4, 5\) uint8"),
        (np.zeros((4, 5, 3)), r"\(4, 5, 3\) float64"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"\(3, 4, 5\) torch.uint8"),
        ("a.jpg", "str"),
    ],
)
def test_what_preprocessing_cannot_normalise_is_named(images, got):
    preprocessing = create_model("fpn", backbone="test_resnet", num_classes=2).preprocessing
    with pytest.raises(UsageError, match=rf"an array \(H, W, 3\) of uint8, got {got}"):
        preprocessing(images)


def test_preprocessing_refuses_images_that_are_normalised_already():
    model = create_model("fpn", backbone="resnet18", num_classes=2)
    with pytest.raises(ValueError, match="uint8"):
        model.preprocessing(torch.rand(1, 3, 4, 4))


@pytest.fixture
def weights_file(tmp_path):
    weights = Backbone("resnet18").net.state_dict()
    path = tmp_path / "resnet18.safetensors"
    save_file({**weights, "fc.weight": torch.zeros(10, 512)}, path)
    return path, weights


def test_backbone_weights_come_from_a_file(weights_file):
    path, weights = weights_file
    loaded = create_model("fpn", backbone="resnet18", num_classes=2, pretrained=path).backbone.net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_old_backbone_weights_without_batch_counters_are_loaded(tmp_path):
    net = timm.create_model("resnet18")
    weights = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "old.pth")
    model = create_model("fpn", backbone="resnet18", num_classes=2, pretrained=tmp_path / "old.pth")
    assert torch.equal(model.backbone.net.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


def test_aligned_corners_need_no_option_of_the_decoder(monkeypatch):
    class Deepest(nn.Module):
        def __init__(self, channels, strides):
            super().__init__()
            self.out_channels = channels[-1]

        def forward(self, features):
            return features[-1]

    monkeypatch.setitem(DECODERS, "deepest", Deepest)
    model = create_model("deepest", backbone="test_resnet", num_classes=2, align_corners=True).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_a_pretrained_stem_is_adapted_to_gray_images_by_summing_over_rgb(weights_file):
    path, weights = weights_file
    stem = Backbone("resnet18", pretrained=path, in_channels=1).net.conv1.weight
    torch.testing.assert_close(stem, weights["conv1.weight"].sum(1, keepdim=True))


def test_weights_of_another_backbone_are_refused(weights_file):
    with pytest.raises(ValueError, match=r"does not hold the weights of 'mobilenetv3_small_100': \d+ of \d+ tensors"):
        Backbone("mobilenetv3_small_100", pretrained=weights_file[0])


def test_weights_of_another_width_are_refused(weights_file):
    path, weights = weights_file
    save_file({**weights, "conv1.weight": torch.zeros(32, 3, 7, 7)}, path.with_name("wide.safetensors"))
    with pytest.raises(ValueError, match=r"has shape \(32, 3, 7, 7\), expected \(64, 3, 7, 7\)"):
        Backbone("resnet18", pretrained=path.with_name("wide.safetensors"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 20, b"hello world\n", b"root:x:0:0:root:/root\n"])
def test_a_damaged_weights_file_is_named(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"cannot read weights from .*{name}"):
        Backbone("resnet18", pretrained=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "has a list, expected a dict with the weights"),
        ({1: torch.zeros(1), "conv1.weight": 1}, "tensors are missing"),
        (nn.Identity(), "has Python objects .*, and loading them runs code from the file"),
    ],
)
def test_a_file_of_torch_without_weights_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=f"weights.pth .*{message}"):
        Backbone("test_resnet", pretrained=tmp_path / "weights.pth")


def test_a_weights_file_that_is_cut_or_has_a_wrong_byte_is_damaged(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(Backbone("test_resnet").net.state_dict(), path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for content in (whole[:5000], whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"weights.pth \({len(content)} bytes\): the file is damaged"):
            Backbone("test_resnet", pretrained=path)


def test_weights_may_be_an_entry_of_a_checkpoint_of_several_processes(tmp_path):
    weights = Backbone("test_resnet").net.state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": v for key, v in weights.items()}}, tmp_path / "a.pth")
    loaded = Backbone("test_resnet", pretrained=tmp_path / "a.pth").net.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in weights.items())


@pytest.mark.parametrize(
    ("decoder", "option", "values"),
    [
        ("fpn", "channels", [0, -1, 1.5, "8", True, None, [8], math.nan]),
        ("fpn", "pyramid_channels", [0]),
        ("fpn", "dropout", [-0.1, 1, "0.1", math.nan]),
        ("unet", "channels", [8, [8, 8, 8, 8, 0], [8, 8, 8, 8, "8"], "88888"]),
        ("deeplabv3plus", "channels", [0]),
        ("deeplabv3plus", "low_level_channels", [0]),
        ("deeplabv3plus", "atrous_rates", [[0, 1], [], 3, [1, "2"]]),
        ("deeplabv3plus", "fuse_convs", [0, -1, 1.5]),
        ("deeplabv3plus", "aspp_separable", ["false", 2]),
    ],
)
def test_options_of_decoders_that_cannot_be_are_one_sentence(decoder, option, values):
    for value in values:
        with pytest.raises(UsageError, match=f"^`{option}` must be .*, got {re.escape(repr(value))}"):
            create_model(decoder, backbone="test_resnet", num_classes=2, **{option: value})


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Backbone("resnet18", pretrained=tmp_path / "none.safetensors")


def test_pretrained_without_network_says_what_to_do(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(OfflineError, match="the path of a downloaded safetensors file"):
        create_model("fpn", backbone="resnet18", num_classes=2, pretrained=True)


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    import threading

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *a, **k: threading.Event().wait(5))
    assert not backbone._hub_answers("timm/resnet18.a1_in1k", "model.safetensors", seconds=0.05)


SEED_BACKBONES = [
    "resnext50_32x4d",
    "resnext101_32x4d",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
    "tf_efficientnet_b3",
    "tf_efficientnet_b4.ns_jft_in1k",
    "tf_efficientnet_b5",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3plus", "fpn", "unet"])
@pytest.mark.parametrize("seed_backbone", SEED_BACKBONES)
def test_the_backbones_of_the_recycled_waste_solutions_train_a_step(name, seed_backbone):
    model = create_model(name, backbone=seed_backbone, num_classes=12).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.head.weight.detach().clone()
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 12, 64, 96)
    torch.nn.functional.cross_entropy(logits, torch.zeros(2, 64, 96, dtype=torch.long)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    assert not torch.equal(before, model.head.weight)
