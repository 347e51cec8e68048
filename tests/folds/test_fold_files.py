import json
from pathlib import Path

import numpy as np
import pytest

from segkit.data import CocoSegmentation
from segkit.data.findings import DataWarning
from segkit.data.images import DataError, write_image
from segkit.folds.assign import assign_folds
from segkit.folds.counts import count_classes
from segkit.folds.files import read_fold_source, write_fold_files
from segkit.folds.split import Folds, count_images

CATEGORIES = [{"id": 4, "name": "can", "supercategory": "metal"}, {"id": 2, "name": "box"}]


def write_set(file, images, *, start=1, categories=CATEGORIES, **other):
    """Write a COCO file of 8 x 8 images; image i has a box of i + 1 pixels width, every third also a can."""
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
    counts = count_classes(source.regions, len(source.class_names) + 1)
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
        assert content["segkit_fold"] == {"number": fold, "k": 3}
        assert list(content) == ["segkit_fold", "info", "images", "annotations", "categories", "licenses"]
        assert content["categories"] == CATEGORIES
        assert content["info"] == {"year": 2021}
    assert sorted(validated) == sorted(masks)


def test_the_folds_of_a_file_without_annotations_load(tmp_path):
    file = write_set(tmp_path / "all.json", 2, annotations=[])
    divide(read_fold_source(file), 2, tmp_path)
    assert json.loads((tmp_path / "train_data0.json").read_text())["annotations"] == []


def test_train_only_images_train_in_every_fold_and_get_new_ids(tmp_path):
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


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": [{"id": 1, "image_id": 99, "category_id": 2}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 9}]},
        {"annotations": [{"image_id": [1]}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 2, "segmentation": [["a", 1, 2, 3, 4, 5]]}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 2, "segmentation": {"counts": "0hb0"}, "area": 5}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 1e12]]}]},
        {"annotations": [[]]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 4], "segmentation": []}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 1, 0, 1, 0.5]]}]},
        {"images": [{"id": 1}]},
        {"images": [{"id": 1, "file_name": None}]},
        {"images": [{"id": 1, "file_name": [1]}]},
        {"images": [{"id": [], "file_name": "a.png"}]},
        {"images": [{"id": 1, "file_name": ""}]},
        {"images": [{"id": 1, "file_name": "./"}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 2, "iscrowd": "maybe"}]},
        {"images": [{"id": 1, "file_name": "all_0.png"}, {"id": 1, "file_name": "all_1.png"}]},
        {"images": [{"id": 1, "file_name": "all_0.png", "height": "tall", "width": 8}]},
        {"categories": []},
        {"categories": [1]},
        {"categories": [{"id": 2}]},
        {"categories": [{"id": None, "name": "box"}]},
        {"categories": [{"id": 2, "name": "box"}, {"id": 2, "name": "can"}]},
        {"categories": [{"id": 2, "name": "box"}, {"id": 4, "name": "box"}]},
    ],
    ids=str,
)
def test_folds_and_training_refuse_a_file_with_the_same_words(tmp_path, change):
    file = write_set(tmp_path / "all.json", 2)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError) as in_folds:
        read_fold_source(file)
    with pytest.raises(DataError) as in_training:
        CocoSegmentation(file)
    first_line = str(in_training.value).partition(";")[0]
    assert first_line == str(in_folds.value).partition(";")[0]


def text_ids(content):
    for row in [*content["images"], *content["categories"]]:
        row["id"] = str(row["id"])
    for row in content["annotations"]:
        row["image_id"], row["category_id"] = str(row["image_id"]), str(row["category_id"])


def text_references(content):
    for row in content["annotations"][::2]:
        row["image_id"] = str(row["image_id"])


def float_references(content):
    for row in content["annotations"]:
        row["image_id"], row["category_id"] = float(row["image_id"]), float(row["category_id"])


def words_as_ids(content):
    text_ids(content)
    for row in content["images"]:
        row["id"] = f"image {row['id']}"
    for row in content["annotations"]:
        row["image_id"] = f"image {row['image_id']}"


