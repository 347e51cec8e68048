"""group_images: which images belong together, by name, by a column of the user's, by likeness."""

import os
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def group_images(
    names: Sequence[str | os.PathLike],
    *,
    labels: Sequence[Hashable] | None = None,
    pairs: Iterable[tuple[int, int]] = (),
) -> np.ndarray:
    """Numbers the groups of N images: same file, same label, or joined by a chain of pairs.

    Args:
        names: The images' files. The same path is the same image; the same name in two folders is not.
        labels: A value for each image, None for an image that is like no other.
        pairs: Positions of two images that belong together.

    Returns:
        (N,) integers from 0, in the order of each group's first name: they do not depend on the order of the images.
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
    """Each position with the first one that has the same label."""
    first: dict[Hashable, int] = {}
    return [(first.setdefault(label, i), i) for i, label in enumerate(labels) if label is not None]


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
