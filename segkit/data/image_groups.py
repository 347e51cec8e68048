"""Which images belong together: by file, by name, by a value that they share, or by how they look."""

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import cv2
import numpy as np

from segkit.data.images import read_image
from segkit.errors import UsageError
from segkit.names import NO_GROUPS, REGEX

CELLS = 8  # cells of a hash per side of the image; the hash has 2 * 8 * 9 bits
# Roboflow writes copies of photo.jpg as photo_jpg.rf.HASH.jpg.
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{16,}(\.[^.]+)?")
_SERIES = re.compile(r"(vid|video|clip|seq|sequence|movie|scene|track|drive|session)([_-]?)\d+", re.IGNORECASE)
_FRAME = re.compile(r".+?[_-](frame|frm)[_-]?\d+", re.IGNORECASE)
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
    for a, b in [*same_value(files), *same_value(labels or ()), *pairs]:
        first, second = sorted((_root(parent, rank_of[a]), _root(parent, rank_of[b])))
        parent[second] = first
    roots = [_root(parent, rank) for rank in rank_of]
    return np.unique(np.array(roots, dtype=np.intp), return_inverse=True)[1]


def same_value(labels: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Return each position together with the first position that has the same label; none for None."""
    first: dict[Hashable, int] = {}
    return [(first.setdefault(label, i), i) for i, label in enumerate(labels) if label is not None]


def sources_by_name(names: Sequence[str], group_by: str | None = None) -> list[str | None]:
    """Return the source of each image, such as a photograph or a video; None if its name does not say it.

    Args:
        names: The names of the images.
        group_by: `regex:PATTERN`, a pattern that finds the source in the name: what its first group matches, or the
            whole match. By default the name before `.rf.` if Roboflow has named the image. `none`: no sources.

    Raises:
        UsageError: The pattern is wrong, or is found in no name.
    """
    if group_by == NO_GROUPS:
        return [None] * len(names)
    if group_by is None:
        return [roboflow_source(name) for name in names]
    try:
        pattern = re.compile(group_by.removeprefix(REGEX))
    except re.error as error:
        raise UsageError(f"`group_by` {group_by} is not a regular expression: {error}") from error
    found = [pattern.search(name) for name in names]
    if names and not any(found):
        raise UsageError(f"`group_by` {group_by} is found in no name of an image, such as {names[0]}")
    return [one and one[1 if pattern.groups else 0] for one in found]


def roboflow_source(name: str) -> str | None:
    """Return the name of the photograph of which Roboflow has made an image; None if its name has no `.rf.`."""
    found = _ROBOFLOW.fullmatch(PurePosixPath(name).name)
    return found and found[1]


def propose_group_by(names: Sequence[str]) -> str | None:
    """Return a `group_by` that keeps frames of a video together if most names look like frames, otherwise None."""
    words = Counter(found[1] + found[2] for name in names if (found := _SERIES.search(name)))
    patterns = [rf"{re.escape(word)}\d+" for word, _ in words.most_common(1)]
    frames = Counter(found[1] for name in names if (found := _FRAME.search(name)))
    patterns += [rf"(.+)[_-]{word}" for word, _ in frames.most_common(1)]
    for pattern in patterns:
        sources = sources_by_name(names, REGEX + pattern)
        known = [source for source in sources if source is not None]
        if len(known) > len(names) / 2 and 1 < len(set(known)) <= len(known) / 2:
            return REGEX + pattern
    return None


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
