"""Label maps drawn from annotations, and signed distance maps of label maps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segkit.errors import DataError, UsageError
from segkit.labels import IGNORE_INDEX, check_ignore_index

LONGEST = 200_000  # pixels of a boundary that pycocotools walks along; it needs 100 bytes for each
_GRID = 5.0  # points per pixel of this walk
_AT_ONCE = 1_000_000  # crossings that are computed at once
Shape = bytes | list[np.ndarray]  # the counts of a compressed RLE, or polygons x, y, x, y ...


class Annotation(NamedTuple):
    """A region of an image.

    Attributes:
        id: The id of the annotation.
        label: The label to paint; 255 for a region to ignore.
        crowd: Whether it is a crowd (iscrowd).
        shape: What to paint. None if there is nothing.
        area: Its area as the file says, in pixels. None if the file does not say it.
        in_order: Whether it is painted in its turn although its label is 255, as a class is that a class map ignores.
    """

    id: Any
    label: int
    crowd: bool
    shape: Shape | None
    area: float | None = None
    in_order: bool = False


class _Region(NamedTuple):
    label: int
    runs: np.ndarray  # lengths, outside and inside in turn, down the columns

    @property
    def area(self) -> int:
        return int(self.runs[1::2].sum())


OVERLAPS: dict[str, Callable[[_Region], int] | None] = {
    "smallest": lambda region: -region.area,
    "last": None,
    "max-id": lambda region: region.label,
}
OVERLAP_TEXTS = {
    "smallest": "the smaller object lies on top",
    "last": "the later annotation lies on top",
    "max-id": "the category with the higher id lies on top",
}


def rasterize(
    annotations: Sequence[Annotation], size: tuple[int, int], *, overlap: str = "smallest", crowd: str = "paint"
) -> np.ndarray:
    """Draw annotations as a label map; each region has exactly the same pixels as with pycocotools.

    Args:
        annotations: The regions to paint; all other pixels are 0.
        size: (H, W) of the map.
        overlap: Which region lies on top, a key of `OVERLAPS`; among equals, the later one. A region with label 255
            lies on top of all others, unless it is `in_order`.
        crowd: `paint` treats crowds like other regions, `ignore` paints them 255, below all others.

    Returns:
        (H, W) uint8.
    """
    shaped = [a for a in annotations if a.shape is not None]
    ignored = [a for a in shaped if a.crowd and crowd == "ignore"]
    painted = [a for a in shaped if not (a.crowd and crowd == "ignore")]
    column_major = np.zeros(size[0] * size[1], dtype=np.uint8)
    for a in ignored:
        _paint(column_major, _Region(IGNORE_INDEX, runs_of(encode(a.shape, size))))
    for _, region in _in_paint_order(painted, size, overlap):
        _paint(column_major, region)
    return np.ascontiguousarray(column_major.reshape(size[::-1]).T)


def in_paint_order(annotations: Sequence[Annotation], size: tuple[int, int], overlap: str) -> list[Annotation]:
    """Return the annotations that have a shape, in the order in which `rasterize` paints them: the last lies on top."""
    return [a for a, _ in _in_paint_order([a for a in annotations if a.shape is not None], size, overlap)]


def _in_paint_order(
    annotations: Sequence[Annotation], size: tuple[int, int], overlap: str
) -> list[tuple[Annotation, _Region]]:
    pairs = [(a, _Region(a.label, runs_of(encode(a.shape, size)))) for a in annotations]
    key = OVERLAPS[overlap]
    if key is not None:
        pairs.sort(key=lambda pair: key(pair[1]))
    return sorted(pairs, key=lambda pair: pair[0].label == IGNORE_INDEX and not pair[0].in_order)


def encode(shape: Shape, size: tuple[int, int]) -> bytes:
    """Return the counts of the compressed RLE of a shape in an image of (H, W) pixels."""
    if isinstance(shape, bytes):
        return shape
    is_long = [_has_long_boundary(polygon) for polygon in shape]
    usual = [polygon for polygon, long in zip(shape, is_long, strict=True) if not long]
    parts = coco_mask.frPyObjects(usual, *size) if usual else []
    parts += [_encode_long(polygon, size) for polygon, long in zip(shape, is_long, strict=True) if long]
    return (parts[0] if len(parts) == 1 else coco_mask.merge(parts))["counts"]


def _has_long_boundary(polygon: np.ndarray) -> bool:
    """Return whether the edges of a polygon, each by its longer side, are longer than `LONGEST` together."""
    if len(polygon) * np.ptp(polygon) <= LONGEST:  # no edge is longer than the span of the coordinates
        return False
    points = polygon.reshape(-1, 2)
    return bool(np.abs(points - np.roll(points, -1, 0)).max(1).sum() > LONGEST)


def _encode_long(polygon: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return the RLE of a polygon with a long boundary, as pycocotools does, but without its time and memory.

    pycocotools walks along the boundary on a grid that is five times as fine as the pixels, and notes where it crosses
    the middle of a column. Here only these crossings are computed, for the columns of the image, with its rounding.
    Source: rleFrPoly in maskApi.c of pycocotools.
    """
    height, width = size
    points = np.trunc(_GRID * polygon.reshape(-1, 2) + 0.5)
    start, end = points, np.roll(points, -1, 0)
    # It walks flat edges from left to right, and steep ones from top to bottom.
    is_flat = _is_flat(start.T, end.T)
    is_backward = np.where(is_flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = np.where(is_backward, end, start), np.where(is_backward, start, end)
    # An edge crosses the middle of column c between the grid lines 5 c + 2 and 5 c + 3.
    left, right = np.minimum(start, end)[:, 0], np.maximum(start, end)[:, 0]
    first = np.ceil((left - 2) / _GRID).clip(0, width).astype(np.int64)
    last = np.floor((right - 3) / _GRID).clip(-1, width - 1).astype(np.int64)
    counts = (last - first + 1).clip(0)
    crossed = np.zeros(height * width + 1, dtype=bool)  # column by column: whether an odd number of edges cross here
    for part in np.array_split(np.flatnonzero(counts), counts.sum() // _AT_ONCE + 1):
        edge = np.repeat(part, counts[part])
        column = first[edge] + np.arange(len(edge)) - np.repeat(counts[part].cumsum() - counts[part], counts[part])
        row = (_crossings(start[edge].T, end[edge].T, _GRID * column + 2) + 0.5) / _GRID - 0.5
        place, times = np.unique(column * height + np.ceil(row.clip(0, height)).astype(np.int64), return_counts=True)
        crossed[place] ^= times % 2 == 1
    inside = np.logical_xor.accumulate(crossed[:-1])
    return coco_mask.encode(np.asfortranarray(inside.reshape(width, height).T, dtype=np.uint8))


def _is_flat(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return which edges (2, N) are at least as long in x as in y."""
    dx, dy = np.abs(end - start)
    return dx >= dy


def _crossings(start: np.ndarray, end: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Return the grid row at which each edge goes from a grid line (x) to the next: the smaller of the two rows.

    Flat edges are walked in steps of x, steep ones in steps of y; the other coordinate is rounded to the grid.

    Args:
        start: (2, N) x and y of the end at which the walk begins.
        end: (2, N) x and y of the other end.
        line: (N,) the grid lines.
    """
    (x, y), (dx, dy) = start, end - start
    with np.errstate(divide="ignore", invalid="ignore"):  # the values of the other kind of edge are dropped
        flat = np.minimum(*(np.trunc(y + dy / dx * (step - x) + 0.5) for step in (line, line + 1)))
        # The first step on the far side of the line is near where the exact edge crosses it.
        slope = dx / dy
        near = np.ceil((line + 0.5 - x) / slope)
        steps = near + np.arange(-2, 3)[:, None]
        at = np.trunc(x + slope * steps + 0.5)
        steep = y + near - 3 + np.where(slope > 0, at > line, at <= line).argmax(0)
    return np.where(_is_flat(start, end), flat, steep)


def runs_of(counts: bytes) -> np.ndarray:
    """Return the run lengths in the counts of a compressed RLE, int64.

    Each number is written in digits of five bits, the lowest first; a character is a digit plus 48, plus 32 if more
    digits follow. The highest bit of the last digit is the sign. From the fourth number on, the difference to the
    number two places before is written. Source: maskApi.c of pycocotools.

    Raises:
        DataError: These are not counts.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise DataError("its counts are not a compressed RLE")
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends + 1 - starts)
    if place.max() > 9:
        raise DataError("its counts are not a compressed RLE")
    runs = np.add.reduceat((digits & 31) << 5 * place, starts)
    runs -= ((digits[ends] & 16) > 0).astype(np.int64) << 5 * (place[ends] + 1)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def _paint(column_major: np.ndarray, region: _Region) -> None:
    ends = region.runs.cumsum()
    for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
        column_major[start:end] = region.label


def signed_distance_maps(mask: np.ndarray, num_classes: int, *, ignore_index: int | None = 255) -> np.ndarray:
    """Return the signed distance of each pixel to the boundary of each class: positive outside, negative inside.

    It is the target of the boundary loss.

    Source: Kervadec et al., "Boundary Loss for Highly Unbalanced Segmentation", 2019, section 2.2.

    Args:
        mask: (H, W) class indices.
        num_classes: Number of classes C.
        ignore_index: The label of ignored pixels: they belong to no class, and their distance is 0. None if no pixel
            is ignored.

    Returns:
        (C, H, W) float32, Euclidean distances in pixels, at least 1 outside and at most -1 inside. All 0 for a class
        without a boundary, which is absent or fills the image.

    Raises:
        UsageError: The mask is not (H, W) integers, or has a label that is not a class.
    """
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise UsageError(f"mask must be (H, W) integer class indices, got {mask.dtype} {mask.shape}")
    check_ignore_index(num_classes, ignore_index)
    maps = np.zeros((num_classes, *mask.shape), dtype=np.float32)
    ignored = np.zeros(mask.shape, dtype=bool) if ignore_index is None else mask == ignore_index
    for index in np.unique(mask[~ignored]):
        if not 0 <= index < num_classes:
            raise UsageError(f"mask has label {index}, expected 0 to {num_classes - 1} or ignore_index={ignore_index}")
        inside = ((mask == index) & ~ignored).astype(np.uint8)
        if not inside.all():
            maps[index] = _distance(1 - inside) - _distance(inside)
    maps[:, ignored] = 0
    return maps


def _distance(region: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform(region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
