"""The segmentation of a COCO annotation, checked once and made ready for painting."""

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segkit.data.rasterize import Shape, runs_of
from segkit.errors import UsageError

_NUMBERS = {int, float}  # as JSON gives them; True is none
FARTHEST = 1_000_000  # pixels; pycocotools walks along every edge, however far it leads


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Shape | None, list[str]]:
    """The shape to paint, and the kinds of what was found in it (keys of `segkit.data.findings.KINDS`).

    Args:
        segmentation: Polygons, RLE or nothing, as JSON has them.
        size: (H, W) of the image.

    Raises:
        ValueError: neither polygons nor RLE, or damaged.
    """
    if isinstance(segmentation, Mapping):
        return _read_rle(segmentation, size), []
    if not segmentation and isinstance(segmentation, list | None):
        return None, ["no-segmentation"]
    if not isinstance(segmentation, list):
        raise UsageError(f"expected polygons or RLE, got {type(segmentation).__name__}")
    if set(map(type, segmentation)) <= _NUMBERS:
        raise UsageError("expected a list of polygons, got a list of numbers; write it as [[x, y, x, y, ...]]")
    polygons = [_read_polygon(part) for part in segmentation]
    kinds = [kind for polygon in polygons for kind in _oddities(polygon, size)]
    whole = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return whole or None, kinds


def box_shape(box: Any) -> Shape:
    """The rectangle of an annotation's `bbox`: x, y, width and height in pixels.

    Raises:
        ValueError: it is no such box.
    """
    if not isinstance(box, list) or len(box) != 4:
        raise UsageError(f"its bbox must be [x, y, width, height], got {box!r:.40}")
    x, y, width, height = _read_polygon(box)
    return [np.array([x, y, x + width, y, x + width, y + height, x, y + height])]


def rescale(shape: Shape, before: tuple[int, int], after: tuple[int, int]) -> Shape:
    """A shape that was drawn on an image of (H, W) `before`, on the same image at the size `after`."""
    if isinstance(shape, list):
        factors = after[1] / before[1], after[0] / before[0]
        return [(polygon.reshape(-1, 2) * factors).ravel() for polygon in shape]
    mask = coco_mask.decode({"size": list(before), "counts": shape})
    fitted = cv2.resize(mask, after[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return coco_mask.encode(np.asfortranarray(fitted))["counts"]


def _read_polygon(part: Any) -> np.ndarray:
    if not isinstance(part, list):
        raise UsageError(f"expected a polygon as a list of numbers, got {part!r:.40}")
    if not set(map(type, part)) <= _NUMBERS:
        wrong = next(value for value in part if type(value) not in _NUMBERS)
        raise UsageError(f"{wrong!r:.40} is no coordinate")
    try:
        polygon = np.array(part, dtype=np.float64)
    except OverflowError:
        raise UsageError("a coordinate is too large") from None
    near = np.abs(polygon) < FARTHEST  # False for NaN too
    if not near.all():
        raise UsageError(f"{polygon[~near][0]:g} is no coordinate in an image")
    return polygon


def _oddities(polygon: np.ndarray, size: tuple[int, int]) -> Iterator[str]:
    if len(polygon) % 2:
        yield "odd-coordinates"
    elif len(polygon) < 6:  # pycocotools would read four numbers as a box
        yield "short-polygon"
    else:
        points, (height, width) = polygon.reshape(-1, 2), size
        low, high = points.min(0), points.max(0)
        if high.min() <= 0 or low[0] >= width or low[1] >= height:
            yield "outside-polygon"
        elif low.min() < 0 or high[0] > width or high[1] > height:
            yield "cut-polygon"


def _read_rle(segmentation: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    missing = [key for key in ("size", "counts") if key not in segmentation]
    if missing:
        raise UsageError(f"its RLE has no {missing[0]!r}")
    if segmentation["size"] not in (list(size), tuple(size)):
        raise UsageError(f"its RLE is of size {segmentation['size']}, the image is {list(size)} (height, width)")
    counts = segmentation["counts"]
    runs = _listed_runs(counts) if isinstance(counts, list) else runs_of(_as_bytes(counts))
    if runs.sum() != size[0] * size[1] or runs.min(initial=0) < 0:
        raise UsageError(f"the counts of its RLE come to {runs.sum()} pixels, the image has {size[0] * size[1]}")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
    return _as_bytes(counts)


def _listed_runs(counts: list[Any]) -> np.ndarray:
    if not all(isinstance(count, int) and 0 <= count < 2**31 for count in counts):
        raise UsageError("the counts of its RLE must be whole numbers, 0 or more")
    return np.array(counts, dtype=np.int64)


def _as_bytes(counts: Any) -> bytes:
    if isinstance(counts, str) and counts.isascii():
        return counts.encode()
    if not isinstance(counts, bytes):
        raise UsageError("the counts of its RLE must be a list or a string")
    return counts
