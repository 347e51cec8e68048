import numpy as np
import pytest

from segkit.metrics import HeldOutSearch, PerImageConfusion, gain
from segkit.metrics.held_out import climb


def confusion_of(truths, predictions):
    images = PerImageConfusion(2)
    for truth, prediction in zip(truths, predictions, strict=True):
        images.update(prediction[None], truth[None])
    return images


def thresholds(values, truths):
    """The confusion of calling 1 what is above a threshold, in tenths."""
    return lambda t: confusion_of(truths, [(v > t / 10).astype(np.int64) for v in values])


STEPS = [lambda t: min(9, t + 1), lambda t: max(1, t - 1)]


@pytest.fixture
def drawn():
    values = np.random.default_rng(0).random((10, 400))
    return values, (values > 0.7).astype(np.int64)


def test_what_helps_everywhere_is_found_on_each_fold_and_helps_held_out(drawn):
    search = HeldOutSearch(thresholds(*drawn), 10, folds=5, seed=0)
    start = search.fixed(4)
    best = search.improve(start, STEPS)
    assert best.of_fold == (7,) * 5
    assert best.final == 7
    assert best.held_out.total().compute().miou == 1
    assert gain(best, start).low > 0


def test_an_image_is_counted_under_what_was_chosen_without_it(drawn):
    values, truths = drawn
    truths = truths.copy()
    search = HeldOutSearch(thresholds(values, truths), 10, folds=2, seed=3)
    first = search.folds[0]
    truths[first] = values[first] > 0.3  # the folds want different things
    best = search.improve(search.fixed(5), STEPS)
    assert best.of_fold == (7, 3)
    counts = best.held_out.counts
    assert np.array_equal(counts[first], search.count(7).counts[first])
    assert np.array_equal(counts[search.folds[1]], search.count(3).counts[search.folds[1]])


def test_a_choice_that_only_fits_noise_brings_nothing():
    random = np.random.default_rng(1)
    truths = random.integers(0, 2, (20, 300))
    guesses = random.integers(0, 2, (30, 20, 300))
    search = HeldOutSearch(lambda k: confusion_of(truths, guesses[k]), 20, folds=5)
    best = search.improve(search.fixed(0), [lambda _, k=k: k for k in range(30)])
    assert search.count(best.final).total().compute().miou > search.count(0).total().compute().miou
    assert abs(gain(best, search.fixed(0)).estimate) < 0.02


def test_climbing_takes_the_step_that_helps_and_ends():
    asked = []
    assert climb(0, [lambda x: x + 1, lambda x: x - 1], lambda x: asked.append(x) or -abs(x - 3)) == 3
    assert climb(5, [lambda x: x], lambda x: 1.0) == 5


def test_folds_must_be_two_at_least_and_no_more_than_the_images():
    for folds in (1, 4):
        with pytest.raises(ValueError, match="no more than the 3 images"):
            HeldOutSearch(lambda _: None, 3, folds=folds)
