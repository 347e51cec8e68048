"""Bootstrap intervals: how much a score would change with other images of the same kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from segkit.errors import UsageError
from segkit.metrics.per_image import PerImageConfusion
from segkit.metrics.scores import Scores, score_counts
from segkit.names import check_known

BLOCK = 64  # resamples in one matrix product


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval; floats, or arrays if the score has a value for each class.

    Attributes:
        estimate: Score of the whole set.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Share of the resamples inside the interval, in (0, 1).
    """

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
    """Return the bootstrap interval of a score over the images.

    Each resample draws images with replacement and sums their confusion matrices. Images are taken as
    independent: crops of one photograph or frames of one video make the interval too narrow.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).

    Args:
        images: Confusion matrices of the images.
        score: Name of a field of `Scores`, or a function from `Scores` to a number or array. Resamples
            with a NaN score are dropped, such as the IoU of a class that is in none of the drawn images.
        level: Share of the resamples inside the interval, in (0, 1).
        resamples: Number of resamples, at least 1.
        seed: Seed of the draws.

    Raises:
        UsageError: An unknown score, a level outside (0, 1), no images, or no resamples.
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
    """Return the bootstrap interval of `first`'s score minus `second`'s, on the same images.

    Both models get the same images in each resample. An image that is hard for both then changes the
    difference little, so this interval may exclude zero although the two separate intervals overlap.
    The other arguments are the same as in `bootstrap_interval`.

    Args:
        first: Confusion matrices of the first model.
        second: Confusion matrices of the second model, for the same images in the same order.

    Raises:
        UsageError: The two have counted different targets; also the errors of `bootstrap_interval`.
    """
    if not np.array_equal(_target_pixels(first), _target_pixels(second)):
        raise UsageError("`first` and `second` must have counted the same targets in the same order")
    function = _as_function(score)
    estimates = [function(score_counts(_matrices(x).sum(0), x.class_names, x.included)) for x in (first, second)]
    draws = [function(a) - function(b) for a, b in _resample([first, second], resamples, seed)]
    return _interval(estimates[0] - estimates[1], np.array(draws), level)


def _as_function(score: str | Callable[[Scores], float | np.ndarray]) -> Callable[[Scores], float | np.ndarray]:
    if callable(score):
        return score
    known = [name for name in Scores.__dataclass_fields__ if name != "class_names"]
    check_known("score", score, known)
    return attrgetter(score)


def _matrices(images: PerImageConfusion) -> np.ndarray:
    return images.counts.cpu().numpy()


def _target_pixels(images: PerImageConfusion) -> np.ndarray:
    """Return the number of target pixels of each label in each image, (N, C + 2)."""
    return _matrices(images).sum(-1)


def _resample(sets: list[PerImageConfusion], resamples: int, seed: int) -> Iterator[tuple[Scores, ...]]:
    """Yield, for each resample, the scores of every set on the same drawn images."""
    matrices = [_matrices(images) for images in sets]
    shape = matrices[0].shape
    if not shape[0] or resamples < 1:
        raise UsageError(f"a bootstrap needs at least one image and one resample, got {shape[0]} and {resamples}")
    flat = [x.reshape(shape[0], -1).astype(np.float64) for x in matrices]  # float matmul is faster than integer
    random = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        times = random.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), min(BLOCK, resamples - start))
        sums = [(times.astype(np.float64) @ x).astype(np.int64).reshape(-1, *shape[1:]) for x in flat]
        for drawn in zip(*sums, strict=True):
            yield tuple(score_counts(x, s.class_names, s.included) for x, s in zip(drawn, sets, strict=True))


def _interval(estimate: float | np.ndarray, draws: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise UsageError(f"`level` must be in (0, 1), got {level}")
    tails = ((1 - level) / 2, (1 + level) / 2)
    if draws.ndim == 1:
        low, high = _quantiles(draws, tails).tolist()
    else:
        low, high = np.array([_quantiles(column, tails) for column in draws.T]).T
    return Interval(estimate, low, high, level)


def _quantiles(values: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    values = values[~np.isnan(values)]
    return np.quantile(values, shares) if len(values) else np.full(2, np.nan)
