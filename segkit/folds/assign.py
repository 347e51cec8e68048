"""Divide images into k folds with even shares of every class, and measure how even folds are."""

from collections.abc import Sequence

import numpy as np

from segkit.errors import UsageError
from segkit.folds.counts import ClassCounts

CANDIDATES = 64  # partners that are tried for the swap of a group
TRIES = 4000  # groups in a round of swaps; it bounds the time for large sets
ROUNDS = 2
# Weights of the squares: of the number of images in a fold, and of each class in each count. Images weigh more than
# pixels, so that a class with k images has one in each fold. The weights of annotations are tried one after the other.
SIZE_WEIGHT, IMAGES_WEIGHT, PIXELS_WEIGHT = 5.0, 2.0, 1.0
ANNOTATION_WEIGHTS = (1.0, 4.0, 16.0, 64.0)
# Unevenness that is not worth more weight: in all, and above the greedy split's.
EVEN, CLOSE = 0.025, 0.005


def assign_folds(
    counts: ClassCounts,
    k: int,
    *,
    groups: np.ndarray | None = None,
    train_only: np.ndarray | None = None,
    seed: int = 0,
    annotation_weights: Sequence[float] = ANNOTATION_WEIGHTS,
) -> np.ndarray:
    """Assign each image to the fold in which it validates, so that every fold has about 1/k of every class.

    Each group of images is a vector: its share of all images, and of the images, annotations and pixels of each class.
    The method minimises the squared distance between the sum of each fold and 1/k. It first puts the groups one by one,
    large shares first, into the fold where they add least; then pairs of groups swap folds until no swap helps. An
    image of a rare class has a large share of it, so rare classes come first. Annotations get more weight until the
    split is as even in images, in annotations and in pixels as the greedy split of `one_by_one_folds`, which only uses
    annotations, or uneven by less than 3 %; if no weight reaches that, the nearest split is taken. 3,272 images take
    a third of a second to two seconds.

    Source: Sechidis et al., "On the Stratification of Multi-Label Data", 2011, which places one image at a time, rare
    labels first. Differs: amounts instead of labels, whole groups, and the swaps.

    Args:
        counts: What each of the N images holds, see `count_classes`.
        k: Number of folds.
        groups: (N,) integers; images of a group stay in one fold. By default each image is a group. The result depends
            on these numbers, not on the order of the images.
        train_only: (N,) bool, images that never validate.
        seed: Seed of the split.
        annotation_weights: Weights of annotations, which are tried one after the other.

    Returns:
        (N,) integers 0 to k - 1. Train on `folds != i`, validate on `(folds == i) & ~train_only`. A train-only image
        has the fold of its group if that group validates, so that it never trains while an image of its group
        validates; otherwise -1.

    Raises:
        UsageError: `k` is below 2, or larger than the number of groups that validate.
    """
    images = len(counts.images)
    groups = np.arange(images) if groups is None else np.asarray(groups)
    validates = np.ones(images, dtype=bool) if train_only is None else ~np.asarray(train_only, dtype=bool)
    names, member = np.unique(groups[validates], return_inverse=True)
    if k < 2:
        raise UsageError(f"`k` must be at least 2, got {k}")
    if k > len(names):
        number = int(validates.sum())
        together = "" if len(names) == number else f", which form {len(names)} groups that stay together"
        raise UsageError(f"{k} folds need at least {k} images, got {number}{together}")
    own = ClassCounts(*(count[validates] for count in counts))
    greedy = one_by_one_folds(own.annotations, member, k)
    random = np.random.default_rng(seed)
    fold_of, least = np.zeros(len(names), dtype=np.intp), np.inf
    for weight in annotation_weights:
        shares = _group_shares(own, member, weight)
        found = _swap(shares, _place(shares, k, random), k, random)
        excess = max(unevenness(count, found[member], k) - max(EVEN, unevenness(count, greedy, k)) for count in own)
        if excess < least:
            fold_of, least = found, excess
        if excess < CLOSE:
            break
    nearest = np.searchsorted(names, groups).clip(max=len(names) - 1)
    return np.where(names[nearest] == groups, fold_of[nearest], -1)


def fold_table(count: np.ndarray, folds: np.ndarray, k: int) -> np.ndarray:
    """Return the share of each class that lies in each fold, (k, C); NaN for a class without images.

    Args:
        count: (N, C) images, annotations or pixels of `ClassCounts`.
        folds: (N,) the fold of each image; images with -1 are skipped.
        k: Number of folds.
    """
    sums = np.stack([count[folds == fold].sum(0) for fold in range(k)])
    total = sums.sum(0)
    return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)


def unevenness(count: np.ndarray, folds: np.ndarray, k: int) -> float:
    """Return how uneven folds are: the coefficient of variation over the folds, averaged over the classes.

    0 is even; at 0.1, the share of a class in a fold is typically a tenth above or below 1/k. A class with fewer than k
    images cannot be even. The arguments are those of `fold_table`.
    """
    spread = k * fold_table(count, folds, k).std(0)
    present = ~np.isnan(spread)
    return float(spread[present].mean()) if present.any() else 0.0


