import json
import math
import os
from functools import partial

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import register_model

from segkit.errors import UsageError
from segkit.models import (
    DECODERS,
    Backbone,
    create_model,
    export_program,
    load_model,
    optimize,
    read_header,
    save_model,
)
from segkit.models.factory import modules_of
from segkit.models.model_file import describe_model
from segkit.models.preprocessing import Preprocessing
from segkit.sliding_window import SlidingWindow


def small_model():
    return create_model(
        "deeplabv3plus", backbone="mobilenetv3_small_100", class_names=["sky", "tree"], channels=16, output_stride=16
    ).eval()


def test_a_loaded_model_returns_the_same_logits_without_network(tmp_path, no_network):
    model, images = small_model(), torch.randn(1, 3, 65, 70)
    save_model(model, tmp_path / "m.safetensors", miou=0.5)
    loaded = load_model(tmp_path / "m.safetensors")
    with torch.inference_mode():
        assert torch.equal(model(images), loaded(images))
    assert loaded.class_names == ("sky", "tree")
    assert loaded.preprocessing == model.preprocessing
    assert not loaded.training
    assert read_header(tmp_path / "m.safetensors")["extra"] == {"miou": 0.5}


def test_a_model_file_keeps_the_category_ids_and_may_lack_them(tmp_path):
    model, file = small_model(), tmp_path / "m.safetensors"
    model.category_ids = {"sky": 0, "tree": "t"}
    save_model(model, file)
    assert load_model(file).category_ids == optimize(model, compile=False).category_ids == {"sky": 0, "tree": "t"}
    header = describe_model(model)
    for ids in ({"sky": 1.5}, ["sky"], {"sky": True}, None):
        save_file(model.state_dict(), file, metadata={"segkit": json.dumps(header | {"category_ids": ids})})
        with pytest.raises(UsageError, match="`category_ids` must be whole numbers or texts by class name"):
            load_model(file)
    del header["category_ids"]  # as in files of earlier versions
    save_file(model.state_dict(), file, metadata={"segkit": json.dumps(header)})
    assert load_model(file).category_ids == {}


def test_a_model_file_says_in_which_windows_it_was_validated_and_an_older_one_in_none(tmp_path):
    model, file = small_model(), tmp_path / "m.safetensors"
    for window in (None, SlidingWindow(64, above=2**24)):
        model.window = window
        save_model(model, file)
        assert load_model(file).window == optimize(model, compile=False).window == window
    header = describe_model(model)
    save_file(model.state_dict(), file, metadata={"segkit": json.dumps(header | {"window": 64})})
    with pytest.raises(UsageError, match=r"the header of .*m.safetensors cannot be used: `window` must have size"):
        load_model(file)
    del header["window"]
    save_file(model.state_dict(), file, metadata={"segkit": json.dumps(header)})
    assert load_model(file).window is None


def test_a_model_in_channels_last_is_saved(tmp_path):
    model = small_model().to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_a_run_folder_loads_its_best_model(tmp_path):
    save_model(small_model(), tmp_path / "best.safetensors")
    assert load_model(tmp_path).num_classes == 2


def test_saving_leaves_no_other_file_behind(tmp_path):
    save_model(small_model(), tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_a_model_file_has_the_permissions_of_other_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_model(small_model(), tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_without_our_header_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by segkit"):
        load_model(tmp_path / "other.safetensors")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"m\.safetensors is not a readable"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_model(tmp_path / name)


@pytest.mark.parametrize("header", ["{", "[1]", "null", '{"format": 1}'])
def test_a_damaged_header_is_named(tmp_path, header):
    save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"segkit": header})
    with pytest.raises(UsageError, match=r"m\.safetensors is damaged: its header"):
        load_model(tmp_path / "m.safetensors")


def with_weights(file, change):
    """Write a small model whose tensors `change` has changed, and return the file."""
    save_model(create_model("fpn", backbone="test_resnet", num_classes=2), file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata=metadata)
    return file


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 128, 1, 1), r"'head\.weight' has shape \(3, 128, 1, 1\), expected \(2, 128, 1, 1\)"),
        (torch.zeros(2, 128, 1, 1, dtype=torch.int8), r"'head\.weight' has values of torch\.int8"),
        (None, r"'head\.weight' is missing"),
    ],
)
def test_weights_that_do_not_fit_their_header_are_named(tmp_path, tensor, message):
    def change(weights):
        weights.pop("head.weight")
        if tensor is not None:
            weights["head.weight"] = tensor

    file = with_weights(tmp_path / "m.safetensors", change)
    with pytest.raises(UsageError, match=rf"m\.safetensors does not hold .* architecture: {message}"):
        load_model(file)


def test_a_tensor_that_the_model_does_not_have_is_named(tmp_path):
    file = with_weights(tmp_path / "m.safetensors", lambda weights: weights.update(more=torch.zeros(1)))
    with pytest.raises(UsageError, match="architecture: 'more' is unexpected"):
        load_model(file)


