import json
import sys
import time
import zipfile
from functools import cache

import numpy as np
import pytest
import torch
from make_smp_fixtures import CASES, CLASSES, FOLDER, draw_images, draw_weights, pick
from safetensors.torch import save_file

from segkit.errors import UsageError
from segkit.models import Backbone, create_model, load_model, load_smp_checkpoint, save_model
from segkit.models.smp.encoders import ENCODERS
from segkit.models.smp.files import read_smp_weights

FPN_CASE = "fpn_timm-efficientnet-b0"
FPN_OPTIONS = CASES[FPN_CASE][2]


@cache
def read_case(name):
    with np.load(FOLDER / f"smp_{name}.npz") as file:
        return draw_weights(json.loads(str(file["shapes"]))), file["logits"]


def load_case(name, **changes):
    architecture, encoder, options = CASES[name]
    arguments = {"num_classes": CLASSES, **options, **changes}
    return load_smp_checkpoint(read_case(name)[0], architecture, encoder, **arguments)


def fpn_weights():
    return dict(read_case(FPN_CASE)[0])


def load_fpn(source, **changes):
    arguments = {"encoder_name": "timm-efficientnet-b0", "num_classes": CLASSES, **FPN_OPTIONS, **changes}
    return load_smp_checkpoint(source, "FPN", **arguments)


@torch.inference_mode()
def relative_difference(logits, expected):
    return (torch.as_tensor(logits) - torch.as_tensor(expected)).abs().max() / torch.as_tensor(expected).abs().max()


# Logits that SMP returned, stored as fixtures


@pytest.mark.parametrize("name", CASES)
def test_the_logits_equal_smps_and_smp_need_not_be_installed(name, no_network, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)  # importing it fails
    model = load_case(name)
    with torch.inference_mode():
        logits = pick(model(draw_images()))
    assert not model.training
    assert relative_difference(logits, read_case(name)[1]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_is_loaded_without_smp_and_without_network(name, tmp_path, no_network):
    model = load_case(name, class_names=["a", "b", "c"])
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    images = draw_images(size=(70, 65))
    with torch.inference_mode():
        assert torch.equal(model(images), loaded(images))
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.preprocessing == model.preprocessing


def test_unused_weights_and_batch_counters_may_be_missing():
    unused = ("encoder._conv_head.", "encoder._bn1.")
    name = "deeplabv3plus_efficientnet-b0"
    architecture, encoder, options = CASES[name]
    weights, expected = read_case(name)
    few = {k: v for k, v in weights.items() if not k.startswith(unused) and not k.endswith("num_batches_tracked")}
    assert len(few) < len(weights)
    model = load_smp_checkpoint(few, architecture, encoder, num_classes=CLASSES, **options)
    with torch.inference_mode():
        assert relative_difference(pick(model(draw_images())), expected) < 1e-5


# Against an installed SMP


@cache
def smp_model(architecture, encoder, **options):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=CLASSES, **options)
    model.load_state_dict(draw_weights({key: list(value.shape) for key, value in model.state_dict().items()}))
    return model.eval()


def check_against_smp(architecture, encoder, **options):
    smp_options = {key: value for key, value in options.items() if key != "decoder_use_batchnorm"}
    if "decoder_use_batchnorm" in options:
        smp_options["decoder_use_norm"] = options["decoder_use_batchnorm"]
    peer = smp_model(architecture, encoder, **smp_options)
    model = load_smp_checkpoint(peer.state_dict(), architecture, encoder, num_classes=CLASSES, **options)
    images = draw_images(options.get("in_channels", 3)).double()
    # In float64 rounding stays below 1e-8, however deep the network; a wrong eps or padding causes 1e-3 and more.
    with torch.inference_mode():
        assert relative_difference(model.double()(images), peer.double()(images)) < 1e-6
    peer.float()


FAST = ["resnet18", "efficientnet-b0", "timm-efficientnet-b0", "tu-resnet18", "tu-tf_efficientnet_b0"]
VARIANTS = [
    *[("DeepLabV3Plus", encoder, {"encoder_output_stride": stride}) for encoder in FAST for stride in (8, 16)],
    *[(architecture, encoder, {}) for encoder in FAST for architecture in ("FPN", "Unet")],
    ("Unet", "tu-convnext_atto", {}),
    pytest.param("Unet", "tu-vgg11", {}, marks=pytest.mark.slow),
    ("FPN", "tu-convnext_atto", {}),
    ("DeepLabV3Plus", "resnet18", {"decoder_aspp_separable": False, "decoder_channels": 64}),
    ("DeepLabV3Plus", "resnet18", {"decoder_atrous_rates": (6, 12, 18), "in_channels": 1}),
    ("FPN", "resnet18", {"decoder_merge_policy": "cat", "decoder_pyramid_channels": 96}),
    ("FPN", "efficientnet-b0", {"decoder_segmentation_channels": 96, "in_channels": 4}),
    ("Unet", "resnet18", {"decoder_channels": (64, 32, 16, 16, 8)}),
    ("Unet", "resnet18", {"decoder_use_norm": False}),
    ("Unet", "resnet18", {"decoder_use_batchnorm": "identity"}),
]


