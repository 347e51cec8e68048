"""How much of each class an image holds."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from segkit.data.rasterize import Annotation
from segkit.data.segmentation import shape_areas
from segkit.labels import IGNORE_INDEX


class ClassCounts(NamedTuple):
    """What N images hold of C classes, each (N, C) float64: whole numbers, so that no order changes a sum."""

    images: np.ndarray  # 1 if the class occurs in the image
    annotations: np.ndarray
    pixels: np.ndarray


def count_classes(annotations: Sequence[Sequence[Annotation]], num_classes: int) -> ClassCounts:
    """Count the classes in the annotations of N images; no image is read.

    Annotations without an area are ignored, and so are regions with label 255 or 0.

    Args:
        annotations: The regions of each image, with labels from 1, such as `CocoSegmentation.annotations`. Their pixels
            are the area that the file says, or the area of their shape, rounded up; if objects overlap, both count.
        num_classes: Number of labels, including 0 for background.

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
    return ClassCounts((painted > 0) * 1.0, painted, covered)


def count_labels(masks: Iterable[np.ndarray], num_classes: int) -> ClassCounts:
    """Count the classes in N label maps (H, W) uint8; each class in an image counts as one annotation."""
    pixels = np.array([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks], dtype=np.float64)
    pixels = pixels.reshape(-1, num_classes)
    shown = (pixels > 0) * 1.0
    return ClassCounts(shown, shown, pixels)


def annotation_areas(annotations: Sequence[Annotation]) -> np.ndarray:
    """Return the area of each annotation in pixels, (A,) float64: as the file says, otherwise the area of its shape."""
    areas = np.array([0.0 if a.area is None else a.area for a in annotations], dtype=np.float64)
    missing = [i for i, a in enumerate(annotations) if a.area is None]
    areas[missing] = shape_areas([annotations[i].shape for i in missing])
    return areas
