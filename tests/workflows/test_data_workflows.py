"""segkit.check and segkit.make_folds as another program calls them, and the data sets that a training opens."""

import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segkit
from segkit.config import CheckConfig, ConvertConfig, FoldsConfig, TrainConfig, from_keywords
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.findings import DataWarning
from segkit.errors import DataError, UsageError
from segkit.training.checkpoint import photographs_warning
from segkit.workflows.datasets import data_digests, load_data, open_folds, photograph_digests, rule_of_folds


@pytest.mark.parametrize(
    ("workflow", "config"),
    [(segkit.check, CheckConfig), (segkit.make_folds, FoldsConfig), (segkit.convert, ConvertConfig)],
)
def test_a_workflow_takes_the_settings_of_its_command(workflow, config):
    parameters = dict(inspect.signature(workflow).parameters)
    assert parameters.pop("verbose").default is False
    assert list(parameters) == list(config.__dataclass_fields__)
    with pytest.raises(UsageError, match="unknown argument 'imagse'; did you mean 'images'"):
        workflow(data="x.json", out="o", imagse="y")


def test_check_returns_counts_and_findings_and_prints_nothing(shapes, tmp_path, capsys):
    result = segkit.check(data=[str(file) for file in shapes], out=tmp_path / "o")
    assert capsys.readouterr() == ("", "")
    assert [part.name for part in result.sets] == ["train", "val"]
    assert result.errors == 0
    assert result.sets[0].measures.annotations.sum(0).tolist() == [0, 12, 12]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(result.files)
    segkit.check(data=shapes[0], out=tmp_path / "p", verbose=True)
    assert "train  12 images, 24 annotations, 3 classes" in capsys.readouterr().out


def test_check_takes_a_data_set_and_counts_its_errors(shapes, tmp_path):
    content = json.loads(shapes[1].read_text())
    content["images"].append({"id": 1, "file_name": "gone.png", "height": 48, "width": 64})
    file = shapes[1].parent / "gone.json"
    file.write_text(json.dumps(content))
    result = segkit.check(data=CocoSegmentation.inspect(file), out=tmp_path / "o")
    assert result.errors == 1
    assert result.sets[0].findings[0].kind == "missing-image"
    with pytest.raises(UsageError, match="data sets whose images are files"):
        segkit.check(data=CocoSegmentation(shapes[0]).subset([0]), out=tmp_path / "p")


def test_make_folds_returns_its_files_and_the_fold_of_each_image(shapes, tmp_path, capsys):
    made = segkit.make_folds(data=shapes[0], out=tmp_path / "folds", k=3, seed=2)
    assert capsys.readouterr() == ("", "")
    assert made.class_names == ("square", "disc")
    assert sorted(np.bincount(made.folds)) == [4, 4, 4]
    data = CocoSegmentation(shapes[0])
    for fold, (file, names) in enumerate(zip(made.valid, made.names, strict=True)):
        assert names == tuple(data.name(i) for i in np.flatnonzero(made.folds == fold))
        valid = CocoSegmentation(file, root=shapes[0].parent)
        assert tuple(valid.name(i) for i in range(len(valid))) == names
    with pytest.raises(UsageError, match="must be COCO JSON files"):
        segkit.make_folds(data=data, out=tmp_path / "other")


class Own(SegmentationDataset):
    """A custom data set: gray images with one class each."""

    class_names = ("ground", "leaf", "stem")

    def __len__(self):
        return 9

    def image(self, index):
        return np.full((8, 8, 3), index, dtype=np.uint8)

    def mask(self, index):
        return np.full((8, 8), index % 3, dtype=np.uint8)


def settings(**values):
    return from_keywords(TrainConfig, values)


def names(data):
    return [data.name(i) for i in range(len(data))]


def test_a_training_takes_custom_data_sets():
    train, val = load_data(settings(data=Own(), val=Own(), masks=()))
    assert (len(train), len(val)) == (9, 9)
    train, val = load_data(settings(data=Own(), val_fraction=1 / 3))
    assert sorted(names(train) + names(val)) == [str(i) for i in range(9)]
    assert len(val) == 3


def test_the_digests_of_a_fold_say_by_which_rule_its_images_were_divided(shapes):
    config = settings(data=shapes[0], folds=3, fold=0)
    now, earlier = data_digests(config), data_digests(config, fold_rule=1)
    assert rule_of_folds(None) == rule_of_folds({"data": now}) == 2
    assert rule_of_folds({"data": earlier}) == 1
    assert earlier == data_digests(settings(data=shapes[0])), "earlier checkpoints have the digests of the files only"


def test_make_folds_counts_pixels_by_the_overlap_rule_of_training(shapes, tmp_path):
    for overlap in ("smallest", "last"):
        made = segkit.make_folds(data=shapes[0], out=tmp_path / overlap, k=2, overlap=overlap)
        data = CocoSegmentation(shapes[0], overlap=overlap)
        pixels = [np.bincount(data.mask(i).ravel(), minlength=3)[1:] for i in range(len(data))]
        assert np.array_equal(made.counts.pixels, pixels)


