"""segkit.convert: labels in the format of another tool have exactly the pixels that they had before."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from helpers.shapes import write_coco
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

import segkit
from segkit.cli.convert import main
from segkit.data import CocoSegmentation, FolderSegmentation
from segkit.data.formats import find_source
from segkit.data.outlines import bridged, outlines
from segkit.data.rasterize import encode
from segkit.errors import DataError, UsageError


def random_regions(count: int):
    """Noise, blobs, and lines of one pixel that reach the border, of odd and even sizes."""
    random = np.random.default_rng(0)
    yield from (np.ones((1, 1), bool), np.eye(5, dtype=bool), ~np.eye(6, dtype=bool), np.zeros((3, 4), bool))
    for i in range(count):
        region = random.random(random.integers(1, 24, 2)) < random.random()
        if i % 3 == 1:
            region = cv2.GaussianBlur(random.random(random.integers(8, 32, 2)), (5, 5), 1) > 0.5
        if i % 3 == 2:
            region[:] = False
            region[random.integers(len(region))] = True
            region[: random.integers(len(region)) + 1, random.integers(region.shape[1])] = True
        yield region


# Older ones also draw pixels next to short edges, and so does LabelMe with them.
NEW_PILLOW = int(PIL.__version__.split(".")[0]) >= 12


def fill_with_opencv(polygon, size):
    return cv2.fillPoly(np.zeros(size, np.uint8), [polygon.astype(np.int32)], 1).astype(bool)


def fill_with_pillow(polygon, size):
    picture = Image.new("L", size[::-1])
    ImageDraw.Draw(picture).polygon(list(map(tuple, polygon.tolist())), outline=1, fill=1)
    return np.array(picture).astype(bool)


def fill_with_pycocotools(polygon, size):
    (rle,) = coco_mask.frPyObjects([polygon.ravel().tolist()], *size)
    return coco_mask.decode(rle).astype(bool)


def test_three_programs_fill_the_outlines_of_a_region_with_its_pixels():
    for region in random_regions(120):
        drawn = np.zeros((3, *region.shape), bool)
        for rings in outlines(region):
            polygon = bridged(rings, region)
            drawn[0] |= fill_with_opencv(polygon, region.shape)
            drawn[1] |= fill_with_pycocotools(polygon, region.shape)
            with_pillow = len(rings) == 1 and NEW_PILLOW
            drawn[2] |= (fill_with_pillow if with_pillow else fill_with_opencv)(polygon, region.shape)
        assert (drawn == region).all()


def test_the_outline_of_one_pixel_and_of_a_ring_are_as_worked_out():
    one = np.zeros((3, 3), bool)
    one[1, 2] = True
    ((ring,),) = outlines(one)
    assert {tuple(point) for point in ring.tolist()} == {(2.25, 1.25), (2.75, 1.25), (2.75, 1.75), (2.25, 1.75)}
    hole = np.ones((3, 3), bool)
    hole[1, 1] = False
    ((outer, inner),) = outlines(hole)
    assert (outer.min(), outer.max(), inner.min(), inner.max()) == (0.25, 2.75, 0.75, 2.25)


def photograph(file: Path, size=(30, 41), orientation=1):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, exif=exif)


def polygons_of(random, size, count):
    return [(random.random((random.integers(3, 9), 2)) * size[::-1]).round(random.integers(4)) for _ in range(count)]


@pytest.fixture
def coco(tmp_path):
    """Overlapping polygons, RLE, a crowd and an ignored region, in images of odd and even sizes in two folders."""
    random = np.random.default_rng(1)
    images, annotations = [], []
    for i, size in enumerate([(30, 41), (32, 40), (7, 90)]):
        photograph(tmp_path / f"photos/batch_{i % 2}/{i}.jpg", size)
        images.append({"id": 40 + i, "file_name": f"batch_{i % 2}/{i}.jpg", "height": size[0], "width": size[1]})
        shapes = [[polygon.ravel().tolist()] for polygon in polygons_of(random, size, 5)]
        shapes.append([*shapes[0], *shapes[1]])
        rle = coco_mask.encode(np.asfortranarray(random.random(size) < 0.2, dtype=np.uint8))
        shapes.append({"size": list(size), "counts": rle["counts"].decode()})
        for number, shape in enumerate(shapes):
            row = {"id": 1000 * i + number, "image_id": 40 + i, "category_id": 3 + 4 * (number % 2)}
            annotations.append({**row, "segmentation": shape, "iscrowd": int(number == 6)})
    annotations[1]["ignore"] = 1
    photograph(tmp_path / "photos/batch_1/empty.jpg")
    images.append({"id": 50, "file_name": "batch_1/empty.jpg", "height": 30, "width": 41})
    return write_coco(tmp_path / "labels.json", images, annotations)


def masks_of(data):
    return {Path(data.name(i)).stem: data.target(i) for i in range(len(data))}


def read_back(to, folder, root=None):
    if to == "coco":
        return CocoSegmentation(folder / "annotations.json", root)
    source = find_source(folder)
    assert source.format == {"masks": "cvat-masks"}.get(to, to)
    (part,) = source.read("train")
    if to != "masks":
        return CocoSegmentation(part)
    by_value = FolderSegmentation(
        folder / "JPEGImages", folder / "SegmentationClass", class_names=folder / "classes.txt"
    )
    by_colour = FolderSegmentation(part)
    if by_value.class_names[0] == "background":  # the other reader puts it first
        assert tuple(by_colour.class_names) == tuple(by_value.class_names)
        assert_same_masks(masks_of(by_colour), masks_of(by_value))
    return by_colour


def assert_same_masks(found, expected):
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


@pytest.mark.filterwarnings("ignore::segkit.data.DataWarning")
@pytest.mark.parametrize("overlap", ["smallest", "last"])
@pytest.mark.parametrize("to", ["coco", "masks", "yolo", "labelme"])
def test_labels_have_the_same_pixels_after_a_round_trip(coco, tmp_path, to, overlap):
    photos = tmp_path / "photos"
    made = segkit.convert(data=coco, images=photos, to=to, out=tmp_path / "out", overlap=overlap)
    assert made.images == {"all": 4}
    before = CocoSegmentation(coco, photos, overlap=overlap)
    expected = masks_of(before)
    if to == "yolo":  # it has no ignored regions: what lies below them shows
        content = json.loads(coco.read_text())
        content["annotations"] = [row for row in content["annotations"] if not row.get("ignore")]
        rest = write_coco(tmp_path / "rest.json", content["images"], content["annotations"])
        expected = masks_of(CocoSegmentation(rest, photos, overlap=overlap))
        assert "1 ignored region, whose pixels are now what lies below them" in made.lost
    after = read_back(to, tmp_path / "out", photos)
    assert tuple(after.class_names) == tuple(before.class_names) == made.class_names
    assert_same_masks(masks_of(after), expected)
    is_cut = any("hidden parts" in text for text in made.lost)
    # The parts of an RLE are objects of their own in YOLO, and so in another order by size.
    assert is_cut == (to == "yolo" or (overlap == "last" and to == "coco"))


def test_coco_keeps_ids_flags_and_polygons(coco, tmp_path):
    made = segkit.convert(data=coco, images=tmp_path / "photos", to="coco", out=tmp_path / "out")
    before, after = (json.loads(file.read_text()) for file in (coco, tmp_path / "out/annotations.json"))
    assert made.lost == ()
    assert sorted(row["id"] for row in after["categories"]) == [3, 7]
    assert [{k: image[k] for k in ("id", "file_name")} for image in after["images"]] == [
        {k: image[k] for k in ("id", "file_name")} for image in before["images"]
    ]
    rows = {row["id"]: row for row in after["annotations"]}
    assert len(rows) == len(before["annotations"])
    for row in before["annotations"]:
        assert rows[row["id"]]["segmentation"] == row["segmentation"]
        assert rows[row["id"]].get("ignore") == row.get("ignore")
        assert row.get("ignore") or rows[row["id"]]["category_id"] == row["category_id"]
        assert row.get("ignore") or rows[row["id"]]["iscrowd"] == row["iscrowd"]


@pytest.mark.slow
def test_a_thousand_polygons_have_the_same_pixels_in_yolo(tmp_path):
    random = np.random.default_rng(2)
    images, annotations = [], []
    for i in range(100):
        size = tuple(random.integers(20, 300, 2).tolist())
        photograph(tmp_path / f"{i}.png", size)
        images.append({"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
        for polygon in polygons_of(random, size, 10):
            row = {"id": len(annotations), "image_id": i, "category_id": 3, "segmentation": [polygon.ravel().tolist()]}
            annotations.append(row)
    file = write_coco(tmp_path / "labels.json", images, annotations)
    segkit.convert(data=file, to="yolo", out=tmp_path / "out")
    after = read_back("yolo", tmp_path / "out")
    before = CocoSegmentation(file)
    for i in range(100):
        size = before.items[i].size
        drawn = [encode(region.shape, size) for region in before.annotations[i]]
        (other,) = [k for k in range(100) if after.name(k) == f"images/{i}.png"]
        again = [encode(region.shape, size) for region in after.annotations[other]]
        assert sorted(filter(any, drawn)) == sorted(filter(any, again))


@pytest.fixture
def masks(tmp_path):
    """Folders of images and masks whose regions have holes, with ignored pixels; no class is called background."""
    for i, region in enumerate(random_regions(8)):
        if region.size < 20:
            continue
        photograph(tmp_path / f"photos/{i}.jpg", region.shape)
        mask = region.astype(np.uint8) + np.roll(region, 1, 0).astype(np.uint8) * 2
        mask[mask == 3] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\nBackground\n")
    return {"data": tmp_path / "photos", "masks": tmp_path / "masks", "class_names": tmp_path / "classes.txt"}


@pytest.mark.filterwarnings("ignore::segkit.data.DataWarning")  # a region is the pixel in the corner
@pytest.mark.parametrize("to", ["coco", "masks", "yolo", "labelme"])
def test_mask_files_have_the_same_pixels_after_a_round_trip(masks, tmp_path, to):
    segkit.convert(**masks, to=to, out=tmp_path / "out")
    before = FolderSegmentation(masks["data"], masks["masks"], class_names=masks["class_names"])
    after = read_back(to, tmp_path / "out", masks["data"])
    names = dict(enumerate(before.class_names)) | {255: "background" if to == "yolo" else "ignore"}
    found = {name: np.array([*after.class_names, *["ignore"] * 254])[mask] for name, mask in masks_of(after).items()}
    expected = {name: np.vectorize(names.get)(mask) for name, mask in masks_of(before).items()}
    if "Background" not in after.class_names:
        expected = {name: np.where(mask == "Background", "background", mask) for name, mask in expected.items()}
    assert_same_masks(found, expected)


def test_the_folder_of_masks_has_the_lists_and_colours_of_voc_and_cvat(masks, tmp_path):
    segkit.convert(**masks, to="masks", out=tmp_path / "out", image_files="none")
    out = tmp_path / "out"
    assert not (out / "JPEGImages").exists()
    lines = (out / "labelmap.txt").read_text().splitlines()
    assert lines[1:] == ["sky:128,0,0::", "road:0,128,0::", "Background:0,0,0::", "ignore:224,224,192::"]
    names = (out / "ImageSets/Segmentation/default.txt").read_text().split()
    assert sorted(names) == sorted(path.stem for path in (out / "SegmentationClass").iterdir())
    colours = {tuple(map(int, line.split(":")[1].split(","))) for line in lines[1:]}
    for name in names:
        picture = np.array(Image.open(out / f"SegmentationClass/{name}.png").convert("RGB"))
        assert {tuple(colour) for colour in picture.reshape(-1, 3).tolist()} <= colours


def labelme_masks(folder, class_names):
    """The masks of LabelMe's files, drawn as labelme's own exporter draws them (shapes_to_label, version 6.3)."""
    import base64
    import io

    found = {}
    for file in sorted(folder.rglob("*.json")):
        content = json.loads(file.read_text())
        size = content["imageHeight"], content["imageWidth"]
        assert Image.open(file.parent / content["imagePath"]).size == size[::-1]
        mask = np.zeros(size, np.uint8)
        for shape in content["shapes"]:
            points = np.array(shape["points"])
            label = 255 if shape["label"] == "__ignore__" else class_names.index(shape["label"])
            if shape["shape_type"] == "mask":
                (x1, y1), (x2, y2) = points.astype(int)
                crop = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
                assert crop.shape == (y2 - y1 + 1, x2 - x1 + 1)
                mask[y1 : y2 + 1, x1 : x2 + 1][crop] = label
            else:
                mask[fill_with_pillow(points, size)] = label
        found[file.stem] = mask
    return found


@pytest.mark.skipif(not NEW_PILLOW, reason="this Pillow draws more than the polygon")
def test_labelme_draws_masks_with_the_same_pixels(masks, tmp_path):
    segkit.convert(**masks, to="labelme", out=tmp_path / "out")
    before = masks_of(FolderSegmentation(masks["data"], masks["masks"], class_names=masks["class_names"]))
    table = np.array([1, 2, 0, *range(3, 256)])  # sky and road, and no shape for the class called background
    expected = {name: table[mask] for name, mask in before.items()}
    assert_same_masks(labelme_masks(tmp_path / "out", ["", "sky", "road"]), expected)
    assert (tmp_path / "out/labels.txt").read_text().split() == ["__ignore__", "_background_", "sky", "road"]


@pytest.mark.filterwarnings("ignore::segkit.data.DataWarning")
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(20, 30), (24, 24)])
def test_labels_of_an_unturned_image_are_turned_for_tools_that_turn_it(tmp_path, size, orientation):
    photograph(tmp_path / "a.jpg", size, orientation)
    row = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[2, 3, 12, 3, 12, 7, 2, 7]]}
    file = write_coco(
        tmp_path / "x.json", [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}], [row]
    )
    segkit.convert(data=file, to="yolo", out=tmp_path / "out", exif="ignore")
    stored = CocoSegmentation(file, exif="ignore").mask(0)
    assert stored[3:7, 2:12].all()
    assert stored.sum() == 40
    expected = {1: stored, 3: np.rot90(stored, 2), 6: np.rot90(stored, -1)}[orientation]
    np.testing.assert_array_equal(read_back("yolo", tmp_path / "out").mask(0), expected)


def write_yolo(folder: Path) -> Path:
    for split in ("train", "val"):
        for name in ("a.jpg", "b.jpg"):
            photograph(folder / f"images/{split}/{name}")
        (folder / f"labels/{split}").mkdir(parents=True)
        (folder / f"labels/{split}/a.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.2 0.2 0.9 0.2 0.9 0.9\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [paper, can]\n")
    return folder


def test_splits_are_kept(tmp_path):
    source = write_yolo(tmp_path / "yolo")
    before = [masks_of(CocoSegmentation(part)) for part in find_source(source).read("train", "val")]
    made = segkit.convert(data=source, to="yolo", out=tmp_path / "again")
    assert made.images == {"train": 2, "val": 2}
    again = find_source(tmp_path / "again").read("train", "val")
    assert [masks_of(CocoSegmentation(part)).keys() for part in again] == [{"a", "b"}] * 2
    for one, other in zip(again, before, strict=True):
        assert_same_masks(masks_of(CocoSegmentation(one)), other)
    assert (tmp_path / "again/images/val/b.jpg").read_bytes() == (source / "images/val/b.jpg").read_bytes()
    assert (tmp_path / "again/labels/val/b.txt").read_text() == ""
    segkit.convert(data=source, to="coco", out=tmp_path / "coco")
    for split, expected in zip(("train", "val"), before, strict=True):
        assert_same_masks(masks_of(CocoSegmentation(tmp_path / f"coco/{split}.json", source)), expected)
    segkit.convert(data=source, to="coco", out=tmp_path / "linked", image_files="link")
    assert_same_masks(
        masks_of(CocoSegmentation(tmp_path / "linked/val.json", tmp_path / "linked/images/val")), before[1]
    )
    assert os.path.samefile(tmp_path / "linked/images/val/a.jpg", source / "images/val/a.jpg")
    segkit.convert(data=source, to="masks", out=tmp_path / "masks")  # both splits have a and b
    assert (tmp_path / "masks/ImageSets/Segmentation/train.txt").read_text().split() == ["a", "b"]
    assert (tmp_path / "masks/ImageSets/Segmentation/val.txt").read_text().split() == ["val/a", "val/b"]
    assert (tmp_path / "masks/SegmentationClass/val/a.png").is_file()
    made = segkit.convert(data=source, to="labelme", out=tmp_path / "labelme")
    assert (tmp_path / "labelme/val/a.json").is_file()
    assert "splits, which are folders now" in made.lost


def test_predictions_become_labels_to_correct(tmp_path):
    photograph(tmp_path / "photos/a/1.jpg")
    mask = np.zeros((30, 41), np.uint8)
    mask[3:9, 4:20] = 2
    (tmp_path / "masks/mask/a").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks/mask/a/1.png")
    (tmp_path / "masks/infer.json").write_text("{}")
    (tmp_path / "masks/manifest.csv").write_text(
        "image,mask,height,width,share/background,share/can,share/paper\na/1.jpg,mask/a/1.png,30,41,0.9,0,0.1\n"
    )
    with pytest.raises(UsageError, match="give `images`, the folder of the photographs"):
        segkit.convert(data=tmp_path / "masks", to="labelme", out=tmp_path / "out")
    segkit.convert(data=tmp_path / "masks", images=tmp_path / "photos", to="labelme", out=tmp_path / "out")
    content = json.loads((tmp_path / "out/a/1.json").read_text())
    assert [shape["label"] for shape in content["shapes"]] == ["paper"]
    assert content["imagePath"] == "1.jpg"
    assert_same_masks(labelme_masks(tmp_path / "out", ["background", "can", "paper"]), {"1": mask})


def test_a_folder_with_files_is_refused_and_half_a_folder_is_removed(tmp_path):
    for name in ("x.jpg", "x.png"):
        photograph(tmp_path / "photos" / name)
    rows = [{"id": i, "file_name": name, "height": 30, "width": 41} for i, name in enumerate(("x.jpg", "x.png"))]
    annotation = {"id": 1, "image_id": 0, "category_id": 3, "segmentation": [[2, 3, 12, 3, 12, 7]]}
    file = write_coco(tmp_path / "photos/x.json", rows, [annotation])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"x.jpg and x.png differ only in the suffix"):
        segkit.convert(data=file, to="yolo", out=tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UsageError, match="photos exists already and is not an empty folder"):
        segkit.convert(data=file, to="yolo", out=tmp_path / "photos")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert segkit.convert(data=file, to="coco", out=tmp_path / "empty").images == {"all": 2}


def test_the_command_says_what_it_wrote_what_is_lost_and_how_to_go_on(coco, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["labels.json", "--images", "photos", "--to", "labelme", "--out", "to correct"])
    lines = capsys.readouterr().out.splitlines()
    assert "to correct: labelme, 4 images, 3 classes" in lines
    assert "not in this format: ids of images, objects and classes; the mark of 3 crowds (iscrowd)" in "\n".join(lines)
    assert lines[-1] == "use it: labelme 'to correct' --labels 'to correct/labels.txt'"
    main(["labels.json", "--images", "photos", "--to", "yolo", "--out", "yolo"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "use it: python train.py --data yolo (Ultralytics also wants train and val in data.yaml)"
    assert len(CocoSegmentation(find_source(Path("yolo")).read("train"))) == 4  # by a relative path
    with pytest.raises(SystemExit) as stop:
        main(["labels.json", "--images", "photos", "--to", "yolo", "--out", "to correct"])
    assert stop.value.code == 2
    assert "error: --out to correct exists already" in capsys.readouterr().err
