import json
import shutil

import numpy as np
import pytest
import torch
from helpers.commands import fails
from helpers.tiny_onnx import Tiny, write_folders, write_tiny

import segkit
from segkit.cli import export as command
from segkit.data import write_image
from segkit.errors import DataError, UsageError
from segkit.models import load_model
from segkit.workflows.int8 import inputs_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a trained model (float.onnx), and the folders `train` and `val` with images and masks."""
    folder = tmp_path_factory.mktemp("int8")
    write_tiny(folder / "float.onnx", Tiny())
    write_folders(folder / "train", 12, seed=1)
    write_folders(folder / "val", 5, seed=2)
    return folder


def settings(files, **more):
    checked = {"check": files / "val" / "images", "masks": files / "val" / "masks"}
    return {"int8": True, "calibrate": files / "train" / "images", "photographs": 6, **checked, **more}


def quantisation_of(path):
    return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["quantization"])


def test_int8_of_a_trained_model_stays_within_its_limit(files, tmp_path):
    result = segkit.export(files / "float.onnx", tmp_path / "m.onnx", **settings(files, max_loss=1.0))
    accuracy = result.int8.accuracy
    assert result.file == tmp_path / "m.onnx"
    assert accuracy.loss <= 1.0
    assert accuracy.miou_float > 0.8
    assert accuracy.equal_labels > 0.98
    assert set(accuracy.differences) == {"background", "square", "disc", "mIoU"}
    estimate, low, high = accuracy.differences["mIoU"]
    assert low <= estimate <= high
    assert estimate == pytest.approx(accuracy.miou - accuracy.miou_float)
    assert len(result.int8.photographs) == 6
    assert "equal labels in " in accuracy.text
    stored = quantisation_of(tmp_path / "m.onnx")
    assert stored["accuracy"]["miou"] == accuracy.miou
    assert (stored["seed"], stored["images"], stored["float_layers"]) == (0, 6, [])


@pytest.mark.slow
def test_evaluate_agrees_with_the_measured_accuracy(files, tmp_path):
    accuracy = segkit.export(files / "float.onnx", tmp_path / "m.onnx", **settings(files)).int8.accuracy
    scored = segkit.evaluate(
        weights=tmp_path / "m.onnx",
        compare=files / "float.onnx",
        data=files / "val" / "images",
        masks=files / "val" / "masks",
        out=tmp_path / "scores",
        worst=0,
        device="cpu",
    )
    assert scored.scores["miou"] == pytest.approx(accuracy.miou)
    rows = {row["class"]: (row["difference"], row["low"], row["high"]) for row in scored.differences}
    for name, values in accuracy.differences.items():
        assert rows[name] == pytest.approx(values)


def test_a_calibration_on_constant_images_is_caught(files, tmp_path, capsys):
    (tmp_path / "grey").mkdir()
    for i in range(3):
        write_image(tmp_path / "grey" / f"{i}.png", np.full((32, 40, 3), 128, dtype=np.uint8))
    target = tmp_path / "m.onnx"
    checked = ["--check", files / "val" / "images", "--masks", files / "val" / "masks"]
    arguments = [files / "float.onnx", "--onnx", target, "--int8", "--calibrate", tmp_path / "grey", *checked]
    assert fails(command, *arguments) == 6
    printed = capsys.readouterr()
    assert "points of mIoU, more than --max-loss 0.3, so " in printed.err
    assert "write it anyway by --accept-loss" in printed.err
    assert "95 % of resamples" in printed.out
    assert not target.exists()
    result = segkit.export(
        files / "float.onnx", target, accept_loss=True, **settings(files, calibrate=tmp_path / "grey")
    )
    assert target.exists()
    assert result.int8.accuracy.loss > 0.3


def test_sensitive_layers_stay_in_float_if_int8_loses_too_much(files, tmp_path, capsys):
    model = Tiny()
    model.first.weight[0], model.first.bias[0], model.second.weight[:, 0] = 0, -1, 300
    write_tiny(tmp_path / "float.onnx", model)
    result = segkit.export(tmp_path / "float.onnx", tmp_path / "m.onnx", verbose=True, **settings(files))
    printed = capsys.readouterr().out
    assert result.int8.float_layers == ("second",)
    assert result.int8.accuracy.loss <= 0.3
    assert "points of mIoU, more than 0.3" in printed
    assert "float  second: int8 loses" in printed
    assert quantisation_of(tmp_path / "m.onnx")["float_layers"] == ["second"]


def test_photographs_of_the_check_set_never_calibrate(files, tmp_path, caplog):
    own = {"calibrate": files / "val" / "images"}
    with pytest.raises(UsageError, match="all photographs of `calibrate` are in `check` too"):
        segkit.export(files / "float.onnx", tmp_path / "m.onnx", **settings(files, **own))
    mixed = tmp_path / "mixed"  # copies under other names, and one image of the training
    shutil.copytree(files / "val" / "images", mixed / "copies")
    shutil.copy(files / "train" / "images" / "3.png", mixed / "own.png")
    options = settings(files, calibrate=mixed, max_loss=100)
    result = segkit.export(files / "float.onnx", tmp_path / "m.onnx", **options)
    assert result.int8.photographs == ("own.png",)
    assert "5 photographs of `calibrate` in `check` too" in caplog.text


def test_photographs_are_drawn_by_the_seed_and_damaged_ones_skipped(files, tmp_path, caplog):
    folder = shutil.copytree(files / "train" / "images", tmp_path / "images")
    (folder / "2.png").write_bytes(b"no image")
    drawn = [
        segkit.export(
            files / "float.onnx",
            tmp_path / "m.onnx",
            int8=True,
            calibrate=folder,
            photographs=count,
            seed=seed,
            overwrite=True,
        ).int8.photographs
        for count, seed in ((5, 0), (5, 0), (5, 1), (100, 0))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[3]) == 11
    assert "2.png" not in drawn[3]
    assert "not used to calibrate: " in caplog.text
    assert "the accuracy of int8 is not measured" in caplog.text
    assert quantisation_of(tmp_path / "m.onnx")["accuracy"] is None


def test_a_model_gets_the_photographs_that_predict_gives_it(files, tmp_path):
    model = load_model(files / "float.onnx")
    model.training_scale = segkit.models.TrainingScale(size=(20, 24))
    seen = []

    def keep(images):
        seen.append(images)
        return images.new_zeros(len(images), 3, *images.shape[2:])

    photograph = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    write_image(tmp_path / "p.png", photograph)
    image = segkit.inference.source.open_source(tmp_path / "p.png")
    (got,) = inputs_of(model, image, [])
    model.forward = keep
    segkit.Predictor(model)(photograph)
    assert got.shape == (1, 3, 20, 24)
    torch.testing.assert_close(got, seen[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "--int8 needs --calibrate, photographs such as the training images"),
        (["--calibrate", "IMAGES"], "--calibrate is only for int8; add --int8"),
        (["--max-loss", "1"], "--max-loss is only for int8; add --int8"),
        (["--int8", "--calibrate", "IMAGES", "--accept-loss"], "--accept-loss needs --check"),
        (["--int8", "--calibrate", "IMAGES", "--max-loss", "1"], "--max-loss needs --check"),
        (["--int8", "--calibrate", "IMAGES", "--photographs", "0"], "--photographs must be at least 1"),
        (["--int8", "--calibrate", "IMAGES", "--images", "a", "b", "c"], "--images takes one folder, or one for each"),
        (["--int8", "--calibrate", "none.json"], "there is no file or folder none.json"),
    ],
)
def test_settings_that_do_not_fit_end_in_one_sentence(files, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    images = files / "train" / "images"
    words = [images if word == "IMAGES" else word for word in arguments]
    assert fails(command, files / "float.onnx", "--onnx", "m.onnx", *words) in (2, 3)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_check_set_of_other_classes_is_refused(files, tmp_path):
    (tmp_path / "names.json").write_text("{}")
    with pytest.raises(DataError):
        segkit.export(files / "float.onnx", tmp_path / "m.onnx", **settings(files, check=tmp_path / "none"))
    with pytest.raises(DataError):
        segkit.export(
            files / "float.onnx",
            tmp_path / "m.onnx",
            int8=True,
            calibrate=files / "train" / "images",
            check=tmp_path / "names.json",
        )
    assert not (tmp_path / "m.onnx").exists()
