"""Paths that a command or a function of segkit cannot use end in a sentence."""

import pickle

import pytest
from helpers.shapes import write_shapes

import segkit
from segkit.errors import UsageError, as_segkit_error
from segkit.files import write_json
from segkit.models import create_model, save_model
from segkit.runs import RunFolder, RunLock, create_run_folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    model = create_model("fpn", backbone="test_resnet", class_names=("background", "square", "disc"), pretrained=False)
    save_model(model, folder / "m.safetensors")
    return folder / "m.safetensors", write_shapes(folder, "val", 2, 0)


def test_results_below_a_file_are_refused(inputs, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    with pytest.raises(UsageError, match="file is a file"):
        create_run_folder(out, "evaluate")
    with pytest.raises(UsageError, match="file is a file"):
        segkit.make_folds(data=inputs[1], k=2, out=out)
    pytest.importorskip("onnx")
    with pytest.raises(UsageError, match="cannot make the folder"):
        segkit.export(inputs[0], out / "m.onnx")


@pytest.mark.parametrize("command", ["evaluate", "tune", "check", "make_folds", "predict"])
def test_of_two_processes_that_write_to_one_new_folder_the_second_is_refused(inputs, tmp_path, command):
    model, data = inputs
    settings = {
        "predict": {"weights": model, "source": data, "device": "cpu"},
        "check": {"data": data},
        "make_folds": {"data": data, "k": 2},
    }.get(command, {"weights": model, "data": data, "device": "cpu", **({"folds": 2} if command == "tune" else {})})
    with RunLock() as lock:
        create_run_folder(tmp_path / "out", command, lock)
        with pytest.raises(UsageError, match=f"another process writes to {tmp_path / 'out'}"):
            getattr(segkit, command)(**settings, out=tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    with RunLock() as lock:
        create_run_folder(tmp_path / "out", command, lock)  # none of them keeps it


def test_a_folder_that_is_removed_meanwhile_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"cannot write {tmp_path}/gone/scores.json: there is no folder"):
        write_json(tmp_path / "gone/scores.json", {})


def test_a_model_that_is_no_path_is_not_exported():
    with pytest.raises(UsageError, match="`model` must be a path or a Segmenter, got int"):
        segkit.export(3)


def test_damaged_splits_are_named(tmp_path):
    for text in ("{", "3"):
        (tmp_path / "splits.json").write_text(text)
        with pytest.raises(UsageError, match=r"splits\.json is (damaged|not valid JSON)"):
            RunFolder(tmp_path).folds()


def test_a_run_folder_is_used_like_a_path(tmp_path):
    run = RunFolder(tmp_path)
    assert run / "results.csv" == run.results
    assert pickle.loads(pickle.dumps(run)) == run
    assert run != RunFolder(tmp_path / "x")


@pytest.mark.parametrize(
    "text",
    [
        "Storage size calculation overflowed with sizes=[1, 3, 48000000000]",
        "(-4:Insufficient memory) Failed to allocate",
    ],
)
def test_images_that_no_memory_can_hold_are_no_bug(text):
    assert "memory ran out" in str(as_segkit_error(RuntimeError(text)))
