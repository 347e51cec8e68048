"""transfer_weights copies everything except the classes that the other model lacks."""

import pytest
import torch

from segkit.models import create_model, save_model, transfer_weights
from segkit.models.preprocessing import Preprocessing


def model(names, seed, **options):
    torch.manual_seed(seed)
    options = {"channels": 8, "pyramid_channels": 8, **options}
    built = create_model("fpn", backbone="test_resnet", class_names=names, pretrained=False, **options)
    torch.nn.init.normal_(built.head.bias)
    return built


@pytest.mark.parametrize("names", [("glass", "sky", "tree"), ("tree", "sky"), ("tree", "water")])
def test_classes_are_matched_by_name_and_new_ones_keep_their_initial_weights(tmp_path, names):
    heads = {"aux_head": True, "image_head": True}
    source, target, untouched = model(("sky", "tree"), 0, **heads), model(names, 1, **heads), model(names, 1, **heads)
    source.preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3))
    save_model(source, tmp_path / "m.safetensors")
    assert transfer_weights(target, tmp_path / "m.safetensors") == [n for n in names if n not in ("sky", "tree")]
    backbones = target.backbone.state_dict(), source.backbone.state_dict()
    assert all(torch.equal(value, backbones[1][key]) for key, value in backbones[0].items())
    for layer in (lambda m: m.head, lambda m: m.aux_head[-1], lambda m: m.image_head[-1]):
        for i, name in enumerate(names):
            origin, row = (source, ("sky", "tree").index(name)) if name in ("sky", "tree") else (untouched, i)
            assert torch.equal(layer(target).weight[i], layer(origin).weight[row])
            assert torch.equal(layer(target).bias[i], layer(origin).bias[row])
    assert torch.equal(target.aux_head[0][0].weight, source.aux_head[0][0].weight)
    assert target.preprocessing == source.preprocessing


def test_a_model_with_the_same_classes_returns_the_same_logits(tmp_path):
    source, target = model(("sky", "tree"), 0), model(("sky", "tree"), 1)
    save_model(source, tmp_path / "m.safetensors")
    assert transfer_weights(target, tmp_path / "m.safetensors") == []
    images = torch.randn(1, 3, 32, 40)
    assert torch.equal(source.eval()(images), target.eval()(images))


@pytest.mark.parametrize("with_head", ["source", "target"])
def test_an_auxiliary_head_of_only_one_model_is_ignored(tmp_path, with_head):
    source = model(("sky", "tree"), 0, aux_head=with_head == "source")
    target = model(("sky", "tree"), 1, aux_head=with_head == "target")
    untouched = model(("sky", "tree"), 1, aux_head=with_head == "target")
    save_model(source, tmp_path / "m.safetensors")
    assert transfer_weights(target, tmp_path / "m.safetensors") == []
    assert torch.equal(target.head.weight, source.head.weight)
    if with_head == "target":
        assert torch.equal(target.aux_head[-1].weight, untouched.aux_head[-1].weight)


def test_tuple_options_equal_the_lists_in_a_file(tmp_path):
    options = {"backbone": "resnet18", "num_classes": 2, "channels": (16, 16, 8, 8, 8)}
    save_model(create_model("unet", **options), tmp_path / "m.safetensors")
    assert transfer_weights(create_model("unet", **options), tmp_path / "m.safetensors") == []


def test_another_architecture_is_refused_and_the_difference_is_named(tmp_path):
    save_model(model(("sky",), 0, channels=16), tmp_path / "m.safetensors")
    target = model(("sky",), 1)
    before = target.head.weight.clone()
    with pytest.raises(ValueError, match=r"another architecture: channels is 16 there, 8 here$"):
        transfer_weights(target, tmp_path / "m.safetensors")
    assert torch.equal(target.head.weight, before)