@pytest.mark.parametrize("change", [text_ids, text_references, float_references, words_as_ids])
def test_ids_may_be_text_or_whole_floats_in_folds_and_in_training(tmp_path, change):
    file = write_set(tmp_path / "all.json", 9)
    plain, before = CocoSegmentation(file), divide(read_fold_source(file), 3, tmp_path / "plain")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    data, source = CocoSegmentation(file), read_fold_source(file)
    assert data.class_names == plain.class_names
    assert all(np.array_equal(data.mask(i), plain.mask(i)) for i in range(9))
    assert divide(source, 3, tmp_path / "folds").tolist() == before.tolist()
    by_value = {text_references: 6, float_references: 12}.get(change, 0)
    for notes in (data.notes, source.notes):
        assert sum(note.count for note in notes if note.kind == "id-by-value") == by_value
    for fold in range(3):
        parts = [
            CocoSegmentation(tmp_path / f"folds/{part}_data{fold}.json", root=tmp_path) for part in ("train", "valid")
        ]
        masks = {part.name(i): part.mask(i) for part in parts for i in range(len(part))}
        assert all(np.array_equal(masks[plain.name(i)], plain.mask(i)) for i in range(9))


def test_an_id_is_matched_by_value_only_if_one_image_has_it(tmp_path):
    file = write_set(tmp_path / "all.json", 2)
    content = json.loads(file.read_text())
    content["images"][1]["id"] = "1"  # next to the number 1
    content["annotations"] = [content["annotations"][0] | {"image_id": "1"}]
    file.write_text(json.dumps(content))
    assert [len(regions) for regions in CocoSegmentation(file).annotations] == [0, 1]
    content["annotations"][0]["image_id"] = "1.0"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image_id '1\.0', which is not there"):
        CocoSegmentation(file)


def test_new_ids_do_not_collide_with_ids_written_as_text(tmp_path):
    file, pseudo = write_set(tmp_path / "all.json", 6), write_set(tmp_path / "pseudo.json", 3)
    content = json.loads(file.read_text())
    text_ids(content)
    file.write_text(json.dumps(content))
    divide(read_fold_source(file, [pseudo]), 2, tmp_path)
    train = CocoSegmentation(tmp_path / "train_data0.json")
    whole = CocoSegmentation(pseudo)
    masks = {whole.name(i): whole.mask(i) for i in range(3)}
    of_pseudo = [i for i in range(len(train)) if train.name(i) in masks]
    assert len(of_pseudo) == 3
    assert all(np.array_equal(train.mask(i), masks[train.name(i)]) for i in of_pseudo)


def test_a_train_only_file_may_number_the_categories_in_another_way(tmp_path):
    other = [{"id": 7, "name": "box"}, {"id": 2, "name": "can"}]
    file, pseudo = write_set(tmp_path / "all.json", 6), write_set(tmp_path / "pseudo.json", 3)
    content = json.loads(pseudo.read_text()) | {"categories": other}
    for row in content["annotations"]:
        row["category_id"] = {2: 7, 4: 2}[row["category_id"]]
    pseudo.write_text(json.dumps(content))
    divide(read_fold_source(file, [pseudo]), 2, tmp_path)
    train, whole = CocoSegmentation(tmp_path / "train_data0.json"), CocoSegmentation([file, pseudo])
    masks = {whole.name(i): whole.mask(i) for i in range(len(whole))}
    assert sum(train.name(i).startswith("pseudo") for i in range(len(train))) == 3
    assert all(np.array_equal(train.mask(i), masks[train.name(i)]) for i in range(len(train)))


@pytest.mark.parametrize("overlap", ["smallest", "last", "max-id"])
@pytest.mark.parametrize("crowd", ["paint", "ignore"])
def test_folds_and_training_count_the_same_pixels(tmp_path, overlap, crowd):
    file = write_set(tmp_path / "all.json", 2)
    content = json.loads(file.read_text())
    shapes = [(4, [0, 0, 8, 0, 8, 4, 0, 4]), (2, [0, 0, 8, 0, 8, 8, 0, 8]), (2, [0, 0, 2, 0, 2, 2, 0, 2])]
    content["annotations"] = [
        {"id": i, "image_id": image, "category_id": category, "segmentation": [shape], "iscrowd": int(i == 2)}
        for i, (image, (category, shape)) in enumerate((image, shape) for image in (1, 2) for shape in shapes)
    ]
    file.write_text(json.dumps(content))
    source = read_fold_source(file)
    counts = count_classes(source.regions, 3, source.masks(overlap=overlap, crowd=crowd))
    in_training = count_images(CocoSegmentation(file, overlap=overlap, crowd=crowd))
    assert all(np.array_equal(*pair) for pair in zip(counts, in_training, strict=True))
    assert counts.pixels[1, 0] == {"smallest": 36, "last": 64, "max-id": 32}[overlap]


