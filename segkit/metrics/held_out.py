"""HeldOutSearch: choose settings on some images and score them on the other images."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from segkit.errors import UsageError
from segkit.metrics.bootstrap import Interval, bootstrap_difference
from segkit.metrics.per_image import PerImageConfusion
from segkit.metrics.scores import score_counts

Choice = TypeVar("Choice", bound=Hashable)
Count = Callable[[Choice], PerImageConfusion]
Step = Callable[[Choice], Choice]  # maps a setting to a neighbour, or to itself at the edge


@dataclass(frozen=True)
class Chosen(Generic[Choice]):
    """Hold the settings chosen without each fold, and the settings chosen on all images.

    Attributes:
        of_fold: For each fold, the settings chosen without its images.
        final: The settings chosen on all images.
        held_out: Confusion matrices of all images, each under the settings chosen without it.
    """

    of_fold: tuple[Choice, ...]
    final: Choice
    held_out: PerImageConfusion


class HeldOutSearch(Generic[Choice]):
    """Improve settings by cross-validated mIoU.

    Source: Stone, "Cross-Validatory Choice and Assessment of Statistical Predictions", 1974.

    Args:
        count: Function that returns the confusion matrices of all images under given settings. It must return
            a new object in each call.
        images: Number of images.
        folds: Number of folds, from 2 to `images`.
        seed: Seed of the division into folds.

    Raises:
        UsageError: `folds` is out of range.
    """

    def __init__(self, count: Count, images: int, *, folds: int = 5, seed: int = 0) -> None:
        if not 2 <= folds <= images:
            raise UsageError(f"`folds` must be at least 2 and no more than the {images} images, got {folds}")
        self.count = count
        self.folds = np.array_split(np.random.default_rng(seed).permutation(images), folds)
        self._sums: dict[Choice, np.ndarray] = {}  # one matrix per fold: one per image would not fit in memory

    def fixed(self, choice: Choice) -> Chosen:
        """Return given settings as the starting point of `improve`."""
        return self._chosen((choice,) * len(self.folds), choice)

    def improve(self, start: Chosen, steps: Sequence[Step]) -> Chosen:
        """Return better settings than `start`, by hill climbing.

        For each fold the climb uses the images of the other folds; the final settings use all images.
        """
        of_fold = tuple(
            climb(choice, steps, partial(self._miou, without=fold)) for fold, choice in enumerate(start.of_fold)
        )
        return self._chosen(of_fold, climb(start.final, steps, self._miou))

    def _chosen(self, of_fold: tuple[Choice, ...], final: Choice) -> Chosen:
        counted = {choice: self.count(choice) for choice in dict.fromkeys(of_fold)}
        held_out = counted[of_fold[0]]
        counts = held_out.counts.clone()
        for choice, fold in zip(of_fold, self.folds, strict=True):
            counts[fold] = counted[choice].counts[fold]
        held_out.counts = counts
        return Chosen(of_fold, final, held_out)

    def _miou(self, choice: Choice, without: int | None = None) -> float:
        if choice not in self._sums:
            self._like = self.count(choice)
            counts = self._like.counts.cpu().numpy()
            self._sums[choice] = np.stack([counts[fold].sum(0, dtype=np.int64) for fold in self.folds])
        sums = self._sums[choice]
        total = sums.sum(0) - (0 if without is None else sums[without])
        return score_counts(total, self._like.class_names, self._like.included).miou


def gain(later: Chosen, earlier: Chosen) -> Interval:
    """Return the bootstrap interval of `later`'s held-out mIoU minus `earlier`'s."""
    return bootstrap_difference(later.held_out, earlier.held_out)


def climb(start: Choice, steps: Sequence[Step], score: Callable[[Choice], float]) -> Choice:
    """Repeat all steps, keeping each that raises the score, until no step does."""
    best, highest, last = start, score(start), None
    while last != best:
        last = best
        for step in steps:
            candidate = step(best)
            value = score(candidate) if candidate != best else highest
            if value > highest + 1e-9:  # a smaller gain is rounding
                best, highest = candidate, value
    return best
