"""Which images belong together: by file, by a value that they share, or by how they look."""

import os
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from segkit.data.images import read_image

CELLS = 8  # cells of a hash per side of the image; the hash has 2 * 8 * 9 bits
BLOCK = 2048  # rows of the distance table that are in memory at once


def group_images(
    names: Sequence[str | os.PathLike],
    *,
    labels: Sequence[Hashable] | None = None,
    pairs: Iterable[tuple[int, int]] = (),
) -> np.ndarray:
    """Number the groups of N images: images with the same file, the same label, or connected by a chain of pairs.

    Args:
        names: The files of the images. The same path is the same image; the same name in two folders is not.
        labels: A value for each image; None for an image that is in no group.
        pairs: Positions of two images that belong together.

    Returns:
        (N,) integers from 0, in the order of the first name of each group, so they do not depend on the order of the
        images.
    """
    files = [os.path.normpath(name) for name in names]
    order = sorted(range(len(files)), key=files.__getitem__)
    parent = [0] * len(files)
    for rank, image in enumerate(order):
        parent[image] = rank
    rank_of, parent = parent, list(range(len(files)))
    for a, b in [*_links(files), *_links(labels or ()), *pairs]:
        first, second = sorted((_root(parent, rank_of[a]), _root(parent, rank_of[b])))
        parent[second] = first
    roots = [_root(parent, rank) for rank in rank_of]
    return np.unique(np.array(roots, dtype=np.intp), return_inverse=True)[1]


def _links(labels: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Return each position together with the first position that has the same label."""
    first: dict[Hashable, int] = {}
    return [(first.setdefault(label, i), i) for i, label in enumerate(labels) if label is not None]


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Return whether each cell of a coarse gray grid is darker than its right and its lower neighbour, (144,) bool.

    Images that look alike differ in few bits. Source: Krawetz, "Kind of Like That" (dHash), 2013. Differs: lower
    neighbours, too.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grid = cv2.resize(gray, (CELLS + 1, CELLS + 1), interpolation=cv2.INTER_AREA)
    return np.concatenate([(grid[:, 1:] > grid[:, :-1]).ravel(), (grid[1:] > grid[:-1]).ravel()])


def hash_images(paths: Sequence[str | os.PathLike], workers: int = 4) -> np.ndarray:
    """Return the hashes of N image files, (N, 144) bool, read in several threads."""
    if not paths:
        return np.zeros((0, 2 * CELLS * (CELLS + 1)), dtype=bool)
    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(lambda path: difference_hash(read_image(path)), paths)))


def near_pairs(hashes: np.ndarray, distance: int = 8) -> list[tuple[int, int]]:
    """Return all pairs (i, j), i < j, of hashes (N, B) that differ in at most `distance` bits.

    The default finds copies that were resized or saved again, and frames of a burst. In photographs of single objects
    on white and of facades, the median distance to the nearest other photograph is 33 and 48.
    """
    signs = np.where(hashes, 1, -1).astype(np.float32)
    least = hashes.shape[1] - 2 * distance  # the product of two rows of signs is B - 2 * (bits that differ)
    pairs = []
    for start in range(0, len(signs), BLOCK):
        rows, columns = np.nonzero(signs[start : start + BLOCK] @ signs[start:].T >= least)
        pairs += [(start + i, start + j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if i < j]
    return pairs