@pytest.mark.parametrize(("architecture", "encoder", "options"), VARIANTS)
def test_the_logits_equal_those_of_the_installed_smp(architecture, encoder, options):
    check_against_smp(architecture, encoder, **options)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in (*ENCODERS, "tu-resnext50_32x4d") if name not in FAST])
def test_every_encoder_at_every_stride_equals_the_installed_smp(encoder):
    check_against_smp("DeepLabV3Plus", encoder, encoder_output_stride=8)
    check_against_smp("DeepLabV3Plus", encoder, encoder_output_stride=16)
    check_against_smp("FPN", encoder)
    check_against_smp("Unet", encoder)
    smp_model.cache_clear()


def test_a_folder_of_smps_save_pretrained_needs_no_options(tmp_path):
    peer = smp_model("FPN", "timm-efficientnet-b0", **FPN_OPTIONS)
    peer.save_pretrained(tmp_path)
    model = load_smp_checkpoint(tmp_path, "FPN", "timm-efficientnet-b0", num_classes=CLASSES)
    images = draw_images()
    with torch.inference_mode():
        assert relative_difference(model(images), peer(images)) < 1e-5


# The backbone


@pytest.mark.parametrize("name", ["smp:resnet18", "smp:efficientnet-b0", "smp:timm-efficientnet-b0"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_maps_of_an_smp_backbone_have_its_strides(name, stride):
    pyramid = Backbone(name, output_stride=stride).eval()
    assert pyramid.strides == tuple(min(s, stride) for s in (1, 2, 4, 8, 16, 32))
    maps = pyramid(torch.randn(1, 3, 64, 96))
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(pyramid.channels, pyramid.strides, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected


@pytest.mark.parametrize("name", ["smp:resnet18", "smp:efficientnet-b0", "smp:timm-efficientnet-b0"])
def test_an_smp_backbone_trains_every_parameter_at_any_size(name):
    model = create_model("unet", backbone=name, num_classes=2).train()
    logits = model(torch.randn(2, 3, 65, 70))
    assert logits.shape == (2, 2, 65, 70)
    logits.square().mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_an_unknown_smp_backbone_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'efficientnet-b4'"):
        create_model("fpn", backbone="smp:efficientnet_b4", num_classes=2)


def test_smp_backbones_have_no_weights_on_the_hub(no_network):
    with pytest.raises(ValueError, match="no pretrained weights for 'smp:resnet18'; use `pretrained=False`"):
        create_model("fpn", backbone="smp:resnet18", num_classes=2, pretrained=True)


def test_advprop_weights_were_trained_with_other_means():
    assert load_fpn(fpn_weights()).preprocessing.mean == (0.485, 0.456, 0.406)
    assert load_fpn(fpn_weights(), encoder_weights="imagenet").preprocessing.mean == (0.485, 0.456, 0.406)
    assert load_fpn(fpn_weights(), encoder_weights="advprop").preprocessing.std == (0.5, 0.5, 0.5)


# The ways in which people keep their weights

TINY = {"encoder.conv1.weight": torch.ones(2, 3), "segmentation_head.0.weight": torch.zeros(1)}
PREFIXED = {f"module.{key}": value for key, value in TINY.items()}


@pytest.mark.parametrize(
    "content",
    [
        TINY,
        PREFIXED,
        {f"_orig_mod.module.{key}": value for key, value in TINY.items()},
        {"state_dict": TINY, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
        {"model_state_dict": PREFIXED, "best_miou": 0.7},
        {"model": TINY, "ema": PREFIXED},
        {"net": TINY},
        {"weights_of_mine": TINY, "epoch": 1},
        {"state_dict": {"loss.weight": torch.ones(5), **{f"model.{key}": value for key, value in TINY.items()}}},
        {"encoder": {f"encoder.{key}": value for key, value in TINY.items()}, "scheduler": {"last_epoch": 4}},
    ],
)
@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_weights_are_found_in_the_dicts_that_people_wrap_them_in(content, suffix, tmp_path):
    source = content
    if suffix:
        source = tmp_path / f"checkpoint{suffix}"
        torch.save(content, source)
    weights, settings = read_smp_weights(source)
    assert settings == {}
    assert weights.keys() == TINY.keys()
    assert all(torch.equal(weights[key], value) for key, value in TINY.items())


def test_weights_are_read_from_safetensors(tmp_path):
    save_file(PREFIXED, tmp_path / "m.safetensors")
    assert read_smp_weights(tmp_path / "m.safetensors")[0].keys() == TINY.keys()


def test_half_precision_weights_become_float32():
    model = load_fpn({key: value.half() for key, value in fpn_weights().items()})
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def pickled_with_a_scheduler(path):
    parameter = torch.nn.Parameter(torch.zeros(1))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=0.1), 5)
    weights = {f"encoder.{key}": value for key, value in TINY.items()}
    torch.save({"encoder": weights, "scheduler": scheduler, "epoch": 9}, path)


def run_remedy(refusal, folder, monkeypatch):
    remedy = [line.strip() for line in str(refusal.value).splitlines() if line.startswith("    ")]
    assert len(remedy) == 2
    monkeypatch.chdir(folder)
    exec("\n".join(remedy), {"torch": torch})


def test_a_seed_checkpoint_with_a_pickled_scheduler_is_refused_with_the_remedy(tmp_path, monkeypatch):
    path = tmp_path / "best.pth"
    pickled_with_a_scheduler(path)
    with pytest.raises(ValueError, match=r"CosineAnnealingLR\).*on a machine where you trust it") as refusal:
        read_smp_weights(path)
    run_remedy(refusal, tmp_path, monkeypatch)
    assert read_smp_weights(tmp_path / "best_weights.pth")[0].keys() == TINY.keys()


def test_the_remedy_extracts_the_weights_of_a_whole_pickled_model_as_well(tmp_path, monkeypatch):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="next to its weights") as refusal:
        read_smp_weights(tmp_path / "whole.pth")
    run_remedy(refusal, tmp_path, monkeypatch)
    assert torch.load(tmp_path / "whole_weights.pth", weights_only=True).keys() == {"0.weight", "0.bias"}


class Payload:
    def __reduce__(self):
        return time.sleep, (30,)


def test_no_code_in_a_file_is_run(tmp_path):
    torch.save({"state_dict": TINY, "extra": Payload()}, tmp_path / "m.pth")
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"time\.sleep"):
        read_smp_weights(tmp_path / "m.pth")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 20, b"hello world\n", b"root:x:0:0:root:/root\n"])
