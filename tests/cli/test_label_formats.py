"""Every command on every label format."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import SMALL
from helpers.label_formats import WRITERS, Written

from segkit.cli import check, convert, evaluate, train
from segkit.data import CocoSegmentation, FolderSegmentation
from segkit.data.formats import FORMATS, LabelRecords, find_source


@pytest.fixture(scope="module", params=sorted(FORMATS))
def written(request, tmp_path_factory) -> Written:
    """Write the data set of a format; a format without one in `helpers.label_formats` fails."""
    assert request.param in WRITERS, f"write a small {request.param} data set in tests/helpers/label_formats.py"
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


def test_the_masks_are_the_expected_ones(written, request):
    source = find_source(written.path)
    assert source.format == request.node.callspec.params["written"]
    masks = {}
    for read in source.splits.values():
        labels = read()
        data = CocoSegmentation(labels) if isinstance(labels, LabelRecords) else FolderSegmentation([labels])
        assert data.class_names == written.class_names
        masks |= {Path(data.name(i)).stem: data.mask(i) for i in range(len(data))}
    assert masks.keys() == written.masks.keys()
    for name, expected in written.masks.items():
        assert np.array_equal(masks[name], expected), name


def test_check_train_and_evaluate(written, tmp_path):
    check.main([str(written.path), "--out", str(tmp_path / "check")])  # it would exit with 3 if it found errors
    assert (tmp_path / "check/class_examples.png").is_file()
    train.main(["--data", str(written.path), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1"])
    run = str(tmp_path / "run")
    evaluate.main(["--weights", run, "--data", str(written.path), "--device", "cpu", "--out", str(tmp_path / "scores")])
    assert json.loads((tmp_path / "scores/scores.json").read_text())["classes"] == list(written.class_names)


@pytest.mark.parametrize("to", ["coco", "masks", *sorted({"yolo", "labelme"} & FORMATS.keys())])
def test_convert_keeps_the_masks(written, tmp_path, to):
    out = tmp_path / "out"
    convert.main([str(written.path), "--to", to, "--out", str(out), "--image-files", "copy"])
    if to == "coco":
        roots = {file: out / "images" / file.stem for file in out.glob("[tv]*.json")}
        roots |= dict.fromkeys(out.glob("annotations.json"), out / "images")
        sets = [CocoSegmentation(file, root) for file, root in roots.items()]
    else:
        parts = [read() for read in find_source(out).splits.values()]
        sets = [
            CocoSegmentation(part) if isinstance(part, LabelRecords) else FolderSegmentation(part) for part in parts
        ]
    assert {data.class_names for data in sets} == {written.class_names}
    masks = {Path(data.name(i)).stem: data.mask(i) for data in sets for i in range(len(data))}
    assert masks.keys() == written.masks.keys()
    for name, expected in written.masks.items():
        assert np.array_equal(masks[name], expected), name
