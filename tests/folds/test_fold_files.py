import json

import numpy as np
import pytest

from segkit.data import CocoSegmentation
from segkit.data.images import DataError, write_image
from segkit.folds.assign import assign_folds
from segkit.folds.counts import count_classes
from segkit.folds.files import read_fold_source, write_fold_files

CATEGORIES = [{"id": 4, "name": "can", "supercategory": "metal"}, {"id": 2, "name": "box"}]


def write_set(file, images, *, start=1, categories=CATEGORIES, **other):
    """A COCO file of `images` images 8 x 8; image i holds a box of i + 1 pixels width, every third also a can."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, annotations = [], []
    for i in range(images):
        rows.append({"id": start + i, "file_name": f"{file.stem}_{i}.png", "height": 8, "width": 8})
        for category in (2, 4) if i % 3 == 0 else (2,):
            box = [[0, category, 1 + i % 7, category, 1 + i % 7, category + 1, 0, category + 1]]
            ids = {"id": len(annotations) + 1, "image_id": start + i, "category_id": category}
            annotations.append(ids | {"segmentation": box, "iscrowd": 0})
        write_image(file.parent / rows[-1]["file_name"], np.full((8, 8, 3), i, dtype=np.uint8))
    content = {"info": {"year": 2021}, "images": rows, "annotations": annotations, "categories": categories, **other}
    file.write_text(json.dumps(content))
    return file


def divide(source, k, out):
    counts = count_classes(source.annotations, list(source.categories))
    folds = assign_folds(counts, k, train_only=source.train_only)
    write_fold_files(source, folds, k, out)
    return folds


def test_the_files_load_again_with_the_masks_of_the_whole(tmp_path):
    file = write_set(tmp_path / "all.json", 9, licenses=["x"])
    divide(read_fold_source(file), 3, tmp_path / "folds")
    whole = CocoSegmentation(file)
    masks = {whole.name(i): whole[i][1] for i in range(9)}
    validated = []
    for fold in range(3):
        train, valid = (
            CocoSegmentation(tmp_path / "folds" / f"{part}_data{fold}.json", root=tmp_path)
            for part in ("train", "valid")
        )
        names = [{data.name(i) for i in range(len(data))} for data in (train, valid)]
        assert names[0] | names[1] == set(masks)
        assert not names[0] & names[1]
        assert train.class_names == valid.class_names == whole.class_names
        for data in (train, valid):
            assert all((data[i][1] == masks[data.name(i)]).all() for i in range(len(data)))
        validated += names[1]
        content = json.loads((tmp_path / "folds" / f"valid_data{fold}.json").read_text())
        assert list(content) == ["info", "images", "annotations", "categories", "licenses"]
        assert content["categories"] == CATEGORIES
        assert content["info"] == {"year": 2021}
    assert sorted(validated) == sorted(masks)


def test_a_file_without_annotations_gives_files_that_load(tmp_path):
    file = write_set(tmp_path / "all.json", 2, annotations=[])
    divide(read_fold_source(file), 2, tmp_path)
    assert json.loads((tmp_path / "train_data0.json").read_text())["annotations"] == []


def test_train_only_images_train_in_every_fold_and_get_ids_of_their_own(tmp_path):
    file, pseudo = write_set(tmp_path / "all.json", 6), write_set(tmp_path / "pseudo.json", 3)
    source = read_fold_source(file, [pseudo])
    divide(source, 2, tmp_path)
    for fold in range(2):
        train, valid = (json.loads((tmp_path / f"{part}_data{fold}.json").read_text()) for part in ("train", "valid"))
        names = {image["id"]: image["file_name"] for image in train["images"]}
        assert len(names) == 6
        assert sum(name.startswith("pseudo") for name in names.values()) == 3
        assert not any(image["file_name"].startswith("pseudo") for image in valid["images"])
        assert len({a["id"] for a in train["annotations"]}) == len(train["annotations"])
        of_pseudo = [a for a in train["annotations"] if names[a["image_id"]].startswith("pseudo")]
        assert [a["category_id"] for a in of_pseudo] == [2, 4, 2, 2]


def test_annotations_of_no_image_or_category_are_counted_and_left_out(tmp_path):
    loose = [{"id": 1, "image_id": 99, "category_id": 2}, {"id": 2, "image_id": 1, "category_id": 9}, {"image_id": [1]}]
    source = read_fold_source(write_set(tmp_path / "all.json", 2, annotations=loose))
    assert source.loose == 3
    assert source.annotations == [[], []]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "needs lists of images and categories"),
        ('{"images": []}', "needs lists of images and categories"),
        ('{"images": [{"id": 1}], "categories": []}', "'images' must be a list of objects, each with file_name and id"),
        ('{"images": [{"id": 1, "file_name": null}], "categories": []}', "each with file_name and id"),
        ('{"images": [{"id": 1, "file_name": [1]}], "categories": []}', "a file_name in its 'images' is no text"),
        ('{"images": [], "categories": [1]}', "'categories' must be a list of objects, each with id and name"),
        ('{"images": [], "categories": [], "annotations": [[]]}', "'annotations' must be a list of objects$"),
        ('{"images": [{"id": [], "file_name": "a"}], "categories": []}', "neither a number nor a text"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "categories": []}',
            "two images with the same id",
        ),
    ],
)
def test_a_file_that_is_not_coco_is_one_sentence(tmp_path, content, message):
    (tmp_path / "all.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_fold_source(tmp_path / "all.json")


def test_other_categories_in_a_train_only_file_are_an_error(tmp_path):
    file = write_set(tmp_path / "all.json", 2)
    other = write_set(tmp_path / "pseudo.json", 2, categories=CATEGORIES[:1])
    with pytest.raises(DataError, match=r"pseudo.json has other categories than .*all.json"):
        read_fold_source(file, [other])


def test_a_byte_order_mark_is_read_over(tmp_path):
    file = write_set(tmp_path / "all.json", 2)
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    assert len(read_fold_source(file).images) == 2


def test_folds_are_replaced_all_or_none(tmp_path, monkeypatch):
    source = read_fold_source(write_set(tmp_path / "all.json", 6))
    out = tmp_path / "folds"
    divide(source, 3, out)
    before = {path.name: path.read_text() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"train_data0.json exists already; .*--overwrite"):
        divide(source, 2, out)

    def break_off(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", break_off)
        with pytest.raises(OSError, match="disk full"):
            write_fold_files(source, np.arange(6) % 2, 2, out, overwrite=True)
    assert {path.name: path.read_text() for path in out.iterdir()} == before
    write_fold_files(source, np.arange(6) % 2, 2, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "train_data0.json",
        "train_data1.json",
        "valid_data0.json",
        "valid_data1.json",
    ]
