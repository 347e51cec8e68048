import numpy as np
import pytest

from segkit.data.class_counts import annotation_areas, count_classes, count_labels


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


def test_label_maps_count_without_the_ignored_pixels():
    counts = count_labels([np.array([[0, 1, 1, 255]], dtype=np.uint8), np.array([[2]], dtype=np.uint8)], 3)
    assert counts.pixels.tolist() == [[1, 2, 0], [0, 0, 1]]
    assert counts.images.tolist() == [[1, 1, 0], [0, 0, 1]]