def test_a_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        read_smp_weights(tmp_path / name)


def test_a_cut_file_is_named(tmp_path):
    torch.save(TINY, tmp_path / "m.pth")
    assert zipfile.is_zipfile(tmp_path / "m.pth")
    content = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read weights from .*m\.pth"):
        read_smp_weights(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "args": {}}, "no weights in the dict; its entries are epoch, args"),
        ({}, "its entries are none"),
        ({"conv.weight": torch.ones(1)}, "no SMP model: there is no key 'segmentation_head.0.weight', but conv.weight"),
        (PREFIXED | TINY, "has 2 SMP models, under 'module.', ''; pass the state dict of one"),
    ],
)
def test_a_dict_without_exactly_one_smp_model_is_an_error_with_its_content(content, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        read_smp_weights(content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_smp_weights(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_smp_weights(tmp_path)


# Folders written by save_pretrained


@pytest.fixture
def folder(tmp_path):
    save_file(fpn_weights(), tmp_path / "model.safetensors")
    settings = {
        "_model_class": "FPN",
        "encoder_name": "timm-efficientnet-b0",
        "encoder_weights": "imagenet",
        "encoder_depth": 5,
        "decoder_dropout": 0.2,
        "upsampling": 4,
        "activation": None,
        "aux_params": None,
        "classes": CLASSES,
        **FPN_OPTIONS,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return tmp_path


def test_settings_that_are_not_json_are_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is not valid JSON"):
        read_smp_weights(folder)


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"FPN"', '{"_model_class": 3}'])
def test_settings_that_are_no_object_are_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json does not hold the settings of an SMP model"):
        read_smp_weights(folder)


def test_keys_that_are_no_text_are_no_weights_of_smp(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"a\.pth has no SMP model"):
        read_smp_weights(tmp_path / "a.pth")


def test_the_settings_of_a_folder_are_the_defaults(folder, no_network):
    model = load_smp_checkpoint(folder, "fpn", "timm-efficientnet-b0", num_classes=CLASSES)
    assert model.config["merge"] == "cat"
    with torch.inference_mode():
        assert relative_difference(pick(model(draw_images())), read_case(FPN_CASE)[1]) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "Unet"}, "architecture is 'unet', but the checkpoint's config.json says 'fpn'"),
        ({"encoder_name": "resnet18"}, "encoder_name is 'resnet18', but .* says 'timm-efficientnet-b0'"),
        ({"num_classes": 2}, "classes is 2, but .* says 3"),
        ({"decoder_merge_policy": "add"}, "decoder_merge_policy is 'add', but .* says 'cat'"),
    ],
)
def test_an_argument_that_the_folder_contradicts_is_refused(folder, arguments, message):
    arguments = {
        "architecture": "FPN",
        "encoder_name": "timm-efficientnet-b0",
        "num_classes": CLASSES,
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        load_smp_checkpoint(folder, **arguments)


# Arguments and weights that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, r"'segmentation_head.0.weight' expected \(5, 256, 1, 1\), got \(3, 256, 1, 1\)"),
        ({"encoder_name": "resnet18"}, r"SMP's FPN with encoder 'resnet18' .*'encoder.conv1.weight' is missing"),
        ({"encoder_name": "efficientnet-b0"}, r"'encoder.conv_stem.weight' is unexpected"),
        ({"decoder_merge_policy": "add"}, r"expected \(3, 64, 1, 1\), got \(3, 256, 1, 1\)"),
        ({"in_channels": 1}, r"'encoder.conv_stem.weight' expected \(32, 1, 3, 3\)"),
        ({"classes": 4}, "classes=4 is not num_classes=3"),
        ({"encoder_name": "resnet19"}, "did you mean 'resnet18'"),
        ({"encoder_name": "tu-resnet19"}, "did you mean 'resnet1"),
        (
            {"decoder_drop_out": 0.0},
            "unknown argument of SMP's FPN 'decoder_drop_out'; did you mean 'decoder_dropout'",
        ),
        ({"encoder_output_stride": 16}, "unknown argument of SMP's FPN 'encoder_output_stride'"),
        ({"encoder_depth": 4}, "`encoder_depth=4` is not supported, only 5"),
        ({"upsampling": 2}, "`upsampling=2` is not supported, only 4"),
        ({"activation": "softmax"}, "`activation='softmax'` is not supported, only None"),
        ({"aux_params": {"classes": 2}}, r"omit it, and remove the keys classification_head.\*"),
        ({"decoder_interpolation": "bilinear"}, "only 'nearest'"),
        ({"decoder_segmentation_channels": 32}, "a multiple of 32, at least 64, got 32"),
        ({"class_names": ["a"]}, "`num_classes` is 3, but `class_names` has 1"),
    ],
)
def test_weights_of_another_model_are_an_error_that_names_what_differs(changes, message):
    with pytest.raises(ValueError, match=message):
        load_fpn(fpn_weights(), **changes)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("PSPNet", {}, "unknown architecture 'PSPNet'. Known: DeepLabV3Plus, FPN, Unet"),
        ("DeepLabV3Plus", {"encoder_output_stride": 32}, "8 or 16, as in SMP, got 32"),
        ("DeepLabV3Plus", {"decoder_atrous_rates": (6, 12)}, "three"),
        ("Unet", {"decoder_use_norm": "layernorm"}, "one of True, 'batchnorm', False, 'identity', got 'layernorm'"),
        ("Unet", {"decoder_use_norm": {"type": "batchnorm"}}, "got {'type': 'batchnorm'}"),
        ("Unet", {"decoder_attention_type": "scse"}, "only None"),
    ],
)
def test_an_unknown_argument_is_an_error_with_the_known_ones(architecture, options, message):
    with pytest.raises(ValueError, match=message):
        load_smp_checkpoint(TINY, architecture, "resnet18", num_classes=2, **options)


