"""Every command on every label format."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import SMALL
from helpers.label_formats import WRITERS, Written

from segkit.cli import check, convert, evaluate, train
from segkit.config import TrainConfig
from segkit.data import CocoSegmentation, FolderSegmentation
from segkit.data.dataset import ImageFiles
from segkit.data.formats import FORMATS, LabelRecords, MaskFiles, find_source
from segkit.errors import UsageError
from segkit.workflows.datasets import open_folds
from segkit.workflows.folds import make_folds

pytestmark = pytest.mark.filterwarnings("ignore::segkit.errors.DataWarning")


@pytest.fixture(scope="module", params=sorted({*WRITERS, *FORMATS}))
def written(request, tmp_path_factory) -> Written:
    """Write the data set of a format; a format without one in `helpers.label_formats` fails."""
    assert request.param in WRITERS, f"write a small {request.param} data set in tests/helpers/label_formats.py"
    return WRITERS[request.param](tmp_path_factory.mktemp("data") / "labels")


def named(class_names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Return the name of the class of each pixel."""
    return np.array([*class_names, *["no class"] * (255 - len(class_names)), "ignored"])[labels]


def check_masks(sets: Sequence[ImageFiles], written: Written, *, has_ignored: bool = True) -> None:
    """Compare the class of each pixel with what must come out; a split may have its classes in another order."""
    masks = {Path(data.name(i)).stem: named(data.class_names, data.mask(i)) for data in sets for i in range(len(data))}
    assert masks.keys() == written.masks.keys()
    for name, labels in written.masks.items():
        compared = (labels != 255) | has_ignored
        assert np.array_equal(masks[name][compared], named(written.class_names, labels)[compared]), name
    for data in sets:
        assert set(data.class_names) - {"background"} == set(written.class_names) - {"background"}


def opened(path: Path) -> list[ImageFiles]:
    parts = [read() for read in find_source(path).splits.values()]
    return [CocoSegmentation(part) if isinstance(part, LabelRecords) else FolderSegmentation([part]) for part in parts]


def test_the_masks_are_the_expected_ones(written, request):
    assert find_source(written.path).format == request.node.callspec.params["written"].split()[0]
    check_masks(opened(written.path), written)


def test_folds_have_each_image_once(written):
    folds = open_folds(TrainConfig(data=(written.path,), folds=2, fold=0))
    validated = []
    for train_set, val_set in (folds[0], folds[1]):
        names = [data.name(i) for data in (train_set, val_set) for i in range(len(data))]
        assert len(set(names)) == len(names)
        validated += names[len(train_set) :]
    assert sorted(validated) == sorted(names)


def test_fold_files_have_the_masks_of_the_format(written, tmp_path):
    if written.path.is_dir() and isinstance(next(iter(find_source(written.path).splits.values()))(), MaskFiles):
        with pytest.raises(UsageError, match="whose labels are masks, and folds are COCO JSON files"):
            make_folds(data=written.path, k=2, out=tmp_path / "folds")
        return
    made = make_folds(data=written.path, k=2, out=tmp_path / "folds")
    sets = [CocoSegmentation(file, made.images) for file in made.valid]
    masks = {Path(data.name(i)).stem: named(data.class_names, data.mask(i)) for data in sets for i in range(len(data))}
    for name, labels in masks.items():
        assert np.array_equal(labels, named(written.class_names, written.masks[name])), name
    assert len(masks) == len(made.folds)


def test_check_finds_no_errors(written, tmp_path):
    check.main([str(written.path), "--out", str(tmp_path / "check")])  # it would exit with 3 if it found errors
    assert (tmp_path / "check/class_examples.png").is_file()


def train_and_evaluate(written: Written, folder: Path) -> None:
    train.main(["--data", str(written.path), "--out", str(folder / "run"), *SMALL, "--epochs", "1"])
    run = str(folder / "run")
    evaluate.main(["--weights", run, "--data", str(written.path), "--device", "cpu", "--out", str(folder / "scores")])
    assert json.loads((folder / "scores/scores.json").read_text())["classes"] == list(written.class_names)


@pytest.mark.parametrize("name", ["cvat", "voc"])
def test_regions_and_masks_are_trained_and_scored(name, tmp_path):
    train_and_evaluate(WRITERS[name](tmp_path / "labels"), tmp_path)


@pytest.mark.slow
def test_every_format_is_trained_and_scored(written, tmp_path):
    train_and_evaluate(written, tmp_path)


@pytest.mark.parametrize("to", ["coco", "masks", "yolo", "labelme"])
def test_convert_keeps_the_masks(written, tmp_path, to):
    out = tmp_path / "out"
    convert.main([str(written.path), "--to", to, "--out", str(out), "--image-files", "copy"])
    if to == "coco":
        roots = {file: out / "images" / file.stem for file in out.glob("[tv]*.json")}
        roots |= dict.fromkeys(out.glob("annotations.json"), out / "images")
        sets = [CocoSegmentation(file, root) for file, root in roots.items()]
    else:
        sets = opened(out)
    check_masks(sets, written, has_ignored=to != "yolo")  # YOLO has no ignored regions
