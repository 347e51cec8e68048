"""ONNX files and `engine=onnx` in the workflows."""

import csv
import json
import os
import shutil
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.commands import fails
from helpers.many_ranks import on_ranks
from helpers.onnx_files import Pointwise, write_onnx
from PIL import Image
from torch import nn

import segkit
from segkit.cli import evaluate, export, infer
from segkit.errors import MissingPackageError, UsageError
from segkit.inference import Clock
from segkit.models import DECODERS, OnnxModel, create_model, load_model, onnx_cache, read_header, save_model
from segkit.workflows import predictors

NAMES = ("background", "square", "disc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder of the ONNX cache, in an empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "segkit" / "onnx"


@pytest.fixture
def exports(exported, monkeypatch):
    """Make an export copy the file that was exported for all tests; return the models that were exported."""
    done = []

    def export_onnx(model, path):
        done.append(model)
        shutil.copy(exported[1], path)

    for module in (onnx_cache, predictors):
        monkeypatch.setattr(module, "export_onnx", export_onnx)
    return done


@pytest.fixture(scope="module")
def photographs(shapes):
    return shapes[1].parent / "images"


def masks(folder):
    return {file.name: np.array(Image.open(file)) for file in sorted((folder / "mask").glob("*.png"))}


def assert_same_masks(one, other):
    one, other = masks(one), masks(other)
    assert one.keys() == other.keys()
    assert one
    for name, mask in one.items():
        assert (mask == other[name]).mean() > 0.999
        assert len(np.unique(mask)) > 1


# An ONNX file instead of a model


def test_evaluate_of_a_model_and_of_its_file_agree(exported, shapes, tmp_path):
    settings = {"data": shapes[1], "device": "cpu", "flips": "h", "mask_cache": "off"}
    result = segkit.evaluate(weights=exported[1], compare=exported[0], out=tmp_path / "e", **settings)
    assert result.scores["miou"] > 0
    assert max(abs(row["difference"]) for row in result.differences) < 1e-4
    alone = segkit.evaluate(weights=load_model(exported[1]), out=tmp_path / "f", **settings)
    assert alone.scores == result.scores


def test_predict_by_an_ensemble_of_a_model_and_its_file(exported, photographs, tmp_path, capsys):
    settings = {"source": photographs / "val*.png", "device": "cpu", "save": "mask", "window": 32}
    segkit.predict(weights=[exported[0], exported[0]], out=tmp_path / "torch", **settings)
    mixed = [exported[1], load_model(exported[0])]
    segkit.predict(weights=mixed, out=tmp_path / "mixed", verbose=True, **settings)
    assert_same_masks(tmp_path / "torch", tmp_path / "mixed")
    printed = capsys.readouterr().out
    assert "engine onnxruntime" in printed
    assert "; torch for models that are no ONNX files" in printed


def test_the_other_workflows_take_a_file(exported, shapes, photographs, tmp_path):
    result = segkit.tune(
        weights=[exported[1], exported[0]],
        data=shapes[1],
        folds=2,
        flips="none",
        scales=1.0,
        device="cpu",
        mask_cache="off",
        out=tmp_path / "t",
    )
    assert 0 <= result.held_out_miou <= 1
    segkit.predict(
        weights=exported[1],
        source=photographs / "val*.png",
        save="pseudo",
        pseudo_threshold=0,
        device="cpu",
        out=tmp_path / "p",
    )
    assert len(json.loads((tmp_path / "p" / "pseudo.json").read_text())["images"]) == 4


def test_results_continue_with_the_same_file_only(exported, photographs, tmp_path):
    settings = {"source": photographs / "val*.png", "device": "cpu", "save": "mask", "out": tmp_path / "o"}
    file = shutil.copy(exported[1], tmp_path / "m.onnx")
    segkit.predict(weights=file, **settings)
    segkit.predict(weights=file, skip_existing=True, **settings)
    with open(file, "ab") as stream:
        stream.write(b"\x32\x00")  # an empty doc_string
    with pytest.raises(UsageError, match="other weights made its results"):
        segkit.predict(weights=file, skip_existing=True, **settings)


def test_what_only_torch_can_do_is_refused_for_a_file(exported, shapes, tmp_path, capsys):
    assert fails(infer, "--weights", exported[1], "--compile", "--source", shapes[1].parent / "images") == 2
    assert "is run by onnxruntime, so --compile and --amp do not go with it" in capsys.readouterr().err
    assert fails(export, exported[1], "--onnx", tmp_path / "again.onnx") == 2
    assert "m.onnx is an ONNX file already" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is an ONNX file already"):
        segkit.export(load_model(exported[1]), tmp_path / "again.onnx")
    with pytest.raises(UsageError, match=r"m\.onnx has no weights to start from"):
        segkit.train(data=shapes[0], val=shapes[1], init_from=exported[1], out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_missing_onnxruntime_is_one_sentence(exported, photographs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert fails(infer, "--weights", exported[1], "--source", photographs) == 2
    assert capsys.readouterr().err == (
        "segkit infer: error: an ONNX file needs onnxruntime to run: pip install onnxruntime\n"
    )


# Files of other programs


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Return an ONNX file without metadata, its model of torch, a file of its class names, and settings for it."""
    folder = tmp_path_factory.mktemp("other")
    model = write_onnx(folder / "other.onnx", Pointwise(NAMES), header=None)
    (folder / "names.txt").write_text("\n".join(NAMES))
    settings = {
        "class_names": folder / "names.txt",
        "mean": model.preprocessing.mean,
        "std": model.preprocessing.std,
        "device": "cpu",
    }
    return folder / "other.onnx", model, settings


def words(settings):
    listed = {name: value if isinstance(value, tuple) else (value,) for name, value in settings.items()}
    return [word for name, values in listed.items() for word in (f"--{name.replace('_', '-')}", *values)]


def test_a_file_of_another_program_predicts_with_what_the_user_says(other, photographs, tmp_path):
    file, model, settings = other
    source = photographs / "val*.png"
    infer.main([str(word) for word in ["--weights", file, "--source", source, "--out", tmp_path, *words(settings)]])
    predictor = segkit.Predictor(model)
    for name, mask in masks(tmp_path).items():
        np.testing.assert_array_equal(mask, predictor(photographs / name).mask)
    with (tmp_path / "manifest.csv").open() as stream:
        assert {f"share/{name}" for name in NAMES} <= next(csv.DictReader(stream)).keys()


def test_a_file_of_another_program_is_scored_and_tuned(other, exported, shapes, photographs, tmp_path):
    file, _, settings = other
    scored = {"data": shapes[1], "mask_cache": "off"}
    result = segkit.evaluate(weights=exported[0], compare=file, out=tmp_path / "e", **scored, **settings)
    assert len(result.differences) == 4
    tuned = segkit.tune(weights=file, folds=2, flips="none", scales=1.0, out=tmp_path / "t", **scored, **settings)
    assert f"--class-names {settings['class_names']} --mean 0.4 0.5 0.6 --std 0.2 0.3 0.25" in tuned.command


@pytest.mark.parametrize("command", [infer, evaluate])
def test_a_file_of_another_program_alone_asks_for_its_facts(other, shapes, tmp_path, capsys, command):
    data = ["--data", shapes[1]] if command is evaluate else ["--source", shapes[1]]
    assert fails(command, "--weights", other[0], *data, "--out", tmp_path / "o") == 2
    error = capsys.readouterr().err
    assert "other.onnx was not written by segkit" in error
    assert "give --class-names, --mean and --std (of images in 0..1)" in error
    assert not (tmp_path / "o").exists()


def test_facts_that_no_model_needs_are_refused(other, exported, shapes, capsys):
    for command, data in ((infer, ["--source", shapes[1]]), (evaluate, ["--data", shapes[1]])):
        assert fails(command, "--weights", *exported[:1], *data, *words(other[2])) == 2
        assert "are only for ONNX files of other programs, and none of these models is one" in capsys.readouterr().err
    assert fails(infer, "--weights", other[0], "--source", shapes[1], "--mean", "0.5", "0.5", "0.5") == 2
    assert "--mean and --std belong together" in capsys.readouterr().err


# The engine


def test_engine_onnx_exports_once_and_predicts_as_torch(exported, exports, photographs, cache, tmp_path, capsys):
    settings = {"weights": exported[0].parent, "source": photographs / "val*.png", "device": "cpu", "save": "mask"}
    segkit.predict(out=tmp_path / "torch", **settings)
    segkit.predict(out=tmp_path / "onnx", engine="onnx", verbose=True, **settings)
    assert_same_masks(tmp_path / "torch", tmp_path / "onnx")
    printed = capsys.readouterr().out
    assert f"onnx   exporting {exported[0].parent}, once for this model" in printed
    assert f"model  {exported[0]}" in printed
    assert "engine onnxruntime" in printed
    (file,) = cache.glob("*.onnx")
    assert (cache / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    segkit.predict(out=tmp_path / "again", engine="onnx", **settings)
    assert_same_masks(tmp_path / "torch", tmp_path / "again")
    assert len(exports) == 1
    assert list(cache.glob("*.onnx")) == [file]


def test_evaluate_takes_the_engine_for_models_in_memory(exported, exports, shapes, cache, tmp_path):
    model = load_model(exported[0])
    settings = {"data": shapes[1], "device": "cpu", "mask_cache": "off"}
    by_torch = segkit.evaluate(weights=model, out=tmp_path / "torch", **settings)
    by_onnx = segkit.evaluate(weights=model, compare=exported[1], engine="onnx", out=tmp_path / "onnx", **settings)
    assert by_onnx.scores["miou"] == pytest.approx(by_torch.scores["miou"], abs=1e-4)
    assert len(exports) == 1
    model.head.bias.data += 1
    segkit.evaluate(weights=model, engine="onnx", out=tmp_path / "other", **settings)
    assert len(exports) == 2


def test_processes_of_torchrun_share_one_export(exported, exports, photographs, cache, tmp_path, monkeypatch):
    source, exporting = photographs / "val*.png", tmp_path / "exporting"
    first = predictors.export_onnx
    monkeypatch.setattr(onnx_cache, "export_onnx", lambda *given: exporting.open("x").close() or first(*given))

    def on_rank(ranks):
        monkeypatch.setattr("segkit.workflows.infer.ranks_of_torchrun", lambda *given, **more: nullcontext(ranks))
        result = segkit.predict(
            weights=exported[0], source=source, device="cpu", save="mask", engine="onnx", out=tmp_path / "two"
        )
        return len(result.rows)

    assert on_ranks(2, on_rank, tmp_path / "ranks") == [4, 0]
    segkit.predict(weights=exported[0], source=source, device="cpu", save="mask", out=tmp_path / "one")
    assert_same_masks(tmp_path / "one", tmp_path / "two")


def cached(digest="a", model=None):
    return onnx_cache.cached_onnx(lambda: model, digest)


def test_other_weights_versions_and_damage_are_exported_again(exports, cache, monkeypatch):
    file = cached()
    assert cached() == file
    assert len(exports) == 1
    assert cached("b") != file
    monkeypatch.setattr(onnx_cache, "EXPORTER", 2)
    assert cached() not in (None, file)
    assert len(exports) == 3
    file = cached()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert cached() == file
    assert file.read_bytes() == content
    assert len(exports) == 4


def test_only_old_files_of_the_cache_are_removed(exports, cache):
    old, used, other = cached("old"), cached("used"), cache / "notes.onnx"
    other.write_text("mine")
    left = cache / f".{old.name}.1.2.tmp.onnx"
    left.write_text("half")
    for file in (old, other, left, used):
        os.utime(file, (0, 0))
    assert onnx_cache.cached_onnx(lambda: None, "new") is not None
    assert not old.exists()
    assert not left.exists()
    assert other.exists()


def test_a_used_file_stays_in_the_cache(exports, cache):
    file = cached()
    os.utime(file, (time.time() - 50 * 24 * 3600,) * 2)
    cached()
    assert time.time() - file.stat().st_mtime < 3600


@pytest.mark.parametrize("place", ["no home", "a file"])
def test_without_a_cache_the_export_is_not_kept(exported, exports, photographs, tmp_path, monkeypatch, capsys, place):
    if place == "no home":
        monkeypatch.setattr(onnx_cache, "user_cache", lambda name: None)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    settings = {"weights": exported[0], "source": photographs / "val0.png", "device": "cpu", "save": "mask"}
    segkit.predict(out=tmp_path / "o", engine="onnx", verbose=True, **settings)
    assert "its file is not kept" in capsys.readouterr().out
    assert len(masks(tmp_path / "o")) == 1
    assert len(exports) == 1


def test_a_model_with_code_of_its_own_is_not_cached(exported, exports, cache, monkeypatch, tmp_path, photographs):
    header = read_header(exported[0])
    monkeypatch.setattr(predictors, "read_header", lambda *given, **more: {**header, "modules": ["mine"]})
    settings = {"weights": exported[0], "source": photographs / "val0.png", "device": "cpu", "save": "mask"}
    segkit.predict(out=tmp_path / "o", engine="onnx", **settings)
    assert len(exports) == 1
    assert not cache.exists()


def test_the_engine_goes_with_no_option_of_torch(exported, photographs, capsys):
    for words, name in ((["--compile"], "--compile"), (["--amp", "bf16"], "--amp")):
        assert fails(infer, "--weights", exported[0], "--source", photographs, "--engine", "onnx", *words) == 2
        assert f"{name} is of torch, so it does not go with --engine onnx" in capsys.readouterr().err


class NotExported(nn.Module):
    """A decoder that depends on the values of its features, which no exported program can."""

    def __init__(self, in_channels, strides):
        super().__init__()
        self.out_channels = in_channels[-1]

    def forward(self, features):
        return features[-1] if features[-1].sum() > 0 else -features[-1]


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="the export of a model needs torch 2.7"
)
def test_a_decoder_that_cannot_be_exported_is_one_sentence(photographs, cache, tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setitem(DECODERS, "mine", NotExported)
    save_model(create_model("mine", backbone="test_resnet", class_names=NAMES), tmp_path / "m.safetensors")
    assert fails(export, tmp_path / "m.safetensors") == 2
    error = capsys.readouterr().err
    assert "mine on test_resnet cannot be traced for any image size" in error
    assert len(error.splitlines()) == 1
    options = ("--source", photographs, "--engine", "onnx", "--out", tmp_path / "o")
    assert fails(infer, "--weights", tmp_path / "m.safetensors", *options) == 2
    error = capsys.readouterr().err
    assert "cannot be run by --engine onnx" in error
    assert error.endswith("; --engine torch runs it\n")
    assert list(tmp_path.glob("*.onnx")) == []


def test_a_missing_exporter_is_named_with_its_command(exported, photographs, cache, tmp_path, monkeypatch):
    def export_onnx(*given):
        raise MissingPackageError("pip install onnxscript")

    monkeypatch.setattr(onnx_cache, "export_onnx", export_onnx)
    with pytest.raises(MissingPackageError, match=r"^pip install onnxscript$"):
        segkit.predict(weights=exported[0], source=photographs, engine="onnx", out=tmp_path / "o", device="cpu")


@pytest.mark.parametrize(
    ("settings", "is_named"),
    [({}, True), ({"engine": "onnx"}, False), ({"compile": True}, False), ({"amp": "bf16"}, False)],
)
def test_a_long_run_on_a_cpu_names_the_engine(exported, settings, is_named, capsys):
    config, clock = segkit.config.InferConfig(**settings), Clock()
    predictor = segkit.Predictor(load_model(exported[0]))
    for seconds, is_long in ((1, False), (100, True)):
        clock.seconds["models"] = seconds
        predictors.propose_engine(config, predictor, clock, predictors.Console(verbose=True))
        printed = capsys.readouterr().out
        assert ("engine=onnx" in printed) == (is_named and is_long)
    by_onnx = segkit.Predictor(load_model(exported[1]))
    assert isinstance(by_onnx.members[0], OnnxModel)
    predictors.propose_engine(config, by_onnx, clock, predictors.Console(verbose=True))
    assert capsys.readouterr().out == ""