def test_a_missing_or_unexpected_tensor_is_named():
    weights = fpn_weights()
    weights["encoder.novel.weight"] = weights.pop("decoder.p5.weight")
    with pytest.raises(
        ValueError, match=r"1 missing, 1 unexpected; 'decoder.p5.weight' is .*'encoder.novel.weight' is"
    ):
        load_fpn(weights)


def test_one_channel_has_smps_logits_and_predicts_its_class_against_the_background():
    weights = {k: v[1:2] if k.startswith("segmentation_head.0") else v for k, v in fpn_weights().items()}
    model = load_fpn(weights, num_classes=1, class_names=["road"])
    with torch.inference_mode():
        logits = pick(model(draw_images()))
    assert relative_difference(logits, read_case(FPN_CASE)[1][:, 1:2]) < 1e-5
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(model.preprocessing(torch.from_numpy(photo).permute(2, 0, 1)[None]))[0, 0]
    prediction = model.predict(photo)
    np.testing.assert_allclose(prediction.probs[1], expected.sigmoid(), atol=1e-5)
    np.testing.assert_allclose(prediction.probs.sum(0), 1, atol=1e-6)
    assert np.array_equal(prediction.mask, expected > 0)
    assert prediction.class_names == ("background", "road")


def test_weights_that_are_not_finite_are_refused():
    weights = fpn_weights()
    weights["decoder.p5.bias"] = weights["decoder.p5.bias"] * torch.nan
    with pytest.raises(UsageError, match=r"the dict is damaged: 'decoder\.p5\.bias' holds values that are not finite"):
        load_fpn(weights)