def test_rule_1_divides_as_before_rule_2(tmp_path):
    file = write_set(tmp_path / "all.json", 20)
    content = json.loads(file.read_text())
    for i, row in enumerate(content["annotations"]):
        row["area"] = 1 + (i * 7) % 11  # not what is painted
    file.write_text(json.dumps(content))
    data = CocoSegmentation(file)
    folds, earlier = Folds(data, k=4, seed=3), Folds(data, k=4, seed=3).by_rule(1)
    assert earlier.validated() != folds.validated()
    found = [[int(Path(path).stem.split("_")[1]) for path in fold] for fold in earlier.validated()]
    # worked out by the version before rule 2
    assert found == [[2, 8, 10, 16, 18], [3, 7, 11, 12, 13], [0, 4, 5, 14, 15], [1, 6, 9, 17, 19]]


def test_images_whose_size_is_unknown_or_absurd_count_by_the_areas_of_their_annotations(tmp_path):
    file = write_set(tmp_path / "all.json", 3)
    content = json.loads(file.read_text())
    del content["images"][0]["height"]
    content["images"][1] |= {"height": 10**6, "width": 10**6}
    content["images"][2] |= {"height": -8, "width": -8}
    file.write_text(json.dumps(content))
    source = read_fold_source(file)
    masks = list(source.masks())
    assert masks == [None, None, None]
    assert count_classes(source.regions, 3, masks).pixels[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a COCO file"),
        ('{"images": []}', "is not a COCO file"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "a number with thousands of digits"),
    ],
    ids=["cut", "list", "keys", "nested", "digits"],
)
def test_a_file_that_is_not_coco_is_refused_with_the_same_words(tmp_path, text, message):
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(DataError, match=rf"all\.json .*{message}") as in_folds:
        read_fold_source(tmp_path / "all.json")
    with pytest.raises(DataError) as in_training:
        CocoSegmentation(tmp_path / "all.json")
    assert str(in_training.value) == str(in_folds.value)


def test_other_categories_in_a_train_only_file_are_an_error(tmp_path):
    file = write_set(tmp_path / "all.json", 2)
    other = write_set(tmp_path / "pseudo.json", 2, categories=[*CATEGORIES, {"id": 5, "name": "jar"}])
    with pytest.raises(DataError, match=r"pseudo\.json do not match the classes box, can: 'jar' is new here"):
        read_fold_source(file, [other])


@pytest.mark.parametrize("has_background", [True, False])
def test_background_of_a_train_only_file_stays_background(tmp_path, has_background):
    """Its category has another id and another case in the first file, or is not there."""
    file, pseudo = write_set(tmp_path / "all.json", 6), write_set(tmp_path / "pseudo.json", 3)
    if has_background:
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"categories": [*CATEGORIES, {"id": 9, "name": "background"}]}))
    content = json.loads(pseudo.read_text()) | {"categories": [{"id": 2, "name": "Background"}, CATEGORIES[0]]}
    pseudo.write_text(json.dumps(content))
    source = read_fold_source(file, [pseudo])
    assert source.class_names == ("box", "can")
    assert count_classes(source.regions[6:], 3).annotations.tolist() == [[0, 1], [0, 0], [0, 0]]
    divide(source, 2, tmp_path)
    train = CocoSegmentation(tmp_path / "train_data0.json")
    whole = CocoSegmentation(pseudo, class_names=("box", "can"))
    assert train.class_names == ("background", "box", "can")
    masks = {whole.name(i): whole.mask(i) for i in range(3)}
    of_pseudo = [i for i in range(len(train)) if train.name(i) in masks]
    assert len(of_pseudo) == 3
    assert all(np.array_equal(train.mask(i), masks[train.name(i)]) for i in of_pseudo)


def test_a_train_only_file_may_lack_a_class_with_a_warning(tmp_path):
    file, pseudo = write_set(tmp_path / "all.json", 2), write_set(tmp_path / "pseudo.json", 1, categories=CATEGORIES)
    content = json.loads(pseudo.read_text())
    pseudo.write_text(json.dumps(content | {"categories": CATEGORIES[1:], "annotations": content["annotations"][:1]}))
    with pytest.warns(DataWarning, match=r"classes without a category in a JSON.*: 1 \(can\)"):
        source = read_fold_source(file, [pseudo])
    assert source.annotations[2] == [content["annotations"][0] | {"id": 4, "image_id": 3}]


def test_a_byte_order_mark_is_skipped(tmp_path):
    file = write_set(tmp_path / "all.json", 2)
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    assert len(read_fold_source(file).images) == 2


def test_folds_are_replaced_all_or_none(tmp_path, monkeypatch):
    source = read_fold_source(write_set(tmp_path / "all.json", 6))
    out = tmp_path / "folds"
    divide(source, 3, out)
    before = {path.name: path.read_text() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"train_data0.json exists already; .*`overwrite`"):
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
