import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from helpers.tiny_onnx import Tiny, write_tiny
from helpers.tiny_training import Drawn

from segkit.errors import MissingPackageError, NotFiniteError, UsageError
from segkit.models import load_model, quantize, quantize_onnx
from segkit.models.quantize import Calibration

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a trained model and its ONNX file."""
    model, path = Tiny(), tmp_path_factory.mktemp("tiny") / "float.onnx"
    write_tiny(path, model)
    return model, path


def inputs(model, count=6, seed=1):
    data = Drawn(count, seed)
    return [model.preprocessing(data.image(i)) for i in range(count)]


def metadata_of(path):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def test_int8_labels_are_those_of_float_at_any_size(tiny, tmp_path):
    model, path = tiny
    photographs = inputs(model)
    photographs[0] = photographs[0][..., :17, :31]  # photographs of several sizes calibrate together
    quantize_onnx(path, tmp_path / "int8.onnx", photographs)
    loaded = load_model(tmp_path / "int8.onnx")
    for images in (*inputs(model, seed=2), torch.cat(inputs(model, 2, seed=3))[..., :9, :23]):
        logits, expected = loaded(images), model(images)
        assert logits.shape == expected.shape
        assert 0 < (logits - expected).abs().max() < 0.1 * expected.abs().max()
        assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.98


def test_weights_are_int8_that_cannot_saturate_and_maps_uint8(tiny, tmp_path):
    model, path = tiny
    quantize_onnx(path, tmp_path / "int8.onnx", inputs(model))
    graph = onnx.load(tmp_path / "int8.onnx").graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [array.astype(int) for array in arrays.values() if array.dtype == np.int8 and array.ndim == 4]
    assert len(weights) == 2
    for weight in weights:
        of_channels = [weight[i].transpose(1, 2, 0).ravel() for i in range(len(weight))]
        assert all(np.abs(channel).max() > 50 for channel in of_channels)
        # `vpmaddubsw` adds the products of neighbours in 16 bits.
        pairs = np.array(
            [np.append(channel, 0)[: (len(channel) + 1) // 2 * 2].reshape(-1, 2) for channel in of_channels]
        )
        assert 255 * np.maximum(pairs, 0).sum(-1).max() <= 32767
        assert 255 * np.minimum(pairs, 0).sum(-1).min() >= -32768
    scales = [arrays[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert sorted(scale.size for scale in scales if scale.ndim) == [3, 3, 8, 8]  # of weights and biases
    of_maps = [arrays[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert of_maps
    assert set(of_maps) == {np.dtype(np.uint8)}


@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 5, 1, 1), (4, 1, 3, 3), (4, 2, 5, 5)])
def test_the_range_of_weights_leaves_room_for_two_products(shape):
    from onnx import helper

    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [], [], [onnx.numpy_helper.from_array(weight, "w")])
    (ranges,) = quantize._ranges_of_weights(helper.make_model(graph)).values()
    for channel, limits in zip(weight, ranges, strict=True):
        assert limits["rmin"] == -limits["rmax"]
        assert limits["rmax"] >= np.abs(channel).max() * 0.99
        steps = np.rint(channel / (limits["rmax"] / 127)).transpose(1, 2, 0).ravel()
        pairs = np.append(steps, 0)[: (len(steps) + 1) // 2 * 2].reshape(-1, 2)
        assert 100 < max(np.maximum(pairs, 0).sum(1).max(), np.maximum(-pairs, 0).sum(1).max()) <= 128


def test_metadata_survive_and_say_how_the_file_was_quantised(tiny, tmp_path):
    model, path = tiny
    calibration = quantize_onnx(path, tmp_path / "int8.onnx", inputs(model), float_layers=["second"])
    before, after = metadata_of(path), metadata_of(tmp_path / "int8.onnx")
    about = after.pop("quantization")
    assert after == before
    assert (about["images"], about["float_layers"]) == (6, ["second"])
    assert (about["activations"], about["weights"], about["saturates"]) == ("uint8", "int8", False)
    calibration.write(tmp_path / "again.onnx", facts={"seed": 3})
    assert metadata_of(tmp_path / "again.onnx")["quantization"]["seed"] == 3
    loaded = load_model(tmp_path / "int8.onnx")
    assert loaded.class_names == model.class_names
    assert loaded.preprocessing == model.preprocessing
    assert loaded.category_ids == model.category_ids
    assert loaded.data_rules == model.data_rules
    value = onnx.load(tmp_path / "int8.onnx").graph.input[0]
    assert [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] == [
        *("batch", 3, "height", "width")
    ]


def test_layers_stay_in_float_and_the_damaging_one_ranks_first(tmp_path):
    model = Tiny()
    # A channel that is always 0 has large weights: without effect in float, but in int8 the others share their steps.
    model.first.weight[0], model.first.bias[0], model.second.weight[:, 0] = 0, -1, 300
    write_tiny(tmp_path / "float.onnx", model)
    photographs = inputs(model)
    calibration = Calibration(tmp_path / "float.onnx", photographs)
    assert calibration.layers == ("first", "second")
    assert calibration.groups(5) == ["first", "second"]
    ranked = calibration.rank(photographs[:2], ["first", "second"])
    assert [name for name, _ in ranked] == ["second", "first"]
    assert ranked[0][1] < 0.5
    calibration.write(tmp_path / "int8.onnx", float_layers=["second"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert kinds.count("Conv") == 2
    with pytest.raises(UsageError, match="no layer 'third' with weights; it has first, second"):
        calibration.content(float_layers=["third"])
    with pytest.raises(UsageError, match="nothing is left"):
        calibration.content(float_layers=["first", "second"])


def test_groups_follow_the_modules_and_cover_every_layer(tiny):
    calibration = Calibration(tiny[1], inputs(tiny[0], 1))
    calibration.layers = ("net.stem", "net.blocks.0.a", "net.blocks.0.b", "net.blocks.1.a", "head.conv")
    assert calibration.groups(3) == ["net.stem", "net.blocks", "head.conv"]
    assert calibration.groups(4) == ["net.stem", "net.blocks.0", "net.blocks.1.a", "head.conv"]
    assert calibration.groups(9) == list(calibration.layers)


def test_files_and_images_that_cannot_be_used_are_named(tiny, tmp_path):
    model, path = tiny
    other = tmp_path / "other.onnx"
    with pytest.raises(UsageError, match="needs photographs"):
        Calibration(path, [])
    with pytest.raises(UsageError, match=r"must be tensors \(N, 3, H, W\)"):
        Calibration(path, [np.zeros((4, 4, 3))])
    with pytest.raises(NotFiniteError, match="image 2 of the calibration"):
        Calibration(path, [*inputs(model, 1), torch.full((1, 3, 8, 8), torch.nan)])
    quantize_onnx(path, other, inputs(model))
    with pytest.raises(UsageError, match="is an int8 model already"):
        Calibration(other, inputs(model))
    write_tiny(other, model, with_header=False)
    with pytest.raises(UsageError, match="was not exported by segkit"):
        Calibration(other, inputs(model))
    write_tiny(other, model, opset=12)
    with pytest.raises(UsageError, match="has opset 12"):
        Calibration(other, inputs(model))
    other.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="is not an ONNX file, or it is damaged"):
        Calibration(other, inputs(model))


def test_missing_packages_are_named_with_the_command_that_installs_them(tiny, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MissingPackageError, match=r"pip install onnxruntime$"):
        quantize_onnx(tiny[1], "int8.onnx", [])


def test_segkit_loads_without_the_packages(monkeypatch):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "segkit.models.quantize", raising=False)
    importlib.import_module("segkit.models.quantize")
