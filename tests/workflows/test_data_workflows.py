"""segkit.check and segkit.make_folds as another program calls them, and the data sets that a training opens."""

import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.shapes import write_coco
from PIL import Image

import segkit
from segkit.config import CheckConfig, ConvertConfig, FoldsConfig, TrainConfig, from_keywords
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.findings import DataWarning
from segkit.data.formats import find_source
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
    with pytest.raises(UsageError, match="must be files or folders of labels"):
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
    assert rule_of_folds(None) == rule_of_folds({"data": now}) == 3
    assert rule_of_folds({"data": earlier}) == 1
    split = settings(data=shapes[0])
    assert rule_of_folds({"data": data_digests(split)}) == 3
    assert earlier == data_digests(split, fold_rule=1), "earlier checkpoints have the digests of the files only"


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
    read, read_bytes = [], Path.read_bytes

    def counting(path):
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    load_data(settings(data=shapes[0], train_only=shapes[1], folds=3, fold=0, mask_cache="off"))
    assert sorted(name for name in read if name.endswith(".json")) == ["train.json", "val.json"]


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


@pytest.fixture
def copies(tmp_path):
    """Twelve images by Roboflow, three of each photograph, in a COCO JSON."""
    images, annotations = [], []
    for i in range(12):
        name = f"photo{i // 3}_jpg.rf.{i * 7919:032x}.jpg"
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(tmp_path / name)
        images.append({"id": i, "file_name": name, "height": 20, "width": 20})
        box = [[2, 3, 5 + i, 3, 5 + i, 9, 2, 9]]
        annotations.append({"id": i, "image_id": i, "category_id": 3 + 4 * (i % 2), "segmentation": box})
    return write_coco(tmp_path / "copies.json", images, annotations)


def sources(data):
    return [name.split("_jpg")[0] for name in names(data)]


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_photograph_stay_on_one_side_of_a_split(copies, seed):
    train, val = load_data(settings(data=copies, val_fraction=0.25, seed=seed))
    assert (len(train), len(val)) == (9, 3)
    assert len(set(sources(val))) == 1
    assert not set(sources(train)) & set(sources(val))
    before = load_data(settings(data=copies, val_fraction=0.25, seed=seed), fold_rule=1)
    whole = CocoSegmentation(copies)
    assert [names(part) for part in before] == [names(part) for part in whole.split(0.25, seed)]
    apart = load_data(settings(data=copies, val_fraction=0.25, seed=seed, group_by="none"))
    assert [names(part) for part in apart] == [names(part) for part in before]
    _, val = load_data(settings(data=copies, val_fraction=0.5, seed=seed, group_by=r"regex:photo(\d)"))
    assert len(set(sources(val))) == 2


def test_copies_of_a_photograph_stay_in_one_fold_unless_the_run_began_before(copies, tmp_path):
    folds = open_folds(settings(data=copies, folds=2, fold=0))
    divided = [{Path(name).name.split("_jpg")[0] for name in fold} for fold in folds.validated()]
    assert not divided[0] & divided[1]
    assert (
        folds.by_rule(2).validated() == open_folds(settings(data=copies, folds=2, fold=0, group_by="none")).validated()
    )
    made = segkit.make_folds(data=copies, k=2, out=tmp_path / "folds")
    assert [set(fold) for fold in made.names] == [{Path(path).name for path in fold} for fold in folds.validated()]
    made = segkit.make_folds(data=copies, k=4, out=tmp_path / "four", group_by=r"regex:photo\d")
    assert sorted(len({name[:6] for name in fold}) for fold in made.names) == [1, 1, 1, 1]
    with pytest.raises(UsageError, match="4 groups that stay together"):
        segkit.make_folds(data=copies, k=5, out=tmp_path / "five")


def test_images_that_all_belong_together_cannot_be_split(copies):
    with pytest.raises(DataError, match="all 12 images belong to one group"):
        load_data(settings(data=copies, group_by="regex:photo"))
    with pytest.raises(UsageError, match="`group_by` must be regex:PATTERN"):
        settings(data=copies, group_by="photo")
    with pytest.raises(UsageError, match="`group_by` needs `data` without `val`"):
        settings(data=copies, val=copies, group_by="regex:photo")


@pytest.mark.parametrize("name", ["yolo", "labelme"])
def test_folds_of_another_format_have_its_masks_and_its_rule_of_overlaps(tmp_path, copies, name):
    segkit.convert(data=copies, to=name, out=tmp_path / name)
    if name == "labelme":  # the larger object lies on top
        for file in (tmp_path / name).glob("*.json"):
            content = json.loads(file.read_text())
            large = {**content["shapes"][0], "label": "disc", "points": [[1, 1], [19, 1], [19, 19], [1, 19]]}
            file.write_text(json.dumps({**content, "shapes": [*content["shapes"], large]}))
    (part,) = find_source(tmp_path / name).read("train")
    expected = CocoSegmentation(part)
    masks = {Path(expected.name(i)).name: expected.mask(i) for i in range(len(expected))}
    made = segkit.make_folds(data=tmp_path / name, k=2, out=tmp_path / "folds")
    for file in (*made.train, *made.valid):
        data = CocoSegmentation(file, root=made.images)
        assert len(data)
        for i in range(len(data)):
            np.testing.assert_array_equal(data.mask(i), masks[Path(data.name(i)).name])
    counted = sum((mask > 0).sum() for mask in masks.values())
    assert made.counts.pixels.sum() == counted


def test_folds_join_the_splits_of_a_format_and_refuse_masks(tmp_path, copies):
    for split in ("train", "val"):
        (tmp_path / f"set/images/{split}").mkdir(parents=True)
        (tmp_path / f"set/labels/{split}").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(tmp_path / f"set/images/{split}/{i}.png")
            (tmp_path / f"set/labels/{split}/{i}.txt").write_text(f"{i % 2} 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "set/data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    made = segkit.make_folds(data=tmp_path / "set", k=2, out=tmp_path / "folds")
    assert sorted(name for fold in made.names for name in fold) == sorted(
        f"images/{split}/{i}.png" for split in ("train", "val") for i in range(3)
    )
    assert len(CocoSegmentation(made.train[0], root=made.images)) == 3
    segkit.convert(data=copies, to="masks", out=tmp_path / "masks")
    with pytest.raises(UsageError, match="is cvat-masks, whose labels are masks, and folds are COCO JSON files"):
        segkit.make_folds(data=tmp_path / "masks", k=2, out=tmp_path / "other")