def test_weights_in_half_precision_load(tmp_path):
    file = with_weights(
        tmp_path / "m.safetensors",
        lambda weights: weights.update({k: v.half() for k, v in weights.items() if v.is_floating_point()}),
    )
    assert load_model(file).head.weight.dtype == torch.float32


def with_header(file, **changes):
    """Write a small model with a header that is changed, and return the file."""
    model = create_model("fpn", backbone="test_resnet", class_names=["sky", "tree"])
    header = {**describe_model(model), **changes}
    save_file(model.state_dict(), file, metadata={"segkit": json.dumps(header)})
    return file


GOOD = {"mean": [0.5] * 3, "std": [0.2] * 3, "input_range": [0, 1]}


def test_the_header_of_the_next_test_is_good_before_the_change(tmp_path):
    model = load_model(with_header(tmp_path / "m.safetensors", preprocessing=GOOD))
    assert model.preprocessing == Preprocessing((0.5,) * 3, (0.2,) * 3, (0, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessing": {}}, "`preprocessing` must have mean, std, input_range, got {}"),
        ({"preprocessing": None}, "`preprocessing` must have mean, std, input_range, got None"),
        ({"preprocessing": {k: v for k, v in GOOD.items() if k != "std"}}, "must have mean, std, input_range"),
        ({"preprocessing": {**GOOD, "std": [0.2, 0, 0.2]}}, "`std` must have a positive number for each of the 3"),
        ({"preprocessing": {**GOOD, "std": [0.2, math.nan, 0.2]}}, "`std` .* must be finite numbers"),
        ({"preprocessing": {**GOOD, "std": [0.2, 0.2]}}, "`std` must have a positive number for each of the 3"),
        ({"preprocessing": {**GOOD, "mean": [math.inf] * 3}}, "`mean` .* must be finite numbers"),
        ({"preprocessing": {**GOOD, "mean": ["0.5"] * 3}}, "`mean` .* must be finite numbers"),
        ({"preprocessing": {**GOOD, "mean": 0.5}}, "`mean` .* must be finite numbers"),
        ({"preprocessing": {**GOOD, "input_range": [1, 1]}}, "`input_range` must be two numbers"),
        ({"preprocessing": {**GOOD, "mean": [0.5], "std": [0.2]}}, "is for 1 channels, but the model has 3"),
        ({"class_names": ["sky", "sky"]}, "the same name twice: sky, sky"),
    ],
)
def test_a_header_that_would_predict_something_wrong_is_refused(tmp_path, changes, message):
    file = with_header(tmp_path / "m.safetensors", **changes)
    with pytest.raises(UsageError, match=rf"the header of .*m\.safetensors cannot be used: .*{message}"):
        load_model(file)


WRONG_FIELDS = [
    *({"format": value} for value in ("1", None, 1.0, [1], True, 0)),
    *({"class_names": value} for value in ("ab", {"a": 1}, 3, None, [], ["sky", 3])),
    *({"model": value} for value in (None, 3, "fpn", [], {}, {"name": "fpn"})),
    *({"extra": value} for value in (None, 3, [])),
    *({"modules": value} for value in ("os", 3, [3])),
]
WRONG_IN_MODEL = {
    "name": (None, 3, ["fpn"], {}),
    "backbone": (None, 3, ["test_resnet"]),
    "in_channels": (None, "3", 0, -1, 3.0, True),
    "output_stride": ("32", 0, [], 32.0),
    "img_size": (64, "64", [64], [64, 0], [64.5, 64], []),
    "aux_head": ("yes", 2, []),
    "align_corners": ("false", 0.5, {}),
    "pretrained": (True, "weights.pth"),
    "class_names": (["sky", "tree"],),
    "num_classes": (2,),
}


@pytest.mark.parametrize("changes", WRONG_FIELDS, ids=str)
def test_a_header_field_of_a_wrong_type_is_named(tmp_path, changes):
    file, (name,) = with_header(tmp_path / "m.safetensors", **changes), changes
    for read in (read_header, load_model):
        with pytest.raises(UsageError, match=rf"m\.safetensors is damaged: its header has {name}="):
            read(file)


@pytest.mark.parametrize("name", WRONG_IN_MODEL)
def test_an_argument_of_a_wrong_type_in_a_header_is_named(tmp_path, name):
    model = describe_model(create_model("fpn", backbone="test_resnet", class_names=["sky", "tree"]))["model"]
    for value in WRONG_IN_MODEL[name]:
        header = {"format": 1, "model": {**model, name: value}, "class_names": ["sky", "tree"], "preprocessing": GOOD}
        save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"segkit": json.dumps(header)})
        with pytest.raises(UsageError, match=rf"m\.safetensors is damaged: the `model` in its header has {name}="):
            load_model(tmp_path / "m.safetensors")


def test_arguments_that_a_header_of_an_older_version_lacks_have_their_defaults(tmp_path):
    model = describe_model(create_model("fpn", backbone="test_resnet", class_names=["sky", "tree"]))["model"]
    kept = {name: model[name] for name in ("name", "backbone", "output_stride")}
    assert load_model(with_header(tmp_path / "m.safetensors", model=kept)).num_classes == 2


