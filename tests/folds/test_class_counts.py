import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segkit.data.coco_file import read_all_regions, read_records
from segkit.data.rasterize import rasterize
from segkit.folds.counts import annotation_areas, count_classes, count_labels


@pytest.fixture
def regions(tmp_path):
    """Read annotations of one image of 6 x 7 pixels, or of each of several, from a COCO file."""

    def regions(*annotations, images=1):
        rows = [{"id": i, "image_id": 0, "category_id": 1} | a for i, a in enumerate(annotations)]
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 7} for i in range(images)],
            "categories": [{"id": 7, "name": "b"}, {"id": 1, "name": "a"}],
            "annotations": rows,
        }
        (tmp_path / "x.json").write_text(json.dumps(content))
        records = read_records(tmp_path / "x.json")
        read, _ = read_all_regions(records)
        assert {finding.kind for finding in records.findings if finding.severity == "error"} <= {"only-background"}
        return read

    return regions


@pytest.mark.parametrize(
    ("keys", "area"),
    [
        ({"area": 12.5, "segmentation": [[0, 0, 9, 0, 9, 9]]}, 12.5),
        ({"segmentation": [[0, 0, 4, 0, 4, 3]]}, 6),
        ({"segmentation": [[0, 0, 0, 3, 4, 3], [4, 0, 6, 0, 6, 2, 4, 2]]}, 10),
        ({"segmentation": [[0, 0, 0, 3, 4, 3], [10, 10, 12, 10, 12, 12, 10, 12]]}, 6),  # a part lies outside
        ({"area": None, "segmentation": [[0, 0, 4, 0, 4, 3]]}, 6),
        ({"area": -3, "segmentation": [[0, 0, 4, 0, 4, 3]]}, 6),
        ({"area": 10**400, "segmentation": [[0, 0, 4, 0, 4, 3]]}, 6),
        ({"area": 0, "segmentation": {"size": [6, 7], "counts": [1, 2, 1, 2, 36]}}, 4),
        ({"segmentation": {"size": [6, 7], "counts": [42]}}, 0),
        ({"segmentation": [[0, 0, 4, 0]]}, 0),
        ({"segmentation": [[0, 0, 4, 0, 4, 3, 1]]}, 0),
        ({"segmentation": []}, 0),
        ({}, 0),
    ],
)
@pytest.mark.filterwarnings("default::segkit.data.findings.DataWarning")
def test_the_area_comes_from_the_file_or_from_the_shape(regions, keys, area):
    other = {"segmentation": [[2, 0, 3, 0, 3, 1, 2, 1]]}
    assert annotation_areas(regions(other, keys, other)[0]).tolist() == [1, area, 1]


def test_compressed_rle_counts_like_its_mask(regions):
    mask = np.zeros((6, 7), dtype=np.uint8, order="F")
    mask[1:4, 2:6] = 1
    encoded = coco_mask.encode(mask)
    shape = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    assert annotation_areas(regions({"segmentation": shape})[0]).tolist() == [12]


def test_counts_worked_out_by_hand(regions):
    rows = [(7, 0, 5), (1, 0, 1.5), (7, 0, 2), (1, 2, None)]
    read = regions(*({"category_id": c, "image_id": i, "area": area} for c, i, area in rows), images=3)
    counts = count_classes(read, 3)
    assert counts.images.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert counts.annotations.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert counts.pixels.tolist() == [[2, 7], [0, 0], [0, 0]]


def test_a_pixel_counts_for_the_object_on_top(regions):
    square = {"segmentation": [[0, 0, 6, 0, 6, 6, 0, 6]], "area": 36}
    part = {"segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]], "area": 6, "category_id": 7}
    hidden = {"segmentation": [[1, 1, 2, 1, 2, 2, 1, 2]], "area": 1}
    read = regions(hidden, square, part, {**square, "image_id": 1, "area": 30}, images=2)
    counts = count_classes(read, 3, [rasterize(read[0], (6, 7), overlap="last"), None])
    assert counts.pixels.tolist() == [[30, 6], [30, 0]]  # the area that the file says, if there is no map
    assert counts.images.tolist() == [[1, 1], [1, 0]]
    assert counts.annotations.tolist() == [[2, 1], [1, 0]]


def test_a_class_that_is_nowhere_on_top_is_in_no_image(regions):
    square = {"segmentation": [[0, 0, 6, 0, 6, 6, 0, 6]]}
    read = regions({**square, "category_id": 7}, square)
    counts = count_classes(read, 3, [rasterize(read[0], (6, 7))])
    assert counts.images.tolist() == [[1, 0]]


def test_ignored_regions_are_not_counted(regions):
    counts = count_classes(regions({"area": 9}, {"area": 4, "ignore": 1}), 3)
    assert counts.pixels.tolist() == [[9, 0]]


def test_no_annotations_and_no_images_count_nothing():
    assert count_classes([[], []], 3).pixels.tolist() == [[0, 0], [0, 0]]
    assert count_classes([], 3).pixels.shape == (0, 2)
    assert {count.dtype for count in count_classes([[], []], 3)} == {np.dtype(np.float64)}


def test_label_maps_count_without_the_ignored_pixels():
    counts = count_labels([np.array([[0, 1, 1, 255]], dtype=np.uint8), np.array([[2]], dtype=np.uint8)], 3)
    assert counts.pixels.tolist() == [[1, 2, 0], [0, 0, 1]]
    assert counts.images.tolist() == [[1, 1, 0], [0, 0, 1]]
