import numpy as np
import pytest

from segkit.data import DataError
from segkit.folds.counts import annotation_areas, count_classes, count_labels


def annotation(category=1, **keys):
    return {"category_id": category, **keys}


@pytest.mark.parametrize(
    ("keys", "area"),
    [
        ({"area": 12.5, "segmentation": [[0, 0, 9, 0, 9, 9]]}, 12.5),
        ({"segmentation": [[0, 0, 4, 0, 4, 3]]}, 6),
        ({"segmentation": [[0, 0, 0, 3, 4, 3], [10, 10, 12, 10, 12, 12, 10, 12]]}, 10),
        ({"area": None, "segmentation": [[0, 0, 4, 0, 4, 3]]}, 6),
        ({"area": 0, "segmentation": {"size": [2, 3], "counts": [1, 2, 1, 2]}}, 4),
        ({"segmentation": {"size": [2, 3], "counts": [6]}}, 0),
        ({"segmentation": [[0, 0, 4, 0]]}, 0),
        ({"segmentation": [[0, 0, 4, 0, 4, 3, 1]]}, 0),
        ({"segmentation": []}, 0),
        ({}, 0),
    ],
)
def test_the_area_is_the_given_one_or_that_of_the_shape(keys, area):
    other = annotation(segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]])
    assert annotation_areas([other, annotation(**keys), other]).tolist() == [1, area, 1]


def test_compressed_rle_counts_like_its_mask():
    from pycocotools import mask as coco_mask

    mask = np.zeros((6, 7), dtype=np.uint8, order="F")
    mask[1:4, 2:6] = 1
    encoded = coco_mask.encode(mask)
    shape = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    assert annotation_areas([annotation(segmentation=shape)]).tolist() == [12]


def test_counts_worked_out_by_hand():
    annotations = [[annotation(7, area=5), annotation(3, area=1.5), annotation(7, area=2)], [], [annotation(3)]]
    counts = count_classes(annotations, [3, 7])
    assert counts.images.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert counts.annotations.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert counts.pixels.tolist() == [[2, 7], [0, 0], [0, 0]]


def test_no_annotations_and_no_images_count_nothing():
    assert count_classes([[], []], [1, 2]).pixels.tolist() == [[0, 0], [0, 0]]
    assert count_classes([], [1, 2]).pixels.shape == (0, 2)
    assert {count.dtype for count in count_classes([[], []], [1, 2])} == {np.dtype(np.float64)}


def test_label_maps_count_without_the_ignored_pixels():
    counts = count_labels([np.array([[0, 1, 1, 255]], dtype=np.uint8), np.array([[2]], dtype=np.uint8)], 3)
    assert counts.pixels.tolist() == [[1, 2, 0], [0, 0, 1]]
    assert counts.images.tolist() == [[1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "keys",
    [
        {"segmentation": {"counts": "0hb0"}},
        {"segmentation": {"size": [20], "counts": "0hb0"}},
        {"segmentation": {"size": [20, 30], "counts": None}},
        {"segmentation": {"size": [20, 30], "counts": [1, "2"]}},
        {"segmentation": [[0, 0, 4, 0, 4, "c"]]},
        {"segmentation": [[0, 0, 4, 0, 4, None]]},
        {"segmentation": [[0, 0, 4, 0, 4, float("inf")]]},
        {"segmentation": [[0, 0, 4, 0, 4, float("nan")]]},
        {"area": 10**400},
    ],
)
def test_an_area_that_cannot_be_read_names_its_annotation(keys):
    with pytest.raises(DataError, match="annotation 5 of image 2 has an area or a segmentation that cannot be read"):
        annotation_areas([annotation(area=1), annotation(id=5, image_id=2, **keys), annotation(area=1)])
