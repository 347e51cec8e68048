"""How much of each class an image holds."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from segkit.data.rasterize import Annotation
from segkit.data.segmentation import shape_areas
from segkit.labels import IGNORE_INDEX


class ClassCounts(NamedTuple):
    """How much of C classes N images have, each (N, C) float64: whole numbers, so that no order changes a sum."""

    images: np.ndarray  # 1 if the class occurs in the image
    annotations: np.ndarray
    pixels: np.ndarray


def count_classes(
    annotations: Sequence[Sequence[Annotation]], num_classes: int, masks: Iterable[np.ndarray | None] | None = None
) -> ClassCounts:
    """Count the classes in the annotations of N images; no image is read.

    Annotations without an area are ignored, and so are regions with label 255 or 0.

    Args:
        annotations: The regions of each image, with labels from 1, such as `CocoSegmentation.annotations`.
        num_classes: Number of labels, including 0 for background.
        masks: The label map (H, W) of each image, from which pixels and images are counted, so that a pixel counts for
            the object on top. None instead of a map, or of all maps: the pixels of an image are then the areas that
            the file says, or the areas of the shapes, rounded up; if objects overlap, both count.

    Returns:
        Counts of the C = num_classes - 1 labels from 1.
    """
    of_image = [[a for a in image if a.label not in (0, IGNORE_INDEX)] for image in annotations]
    flat = list(chain.from_iterable(of_image))
    shape = len(of_image), num_classes - 1
    image = np.repeat(np.arange(len(of_image)), [len(regions) for regions in of_image])
    cell = image * shape[1] + np.array([a.label - 1 for a in flat], dtype=np.intp)
    pixels = np.ceil(annotation_areas(flat))
    painted, covered = (
        np.bincount(cell, weights, shape[0] * shape[1]).reshape(shape).astype(np.float64)  # without weights it is int
        for weights in (pixels > 0, pixels)
    )
    for row, mask in enumerate(masks or ()):
        if mask is not None:
            covered[row] = _label_pixels(mask, num_classes)[1:]
    return ClassCounts((covered > 0) * 1.0, painted, covered)


def count_labels(masks: Iterable[np.ndarray], num_classes: int) -> ClassCounts:
    """Count the classes in N label maps; each class in an image counts as one annotation.

    Args:
        masks: Label maps (H, W) uint8. Other labels, such as 255, are not counted.
        num_classes: Number of labels C, including 0 for background.
    """
    pixels = np.array([_label_pixels(mask, num_classes) for mask in masks], dtype=np.float64)
    pixels = pixels.reshape(-1, num_classes)
    shown = (pixels > 0) * 1.0
    return ClassCounts(shown, shown, pixels)


def _label_pixels(mask: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)[:num_classes]


def annotation_areas(annotations: Sequence[Annotation]) -> np.ndarray:
    """Return the area of each annotation in pixels, (A,) float64: as the file says, otherwise the area of its shape."""
    areas = np.array([0.0 if a.area is None else a.area for a in annotations], dtype=np.float64)
    missing = [i for i, a in enumerate(annotations) if a.area is None]
    areas[missing] = shape_areas([annotations[i].shape for i in missing])
    return areas
