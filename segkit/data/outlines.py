"""Outlines of label maps: polygons that every usual program fills with exactly the pixels of the region."""

import cv2
import numpy as np

Ring = np.ndarray  # (N, 2) x and y in pixels


def outlines(region: np.ndarray) -> list[list[Ring]]:
    """Return the polygons around a region: for each connected part its outline, followed by its holes.

    The points lie a quarter of a pixel inside the outermost pixels, and so on the side of the region around a hole.
    Programs fill polygons by one of two rules, and both then fill the same pixels: pixels whose centre is inside
    (pycocotools, and so CVAT), or the points rounded down and the line between them, too (OpenCV and Pillow, and so
    Ultralytics and LabelMe). Pixels that touch at a corner are connected. Programs that round points to the nearest
    number instead (supervision) draw up to a pixel too much at the right and at the bottom.

    Args:
        region: (H, W) bool.
    """
    # Each pixel as 2 x 2: the centre of a small one lies a quarter of a pixel inside the edge of a large one.
    fine = region.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    rings, links = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts: dict[int, list[Ring]] = {}
    parents = links[0, :, 3].tolist() if len(rings) else []
    for i, parent in enumerate(parents):
        if parent < 0:
            parts[i] = [_in_pixels(rings[i])]
    for i, parent in enumerate(parents):
        if parent >= 0:
            parts[parent].append(_in_pixels(rings[i]))
    return list(parts.values())


def bridged(rings: list[Ring], region: np.ndarray) -> Ring:
    """Return the outline and the holes of a part as one polygon, to be filled by the even-odd rule.

    Each hole is joined to what lies left of it by a line that is walked in both directions, inside the region.

    Args:
        rings: A part of `outlines`.
        region: (H, W) bool, the region.
    """
    if len(rings) == 1:
        return rings[0]
    fine = [_all_points(np.rint(ring * 2 - 0.5).astype(np.int64)) for ring in rings]
    joined = fine[0]
    for hole in sorted(fine[1:], key=lambda ring: ring[:, 0].min()):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = hole[0]
        outside = np.flatnonzero(~region[y // 2, : x // 2 + 1])
        left = 2 * (int(outside[-1]) + 1) if len(outside) else 0  # the leftmost point of the region before the hole
        place = int(np.flatnonzero((joined == (left, y)).all(1))[0])
        joined = np.concatenate([joined[: place + 1], hole, hole[:1], joined[place:]])
    return _in_pixels(_without_straight_points(joined))


def _in_pixels(fine: np.ndarray) -> Ring:
    return (fine.reshape(-1, 2) + 0.5) / 2


def _all_points(ring: np.ndarray) -> np.ndarray:
    """Return a ring whose edges are straight or diagonal with all points of the grid on it."""
    step = np.roll(ring, -1, 0) - ring
    count = np.abs(step).max(1)
    edge = np.repeat(np.arange(len(ring)), count)
    along = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count)
    return ring[edge] + np.sign(step)[edge] * along[:, None]


def _without_straight_points(ring: np.ndarray) -> np.ndarray:
    """Return a ring without the points in the middle of a straight line; the ends of a line there and back remain."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[(np.sign(before) != np.sign(after)).any(1) & after.any(1)]
