import copy
import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.onnx_files import CLASSES, Pointwise, header_of, write_onnx

import segkit
from segkit import SlidingWindow
from segkit.errors import MachineError, MissingPackageError, UsageError
from segkit.inference import Predictor
from segkit.models import OnnxModel, create_model, load_model, optimize, read_header, save_model, transfer_weights
from segkit.models.onnx_model import import_onnxruntime
from segkit.training_scale import TrainingScale
from segkit.tta import TTA

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

GIVEN = {"class_names": CLASSES, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a model of torch and its file."""
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    return write_onnx(path), path


def photograph(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_file_is_a_model_with_the_face_of_a_segmenter(written):
    model, path = written
    loaded = segkit.load_model(path)
    assert isinstance(loaded, OnnxModel)
    assert loaded.path == path
    assert (loaded.class_names, loaded.num_classes) == (CLASSES, 3)
    assert loaded.preprocessing == model.preprocessing
    assert loaded.training_scale == model.training_scale
    assert (loaded.config, loaded.category_ids, loaded.data_rules) == (None, {}, {})
    assert not list(loaded.parameters())
    assert not loaded.state_dict()
    assert loaded.device == torch.device("cpu")
    assert not loaded.training


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 33, 5), (2, 97, 131)])
def test_logits_are_equal_to_torch_at_any_size_and_in_any_memory_format(written, size):
    model, path = written
    images = torch.randn(size[0], 3, *size[1:])
    logits = load_model(path)(images)
    assert logits.dtype == torch.float32
    assert_same(logits, model(images))
    assert_same(load_model(path)(images.to(memory_format=torch.channels_last)), model(images))


def test_no_images_are_no_logits(written):
    assert load_model(written[1])(torch.zeros(0, 3, 4, 5)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("images", [torch.zeros(1, 4, 8, 8), torch.zeros(3, 8, 8), np.zeros((1, 3, 8, 8), np.float32)])
def test_images_of_another_shape_are_refused_as_by_a_segmenter(written, images):
    with pytest.raises(UsageError, match=r"a model takes normalised images \(N, 3, H, W\) float, got"):
        load_model(written[1])(images)


def test_a_file_predicts_photographs_as_its_model_does(written):
    model, path = written
    loaded, photo = load_model(path), photograph()
    alone = loaded.predict(photo)
    np.testing.assert_array_equal(alone.mask, Predictor(model)(photo).mask)
    for options in (
        {"tta": TTA(scales=(0.75, 1.0), flips="d4")},
        {"window": SlidingWindow(16)},
        {"crf": lambda probs, image: probs.flip(0)},
    ):
        ours, theirs = Predictor(loaded, **options)(photo), Predictor(model, **options)(photo)
        np.testing.assert_allclose(ours.probs, theirs.probs, atol=1e-5)


def test_a_file_and_a_model_of_torch_make_an_ensemble(written, tmp_path):
    model, path = written
    other = write_onnx(tmp_path / "other.onnx", Pointwise(seed=1))
    photo = photograph()
    options = {"member_weights": [2, 1], "tta": TTA(flips="h")}
    expected = Predictor([model, other], **options)(photo).probs
    np.testing.assert_allclose(Predictor([load_model(path), other], **options)(photo).probs, expected, atol=1e-5)


def test_photographs_are_resized_to_the_training_scale(tmp_path):
    model = write_onnx(tmp_path / "m.onnx", Pointwise(scale=TrainingScale(size=(20, 30))))
    loaded = load_model(tmp_path / "m.onnx")
    assert loaded.training_scale == TrainingScale(size=(20, 30))
    np.testing.assert_allclose(loaded.predict(photograph()).probs, Predictor(model)(photograph()).probs, atol=1e-5)


def test_a_file_of_an_older_segkit_has_unknown_ids_and_rules(tmp_path):
    header = header_of(Pointwise())
    for name in ("category_ids", "data_rules", "training_scale"):
        del header[name]
    write_onnx(tmp_path / "m.onnx", header=header)
    loaded = load_model(tmp_path / "m.onnx")
    assert (loaded.category_ids, loaded.data_rules, loaded.training_scale) == ({}, {}, TrainingScale())


def test_logits_that_are_not_finite_are_an_error(tmp_path):
    model = Pointwise()
    model.conv.bias[1] = torch.nan
    write_onnx(tmp_path / "m.onnx", model)
    with pytest.raises(FloatingPointError, match="not finite"):
        load_model(tmp_path / "m.onnx").predict(photograph())


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_predicts_alike(written, twin_of):
    loaded, images = load_model(written[1]), torch.randn(1, 3, 8, 9)
    twin = twin_of(loaded)
    twin.class_names = ("a", "b", "c")
    assert loaded.class_names == CLASSES
    torch.testing.assert_close(twin(images), loaded(images), rtol=0, atol=0)


def test_a_file_is_only_for_inference(written, tmp_path):
    loaded = load_model(written[1])
    with pytest.raises(UsageError, match=r"m\.onnx is only for inference"):
        loaded.train()
    with pytest.raises(UsageError, match="copy the ONNX file itself"):
        save_model(loaded, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"m\.onnx has no weights to start from"):
        transfer_weights(create_model("fpn", backbone="resnet18", num_classes=3), written[1])


def test_optimize_returns_a_file_as_it_is(written):
    loaded = load_model(written[1])
    assert optimize(loaded) is loaded
    with pytest.raises(UsageError, match="computes in the type that it was exported with"):
        optimize(loaded, dtype=torch.bfloat16)


def test_onnxruntime_gets_the_threads_of_torch(written, monkeypatch):
    import onnxruntime

    threads, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **more: threads.append(options.intra_op_num_threads) or session(path, options, **more),
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    load_model(written[1])
    assert threads == [3]


def test_a_device_that_onnxruntime_does_not_have_is_named(written):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(UsageError, match=r"an ONNX file runs on cpu or cuda, not on `device=meta`"):
        load_model(written[1]).to("meta")
    from segkit.models import onnx_model

    with pytest.raises(UsageError, match=r"`device=cuda`: the installed onnxruntime has no CUDA; .* `device=cpu`"):
        onnx_model._open_session(written[1], torch.device("cuda"))


# Files of other programs


def test_a_file_of_another_program_needs_what_only_the_caller_knows(tmp_path):
    path = tmp_path / "other.onnx"
    model = write_onnx(path, header=None)
    with pytest.raises(
        UsageError, match=r"other\.onnx was not written by segkit, .* give `class_names`, `mean` and `std`"
    ):
        load_model(path)
    with pytest.raises(UsageError, match="also mean and std"):
        load_model(path, class_names=CLASSES)
    loaded = load_model(path, **GIVEN)
    np.testing.assert_array_equal(loaded.predict(photograph()).mask, Predictor(model)(photograph()).mask)
    assert read_header(path, **GIVEN)["class_names"] == list(CLASSES)


def test_a_file_of_segkit_takes_nothing_that_it_says_itself(written, tmp_path):
    for path in (written[1], tmp_path / "m.safetensors"):
        if path.suffix == ".safetensors":
            model = create_model("fpn", backbone="resnet18", num_classes=3, pyramid_channels=16, channels=16)
            save_model(model, path)
        with pytest.raises(UsageError, match="already has a value for `mean`, `std`"):
            load_model(path, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_names": ("a", "b")}, r"returns 3 channels, but `class_names` has 2 names: a, b"),
        ({"class_names": ("a", "b", "b")}, "the same name twice"),
        ({"class_names": "abc"}, "must be a list of names"),
        ({"mean": (123.7, 116.3, 103.5)}, r"belong to images in 0..1, .* divide those of images in 0..255 by 255"),
        (
            {"mean": (0.5,), "std": (0.5,)},
            r"takes images \(batch, 3, height, width\) tensor\(float\); expected .* \(N, 1,",
        ),
        ({"std": (0.5, 0.5)}, "`std` must have a positive number for each of the 3 channels"),
        ({"mean": 0.5}, "`mean` of the preprocessing must be finite numbers"),
    ],
)
def test_a_wrong_word_about_a_file_of_another_program_is_refused(tmp_path, given, message):
    write_onnx(tmp_path / "other.onnx", header=None)
    with pytest.raises(UsageError, match=message):
        load_model(tmp_path / "other.onnx", **{**GIVEN, **given})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": [("Softmax", {"axis": 1})]}, "returns probabilities, expected logits"),
        ({"tail": [("ArgMax", {"axis": 1})]}, r"returns logits .*int64.*; expected logits \(N, 3, H, W\) float"),
        ({"tail": [("Flatten", {"axis": 2})]}, r"returns \(6, 6144\) for images|expected logits"),
        (
            {"sides": ("n", "h", "w", 3), "front": [("Transpose", {"perm": [0, 3, 1, 2]})]},
            r"takes images \(n, h, w, 3\) tensor\(float\); expected normalised images",
        ),
        (
            {"sides": (3, "h", "w"), "opset": 12, "front": [("Unsqueeze", {"axes": [0]})]},
            r"takes images \(3, h, w\)",
        ),
    ],
)
def test_a_file_that_returns_no_logits_or_takes_no_images_is_refused(tmp_path, options, message):
    write_onnx(tmp_path / "other.onnx", header=None, **options)
    with pytest.raises(UsageError, match=message):
        load_model(tmp_path / "other.onnx", **GIVEN)


def test_a_sigmoid_at_the_end_of_a_binary_model_is_found(tmp_path):
    write_onnx(tmp_path / "other.onnx", Pointwise(("car",)), header=None, tail=[("Sigmoid", {})])
    with pytest.raises(UsageError, match="returns probabilities, expected logits"):
        load_model(tmp_path / "other.onnx", **{**GIVEN, "class_names": ("car",)})


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid"])
def test_our_file_to_which_a_tool_has_added_probabilities_is_refused(tmp_path, operator):
    write_onnx(tmp_path / "m.onnx", tail=[(operator, {})])
    with pytest.raises(UsageError, match="returns probabilities, expected logits"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_filled(tmp_path, batch):
    model = write_onnx(tmp_path / "m.onnx", sides=(batch, 3, "h", "w"))
    images = torch.randn(3, 3, 8, 9)
    assert_same(load_model(tmp_path / "m.onnx")(images), model(images))


def test_fixed_sizes_take_images_of_that_size_only(tmp_path):
    model = write_onnx(tmp_path / "m.onnx", sides=("n", 3, 16, 24))
    loaded, images = load_model(tmp_path / "m.onnx"), torch.randn(1, 3, 16, 24)
    assert_same(loaded(images), model(images))
    with pytest.raises(UsageError, match=r"takes images of 16 x 24 pixels \(height x width\) only, got 24 x 16"):
        loaded(images.mT)


def test_a_file_in_half_precision_takes_float32(tmp_path):
    model = write_onnx(tmp_path / "m.onnx", kind=10)
    images = torch.randn(2, 3, 8, 9)
    logits = load_model(tmp_path / "m.onnx")(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(images), rtol=1e-2, atol=1e-2)


def test_logits_of_a_smaller_map_are_resized_to_the_image(tmp_path):
    tail = [("AveragePool", {"kernel_shape": [4, 4], "strides": [4, 4]})]
    model = write_onnx(tmp_path / "m.onnx", tail=tail)
    images = torch.randn(1, 3, 16, 24)
    pooled = torch.nn.functional.avg_pool2d(model(images), 4)
    expected = torch.nn.functional.interpolate(pooled, size=(16, 24), mode="bilinear")
    assert_same(load_model(tmp_path / "m.onnx")(images), expected)


# Files that cannot be used


@pytest.mark.parametrize("chosen", [None, "0"])
def test_onnxruntime_reports_nothing_to_its_maker_unless_the_user_wants_it(monkeypatch, chosen):
    imported = []

    class Finder:
        def find_spec(self, name, *more):
            if name == "onnxruntime":
                imported.append(os.environ.get("ORT_DISABLE_TELEMETRY"))  # onnxruntime reads it when it is imported

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [Finder()])
    with pytest.raises(MissingPackageError):
        import_onnxruntime()
    assert imported == [chosen or "1"]


def test_segkit_imports_onnxruntime_in_one_place_only():
    modules = Path(segkit.__file__).parent.rglob("*.py")
    by_statement = re.compile(r"^\s*(import onnxruntime|from onnxruntime import)", re.MULTILINE)
    found = [path.name for path in modules if by_statement.search(path.read_text(encoding="utf-8"))]
    assert sorted(found) == ["onnx_model.py", "quantize.py"]  # for annotations, under TYPE_CHECKING


def test_a_missing_or_old_onnxruntime_is_named_with_its_command(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install onnxruntime$"):
        load_model(written[1])
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.17.3"))
    with pytest.raises(MissingPackageError, match=r"onnxruntime 1\.17\.3 is too old, .* pip install -U onnxruntime$"):
        load_model(written[1])
    assert read_header(written[1])["class_names"] == list(CLASSES)


def test_an_onnxruntime_that_cannot_be_imported_is_not_called_missing(written, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libother.so.1 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(MissingPackageError, match=r"cannot be imported \(libother.* pip install --force-reinstall"):
        load_model(written[1])


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_named(written, tmp_path, share):
    content = written[1].read_bytes()
    (tmp_path / "m.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"m\.onnx is (cut off|not an ONNX file, or is damaged)"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"PK\x03\x04" * 50, b"\x80\x02}q\x00."])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UsageError, match=r"m\.onnx is not an ONNX file, or is damaged"):
        load_model(tmp_path / "m.onnx")


def test_a_model_file_with_the_wrong_suffix_is_named(tmp_path):
    model = create_model("fpn", backbone="resnet18", num_classes=3, pyramid_channels=16, channels=16)
    save_model(model, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"m\.onnx is not an ONNX file, or is damaged"):
        load_model(tmp_path / "m.onnx")


def test_weights_in_a_missing_file_are_named(written, tmp_path):
    import onnx

    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(onnx.load(written[1]), tmp_path / "m.onnx", **options)
    load_model(tmp_path / "m.onnx")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:5])
    with pytest.raises(UsageError, match=r"its weights in weights\.bin, which is cut off or belongs to another file"):
        load_model(tmp_path / "m.onnx")
    weights.unlink()
    with pytest.raises(UsageError, match=r"m\.onnx keeps its weights in weights\.bin, which is not in the same folder"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("fields", [{"opset": 99}, {"ir_version": 99}])
def test_a_file_that_is_too_new_asks_for_an_update(written, tmp_path, fields):
    import onnx

    content = onnx.load(written[1])
    content.opset_import[0].version = fields.get("opset", 18)
    content.ir_version = fields.get("ir_version", 8)
    onnx.save(content, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"m\.onnx needs a newer onnxruntime than .*: pip install -U onnxruntime"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2; this segkit reads up to 1, update it"),
        ({"class_names": []}, "its header has class_names"),
        ({"class_names": ["a", "a", "b"]}, "the same name twice"),
        ({"class_names": ["a", "b"]}, "returns 3 channels, but `class_names` has 2 names"),
        ({"preprocessing": {"mean": [0.5] * 3}}, "`preprocessing` must have mean, std, input_range"),
        ({"model": 3}, "its header has model=3"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, change, message):
    write_onnx(tmp_path / "m.onnx", header={**header_of(Pointwise()), **change})
    with pytest.raises(UsageError, match=message):
        load_model(tmp_path / "m.onnx").predict(photograph())


def test_the_reason_of_onnxruntime_is_one_line_without_its_source(tmp_path):
    write_onnx(tmp_path / "m.onnx", tail=[("NoSuchOperator", {})])
    with pytest.raises(UsageError, match=r"^onnxruntime \S+ cannot load \S+m\.onnx: .*NoSuchOperator") as caught:
        load_model(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert "/onnxruntime/core" not in str(caught.value)


def test_memory_that_runs_out_is_not_blamed_on_the_file(written, monkeypatch):
    loaded = load_model(written[1])

    def run(*arguments):
        raise Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer")

    loaded._session = SimpleNamespace(run=run)
    with pytest.raises(MachineError, match="memory ran out"):
        loaded(torch.zeros(1, 3, 8, 8))


def test_metadata_is_read_from_a_file_of_any_writer(tmp_path):
    import onnx

    write_onnx(tmp_path / "m.onnx", header=header_of(Pointwise()))
    content = onnx.load(tmp_path / "m.onnx")
    content.doc_string = "x" * 300
    onnx.helper.set_model_props(content, {"segkit": content.metadata_props[0].value, "long": "ü" * 5000, "none": ""})
    onnx.save(content, tmp_path / "m.onnx")
    from segkit.models.onnx_file import read_metadata

    metadata = read_metadata(tmp_path / "m.onnx")
    assert metadata == {entry.key: entry.value for entry in content.metadata_props}
    assert json.loads(metadata["segkit"])["format"] == 1
