"""LabelMe, CVAT for images and Label Studio: each shape comes out as the right label map, or as one sentence."""

import base64
from pathlib import Path

import numpy as np
import pytest
from helpers.label_formats import (
    cvat_image,
    cvat_xml,
    labelme_file,
    labelme_shape,
    pack_brush,
    png,
    studio_region,
    studio_task,
    write_json,
)
from PIL import Image

from segkit.data import CocoSegmentation, DataError, find_source
from segkit.data.formats import labelme
from segkit.data.formats.label_studio import decode_brush
from segkit.data.rasterize import encode


def opened(path, format=None, **options):
    """Return the data set of all splits of a source whose labels are regions, by its findings instead of errors."""
    source = find_source(path, format)
    return CocoSegmentation.inspect([part() for part in source.splits.values()], **options)


def kinds(data):
    return [finding.kind for finding in data.findings if finding.severity != "note"]


def image(path, size, orientation=1):
    """Write a gray image of (H, W) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1], (90, 90, 90)).save(path, exif=exif)
    return path


def write_polygons(name, folder, polygons, size):
    """Write an image with polygons of the class a, (N, 2) each, in a format."""
    image(folder / "a.png", size)
    if name == "labelme":
        labelme_file(folder / "a.json", "a.png", size, *(labelme_shape("a", one.tolist()) for one in polygons))
    elif name == "cvat":
        points = [";".join(f"{x!r},{y!r}" for x, y in one.tolist()) for one in polygons]
        shapes = [f'<polygon label="a" points="{one}" z_order="0"/>' for one in points]
        (folder / "annotations.xml").write_text(cvat_xml([cvat_image("a.png", size, *shapes)], ["a"]))
    else:
        shares = [(one * 100 / (size[1], size[0])).tolist() for one in polygons]
        regions = [studio_region("a", "polygonlabels", size, k, points=one) for k, one in enumerate(shares)]
        write_json(folder / "x.json", [studio_task("a.png", *regions)])


@pytest.mark.parametrize("name", ["labelme", "cvat", "label-studio"])
def test_a_thousand_polygons_have_the_pixels_that_they_have_in_a_coco_file(name, tmp_path):
    random = np.random.default_rng(7)
    size = (61, 84)
    polygons = [random.uniform(0, 61, (random.integers(3, 9), 2)) for _ in range(1000)]
    write_polygons(name, tmp_path, polygons, size)
    source = find_source(tmp_path)
    assert source.format == name
    (regions,) = CocoSegmentation(source.read("all")).annotations
    assert len(regions) == 1000
    for region, one in zip(regions, polygons, strict=True):
        assert encode(region.shape, size) == encode([one.ravel()], size)


# LabelMe


def label_map(folder, name="a.jpg", **options):
    """Return the label map of one image of a LabelMe folder without errors."""
    data = opened(folder, **options)
    assert not [finding for finding in data.findings if finding.severity == "error"], data.findings
    (index,) = [i for i in range(len(data)) if data.name(i) == name]
    return data.mask(index)


def test_labelme_shapes_are_filled_by_their_outline(tmp_path):
    image(tmp_path / "a.jpg", (21, 30))
    square = [[2, 3], [6, 3], [6, 8], [2, 8]]
    labelme_file(
        tmp_path / "a.json",
        "a.jpg",
        (21, 30),
        labelme_shape("a", square),
        labelme_shape("b", [[12, 9], [8, 4]], "rectangle"),  # the corners in any order
        labelme_shape("c", [[22, 10], [22, 16]], "circle"),  # middle and rim
        labelme_shape("d", [[4, 12], [7, 15], [4, 18], [1, 15]], "oriented_rectangle"),
        labelme_shape("a", [[12, 12], [14, 12], [14, 14]], None),  # as early versions wrote polygons
    )
    mask = label_map(tmp_path)
    expected = np.zeros((21, 30), dtype=np.uint8)
    expected[3:8, 2:6] = 1
    expected[4:9, 8:12] = 2
    y, x = np.indices((21, 30)) + 0.5
    expected[np.hypot(x - 22, y - 10) < 6] = 3
    expected[abs(x - 4) + abs(y - 15) < 3] = 4
    near = abs(np.hypot(x - 22, y - 10) - 6) < 0.15  # pixels whose middle is on the circle may be on either side
    near |= abs(abs(x - 4) + abs(y - 15) - 3) < 0.3
    near[12:14, 12:14] = True
    np.testing.assert_array_equal(mask[~near], expected[~near])
    assert abs((mask == 3).sum() - np.pi * 36) < 4
    assert 1 <= (mask[12:14, 12:14] == 1).sum() <= 3


def test_labelme_paints_in_order_with_ignored_and_background_shapes(tmp_path):
    image(tmp_path / "a.jpg", (12, 20))
    boxes = [("a", (0, 0, 10, 10)), ("__ignore__", (4, 0, 10, 10)), ("b", (6, 2, 4, 4)), ("_background_", (0, 8, 9, 4))]
    shapes = [labelme_shape(name, [[x, y], [x + w, y + h]], "rectangle") for name, (x, y, w, h) in boxes]
    labelme_file(tmp_path / "a.json", "a.jpg", (12, 20), *shapes)
    expected = np.zeros((12, 20), dtype=np.uint8)
    expected[:10, :10] = 1
    expected[:10, 4:14] = 255
    expected[2:6, 6:10] = 2
    expected[8:, :9] = 0
    np.testing.assert_array_equal(label_map(tmp_path), expected)


@pytest.mark.parametrize(
    ("box", "left", "top"),
    [
        ([[3, 2], [6, 4]], 3, 2),
        ([[3.6, 2.9], [6.6, 4.9]], 3, 2),  # moved by a part of a pixel
        ([[17, 10], [20, 12]], 17, 10),  # cut at the right and at the bottom
        ([[-1, -2], [2, 0]], -1, -2),  # cut at the left and at the top
    ],
)
def test_a_labelme_mask_lies_where_its_box_begins(box, left, top, tmp_path):
    image(tmp_path / "a.jpg", (11, 19))
    crop = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=np.uint8) * 255
    shape = labelme_shape("a", box, "mask", mask=crop)
    labelme_file(tmp_path / "a.json", "a.jpg", (11, 19), shape)
    large = np.zeros((21, 29), dtype=np.uint8)
    large[top + 5 : top + 8, left + 5 : left + 9] = crop > 0
    np.testing.assert_array_equal(label_map(tmp_path), large[5:16, 5:24])
    labelme_file(tmp_path / "a.json", "a.jpg", None, shape)  # the size is in the image, too
    np.testing.assert_array_equal(label_map(tmp_path), large[5:16, 5:24])


def test_the_records_of_a_mask_can_be_written_as_json(tmp_path):
    image(tmp_path / "a.jpg", (11, 19))
    shape = labelme_shape("a", [[3, 2], [6, 4]], "mask", mask=np.ones((3, 4), dtype=np.uint8))
    labelme_file(tmp_path / "a.json", "a.jpg", (11, 19), shape)
    (part,) = find_source(tmp_path).read("all")
    file = write_json(tmp_path / "b.coco", part.content)
    np.testing.assert_array_equal(CocoSegmentation(file).mask(0), label_map(tmp_path))


def test_labelme_points_count_in_the_rotated_image(tmp_path):
    image(tmp_path / "a.jpg", (10, 16), orientation=6)
    labelme_file(tmp_path / "a.json", "a.jpg", (16, 10), labelme_shape("a", [[0, 12], [4, 16]], "rectangle"))
    data = opened(tmp_path)
    assert data[0][0].shape == (16, 10, 3)
    assert data.mask(0)[12:, :4].all()
    assert data.mask(0).sum() == 16
    labelme_file(tmp_path / "a.json", "a.jpg", (16, 11), labelme_shape("a", [[0, 12], [4, 16]], "rectangle"))
    assert kinds(opened(tmp_path)) == ["other-size"]


def test_labelme_classes_are_in_the_order_of_labels_txt(tmp_path):
    image(tmp_path / "data/a.jpg", (8, 8))
    shapes = [labelme_shape(name, [[i, 0], [i + 1, 8]], "rectangle") for i, name in enumerate("cab")]
    labelme_file(tmp_path / "data/a.json", "a.jpg", (8, 8), *shapes)
    assert opened(tmp_path / "data").class_names == ("background", "a", "b", "c")
    (tmp_path / "labels.txt").write_text("c\nb\na\n")  # not LabelMe's, which begins with __ignore__
    assert opened(tmp_path / "data").class_names == ("background", "a", "b", "c")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nc\nb\na\nd\n")
    data = opened(tmp_path / "data")
    assert data.class_names == ("background", "c", "b", "a", "d")
    assert data.mask(0)[0, :4].tolist() == [1, 3, 2, 0]
    assert "labels.txt orders the classes" in find_source(tmp_path / "data").why
    (tmp_path / "data/labels.txt").write_text("c\nbb\na\n")
    (finding,) = [one for one in opened(tmp_path / "data").findings if one.kind == "unknown-class"]
    assert finding.sentence == "a.json shape 3: labels.txt has no class 'b'; did you mean 'bb'?"


def test_labelme_skips_shapes_without_area_and_images_without_labels(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        image(tmp_path / name, (9, 9))
    line = labelme_shape("crack", [[0, 0], [5, 5]], "line")
    labelme_file(tmp_path / "a.json", "a.jpg", (9, 9), labelme_shape("a", [[0, 0], [3, 3]], "rectangle"), line)
    labelme_file(tmp_path / "b.json", "b.jpg", (9, 9))  # nothing was seen: background
    data = opened(tmp_path)
    assert [data.name(i) for i in range(len(data))] == ["a.jpg", "b.jpg"]
    sentences = {finding.kind: finding.sentence for finding in data.findings}
    assert sentences["skipped-shape"] == "a.json shape 2: a line of crack has no area"
    assert sentences["unlabelled"] == f"{tmp_path / 'c.jpg'} has no JSON file, so it is not used"


def test_labelme_images_are_found_by_paths_of_windows_and_after_a_move(tmp_path):
    square = labelme_shape("a", [[0, 0], [3, 3]], "rectangle")
    for name in ("images/a.jpg", "labels/b.jpg", "labels/c.JPG", "labels/d.jpg"):
        image(tmp_path / name, (9, 9))
    labelme_file(tmp_path / "labels/a.json", "..\\images\\a.jpg", (9, 9), square)
    labelme_file(tmp_path / "labels/b.json", "C:\\Users\\me\\b.jpg", (9, 9), square)
    labelme_file(tmp_path / "labels/c.JSON", "c.jpg", (9, 9), square)
    labelme_file(tmp_path / "labels/d.json", "before.jpg", (9, 9), square)  # renamed with its JSON
    data = opened(tmp_path / "labels")
    assert sorted(data.name(i) for i in range(len(data))) == [
        *("images/a.jpg", "labels/b.jpg", "labels/c.jpg", "labels/d.jpg")
    ]
    assert set(kinds(data)) == {"respelt"}
    assert "unlabelled" not in {finding.kind for finding in data.findings}
    (tmp_path / "labels/b.jpg").rename(tmp_path / "images/b.jpg")
    assert kinds(opened(tmp_path / "labels")).count("missing-image") == 1
    data = opened(tmp_path / "labels", root=tmp_path / "images")
    assert [data.name(i) for i in range(len(data))] == ["a.jpg", "b.jpg"]


def test_labelme_names_do_not_depend_on_how_the_folder_is_written(tmp_path, monkeypatch):
    image(tmp_path / "data/a.jpg", (9, 9))
    labelme_file(tmp_path / "data/a.json", "a.jpg", (9, 9), labelme_shape("a", [[0, 0], [3, 0], [3, 3]]))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for folder in (tmp_path / "data", Path("../data"), Path("../other/../data/.")):
        assert opened(folder).name(0) == "a.jpg"
        assert not kinds(opened(folder))


def test_labelme_images_inside_the_json_are_written_on_request(tmp_path):
    labelme_file(
        tmp_path / "a.json",
        "a.png",
        (9, 9),
        labelme_shape("a", [[0, 0], [3, 3]], "rectangle"),
        imageData=base64.b64encode(png(np.full((9, 9, 3), 7, dtype=np.uint8))).decode(),
    )
    (finding,) = [one for one in opened(tmp_path).findings if one.severity == "error"]
    assert finding.kind == "missing-image"
    assert "it is inside a.json (imageData)" in finding.sentence
    assert labelme.unpack_images(tmp_path) == [tmp_path / "a.png"]
    assert labelme.unpack_images(tmp_path) == []
    assert label_map(tmp_path, "a.png").sum() == 9
    for name in ("../b.png", "b.py"):  # a file from elsewhere must not write there
        labelme_file(tmp_path / "data/b.json", name, (9, 9), imageData="AAAA")
        with pytest.raises(DataError, match="no image below"):
            labelme.unpack_images(tmp_path / "data")


def test_labelme_folders_called_train_and_val_are_splits(tmp_path):
    for split, label in (("Train", "a"), ("valid", "a")):
        image(tmp_path / split / "x.jpg", (9, 9))
        labelme_file(tmp_path / split / "x.json", "x.jpg", (9, 9), labelme_shape(label, [[0, 0], [3, 3]], "rectangle"))
    source = find_source(tmp_path)
    assert list(source.splits) == ["train", "val"]
    assert [row["file_name"] for row in source.splits["val"]().content["images"]] == ["valid/x.jpg"]
    image(tmp_path / "y.jpg", (9, 9))
    labelme_file(tmp_path / "y.json", "y.jpg", (9, 9))
    assert list(find_source(tmp_path).splits) == ["train", "val", "other"]


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"label": None}, "it has no label"),
        ({"points": [[1, 2], [3]]}, "its points are not a list of"),
        ({"points": [[1, 2], [3, "x"]]}, "its points are not a list of"),
        ({"points": [[1, 2], [3, float("nan")], [4, 5]]}, "its points are not a list of"),
        ({"shape_type": "circle"}, "a circle of 3 points"),
        ({"shape_type": "blob"}, "its shape_type is 'blob', expected one of polygon"),
        ({"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "AAAA"}, "its mask is not a PNG"),
        ({"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "x"}, "its mask is not base64"),
        ({"shape_type": "mask", "points": [[0, 0], [1, 1]]}, "its mask is not base64"),
    ],
)
def test_a_labelme_shape_that_cannot_be_read_is_an_error(shape, sentence, tmp_path):
    image(tmp_path / "a.jpg", (9, 9))
    good = labelme_shape("a", [[0, 0], [3, 0], [3, 3]])
    labelme_file(tmp_path / "a.json", "a.jpg", (9, 9), good, good | shape)
    (finding,) = [one for one in opened(tmp_path).findings if one.kind == "bad-label"]
    assert finding.sentence.startswith(f"a.json shape 2 cannot be read: {sentence}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not valid JSON"),
        ('{"foo": 1}', "it has no list of 'shapes'"),
        ('{"shapes": {}, "imagePath": "b.jpg"}', "it has no list of 'shapes'"),
        ('{"shapes": [], "imagePath": null}', "does not name its image"),
        ('{"shapes": [], "imagePath": "café.jpg"}'.encode("latin-1"), "is not valid JSON: 'utf-8' codec"),
    ],
)
def test_a_labelme_file_that_cannot_be_read_is_an_error_and_no_background(content, sentence, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        image(tmp_path / name, (9, 9))
    labelme_file(tmp_path / "a.json", "a.jpg", (9, 9), labelme_shape("a", [[0, 0], [3, 0], [3, 3]]))
    (tmp_path / "b.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    data = opened(tmp_path)
    assert len(data) == 1
    (finding,) = [one for one in data.findings if one.kind == "bad-label"]
    assert sentence in finding.sentence
    with pytest.raises(DataError, match=r"b\.json"):
        CocoSegmentation(find_source(tmp_path).read("all"))


def test_a_labelme_file_in_the_place_of_a_coco_file_says_what_to_give(tmp_path):
    file = labelme_file(tmp_path / "a.json", "a.jpg", (9, 9), labelme_shape("a", [[0, 0], [3, 0], [3, 3]]))
    assert find_source(file) is None
    with pytest.raises(DataError, match="LabelMe's JSON of one image: give its folder"):
        CocoSegmentation(file)
    with pytest.raises(DataError, match="LabelMe's JSON file of one image; give its folder"):
        find_source(file, "labelme")


# CVAT for images


def cvat_map(folder, *shapes, size=(21, 30), labels=("a", "b", "c"), findings=()):
    """Return the label map of an image with these shapes of CVAT; its findings must have these kinds."""
    image(folder / "a.jpg", size)
    (folder / "annotations.xml").write_text(cvat_xml([cvat_image("a.jpg", size, *shapes)], labels))
    data = opened(folder)
    assert [finding.kind for finding in data.findings if finding.kind != "cut-polygon"] == list(findings)
    return data.mask(0)


def test_cvat_polygons_and_boxes_are_painted_by_z_order(tmp_path):
    mask = cvat_map(
        tmp_path,
        '<box label="c" xtl="6.0" ytl="5" xbr="9" ybr="11" z_order="2"/>',
        '<polygon label="a" points="2.00,3.00;12.00,3.00;12.00,9.00;2.00,9.00" z_order="0"/>',
        '<box label="b" xtl="4" ytl="1" xbr="8" ybr="7"/>',
    )
    expected = np.zeros((21, 30), dtype=np.uint8)
    expected[3:9, 2:12] = 1
    expected[1:7, 4:8] = 2
    expected[5:11, 6:9] = 3
    np.testing.assert_array_equal(mask, expected)


def test_cvat_boxes_and_ellipses_are_rotated_clockwise_around_their_middle(tmp_path):
    y, x = np.indices((40, 50)) + 0.5
    mask = cvat_map(tmp_path, '<box label="a" xtl="10" ytl="10" xbr="30" ybr="16" rotation="90.00"/>', size=(40, 50))
    expected = np.zeros((40, 50), dtype=np.uint8)
    expected[3:23, 17:23] = 1  # 20 x 6 pixels around (20, 13)
    np.testing.assert_array_equal(mask, expected)
    # At 30 degrees the right end of a long shape lies lower than its left end.
    along = (x - 25) * np.cos(np.pi / 6) + (y - 20) * np.sin(np.pi / 6)
    across = (y - 20) * np.cos(np.pi / 6) - (x - 25) * np.sin(np.pi / 6)
    mask = cvat_map(tmp_path, '<box label="a" xtl="10" ytl="17" xbr="40" ybr="23" rotation="30"/>', size=(40, 50))
    distance = np.maximum(abs(along) - 15, abs(across) - 3)
    np.testing.assert_array_equal(mask[abs(distance) > 0.3], (distance < 0)[abs(distance) > 0.3])
    mask = cvat_map(tmp_path, '<ellipse label="b" cx="25" cy="20" rx="16" ry="5" rotation="30"/>', size=(40, 50))
    radius = np.hypot(along / 16, across / 5)
    np.testing.assert_array_equal(mask[abs(radius - 1) > 0.05], 2 * (radius < 1)[abs(radius - 1) > 0.05])
    assert abs((mask == 2).sum() - np.pi * 80) < 4


def test_a_cvat_mask_has_its_runs_row_by_row_over_its_crop(tmp_path):
    # .##.
    # ###.
    # ...#
    shape = '<mask label="b" rle="1,2,1,3,4,1" left="{}" top="{}" width="4" height="3" z_order="0"/>'
    crop = np.array([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
    expected = np.zeros((9, 11), dtype=np.uint8)
    expected[4:7, 5:9] = 2 * crop
    np.testing.assert_array_equal(cvat_map(tmp_path, shape.format(5, 4), size=(9, 11)), expected)
    expected = np.zeros((9, 11), dtype=np.uint8)
    expected[7:, 9:] = 2 * crop[:2, :2]  # it reaches beyond the image
    np.testing.assert_array_equal(cvat_map(tmp_path, shape.format(9, 7), size=(9, 11)), expected)


def test_cvat_shapes_without_area_are_skipped_and_an_image_without_shapes_is_background(tmp_path):
    mask = cvat_map(
        tmp_path,
        '<polyline label="a" points="1,1;5,5" z_order="0"/>',
        '<points label="a" points="1,1" z_order="0"/>',
        '<tag label="b" source="manual"></tag>',
        '<skeleton label="c" z_order="0"><points label="d" points="1,1"/></skeleton>',
        '<box label="a" xtl="0" ytl="0" xbr="9" ybr="9" outside="1"/>',
        findings=["skipped-shape"] * 5 + ["no-annotations"],
    )
    assert not mask.any()


def test_cvat_labels_are_in_the_order_of_meta_without_those_that_have_no_area(tmp_path):
    image(tmp_path / "a.jpg", (9, 9))
    box = '<box label="can" xtl="0" ytl="0" xbr="3" ybr="3"/>'
    kinds = {"blurred": "tag", "elbow": "points"}
    content = cvat_xml([cvat_image("a.jpg", (9, 9), box)], ("road", "blurred", "elbow", "can", "Background"), kinds)
    (tmp_path / "task.XML").write_text(content)
    data = opened(tmp_path / "task.XML")
    assert data.class_names == ("background", "road", "can")
    assert np.unique(data.mask(0)).tolist() == [0, 2]


def test_cvat_subsets_are_splits_and_keep_images_of_the_same_name_apart(tmp_path):
    box = '<box label="a" xtl="0" ytl="0" xbr="{0}" ybr="3"/>'
    rows = [
        cvat_image("x.jpg", (9, 9), box.format(i + 1), subset=name) for i, name in enumerate(["Train", "Validation"])
    ]
    (tmp_path / "annotations.xml").write_text(cvat_xml(rows, ["a"]))
    for name in ("Train", "Validation"):
        image(tmp_path / f"images/{name}/x.jpg", (9, 9))
    source = find_source(tmp_path)
    assert list(source.splits) == ["train", "val"]
    for number, split in enumerate(source.splits):
        data = CocoSegmentation(source.read(split))
        assert data.mask(0).sum() == 3 * (number + 1)
        assert data.items[0].path == tmp_path / "images" / ("Train", "Validation")[number] / "x.jpg"
    # A folder of all images cannot have both.
    (tmp_path / "images/Train/x.jpg").rename(tmp_path / "images/x.jpg")
    (tmp_path / "images/Validation/x.jpg").unlink()
    (tmp_path / "annotations.xml").write_text(cvat_xml([row.replace("Train", "one") for row in rows], ["a"]))
    source = find_source(tmp_path)
    assert list(source.splits) == ["all"]
    assert kinds(opened(tmp_path)) == ["missing-image"] * 2
    assert kinds(opened(tmp_path, root=tmp_path / "images")) == ["missing-image"] * 2


def test_cvat_images_are_found_next_to_the_xml_and_in_a_folder_of_ones_own(tmp_path):
    (tmp_path / "annotations.xml").write_text(cvat_xml([cvat_image("sub\\a.jpg", (9, 9))], ["a"]))
    for folder in (tmp_path / "images", tmp_path / "own"):
        image(folder / "sub/a.jpg", (9, 9))
        for root in (None, folder):
            data = opened(tmp_path, root=root)
            assert len(data) == 1
            assert not kinds(data)


@pytest.mark.parametrize(
    ("shape", "kind", "sentence"),
    [
        ('<box label="a" xtl="0" ytl="0" xbr="x" ybr="3"/>', "bad-label", "could not convert string to float: 'x'"),
        ('<box label="a" xtl="0" ytl="0" xbr="nan" ybr="3"/>', "bad-label", "xtl, ytl, xbr, ybr are"),
        ('<box label="a" xtl="0" ytl="0" ybr="3"/>', "bad-label", "it has no 'xbr'"),
        ('<polygon label="a" points="1,2;3"/>', "bad-label", 'its points are not "x,y;x,y"'),
        ('<mask label="a" rle="1,2" left="0" top="0" width="2" height="2"/>', "bad-label", "its runs come to 3 pixels"),
        ('<mask label="a" rle="1;2" left="0" top="0" width="2" height="2"/>', "bad-label", "its rle is not a list"),
        ('<blob label="a"/>', "bad-label", "it is unknown, expected one of polygon, box"),
        ('<box label="aa" xtl="0" ytl="0" xbr="3" ybr="3"/>', "unknown-class", "not in <meta>; did you mean 'a'?"),
    ],
)
def test_a_cvat_shape_that_cannot_be_read_is_an_error(shape, kind, sentence, tmp_path):
    image(tmp_path / "a.jpg", (9, 9))
    good = '<box label="a" xtl="0" ytl="0" xbr="3" ybr="3"/>'
    (tmp_path / "annotations.xml").write_text(cvat_xml([cvat_image("a.jpg", (9, 9), good, shape)], ["a"]))
    (finding,) = [one for one in opened(tmp_path).findings if one.severity == "error"]
    assert finding.kind == kind
    assert sentence in finding.sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("<annotations><version>1.1</version>", "is not XML that can be read"),
        ("<annotations><meta/><image id='0' name='a.jpg'/></annotations>", "has no labels in its <meta>"),
        ("<annotations><meta/><track id='0' label='a'></track></annotations>", "is CVAT for video"),
        (cvat_xml([cvat_image("", (9, 9))], ["a"]), "has an image without a name"),
        (cvat_xml([cvat_image("a.jpg", (9, 9))] * 2, ["a"]), "lists two images called a.jpg"),
        ("<?xml version='1.0' encoding='klingon'?><annotations></annotations>", "is not XML that can be read"),
    ],
)
def test_a_cvat_file_that_cannot_be_read_is_one_sentence(content, sentence, tmp_path):
    image(tmp_path / "a.jpg", (9, 9))
    (tmp_path / "annotations.xml").write_text(content)
    with pytest.raises(DataError, match=sentence):
        CocoSegmentation(find_source(tmp_path).read("all"))


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is an archive; unpack it"):
        find_source(tmp_path / "export.zip")


# Label Studio


def studio_map(folder, *regions, size=(20, 50)):
    """Return the label map of an image with these regions of Label Studio."""
    image(folder / "a.jpg", size)
    write_json(folder / "x.json", [studio_task("a.jpg", *regions)])
    data = opened(folder / "x.json")
    assert not kinds(data), data.findings
    return data.mask(0)


def test_label_studio_coordinates_are_per_cent_and_later_regions_lie_on_top(tmp_path):
    size = (20, 50)
    points = [[4.0, 10.0], [24.0, 10.0], [24.0, 60.0], [4.0, 60.0]]  # x 2 to 12, y 2 to 12
    mask = studio_map(
        tmp_path,
        studio_region("b", "polygonlabels", size, 1, points=points, closed=True),
        studio_region("a", "rectanglelabels", size, 2, x=20, y=50, width=10, height=25, rotation=0),
    )
    expected = np.zeros(size, dtype=np.uint8)
    expected[2:12, 2:12] = 2
    expected[10:15, 10:15] = 1
    np.testing.assert_array_equal(mask, expected)


def test_label_studio_rotates_rectangles_around_their_corner_and_ellipses_around_their_middle(tmp_path):
    size = (40, 50)
    region = {"x": 60, "y": 10, "width": 40, "height": 20, "rotation": 90}  # from (30, 4), 20 x 8 pixels
    expected = np.zeros(size, dtype=np.uint8)
    expected[4:24, 22:30] = 1
    mask = studio_map(tmp_path, studio_region("a", "rectanglelabels", size, **region), size=size)
    np.testing.assert_array_equal(mask, expected)
    region = {"x": 50, "y": 50, "radiusX": 32, "radiusY": 12.5, "rotation": 30}  # 16 and 5 pixels around (25, 20)
    y, x = np.indices(size) + 0.5
    along = (x - 25) * np.cos(np.pi / 6) + (y - 20) * np.sin(np.pi / 6)
    across = (y - 20) * np.cos(np.pi / 6) - (x - 25) * np.sin(np.pi / 6)
    radius = np.hypot(along / 16, across / 5)
    mask = studio_map(tmp_path, studio_region("a", "ellipselabels", size, **region), size=size)
    np.testing.assert_array_equal(mask[abs(radius - 1) > 0.05], (radius < 1)[abs(radius - 1) > 0.05])


def test_label_studio_brushes_are_unpacked_bit_by_bit():
    # Packed by label_studio_sdk 2.1.2 (converter.brush): a mask of 255, and colours with three values of alpha.
    packed = [
        *(0, 0, 0, 140, 57, 27, 254, 35, 0, 183, 255, 124, 2, 63, 248, 192, 35, 255, 190, 1, 111, 255, 15, 128, 71, 254)
    ]
    expected = np.zeros((5, 7), dtype=bool)
    expected[1:4, 2:5] = True
    expected[2, 3] = False
    expected[4, 6] = True
    np.testing.assert_array_equal(decode_brush(packed, (5, 7)), expected)
    packed = [
        *(0, 0, 0, 48, 57, 27, 248, 31, 224, 40, 0, 20, 1, 64, 31, 224, 40, 0, 20, 1, 64, 31, 224, 40, 0, 20, 1, 64),
        *(31, 224, 40, 0, 20, 1, 64, 31, 224, 40, 0, 20, 6, 64, 31, 224, 40, 0, 20, 6, 64, 31, 224, 40, 0, 20, 6, 68),
        *(224, 0, 0, 128, 4, 0, 24, 31, 243, 128, 0),
    ]
    expected = np.array([[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]])  # alpha is 40 in the first row, then 200 and 255
    np.testing.assert_array_equal(decode_brush(packed, (3, 4)), expected)


def test_label_studio_brushes_hold_single_values_and_any_number_of_bits(tmp_path):
    # One block of 8 single values of 1 bit, for two pixels with the alpha 0 and 1; counts have 4 bits.
    bits = f"{8:032b}" + f"{0:05b}" + f"{3:04b}" * 4 + "0" + "10" + f"{7:04b}" + "0000" + "1011"
    packed = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    np.testing.assert_array_equal(decode_brush(packed, (1, 2)), [[False, True]])
    random = np.random.default_rng(0)
    painted = np.uint8(255 * (random.random((21, 13)) < 0.5))
    region = studio_region("a", "brushlabels", painted.shape, format="rle", rle=pack_brush(painted))
    np.testing.assert_array_equal(studio_map(tmp_path, region, size=painted.shape), painted > 0)


def test_label_studio_bitmasks_and_classes_of_a_separate_result(tmp_path):
    rgba = np.zeros((9, 11, 4), dtype=np.uint8)
    rgba[2:5, 3:9, 3] = 255  # black on transparent ground
    url = "data:image/png;base64," + base64.b64encode(png(rgba)).decode()
    square = {"x": 0, "y": 0, "width": 100 * 2 / 11, "height": 100 * 3 / 9, "rotation": 0}
    mask = studio_map(
        tmp_path,
        studio_region("a", "bitmasklabels", (9, 11), 1, imageDataURL=url),
        {**studio_region("", "rectangle", (9, 11), 2, **square), "value": square},  # of the tag <Labels>
        studio_region("b", "labels", (9, 11), 2, **square),
        {"type": "choices", "value": {"choices": ["sunny"]}},
        size=(9, 11),
    )
    expected = np.zeros((9, 11), dtype=np.uint8)
    expected[2:5, 3:9] = 1
    expected[:3, :2] = 2
    np.testing.assert_array_equal(mask, expected)


def test_label_studio_uses_one_annotation_of_a_task_and_no_predictions(tmp_path):
    def annotation(label, **more):
        square = {"x": 0, "y": 0, "width": 50, "height": 50}
        return {"result": [studio_region(label, "rectanglelabels", (8, 8), **square)], **more}

    tasks = []
    for name, annotations in {
        "truth": [annotation("a"), annotation("b", ground_truth=True)],
        "first": [annotation("c", was_cancelled=True), annotation("a"), annotation("b")],
        "skipped": [annotation("a", was_cancelled=True)],
        "predicted": [],
        "background": [{"result": []}],
    }.items():
        image(tmp_path / f"{name}.jpg", (8, 8))
        tasks.append({"data": {"image": f"{name}.jpg"}, "annotations": annotations, "predictions": [annotation("c")]})
    write_json(tmp_path / "x.json", tasks)
    data = opened(tmp_path)
    assert data.class_names == ("background", "a", "b")
    labels = {data.name(i): int(data.mask(i)[0, 0]) for i in range(len(data))}
    assert labels == {"truth.jpg": 2, "first.jpg": 1, "background.jpg": 0}
    sentences = [finding.sentence for finding in data.findings]
    assert "task 1 (truth.jpg): of 2 annotations, the ground truth" in sentences
    assert "task 2 (first.jpg): of 2 annotations, the first" in sentences
    assert "task 3 (skipped.jpg) is not used: its annotation was skipped" in sentences
    assert "task 4 (predicted.jpg) is not used: it has no annotation" in sentences


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("/data/local-files/?d=dataset%20one/images/a%20b.jpg", "images/a b.jpg"),
        ("/data/local-files/?d=images\\a.jpg", "images/a.jpg"),
        ("/data/upload/12/0a1b2c3d-photo_1.JPG", "photo_1.JPG"),
        ("/data/upload/12/0a1b2c3d-photo_1.JPG", "images/photo_1.JPG"),
        ("/data/upload/12/0a1b2c3d-photo_1.JPG", "upload/12/0a1b2c3d-photo_1.JPG"),
        ("https://host.example/bucket/sub/a.jpg?X-Amz-Signature=1%2F2", "a.jpg"),
        ("s3://bucket/sub/a.png", "sub/a.png"),
        ("/tasks/5/resolve/?fileuri=czM6Ly9idWNrZXQvc3ViL2EucG5n", "a.png"),  # s3://bucket/sub/a.png
        ("C:\\Users\\me\\pictures\\a.jpg", "pictures/a.jpg"),
        ("../images/a.jpg", "images/a.jpg"),
    ],
)
def test_label_studio_images_are_found_by_each_kind_of_address(text, file, tmp_path):
    region = studio_region("a", "rectanglelabels", (8, 8), x=0, y=0, width=50, height=50)
    write_json(tmp_path / "x.json", [studio_task(text, region)])
    image(tmp_path / "own" / file, (8, 8))
    data = opened(tmp_path / "x.json", root=tmp_path / "own")
    assert [data.name(i) for i in range(len(data))] == [file]
    (finding,) = [one for one in opened(tmp_path / "x.json").findings if one.severity == "error"]
    assert finding.kind == "missing-image"
    assert f"the task says {text}: give the folder of the images" in finding.sentence


def test_a_list_of_names_in_a_folder_is_not_taken_for_label_studio(tmp_path):
    write_json(tmp_path / "classes.json", ["a"])
    image(tmp_path / "a.jpg", (9, 9))
    labelme_file(tmp_path / "a.json", "a.jpg", (9, 9), labelme_shape("a", [[0, 0], [3, 0], [3, 3]]))
    assert find_source(tmp_path).format == "labelme"
    assert not kinds(opened(tmp_path))
    write_json(tmp_path / "tasks.json", [studio_task("a.jpg")])
    assert find_source(tmp_path / "tasks.json").format == "label-studio"


def test_label_studio_images_of_the_same_name_are_not_taken_for_each_other(tmp_path):
    region = studio_region("a", "rectanglelabels", (8, 8), x=0, y=0, width=50, height=50)
    write_json(tmp_path / "x.json", [studio_task(f"s3://b/{day}/a.jpg", region) for day in ("monday", "tuesday")])
    image(tmp_path / "a.jpg", (8, 8))
    assert kinds(opened(tmp_path)) == ["missing-image"] * 2
    for day in ("monday", "tuesday"):
        image(tmp_path / day / "a.jpg", (8, 8))
    assert not kinds(opened(tmp_path))


@pytest.mark.parametrize(
    ("region", "sentence"),
    [
        ({"value": None}, "it has no 'value'"),
        ({"value": {"rectanglelabels": ["a", "b"]}}, "expected one class, got ['a', 'b']"),
        ({"value": {"rectanglelabels": []}}, "expected one class, got []"),
        ({"image_rotation": 90}, "the image was rotated in Label Studio"),
        ({"value": {"x": 1, "y": 2, "width": 3, "rectanglelabels": ["a"]}}, "expected numbers, got [1, 2, 3, None]"),
        ({"value": {"points": [[1, 2], [3]], "rectanglelabels": ["a"]}}, "expected numbers, got"),
        ({"value": {"points": [1, 2], "rectanglelabels": ["a"]}}, "its points are not a list"),
        ({"value": {"rle": [1, 300], "rectanglelabels": ["a"]}}, "its rle is not a list of bytes"),
        ({"value": {"rle": [0, 0, 1], "rectanglelabels": ["a"]}}, "its rle ends too early"),
        (
            {"value": {"rle": pack_brush(np.zeros((8, 7), dtype=np.uint8)), "rectanglelabels": ["a"]}},
            "its rle has 224 values",
        ),
        (
            {"value": {"rle": pack_brush(np.zeros((8, 8), dtype=np.uint8))[:-3], "rectanglelabels": ["a"]}},
            "its rle ends too early",
        ),
        ({"value": {"imageDataURL": "x", "rectanglelabels": ["a"]}}, "its mask is not a PNG"),
    ],
)
def test_a_label_studio_region_that_cannot_be_read_is_an_error(region, sentence, tmp_path):
    image(tmp_path / "a.jpg", (8, 8))
    good = studio_region("a", "rectanglelabels", (8, 8), x=0, y=0, width=50, height=50)
    write_json(tmp_path / "x.json", [studio_task("a.jpg", good, {**good, "id": "bad", **region})])
    (finding,) = [one for one in opened(tmp_path).findings if one.severity == "error"]
    assert finding.kind == "bad-label"
    assert finding.sentence.startswith(f"task 7: region bad cannot be read: {sentence}")


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ([], "0 categories besides background"),
        ([{"image": "a.jpg", "label": []}], "not as JSON-MIN"),
        ([{"data": {"left": "a.jpg", "right": "b.jpg"}, "annotations": [{"result": []}]}], "must name one image"),
        ([{"data": {"image": "a.jpg"}, "annotations": {}}, 3], "expected a list of tasks"),
        ([{"data": {"image": "a.jpg"}, "annotations": [{"result": {}}]}], "the 'result' of its annotation"),
        ([{"data": {"image": "a.jpg"}, "annotations": [{"result": []}]}], "0 categories besides background"),
        (
            [
                studio_task(
                    "a.jpg", *(studio_region("a", "labels", (8, w), x=0, y=0, width=9, height=9) for w in (8, 9))
                )
            ],
            "of images of several sizes",
        ),
        ([studio_task("a.jpg", studio_region("a", "labels", (8, "x"), x=0, y=0, width=9, height=9))], "are 8 and 'x'"),
    ],
)
def test_a_label_studio_file_that_cannot_be_read_is_one_sentence(tasks, sentence, tmp_path):
    image(tmp_path / "a.jpg", (8, 8))
    file = write_json(tmp_path / "x.json", tasks)
    with pytest.raises(DataError) as error:
        CocoSegmentation(find_source(file).read("all"))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "text", ['[{"data": {}', "[", '[{"data": {"image": "caf\u00e9.jpg"}}]', '[{"data": 1e}]', "[]]"]
)
def test_a_label_studio_file_that_is_no_json_is_one_sentence(text, tmp_path):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="is not valid JSON"):
        CocoSegmentation(find_source(tmp_path / "x.json").read("all"))


def test_a_label_studio_file_in_the_place_of_a_coco_file_says_what_to_give(tmp_path):
    file = write_json(tmp_path / "x.json", [studio_task("a.jpg")])
    with pytest.raises(DataError, match="as Label Studio exports it: give `format=label-studio`"):
        CocoSegmentation(file)
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(DataError, match="is not Label Studio's JSON, which is a list of tasks"):
        find_source(tmp_path / "y.json", "label-studio")