def test_a_custom_data_set_is_divided_into_folds_by_its_masks():
    folds = open_folds(settings(data=Own(), folds=3, fold=0))
    for fold in range(3):
        train, val = folds[fold]
        assert sorted(int(name) % 3 for name in names(val)) == [0, 1, 2]
        assert sorted(names(train) + names(val)) == [str(i) for i in range(9)]
    assert load_data(settings(data=Own(), folds=3, fold=1))[1].indices == folds[1][1].indices


def test_custom_data_sets_that_do_not_fit_are_an_error(shapes):
    with pytest.raises(DataError, match=r"`data` and .*val\.json differ in their classes: ground, leaf, stem /"):
        load_data(settings(data=Own(), val=shapes[1]))
    with pytest.raises(UsageError, match="`data` takes files, or a single data set"):
        load_data(settings(data=(Own(), Own()), val=Own()))
    with pytest.raises(UsageError, match="sets its `ignore_classes` itself"):
        load_data(settings(data=Own(), ignore_classes="leaf"))


def test_val_and_train_only_files_are_matched_by_name_and_may_lack_a_class(shapes, tmp_path):
    content = json.loads(shapes[1].read_text())
    content["categories"] = [{"id": 1, "name": "disc"}]
    content["annotations"] = [a | {"category_id": 1} for a in content["annotations"] if a["category_id"] == 7]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    common = {"data": shapes[0], "images": shapes[0].parent, "mask_cache": "off"}
    with pytest.warns(DataWarning, match=r"classes without a category in a JSON.*: 1 \(square\)"):
        val = load_data(settings(val=other, **common))[1]
    assert val.class_names == ("background", "square", "disc")
    plain = CocoSegmentation(shapes[1])
    assert all(np.array_equal(val.mask(i), np.where(plain.mask(i) == 1, 0, plain.mask(i))) for i in range(4))
    with pytest.warns(DataWarning, match="classes without a category"):
        train = load_data(settings(train_only=other, **common))[0]
    assert np.array_equal(train.mask(len(train) - 4), val.mask(0))
    content["categories"].append({"id": 2, "name": "ball"})
    other.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"other\.json do not match the classes square, disc: 'ball' is new here"):
        load_data(settings(val=other, **common))


def test_images_that_train_and_validate_are_warned_of(shapes, tmp_path):
    """The same JSON; another JSON that names one of its photographs, by an absolute path; one data set twice."""
    with pytest.warns(DataWarning, match=r"`val`: images that are also in another set.*: 12 \(images/train0"):
        load_data(settings(data=shapes[0], val=shapes[0], mask_cache="off"))
    content = json.loads(shapes[1].read_text())
    content["images"][0]["file_name"] = str(shapes[0].parent / "images/../images/train0.png")
    content["images"][1:] = [
        row | {"file_name": str(shapes[1].parent / row["file_name"])} for row in content["images"][1:]
    ]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.warns(DataWarning, match=r"which makes scores too good: 1 \(/"):
        load_data(settings(data=shapes[0], val=other, allow_outside_root=True, mask_cache="off"))
    own = Own()
    with pytest.warns(DataWarning, match="also in another set, which makes scores too good: 9 "):
        load_data(settings(data=own, val=own))


def test_train_only_images_that_validate_under_another_path_do_not_train(shapes, tmp_path):
    (tmp_path / "link").symlink_to(shapes[1].parent)
    train, val = load_data(
        settings(data=shapes[0], val=shapes[1], train_only=tmp_path / "link" / shapes[1].name, mask_cache="off")
    )
    assert (len(train), len(val)) == (12, 4)


def test_folds_read_each_json_once(shapes, monkeypatch):
    opened, open_file = [], Path.open

    def counting(path, *args, **kwargs):
        opened.append(path.name)
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting)
    load_data(settings(data=shapes[0], train_only=shapes[1], folds=3, fold=0, mask_cache="off"))
    assert sorted(name for name in opened if name.endswith(".json")) == ["train.json", "val.json"]


def test_the_digest_of_photographs_in_folders_changes_with_their_times_only_for_its_part(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            image = np.zeros((8, 8, 3) if folder == "images" else (8, 8), np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
    data = FolderSegmentation(tmp_path / "images", tmp_path / "masks", class_names=("ground", "disc"))
    sets = data.subset([0]), data.subset([1])
    before = photograph_digests(sets)
    assert photograph_digests(sets) == before
    os.utime(tmp_path / "masks/b.png", (0, 0))
    assert photograph_digests(sets) == before, "masks are compared by their content"
    os.utime(tmp_path / "images/b.png", (0, 0))
    after = photograph_digests(sets)
    assert {name for name in after if after[name] != before[name]} == {"val photographs"}
    assert photographs_warning({"train": "1"}, {"train": "1", **after}, tmp_path) is None, "older checkpoints lack them"