def _group_shares(counts: ClassCounts, member: np.ndarray, annotation_weight: float) -> np.ndarray:
    """Return (G, D) the shares of each group in everything that should be even; columns sum to 1 before weighting."""
    of_counts = ClassCounts(IMAGES_WEIGHT, annotation_weight, PIXELS_WEIGHT)
    amounts = np.concatenate([np.ones((len(member), 1)), *counts], axis=1)
    weights = np.concatenate([[SIZE_WEIGHT], *(np.full(counts.images.shape[1], w) for w in of_counts)])
    sums = np.zeros((member.max() + 1, amounts.shape[1]))
    np.add.at(sums, member, amounts)
    present = sums.any(0)
    return sums[:, present] / sums.sum(0)[present] * np.sqrt(weights[present])


def _place(shares: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Return (G,) folds: large groups first, each in the fold whose squares grow least.

    The squares of a fold grow by 2 * share @ sum + share @ share, which is least for an empty fold: no fold stays
    empty. The seed varies the order: sizes within a factor of two may change places.
    """
    sums, folds = np.zeros((k, shares.shape[1])), np.empty(len(shares), dtype=np.intp)
    for group in np.argsort(-(shares**2).sum(1) * (1 + random.random(len(shares))), kind="stable"):
        fold = (sums @ shares[group]).argmin()
        folds[group] = fold
        sums[fold] += shares[group]
    return folds


def _swap(shares: np.ndarray, folds: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Return (G,) folds after groups have swapped folds, or moved to another, if that makes the squares smaller."""
    folds, sums = folds.copy(), np.stack([shares[folds == fold].sum(0) for fold in range(k)])
    for _ in range(ROUNDS):
        changed = False
        for group in random.permutation(len(shares))[:TRIES]:
            partner, fold = _best_swap(shares, folds, sums, group, random)
            if fold == folds[group]:
                continue
            change = shares[group] - (0 if partner is None else shares[partner])
            sums[folds[group]] -= change
            sums[fold] += change
            if partner is not None:
                folds[partner] = folds[group]
            folds[group] = fold
            changed = True
        if not changed:
            break
    return folds


def _best_swap(
    shares: np.ndarray, folds: np.ndarray, sums: np.ndarray, group: int, random: np.random.Generator
) -> tuple[int | None, int]:
    """Return the partner of the best swap, or None to move without one, and the fold; its own fold if nothing helps.

    If the vector u moves from fold a to fold b, the squares change by 2 * u @ (sum of b - sum of a + u).
    """
    others = np.arange(len(shares))
    if len(shares) > CANDIDATES:
        others = random.integers(len(shares), size=CANDIDATES)
    own = folds[group]
    leaving = shares[group] - np.concatenate([shares[others], np.zeros_like(sums)])
    target = np.concatenate([folds[others], np.arange(len(sums))])
    gain = -np.einsum("nd,nd->n", leaving, (sums - sums[own])[target] + leaving)
    gain[target == own] = 0
    best = int(gain.argmax())
    if gain[best] < 1e-12:  # smaller gains are rounding errors
        return None, own
    return (int(others[best]) if best < len(others) else None), int(target[best])


def random_folds(groups: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Return (N,) random folds with the same number of groups in each, to compare with; see `assign_folds`."""
    names, member = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % k)[member]


def one_by_one_folds(annotations: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Return (N,) folds of the greedy method that circulates in notebooks, which uses only annotation counts.

    Groups with the most uneven class counts come first. Each goes to the fold that keeps the standard deviation of the
    class shares over the folds smallest, averaged over the classes. Running sums of the shares and of their squares
    give the deviation for each candidate.

    Args:
        annotations: (N, C) annotations of each class in each image.
        groups: (N,) integers as in `assign_folds`.
        k: Number of folds.
    """
    names, member = np.unique(groups, return_inverse=True)
    classes = annotations.shape[1]
    counts = np.zeros((len(names), max(1, classes)))  # at least one column, because a mean over no classes is undefined
    np.add.at(counts[:, :classes], member, annotations)
    shares = counts / np.maximum(counts.sum(0), 1)
    sums, squares, total = np.zeros((k, shares.shape[1])), np.zeros(shares.shape[1]), np.zeros(shares.shape[1])
    folds = np.empty(len(names), dtype=np.intp)
    for group in np.argsort(-counts.std(1), kind="stable"):
        share = shares[group]
        total += share
        squares_then = squares + share * (2 * sums + share)  # (k, C), one row per fold that it might go to
        variance = np.maximum(squares_then / k - (total / k) ** 2, 0)
        fold = int(np.sqrt(variance).mean(1).argmin())
        folds[group], squares = fold, squares_then[fold]
        sums[fold] += share
    return folds[member]
