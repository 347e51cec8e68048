"""Splits to compare `assign_folds` with: by chance, and the greedy one by annotation counts."""

import numpy as np


def random_folds(groups: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """(N,) folds by chance, with as many groups in each; `groups` as in `assign_folds`."""
    names, member = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % k)[member]


def one_by_one_folds(annotations: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """(N,) folds by the greedy rule that circulates in notebooks, on the counts of annotations alone.

    Groups come one by one, those with the most uneven class counts first, and each goes to the fold that keeps the
    standard deviation of the folds' class shares, mean of the classes, smallest. The candidates' deviations follow
    from running sums of the shares and their squares instead of being counted again.

    Args:
        annotations: (N, C) annotations of each class in each image.
        groups: (N,) integers as in `assign_folds`.
        k: Number of folds.
    """
    names, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), annotations.shape[1]))
    np.add.at(counts, member, annotations)
    shares = counts / np.maximum(counts.sum(0), 1)
    sums, squares, total = np.zeros((k, shares.shape[1])), np.zeros(shares.shape[1]), np.zeros(shares.shape[1])
    folds = np.empty(len(names), dtype=np.intp)
    for group in np.argsort(-counts.std(1), kind="stable"):
        share = shares[group]
        total += share
        squares_then = squares + share * (2 * sums + share)  # (k, C), one row for each fold it might go to
        variance = np.maximum(squares_then / k - (total / k) ** 2, 0)
        fold = int(np.sqrt(variance).mean(1).argmin())
        folds[group], squares = fold, squares_then[fold]
        sums[fold] += share
    return folds[member]
