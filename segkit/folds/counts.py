"""count_classes: how much of each class an image holds, from its annotations alone."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from segkit.errors import DataError, UsageError

Annotation = Mapping[str, Any]
_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


class ClassCounts(NamedTuple):
    """What N images hold of C classes: each (N, C) float64, whole numbers, so that no order changes a sum."""

    images: np.ndarray  # 1 where the class occurs in the image
    annotations: np.ndarray
    pixels: np.ndarray


def count_classes(annotations: Sequence[Sequence[Annotation]], categories: Sequence[Hashable]) -> ClassCounts:
    """Counts classes without reading an image; an annotation that has no area counts for nothing.

    Args:
        annotations: COCO annotations of each of the N images. Pixels are their `area`, or that of their polygons or
            RLE where the key is missing, rounded up; where objects overlap, both count.
        categories: The C category ids, in the order of the columns.
    """
    column = {category: i for i, category in enumerate(categories)}
    flat = list(chain.from_iterable(annotations))
    image = np.repeat(np.arange(len(annotations)), [len(of_image) for of_image in annotations])
    cell = image * len(column) + np.array([column[a["category_id"]] for a in flat], dtype=np.intp)
    pixels = np.ceil(annotation_areas(flat))
    shape = len(annotations), len(column)
    painted, covered = (
        np.bincount(cell, weights, shape[0] * shape[1]).reshape(shape).astype(np.float64)  # of nothing it is integers
        for weights in (pixels > 0, pixels)
    )
    return ClassCounts((painted > 0) * 1.0, painted, covered)


def count_labels(masks: Iterable[np.ndarray], num_classes: int) -> ClassCounts:
    """Counts classes in N label maps (H, W) uint8; an image counts as one annotation of each class that it shows."""
    pixels = np.array([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks], dtype=np.float64)
    pixels = pixels.reshape(-1, num_classes)
    shown = (pixels > 0) * 1.0
    return ClassCounts(shown, shown, pixels)


def annotation_areas(annotations: Sequence[Annotation]) -> np.ndarray:
    """The area of each annotation in pixels, (A,) float64: its `area` where that is positive, else of its shape.

    Raises:
        DataError: an area or a shape cannot be read.
    """
    try:
        return _areas(annotations)
    except _UNREADABLE:
        for annotation in annotations:
            _check_area(annotation)
        raise


def _check_area(annotation: Annotation) -> None:
    try:
        _areas([annotation])
    except _UNREADABLE as error:
        name = f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"
        raise DataError(f"{name} has an area or a segmentation that cannot be read: {error!r}") from error


def _areas(annotations: Sequence[Annotation]) -> np.ndarray:
    areas = np.array([_given_area(a) for a in annotations], dtype=np.float64)
    missing = np.flatnonzero(areas <= 0)
    shapes = [annotations[i].get("segmentation") for i in missing]
    polygons = [shape if isinstance(shape, list) else [] for shape in shapes]
    areas[missing] = _polygon_areas(polygons) + [_rle_area(s) if isinstance(s, Mapping) else 0 for s in shapes]
    if not np.isfinite(areas).all():
        raise UsageError("it is not finite")
    return areas


def _given_area(annotation: Annotation) -> float:
    area = annotation.get("area")
    return float(area) if isinstance(area, int | float) and 0 < area < float("inf") else 0.0


def _rle_area(shape: Mapping[str, Any]) -> float:
    counts = shape.get("counts", [])
    return float(sum(counts[1::2]) if isinstance(counts, list) else rle.area(shape))


def _polygon_areas(polygons: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """The summed area of the parts of each annotation, by the shoelace formula over all points at once."""
    parts = [(i, part) for i, of_one in enumerate(polygons) for part in of_one if _is_polygon(part)]
    if not parts:
        return np.zeros(len(polygons))
    points = np.fromiter(chain.from_iterable(part for _, part in parts), dtype=np.float64).reshape(-1, 2)
    ends = np.cumsum([len(part) // 2 for _, part in parts])
    starts = np.concatenate([[0], ends[:-1]])
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    (x, y), (next_x, next_y) = points.T, points[following].T
    with np.errstate(over="raise", invalid="raise"):
        areas = np.abs(np.add.reduceat(x * next_y - next_x * y, starts)) / 2
    return np.bincount([i for i, _ in parts], areas, len(polygons))


def _is_polygon(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0