@pytest.mark.parametrize(
    ("decoder", "option"),
    [("fpn", {"channels": "64"}), ("unet", {"channels": [math.nan] * 5}), ("deeplabv3plus", {"dropout": "x"})],
)
def test_a_decoder_option_of_a_wrong_type_in_a_header_is_named(tmp_path, decoder, option):
    header = {"format": 1, "class_names": ["sky", "tree"], "preprocessing": GOOD}
    header["model"] = {"name": decoder, "backbone": "test_resnet", **option}
    save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"segkit": json.dumps(header)})
    with pytest.raises(
        UsageError, match=rf"the header of .*m\.safetensors cannot be used: `{next(iter(option))}` must"
    ):
        load_model(tmp_path / "m.safetensors")


def test_files_of_torch_are_no_model_files(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "last.pt")
    (tmp_path / "smp.pth").write_bytes((tmp_path / "last.pt").read_bytes()[:500])
    for name in ("last.pt", "smp.pth"):
        with pytest.raises(UsageError, match=rf"{name} is not a model file of segkit; .*load_smp_checkpoint` reads"):
            load_model(tmp_path / name)
    save_model(create_model("fpn", backbone="test_resnet", num_classes=2), tmp_path / "best.safetensors")
    with pytest.raises(UsageError, match=rf"last\.pt is not .* the model of this run is {tmp_path}/best\.safe"):
        load_model(tmp_path / "last.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = create_model("fpn", backbone="test_resnet", class_names=["sky", "tree"])
    model.decoder.lateral[1].bias.data[3] = value
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"m\.safetensors is damaged: 'decoder\.lateral\.1\.bias' holds values"):
        load_model(tmp_path / "m.safetensors")
    backbone = {key: value.clone() for key, value in Backbone("test_resnet").net.state_dict().items()}
    backbone["conv1.0.weight"][0] = value
    save_file(backbone, tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match=r"b\.safetensors is damaged: .* not finite"):
        create_model("fpn", backbone="test_resnet", num_classes=2, pretrained=tmp_path / "b.safetensors")


def test_an_optimized_model_is_named_where_a_segmenter_is_needed(tmp_path):
    fast = optimize(create_model("fpn", backbone="test_resnet", num_classes=2), compile=False)
    for call in (optimize, export_program, partial(save_model, path=tmp_path / "m")):
        with pytest.raises(UsageError, match="a Segmenter, got a OptimizedSegmenter"):
            call(fast)
    assert not list(tmp_path.iterdir())


def test_the_modules_of_a_model_are_the_ones_outside_of_segkit_and_timm(monkeypatch):
    @register_model
    def segkit_test_backbone(pretrained=False, **options):
        return timm.create_model("test_resnet", pretrained=pretrained, **options)

    monkeypatch.setitem(DECODERS, "mine", type("Mine", (DECODERS["fpn"],), {"__module__": "one.two"}))
    assert modules_of("fpn", "tf_efficientnet_b3.ns_jft_in1k") == modules_of("unet", "smp:resnet18") == []
    assert modules_of("fpn", "segkit_test_backbone") == [__name__]
    assert modules_of("mine", "segkit_test_backbone") == ["one.two", __name__]
    model = create_model("mine", backbone="segkit_test_backbone", num_classes=2)
    assert describe_model(model)["modules"] == ["one.two", __name__]
    assert "modules" not in describe_model(create_model("fpn", backbone="test_resnet", num_classes=2))


def test_a_model_defined_in_a_script_says_that_it_needs_a_module(tmp_path):
    file = with_header(tmp_path / "m.safetensors", model={"name": "mine", "backbone": "x"}, modules=["__main__"])
    with pytest.raises(UsageError, match=r"from __main__\. .*code of a script has to move into a module first"):
        load_model(file)


@pytest.mark.parametrize("path", [None, 3])
def test_what_is_no_path_is_named(path):
    with pytest.raises(UsageError, match="a model file must be a path, got "):
        load_model(path)


def test_the_rules_of_the_training_data_are_stored_and_older_files_lack_them(tmp_path):
    model, path = small_model(), tmp_path / "m.safetensors"
    model.data_rules = {"overlap": "last", "ignore_classes": ["tree"]}
    save_model(model, path)
    assert load_model(path).data_rules == read_header(path)["data_rules"] == model.data_rules
    header = read_header(path)
    for stored, expected in (({}, {}), ({"data_rules": None}, None), ({"data_rules": [1]}, None)):
        other = {key: value for key, value in header.items() if key != "data_rules"} | stored
        save_file(load_file(path), path, metadata={"segkit": json.dumps(other)})
        if expected is None:
            with pytest.raises(UsageError, match=r"the header of .* cannot be used: `data_rules` must be settings"):
                load_model(path)
        else:
            assert load_model(path).data_rules == expected
