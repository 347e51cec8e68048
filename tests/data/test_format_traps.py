"""Exports that could become wrong masks, or train on test images, without a word."""

import unicodedata

import numpy as np
import pytest
from helpers.label_formats import labelme_file, labelme_shape
from helpers.shapes import write_coco
from PIL import Image

from segkit.data import CocoSegmentation, DataError, find_source
from segkit.errors import DataWarning
from segkit.workflows.convert import convert

SIZE = (8, 10)  # (H, W)
SQUARE = [[2, 2], [6, 2], [6, 6], [2, 6]]
LARGE = [[0, 0], [8, 0], [8, 8], [0, 8]]


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(path)


def opened(path, **options):
    (part,) = find_source(path).read()
    return CocoSegmentation(part, **options)


def write_yolo(folder, images, labels, yaml="names: [a, b]\n"):
    """Write images and label lines by name; a line is a class and points in pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml)
    for name in images:
        image(folder / "images" / name)
    for name, (label, points) in labels.items():
        (folder / "labels").mkdir(exist_ok=True)
        shares = " ".join(f"{x / SIZE[1]} {y / SIZE[0]}" for x, y in points)
        (folder / "labels" / name).write_text(f"{label} {shares}\n")


def test_kept_masks_are_drawn_again_when_an_image_is_renamed(tmp_path):
    write_yolo(tmp_path / "data", ["b.png", "c.png"], {"b.txt": (1, SQUARE)})
    data = opened(tmp_path / "data", mask_cache=tmp_path / "cache")
    assert [data[i][1].max() for i in range(2)] == [2, 0]
    (tmp_path / "data/images/c.png").rename(tmp_path / "data/images/a.png")  # now the first
    data = opened(tmp_path / "data", mask_cache=tmp_path / "cache")
    assert [data[i][1].max() for i in range(2)] == [0, 2]


@pytest.mark.parametrize("overlap", ["smallest", "last"])
def test_a_class_that_a_map_ignores_does_not_hide_what_lies_on_top(tmp_path, overlap):
    image(tmp_path / "a.png")
    labelme_file(tmp_path / "a.json", "a.png", SIZE, labelme_shape("table", LARGE), labelme_shape("cup", SQUARE))
    mask = opened(tmp_path, class_map={"table": "ignore", "cup": "cup"}, overlap=overlap).mask(0)
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[:, :8] = 255
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("to", ["coco", "labelme", "masks"])
def test_a_class_that_a_map_ignores_is_converted_as_it_is_painted(tmp_path, to):
    image(tmp_path / "data/a.png")
    labelme_file(tmp_path / "data/a.json", "a.png", SIZE, labelme_shape("table", LARGE), labelme_shape("cup", SQUARE))
    mapped = {"table": "ignore", "cup": "cup"}
    (tmp_path / "map.csv").write_text("table,ignore\ncup,cup\n")
    convert(data=tmp_path / "data", to=to, out=tmp_path / "out", class_map=tmp_path / "map.csv", image_files="copy")
    if to == "masks":
        with Image.open(tmp_path / "out/SegmentationClass/a.png") as png:
            mask = np.array(png)
    elif to == "coco":
        mask = CocoSegmentation(tmp_path / "out/annotations.json", tmp_path / "out/images").mask(0)
    else:
        mask = opened(tmp_path / "out").mask(0)
    np.testing.assert_array_equal(mask, opened(tmp_path / "data", class_map=mapped).mask(0))


def test_key_points_of_yolo_are_not_taken_for_polygons(tmp_path):
    write_yolo(tmp_path, ["a.png"], {"a.txt": (0, [*SQUARE, [1, 1], [2, 2]])}, "kpt_shape: [4, 2]\nnames: [a, b]\n")
    with pytest.raises(DataError, match="is of YOLO pose"):
        find_source(tmp_path)


def test_two_images_do_not_share_a_label_file_of_yolo(tmp_path):
    write_yolo(tmp_path, ["a.png", "a.bmp"], {"a.txt": (0, SQUARE)})
    with pytest.raises(DataError, match=r"a\.png have the same name, so it is not clear which one .*a\.txt is of"):
        opened(tmp_path)


def test_a_file_next_to_labelme_splits_does_not_mix_them(tmp_path):
    for split in ("train", "val", "test"):
        image(tmp_path / split / "a.png")
        labelme_file(tmp_path / split / "a.json", "a.png", SIZE, labelme_shape("a", SQUARE))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/config.json").write_text("{}")
    (tmp_path / "classes.json").write_text('["a"]')
    assert set(find_source(tmp_path).splits) == {"train", "val", "test"}
    image(tmp_path / "b.png")
    labelme_file(tmp_path / "b.json", "b.png", SIZE)
    source = find_source(tmp_path)
    assert set(source.splits) == {"train", "val", "test", "other"}
    assert [row["file_name"] for row in source.splits["other"]().content["images"]] == ["b.png"]


@pytest.mark.parametrize(
    ("to", "name"), [("masks", "#1"), ("masks", " a"), ("labelme", "a "), ("labelme", "__ignore__")]
)
def test_a_class_that_a_format_would_read_as_another_is_refused(tmp_path, to, name):
    image(tmp_path / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[x for point in SQUARE for x in point]]}
    file = write_coco(tmp_path / "a.json", images, [annotation], [{"id": 1, "name": name}])
    with pytest.raises(DataError, match="renames it"):
        convert(data=file, to=to, out=tmp_path / "out")


def test_a_folder_above_or_below_the_export_is_named(tmp_path):
    write_yolo(tmp_path / "unpacked/export", ["a.png"], {"a.txt": (0, SQUARE)})
    for wrong in ("unpacked", "unpacked/export/images", "unpacked/export/labels/a.txt"):
        with pytest.raises(DataError, match="export is yolo; did you mean that"):
            find_source(tmp_path / wrong)
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_default.json").write_text("{}")
    with pytest.raises(DataError, match=r"did you mean .*instances_default\.json\?"):
        find_source(tmp_path / "coco")


def test_only_images_of_the_challenge_have_the_classes_of_voc(tmp_path):
    for name in ("2011_000001", "2024_000002"):  # a date of one's own
        image(tmp_path / f"JPEGImages/{name}.png")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(np.ones(SIZE, dtype=np.uint8)).save(tmp_path / f"SegmentationClass/{name}.png")
    with pytest.raises(DataError, match="no file says what its classes are"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["a.TXT", unicodedata.normalize("NFD", "캔é") + ".txt"])
def test_a_label_file_of_yolo_that_is_spelt_in_another_way_is_no_background(tmp_path, name):
    label = tmp_path / "labels" / name
    image_name = unicodedata.normalize("NFC", label.stem) + ".png"
    write_yolo(tmp_path, [image_name, "A.png"], {name: (1, SQUARE)})
    data = opened(tmp_path)
    assert {data.name(i): data.mask(i).max() for i in range(2)} == {f"images/{image_name}": 2, "images/A.png": 0}


def test_names_that_differ_only_in_capitals_or_blanks_are_a_warning(tmp_path):
    image(tmp_path / "a.png")
    shapes = [labelme_shape(label, SQUARE) for label in ("Can", "cup", "can ")]
    labelme_file(tmp_path / "a.json", "a.png", SIZE, *shapes)
    with pytest.warns(DataWarning, match=r"differ only in capitals or blanks; `class_map` merges them: 1 \(can \)"):
        opened(tmp_path)
    assert not opened(tmp_path, class_map={"Can": "can", "can ": "can", "cup": "cup"}).notes
