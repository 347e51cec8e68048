"""Polygons come out of every format that holds them as the COCO reader draws them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.label_formats import cvat_image, cvat_xml, labelme_file, labelme_shape, studio_region, studio_task
from PIL import Image

import segkit
from segkit.data import CocoSegmentation, find_source

CLASSES = ("can", "cup", "bag")
SIZES = ((61, 80), (64, 63))  # (H, W)
OF_AN_IMAGE = 20
Polygon = tuple[int, np.ndarray]  # label from 0, (N, 2) x and y


def draw(count: int) -> list[list[Polygon]]:
    """Return random polygons of each image: many cross themselves, and some reach beyond the border."""
    random = np.random.default_rng(5)
    images: list[list[Polygon]] = []
    for number in range(count):
        if number % OF_AN_IMAGE == 0:
            images.append([])
        centre, points = random.uniform(0, 64, 2), int(random.integers(3, 12))
        images[-1].append((number % 3, centre + random.normal(0, 9, (points, 2))))
    return images


def inside(images: Sequence[Sequence[Polygon]]) -> list[list[Polygon]]:
    """Return the polygons with their points moved to the border of the image: a share is not below 0 or above 1."""
    return [
        [(label, points.clip(0, SIZES[i % 2][::-1])) for label, points in polygons] for i, polygons in enumerate(images)
    ]


def write_coco(folder: Path, images: Sequence[Sequence[Polygon]]) -> Path:
    rows, annotations = [], []
    for i, polygons in enumerate(images):
        height, width = SIZES[i % 2]
        rows.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        annotations += [
            {"id": 100 * i + k, "image_id": i, "category_id": label, "segmentation": [points.ravel().tolist()]}
            for k, (label, points) in enumerate(polygons)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    file = folder / "coco.json"
    file.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return file


def write_yolo(folder: Path, images: Sequence[Sequence[Polygon]]) -> None:
    for i, polygons in enumerate(images):
        lines = (
            " ".join(map(str, [label, *(points / SIZES[i % 2][::-1]).ravel().tolist()])) for label, points in polygons
        )
        (folder / f"{i}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"names: [{', '.join(CLASSES)}]")


def write_labelme(folder: Path, images: Sequence[Sequence[Polygon]]) -> None:
    for i, polygons in enumerate(images):
        shapes = [labelme_shape(CLASSES[label], points.tolist()) for label, points in polygons]
        labelme_file(folder / f"{i}.json", f"{i}.png", SIZES[i % 2], *shapes)
    (folder / "labels.txt").write_text("\n".join(CLASSES))


def write_cvat(folder: Path, images: Sequence[Sequence[Polygon]]) -> None:
    elements = []
    for i, polygons in enumerate(images):
        texts = ((CLASSES[label], ";".join(f"{x},{y}" for x, y in points.tolist())) for label, points in polygons)
        shapes = [f'<polygon label="{name}" points="{text}" z_order="0"></polygon>' for name, text in texts]
        elements.append(cvat_image(f"{i}.png", SIZES[i % 2], *shapes))
    (folder / "annotations.xml").write_text(cvat_xml(elements, CLASSES))


def write_label_studio(folder: Path, images: Sequence[Sequence[Polygon]]) -> None:
    tasks = []
    for i, polygons in enumerate(images):
        size = SIZES[i % 2]
        regions = [
            studio_region(CLASSES[label], "polygonlabels", size, k, points=(100 * points / size[::-1]).tolist())
            for k, (label, points) in enumerate(polygons)
        ]
        tasks.append(studio_task(f"{i}.png", *regions))
    (folder / "project.json").write_text(json.dumps(tasks))


def assert_same_masks(data: CocoSegmentation, expected: CocoSegmentation) -> None:
    assert len(data) == len(expected) > 0
    assert np.unique(expected.mask(0)).tolist() == [0, 1, 2, 3]
    index = {Path(data.name(i)).stem: i for i in range(len(data))}
    for i in range(len(expected)):
        labels = np.array([expected.class_names.index(name) for name in data.class_names])
        mask = labels[data.mask(index[Path(expected.name(i)).stem])]
        np.testing.assert_array_equal(mask, expected.mask(i), err_msg=expected.name(i))


counts = pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])


@pytest.mark.filterwarnings("ignore::segkit.errors.DataWarning")
@counts
@pytest.mark.parametrize(
    ("format", "write", "holds_all"),
    [
        ("yolo", write_yolo, False),
        ("labelme", write_labelme, True),
        ("cvat", write_cvat, True),
        ("label-studio", write_label_studio, False),
    ],
)
def test_polygons_of_each_format_are_drawn_like_those_of_coco(
    format: str, write: Callable, holds_all: bool, count: int, tmp_path
):
    images = draw(count) if holds_all else inside(draw(count))
    (tmp_path / "labels").mkdir()
    for i in range(len(images)):
        Image.new("RGB", SIZES[i % 2][::-1], (i % 256, 90, 90)).save(tmp_path / "labels" / f"{i}.png")
    write(tmp_path / "labels", images)
    source = find_source(tmp_path / "labels")
    assert source.format == format
    (labels,) = source.read("train")
    expected = CocoSegmentation(write_coco(tmp_path, images), tmp_path / "labels", overlap=labels.overlap)
    assert_same_masks(CocoSegmentation(labels), expected)


@pytest.mark.filterwarnings("ignore::segkit.errors.DataWarning")
@counts
@pytest.mark.parametrize("to", ["coco", "yolo", "labelme"])
def test_converted_polygons_are_drawn_like_those_of_coco(to, count, tmp_path):
    images = draw(count)
    for i in range(len(images)):
        Image.new("RGB", SIZES[i % 2][::-1], (i % 256, 90, 90)).save(tmp_path / f"{i}.png")
    file = write_coco(tmp_path, images)
    segkit.convert(data=file, to=to, out=tmp_path / "out", image_files="copy")
    if to == "coco":
        data = CocoSegmentation(tmp_path / "out/annotations.json", tmp_path / "out/images")
    else:
        (labels,) = find_source(tmp_path / "out").read("train")
        data = CocoSegmentation(labels)
    assert_same_masks(data, CocoSegmentation(file))
