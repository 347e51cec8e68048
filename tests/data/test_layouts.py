"""Layouts of exports and published data sets: each comes out as the right label maps, or as one sentence."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import LAYOUTS, write_cvat_masks, write_png, write_roboflow, write_voc
from PIL import Image

from segkit.config import CheckConfig
from segkit.data import CocoSegmentation, DataError, FolderSegmentation, find_source
from segkit.data.formats import voc
from segkit.workflows.datasets import open_checked


def opened(path, format=None, split=None):
    """Return the data set of one split, or of the whole source, with findings instead of errors."""
    source = find_source(path, format)
    part = source.splits[split or next(iter(source.splits))]()
    return (CocoSegmentation if hasattr(part, "content") else FolderSegmentation).inspect(part)


def errors(data):
    return [finding.sentence for finding in data.findings if finding.severity == "error"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_and_comes_out_as_its_label_maps(name, tmp_path):
    layout = LAYOUTS[name](tmp_path / "data")
    source = find_source(layout.path)
    assert source.format == name.split(" ")[0]
    assert list(source.splits) == (["train", "val"] if layout.is_divided else ["all"])
    sets = open_checked(CheckConfig(data=(layout.path,)))
    assert all(part.class_names == layout.class_names for part in sets.values())
    assert not [sentence for part in sets.values() for sentence in errors(part)]
    found = {Path(part.name(i)).name: part.mask(i) for part in sets.values() for i in range(len(part))}
    assert set(found) == set(layout.masks)
    for file, mask in layout.masks.items():
        np.testing.assert_array_equal(found[file], mask, err_msg=file)


def image(path, size, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1], (90, 90, 90)).save(path, exif=exif)
    return path


# YOLO


def yolo(root, lines, size=(20, 30), names=("bus", "road"), file="a.jpg", **options):
    """Write a data set of one image; `lines` have coordinates in pixels. Return its data set."""
    image(root / "images" / file, size, **options)
    height, width = size
    rows = [
        " ".join([words.split()[0], *(str(float(v) / (width, height)[i % 2]) for i, v in enumerate(words.split()[1:]))])
        for words in lines
    ]
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / file).with_suffix(".txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text(json.dumps({"train": "images", "names": list(names)}))
    return opened(root / "data.yaml")


@pytest.mark.parametrize("size", [(20, 30), (21, 31)])
def test_yolo_holes_and_parts_joined_by_bridges_are_filled_right(size, tmp_path):
    ring = "2 2 18 2 18 14 2 14 2 2 6 6 14 6 14 10 6 10 6 6 2 2"  # the hole runs the same way round as the outline
    parts = "20 2 24 2 24 6 20 6 20 2 22 12 26 12 26 16 22 16 22 12 20 2"
    expected = np.zeros(size, dtype=np.uint8)
    expected[2:14, 2:18] = 1
    expected[6:10, 6:14] = 0
    expected[2:6, 20:24] = expected[12:16, 22:26] = 2
    np.testing.assert_array_equal(yolo(tmp_path, [f"0 {ring}", f"1 {parts}"], size).mask(0), expected)


def test_yolo_smaller_objects_lie_on_top_whatever_the_order(tmp_path):
    data = yolo(tmp_path, ["0 10 5 15 5 15 10 10 10", "1 5 0 25 0 25 15 5 15"])
    assert data.mask(0)[7, 12] == 1
    assert data.mask(0)[1, 6] == 2


def test_yolo_coordinates_are_of_the_image_as_it_is_displayed(tmp_path):
    image(tmp_path / "images" / "a.jpg", (20, 30), orientation=6)  # displayed as 30 x 20
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0 0 0.5 0 0.5 0.2 0 0.2")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [bus]")
    mask = opened(tmp_path).mask(0)
    assert mask.shape == (30, 20)
    assert mask[:6, :10].all()
    assert mask.sum() == 60


def test_yolo_boxes_paint_nothing_unless_they_are_asked_for(tmp_path):
    data = yolo(tmp_path, ["0 10 10 10 4", "1 0 0 5 0 5 5 0 5"])
    assert [f.kind for f in data.findings if f.severity == "warning"] == ["no-segmentation"]
    painted = CocoSegmentation(find_source(tmp_path).splits["train"](), bbox_as_mask=True)
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[8:12, 5:15] = 1
    expected[:5, :5] = 2
    np.testing.assert_array_equal(painted.mask(0), expected)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("0 a 1 2 3 4 5", "line 1: expected numbers, got '0 a 1"),
        ("nan 0 0 1 0 1 1", "line 1: expected numbers"),
        ("2 0 0 1 0 1 1", "line 1: there is no class 2, they are 0 to 1"),
        ("0.5 0 0 1 0 1 1", "there is no class 0.5"),
        ("-1 0 0 1 0 1 1", "there is no class -1"),
        ("0 0 0 1 0 1 1 0.9", "expected a class and x y of three points or more, got 8 numbers"),
        ("0 0 0 1 1 0", "expected a class and x y of three points or more, got 6 numbers"),
        ("0 0 0 15 0 15 9", "expected shares of the image in 0..1, got 15"),
        ("0 -3 0 1 0 1 1", "expected shares of the image in 0..1, got -3"),
    ],
)
def test_yolo_lines_that_cannot_be_read(line, sentence, tmp_path):
    yolo(tmp_path, [])
    (tmp_path / "labels" / "a.txt").write_text(f"{line}\n")
    (found,) = errors(opened(tmp_path))
    assert sentence in found
    assert "a.txt" in found


def test_yolo_polygons_equal_the_same_polygons_in_coco(tmp_path):
    draw, size, regions = random.Random(0), (97, 64), []
    for _ in range(1000):
        corner, count = (draw.uniform(0, 60), draw.uniform(0, 90)), draw.randint(3, 9)
        regions.append([min(max(corner[i % 2] + draw.gauss(0, 12), 0), size[1 - i % 2]) for i in range(2 * count)])
    for number in range(10):
        image(tmp_path / "images" / f"{number}.png", size)
        (tmp_path / "labels").mkdir(exist_ok=True)
        lines = [
            " ".join([str(i % 3), *(f"{v / (64, 97)[k % 2]:.9f}" for k, v in enumerate(region))])
            for i, region in enumerate(regions[number::10])
        ]
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a, b, c]")
    annotations = [
        {"id": n * 100 + i, "image_id": n, "category_id": i % 3, "segmentation": [region]}
        for n in range(10)
        for i, region in enumerate(regions[n::10])
    ]
    images = [{"id": n, "file_name": f"images/{n}.png", "height": 97, "width": 64} for n in range(10)]
    categories = [{"id": i, "name": name} for i, name in enumerate("abc")]
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    data, expected = opened(tmp_path), CocoSegmentation.inspect(coco)
    assert len(data) == len(expected) == 10
    for i in range(10):
        np.testing.assert_array_equal(data.mask(i), expected.mask(i))


def test_yolo_images_without_a_label_file_or_with_an_empty_one_are_background(tmp_path):
    yolo(tmp_path, ["0 0 0 5 0 5 5"])
    for name in ("b.JPG", "c.jpg"):
        image(tmp_path / "images" / name, (9, 11))
    (tmp_path / "labels" / "c.txt").write_text("")
    (tmp_path / "labels" / "lone.txt").write_text("0 0 0 1 0 1 1")
    data = opened(tmp_path)
    assert [data.name(i) for i in range(3)] == ["images/a.jpg", "images/b.JPG", "images/c.jpg"]
    assert [data.mask(i).any() for i in range(3)] == [True, False, False]
    assert [f.kind for f in data.findings if f.severity != "note"] == ["lone-label"]


@pytest.mark.parametrize(
    ("yaml", "files"),
    [
        ("train: ../train/images", {}),  # as Roboflow writes it, next to the folder train
        ("path: /home/somebody/data\ntrain: train/images", {}),
        ("path: train\ntrain: images", {}),
        ("train: train.txt", {"train.txt": "./train/images/a.jpg\n"}),
        ("train: train.txt", {"train.txt": "data/train/images/a.jpg\n"}),  # as CVAT writes it
        ("train: train.txt", {"train.txt": "C:\\\\data\\\\train\\\\images\\\\a.jpg\r\n"}),
        ("train: train.txt", {"train.txt": "/content/train/images/a.jpg"}),
        ("train: [train/images/a.jpg]", {}),
    ],
)
def test_yolo_images_are_found_by_the_paths_of_each_tool(yaml, files, tmp_path):
    image(tmp_path / "train" / "images" / "a.jpg", (20, 30))
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("1 0 0 1 0 1 1 0 1")
    (tmp_path / "data.yaml").write_text(f"{yaml}\nnc: 2\nnames: {{0: bus, '1': road}}")
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("\\\\", "\\"))
    data = opened(tmp_path)
    assert not errors(data)
    assert (data.mask(0) == 2).all()


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("train: images\nnames: [a, a]", "two classes of the same name: a, a"),
        ("train: images\nnames: {0: a, 2: b}", "`names` must be a list of class names, or a mapping from 0, 1"),
        ("train: images\nnames: [yes, no]", "put a name such as yes or no in quotes"),
        ("train: images\nnc: 3\nnames: [a, b]", "has 2 `names`, but `nc` is 3"),
        ("train: elsewhere\nnames: [a, b]", "names elsewhere, but there is no .*elsewhere"),
        ("- a", "is not a data.yaml"),
        ("a: [", "is not YAML"),
    ],
)
def test_yolo_files_that_cannot_be_used(yaml, sentence, tmp_path):
    image(tmp_path / "images" / "a.jpg", (20, 30))
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=sentence):
        opened(tmp_path, "yolo")


# Roboflow


def test_roboflow_keeps_categories_that_are_classes(tmp_path):
    """Only a supercategory of another category without annotations in any split stands for the project."""
    path = write_roboflow(tmp_path).path
    for split in ("train", "valid"):
        file = path / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        for row in content["categories"]:
            row["supercategory"] = "none"
        file.write_text(json.dumps(content))
    assert opened(path).class_names == ("background", "streets", "bus", "road")
    for row in content["categories"][1:]:
        row["supercategory"] = "streets"
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert "streets" in opened(path, split="train").class_names


def test_roboflow_splits_that_lack_a_class_have_it_without_pixels(tmp_path):
    path = write_roboflow(tmp_path).path
    file = path / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["categories"] = [row for row in content["categories"] if row["name"] != "bus"]
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 2]
    file.write_text(json.dumps(content))
    data = opened(path, split="train")
    assert data.class_names == ("background", "road", "bus")
    assert set(np.unique(data.mask(0))) == {0, 1}
    assert CocoSegmentation(find_source(path).splits["val"](), class_names=data.class_names).mask(0).max() == 2


def test_one_folder_or_file_of_roboflow_is_a_source_without_splits(tmp_path):
    path = write_roboflow(tmp_path).path
    for one in (path / "train", path / "train" / "_annotations.coco.json"):
        assert opened(one).class_names == ("background", "bus", "road")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Pixel Value, Class\n0, background\n", "names 1 classes"),
        ("Pixel Value, Class\n0, background\nx, car\n", "line 3: expected a pixel value and a class"),
        ("Pixel Value, Class\n0, background\n0, car\n", "line 3: the pixel value 0 occurs twice"),
        ("filename, car, bus\na.jpg, 0, 1\n", "line 2: expected a pixel value and a class"),
    ],
)
def test_roboflow_lists_of_classes_that_cannot_be_used(text, sentence, tmp_path):
    path = LAYOUTS["roboflow masks"](tmp_path).path
    (path / "train" / "_classes.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        opened(path)


def test_roboflow_masks_have_no_other_values_and_no_image_lacks_its_mask(tmp_path):
    path = LAYOUTS["roboflow masks"](tmp_path).path
    mask = np.zeros((33, 48), dtype=np.uint8)
    mask[0, 0] = 255
    write_png(path / "train" / "0_mask.png", mask)
    (path / "train" / "1_mask.png").unlink()
    (path / "train" / "2.png").unlink()
    found = errors(opened(path))
    assert len(found) == 3
    assert "0_mask.png has the values 255, but its format has the values 0, 1, 2" in " ".join(found)
    assert f"{path / 'train' / '1.png'} has no mask" in found
    assert f"the mask {path / 'train' / '2_mask.png'} has no image" in found


# CVAT's masks and Pascal VOC


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("background:0,0,0::\nbus:0,0,0::\n", "the colour .0, 0, 0. for both 'background' and 'bus'"),
        ("# label:color_rgb:parts:actions\nbus 1 2 3\n", "line 2: expected a line such as car:0,0,142::"),
        ("bus:1,2,256::\n", "line 1: expected a line"),
        ("# nothing\n", "names no class"),
    ],
)
def test_label_maps_of_cvat_that_cannot_be_used(text, sentence, tmp_path):
    path = write_cvat_masks(tmp_path).path
    (path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=sentence):
        opened(path)


def test_cvat_masks_need_their_images_and_known_colours(tmp_path):
    path = write_cvat_masks(tmp_path).path
    write_png(path / "SegmentationClass" / "0.png", np.ones((33, 48), dtype=np.uint8), {1: (9, 9, 9)})
    (path / "JPEGImages" / "1.png").unlink()
    found = errors(opened(path))
    assert any("colours that are not in the palette: (9, 9, 9)" in sentence for sentence in found)
    assert any(sentence.startswith("there is no image") and "JPEGImages/1" in sentence for sentence in found)
    (path / "JPEGImages").rename(path / "elsewhere")
    with pytest.raises(DataError, match="has no JPEGImages; export the images together with the masks"):
        opened(path)


def test_cvat_lists_images_without_annotations_which_have_no_mask(tmp_path):
    path = write_cvat_masks(tmp_path).path
    (path / "SegmentationClass" / "1.png").unlink()
    data = opened(path)
    assert [data.name(i) for i in range(len(data))] == ["0.png", "2.png", "3.png", "4.png", "5.png"]
    assert [(f.kind, f.where) for f in data.findings] == [("unlabelled", "1.png")]


def test_voc_colours_are_those_of_the_development_kit():
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 7: (128, 128, 128), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: voc.voc_colour(label) for label in colours} == colours
    assert voc.voc_colour(255) == (224, 224, 192)


def test_voc_masks_in_colours_are_read_by_the_palette_of_voc(tmp_path):
    layout = write_voc(tmp_path)
    for name, mask in layout.masks.items():
        file = layout.path / "VOC2012" / "SegmentationClass" / name
        write_png(file, mask, {label: voc.voc_colour(label) for label in (0, 1, 7, 255)})
    data = opened(layout.path)
    np.testing.assert_array_equal(data.mask(0), layout.masks[Path(data.name(0)).name])


def test_layouts_of_voc_with_other_images_must_name_their_classes(tmp_path):
    path = write_voc(tmp_path).path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass"):
        for file in list((path / folder).iterdir()):
            file.rename(file.with_name(file.name.removeprefix("2007_0")))
    (path / "ImageSets").rename(path / "unused")
    with pytest.raises(DataError, match=r"no file says what its classes are; write .*class_names.txt"):
        opened(path)
    names = ["__ignore__", "_background_", "bus", *"abcde", "road"]
    (path / "class_names.txt").write_text("\n".join(names))
    assert opened(path).class_names == ("background", "bus", *"abcde", "road")


# Cityscapes, ZeroWaste, TACO


def test_cityscapes_train_ids_are_read_if_there_are_no_label_ids(tmp_path):
    layout = LAYOUTS["cityscapes"](tmp_path)
    for file in list((tmp_path / "gtFine").rglob("*_labelIds.png")):
        mask = layout.masks[file.name.replace("gtFine_labelIds", "leftImg8bit")]
        file.unlink()
        write_png(file.with_name(file.name.replace("labelIds", "labelTrainIds")), mask)
    data = opened(tmp_path)
    np.testing.assert_array_equal(data.mask(0), layout.masks[Path(data.name(0)).name])


def test_zerowaste_images_without_a_mask_are_not_used(tmp_path):
    path = LAYOUTS["zerowaste"](tmp_path).path
    (path / "zerowaste-f" / "train" / "sem_seg" / "1.png").unlink()
    data = opened(path)
    assert [data.name(i) for i in range(len(data))] == ["0.png", "2.png", "3.png"]
    assert [f.kind for f in data.findings] == ["unlabelled"]
    assert opened(path / "zerowaste-f" / "train").class_names == data.class_names


def test_taco_keeps_its_category_0(tmp_path):
    data = opened(LAYOUTS["taco"](tmp_path).path)
    assert data.category_ids == {"bus": 0, "road": 1}
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(DataError, match="is not a COCO file: its 'images' must be a list of objects"):
        opened(tmp_path)


def test_cityscapes_of_cvat_have_their_own_classes(tmp_path):
    """The files are as Datumaro 1.13 writes them: a value is the place of its class in the list."""
    layout = LAYOUTS["cityscapes"](tmp_path)
    for name, mask in layout.masks.items():
        (file,) = (tmp_path / "gtFine").rglob(name.replace("leftImg8bit", "gtFine_labelIds"))
        write_png(file, np.select([mask == 15, mask == 0], [1, 2], 0).astype(np.uint8))
    assert "all pixels of the masks below" in errors(opened(tmp_path))[0]
    (tmp_path / "label_colors.txt").write_text("0 0 0 background\n128 0 0 bus\n0 128 0 city road\n")
    data = opened(tmp_path)
    assert data.class_names == ("background", "bus", "city road")
    for i in range(len(data)):
        mask = layout.masks[Path(data.name(i)).name]
        np.testing.assert_array_equal(data.mask(i), np.select([mask == 15, mask == 0], [1, 2], 0))
    (tmp_path / "label_colors.txt").write_text("0 0 0 background\n")
    with pytest.raises(DataError, match="must name two or more different classes"):
        opened(tmp_path)
