"""The segmentation of a COCO annotation: checked once, and made ready for painting."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segkit.data.rasterize import Shape, runs_of
from segkit.errors import DataError

_NUMBERS = {int, float}  # the types of JSON's numbers; True is not one
_PAINTING_NOTHING = {"odd-coordinates", "short-polygon", "outside-polygon"}
FARTHEST = 1_000_000  # pixels; the arithmetic of pycocotools ends not far beyond
LARGEST = 2**31  # pixels of a mask that is decoded to be scaled


def read_segmentation(segmentation: Any, size: tuple[int, int] | None) -> tuple[Shape | None, list[str]]:
    """Return the shape to paint, and the kinds of the findings about it (keys of `segkit.data.findings.KINDS`).

    Args:
        segmentation: Polygons, RLE or nothing, as JSON has them.
        size: (H, W) of the image. None if it is unknown: it is then not compared with the segmentation.

    Raises:
        DataError: The segmentation is neither polygons nor RLE, or it is damaged.
    """
    if isinstance(segmentation, Mapping):
        return _read_rle(segmentation, size), []
    if not segmentation and isinstance(segmentation, list | None):
        return None, ["no-segmentation"]
    if not isinstance(segmentation, list):
        raise DataError(f"expected polygons or RLE, got {type(segmentation).__name__}")
    if set(map(type, segmentation)) <= _NUMBERS:
        raise DataError("expected a list of polygons, got a list of numbers; write it as [[x, y, x, y, ...]]")
    if len(segmentation) > 2 and all(isinstance(part, list) and len(part) == 2 for part in segmentation):
        raise DataError("expected a list of polygons, got a list of points; write it as [[x, y, x, y, ...]]")
    polygons = [_read_polygon(part) for part in segmentation]
    kinds, painted = [], []
    for polygon in polygons:
        found = list(_oddities(polygon, size))
        kinds += found
        if not _PAINTING_NOTHING.intersection(found):
            painted.append(polygon)
    return painted or None, kinds


def box_shape(box: Any) -> Shape:
    """Return the rectangle of an annotation's `bbox`: x, y, width and height in pixels.

    Raises:
        DataError: `box` is not such a rectangle.
    """
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"its bbox must be [x, y, width, height], got {box!r:.40}")
    x, y, width, height = _read_polygon(box)
    return [np.array([x, y, x + width, y, x + width, y + height, x, y + height])]


def is_normalised(shape: Shape | None, size: tuple[int, int] | None) -> bool:
    """Return whether all coordinates of a shape are in 0..1: in an image of size (H, W), not even a pixel."""
    is_drawn = isinstance(shape, list) and (size is None or min(size) > 1)
    return is_drawn and all(polygon.max() <= 1 and polygon.min() >= 0 for polygon in shape)


def rescale(shape: Shape, before: tuple[int, int], after: tuple[int, int]) -> Shape:
    """Scale a shape that was drawn on an image of size (H, W) `before` to the same image of size `after`.

    Raises:
        DataError: The shape is RLE of more than 2**31 pixels.
    """
    if isinstance(shape, list):
        factors = after[1] / before[1], after[0] / before[0]
        return [(polygon.reshape(-1, 2) * factors).ravel() for polygon in shape]
    if before[0] * before[1] > LARGEST:
        raise DataError(f"its RLE of {before[0]} x {before[1]} pixels is too large to be scaled to the image")
    mask = coco_mask.decode({"size": list(before), "counts": shape})
    fitted = cv2.resize(mask, after[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return coco_mask.encode(np.asfortranarray(fitted))["counts"]


def shape_areas(shapes: Sequence[Shape | None]) -> np.ndarray:
    """Return the area of each shape in pixels, (A,) float64: of polygons by the shoelace formula, part by part."""
    parts = [(i, part) for i, shape in enumerate(shapes) if isinstance(shape, list) for part in shape]
    areas = np.zeros(len(shapes))
    if parts:
        points = np.concatenate([part for _, part in parts]).reshape(-1, 2)
        ends = np.cumsum([len(part) // 2 for _, part in parts])
        starts = np.concatenate([[0], ends[:-1]])
        following = np.arange(1, len(points) + 1)
        following[ends - 1] = starts
        (x, y), (next_x, next_y) = points.T, points[following].T
        doubled = np.abs(np.add.reduceat(x * next_y - next_x * y, starts))
        areas = np.bincount([i for i, _ in parts], doubled / 2, len(shapes))
    for i, shape in enumerate(shapes):
        if isinstance(shape, bytes):
            areas[i] = runs_of(shape)[1::2].sum()
    return areas


def _read_polygon(part: Any) -> np.ndarray:
    if not isinstance(part, list):
        raise DataError(f"expected a polygon as a list of numbers, got {part!r:.40}")
    if not set(map(type, part)) <= _NUMBERS:
        wrong = next(value for value in part if type(value) not in _NUMBERS)
        raise DataError(f"{wrong!r:.40} is not a coordinate")
    try:
        polygon = np.array(part, dtype=np.float64)
    except OverflowError:
        raise DataError("a coordinate is too large") from None
    if len(polygon) and not -FARTHEST < polygon.min() <= polygon.max() < FARTHEST:  # True for NaN, too
        wrong = ~(np.abs(polygon) < FARTHEST)
        raise DataError(f"{polygon[wrong][0]:g} is not a coordinate in an image")
    return polygon


def _oddities(polygon: np.ndarray, size: tuple[int, int] | None) -> Iterator[str]:
    if len(polygon) % 2:
        yield "odd-coordinates"
    elif len(polygon) < 6:  # pycocotools would read four numbers as a box
        yield "short-polygon"
    elif size is not None and min(size) > 0 and not 0 < polygon.min() <= polygon.max() < min(size):
        # Most polygons lie inside and do not come here.
        points, (height, width) = polygon.reshape(-1, 2), size
        low, high = points.min(0), points.max(0)
        if high.min() <= 0 or low[0] >= width or low[1] >= height:
            yield "outside-polygon"
        elif low.min() < 0 or high[0] > width or high[1] > height:
            yield "cut-polygon"


def _read_rle(segmentation: Mapping[str, Any], size: tuple[int, int] | None) -> bytes:
    missing = [key for key in ("size", "counts") if key not in segmentation]
    if missing:
        raise DataError(f"its RLE has no {missing[0]!r}")
    own_size, counts = segmentation["size"], segmentation["counts"]
    if not _is_size(own_size):
        raise DataError(f"its RLE is of size {own_size!r:.40}, expected [height, width]")
    if size is not None and tuple(own_size) != tuple(size):
        swapped = "; height and width look swapped in it" if list(own_size) == [size[1], size[0]] else ""
        raise DataError(f"its RLE is of size {own_size}, the image is {list(size)} (height, width){swapped}")
    height, width = map(int, own_size)
    runs = _listed_runs(counts) if isinstance(counts, list) else runs_of(_as_bytes(counts))
    if runs.sum() != height * width or runs.min(initial=0) < 0:
        raise DataError(f"the counts of its RLE come to {runs.sum()} pixels, the image has {height * width}")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return _as_bytes(counts)


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and all(type(n) in _NUMBERS and 0 < n < FARTHEST and n == int(n) for n in value)


def _listed_runs(counts: list[Any]) -> np.ndarray:
    if not all(isinstance(count, int) and 0 <= count < 2**31 for count in counts):
        raise DataError("the counts of its RLE must be whole numbers, 0 or more")
    return np.array(counts, dtype=np.int64)


def _as_bytes(counts: Any) -> bytes:
    if isinstance(counts, str) and counts.isascii():
        return counts.encode()
    if not isinstance(counts, bytes):
        raise DataError("the counts of its RLE must be a list or a string")
    return counts
