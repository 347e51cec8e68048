"""Bootstrap intervals: how far a score would move with other images of the same kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from segkit.metrics.per_image import PerImageConfusion
from segkit.metrics.scores import Scores, score_counts

BLOCK = 64  # resamples in one matrix product


@dataclass(frozen=True)
class Interval:
    """A score of the whole set and where it lies in `level` of the resamples; arrays for a score of each class."""

    estimate: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float

    def __str__(self) -> str:
        if np.ndim(self.estimate):
            rows = zip(self.estimate, self.low, self.high, strict=True)
            return "\n".join(str(Interval(*row, self.level)) for row in rows)
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    images: PerImageConfusion,
    score: str | Callable[[Scores], float | np.ndarray] = "miou",
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of a score over the images that might have been drawn.

    Images are drawn with replacement and their confusion matrices summed; one image is the unit, so crops of
    one photograph or frames of one film make the interval too narrow.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).

    Args:
        images: One confusion matrix an image.
        score: A field of `Scores`, or what makes a number or (C,) array of one. A resample in which it is
            NaN, as the IoU of a class in none of its images, is left out.
        level: Share of the resamples that the interval holds.
        resamples: Number of resamples.
        seed: Of the drawing.
    """
    function = _as_function(score)
    estimate = function(score_counts(_matrices(images).sum(0), images.class_names, images.included))
    draws = [function(scores) for (scores,) in _resample([images], resamples, seed)]
    return _interval(estimate, np.array(draws), level)


def bootstrap_difference(
    first: PerImageConfusion,
    second: PerImageConfusion,
    score: str | Callable[[Scores], float | np.ndarray] = "miou",
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of `first`'s score less `second`'s, on the same images in the same order.

    Both get the same images in each resample, so that what makes an image hard for both cancels out: two
    intervals of their own may overlap where this one leaves zero out. The arguments are those of
    `bootstrap_interval`.
    """
    if not np.array_equal(_target_pixels(first), _target_pixels(second)):
        raise ValueError("first and second must have counted the same targets in the same order")
    function = _as_function(score)
    estimates = [function(score_counts(_matrices(x).sum(0), x.class_names, x.included)) for x in (first, second)]
    draws = [function(a) - function(b) for a, b in _resample([first, second], resamples, seed)]
    return _interval(estimates[0] - estimates[1], np.array(draws), level)


def _as_function(score: str | Callable[[Scores], float | np.ndarray]) -> Callable[[Scores], float | np.ndarray]:
    if callable(score):
        return score
    known = [name for name in Scores.__dataclass_fields__ if name != "class_names"]
    if score not in known:
        raise ValueError(f"unknown score {score!r}, expected a function of Scores or one of {', '.join(known)}")
    return attrgetter(score)


def _matrices(images: PerImageConfusion) -> np.ndarray:
    return images.counts.cpu().numpy()


def _target_pixels(images: PerImageConfusion) -> np.ndarray:
    """(N, C + 2) pixels of each label in the target of each image."""
    return _matrices(images).sum(-1)


def _resample(sets: list[PerImageConfusion], resamples: int, seed: int) -> Iterator[tuple[Scores, ...]]:
    """The scores of each set on the same draw of images, again and again."""
    matrices = [_matrices(images) for images in sets]
    shape = matrices[0].shape
    if not shape[0] or resamples < 1:
        raise ValueError(f"a bootstrap needs images and resamples, got {shape[0]} and {resamples}")
    flat = [x.reshape(shape[0], -1).astype(np.float64) for x in matrices]  # a product of integers is not as quick
    random = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        times = random.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), min(BLOCK, resamples - start))
        sums = [(times.astype(np.float64) @ x).astype(np.int64).reshape(-1, *shape[1:]) for x in flat]
        for drawn in zip(*sums, strict=True):
            yield tuple(score_counts(x, s.class_names, s.included) for x, s in zip(drawn, sets, strict=True))


def _interval(estimate: float | np.ndarray, draws: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    tails = ((1 - level) / 2, (1 + level) / 2)
    if draws.ndim == 1:
        low, high = _quantiles(draws, tails).tolist()
    else:
        low, high = np.array([_quantiles(column, tails) for column in draws.T]).T
    return Interval(estimate, low, high, level)


def _quantiles(values: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    values = values[~np.isnan(values)]
    return np.quantile(values, shares) if len(values) else np.full(2, np.nan)
