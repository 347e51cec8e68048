import numpy as np
import pytest

from segkit.metrics import ConfusionMatrix, PerImageConfusion, bootstrap_difference, bootstrap_interval


def images(quality, count=30, classes=3, seed=0, size=(6, 7)):
    """Images whose share of right pixels varies around `quality`, on the same targets for every quality."""
    random = np.random.default_rng(seed)
    target = random.integers(classes, size=(count, *size))
    easiness = random.random((count, 1, 1)) / 2
    right = random.random((count, *size)) < quality - 0.25 + easiness
    prediction = np.where(right, target, (target + 1) % classes)
    per_image = PerImageConfusion(classes)
    per_image.update(prediction, target)
    return per_image, prediction, target


def miou_of(prediction, target):
    confusion = ConfusionMatrix(3)
    confusion.update(prediction, target)
    return confusion.compute().miou


def oracle_draws(score, count, resamples=400):
    """Scores of the pixels themselves, of images drawn one by one."""
    random = np.random.default_rng(1)
    return [score(random.integers(count, size=count)) for _ in range(resamples)]


def test_the_interval_agrees_with_drawing_the_images_themselves():
    per_image, prediction, target = images(0.7)
    interval = bootstrap_interval(per_image, resamples=4000, level=0.9)
    draws = oracle_draws(lambda i: miou_of(prediction[i], target[i]), len(target))
    assert interval.estimate == pytest.approx(miou_of(prediction, target))
    width = interval.high - interval.low
    assert [interval.low, interval.high] == pytest.approx(np.quantile(draws, [0.05, 0.95]), abs=0.12 * width)


def test_pixel_accuracy_has_the_interval_of_a_mean():
    per_image, prediction, target = images(0.7, count=200)
    shares = (prediction == target).mean((1, 2))  # images of one size: the accuracy is their mean
    interval = bootstrap_interval(per_image, "pixel_accuracy", resamples=4000)
    half = 1.96 * shares.std() / np.sqrt(len(shares))
    assert interval.estimate == pytest.approx(shares.mean())
    assert [interval.low, interval.high] == pytest.approx([shares.mean() - half, shares.mean() + half], abs=0.1 * half)


def test_images_that_are_all_alike_leave_no_doubt():
    per_image = PerImageConfusion(3)
    for _ in range(5):
        per_image.update(np.array([[0, 1, 1]]), np.array([[0, 1, 2]]))
    interval = bootstrap_interval(per_image)
    assert interval.low == interval.estimate == interval.high == pytest.approx(0.5)


def test_the_difference_cancels_what_both_find_hard():
    better, worse = images(0.72)[0], images(0.70)[0]
    difference = bootstrap_difference(better, worse)
    alone = bootstrap_interval(better), bootstrap_interval(worse)
    assert difference.estimate == pytest.approx(alone[0].estimate - alone[1].estimate)
    assert alone[0].low < alone[1].high
    assert difference.low > 0
    opposite = bootstrap_difference(worse, better)
    assert (opposite.low, opposite.high) == pytest.approx((-difference.high, -difference.low))


def test_a_model_does_not_differ_from_itself():
    per_image = images(0.7)[0]
    difference = bootstrap_difference(per_image, per_image, "iou")
    assert not np.any([difference.estimate, difference.low, difference.high])


def test_any_function_of_scores_and_any_score_of_each_class_has_an_interval():
    per_image = images(0.7)[0]
    by_class = bootstrap_interval(per_image, "iou", resamples=200)
    second = bootstrap_interval(per_image, lambda scores: scores.iou[1], resamples=200)
    assert by_class.low.shape == (3,)
    assert (second.estimate, second.low, second.high) == (by_class.estimate[1], by_class.low[1], by_class.high[1])
    assert (by_class.low <= by_class.estimate).all()
    assert len(str(by_class).splitlines()) == 3


def test_a_class_in_few_images_is_judged_by_the_resamples_that_have_it_and_an_absent_one_is_nan():
    per_image = PerImageConfusion(4)
    per_image.update(np.array([[[0]], [[0]], [[1]]]), np.array([[[0]], [[0]], [[1]]]))
    interval = bootstrap_interval(per_image, "iou", resamples=300)
    assert interval.low[:2].tolist() == interval.high[:2].tolist() == [1, 1]
    assert np.isnan([interval.estimate[3], interval.low[3], interval.high[3]]).all()


def test_excluded_classes_stay_out():
    per_image, prediction, target = images(0.7)
    part = PerImageConfusion(3, exclude=(0,))
    part.update(prediction, target)
    of_rest = bootstrap_interval(per_image, lambda scores: scores.iou[1:].mean())
    assert str(bootstrap_interval(part)) == str(of_rest)


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    per_image = images(0.7)[0]
    first = bootstrap_interval(per_image, resamples=200)
    assert first == bootstrap_interval(per_image, resamples=200, seed=0)
    assert first != bootstrap_interval(per_image, resamples=200, seed=1)


def test_as_many_resamples_are_drawn_as_asked_for():
    scores = []
    bootstrap_interval(images(0.7)[0], lambda s: scores.append(s) or s.miou, resamples=70)
    assert len(scores) == 1 + 70


def test_a_higher_level_is_wider():
    per_image = images(0.7)[0]
    narrow, wide = (bootstrap_interval(per_image, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_bad_input_is_named():
    per_image = images(0.7)[0]
    with pytest.raises(ValueError, match=r"unknown score 'mIoU'\. Known: iou"):
        bootstrap_interval(per_image, "mIoU")
    with pytest.raises(ValueError, match=r"`level` must be in \(0, 1\), got 95"):
        bootstrap_interval(per_image, level=95, resamples=2)
    with pytest.raises(ValueError, match="a bootstrap needs at least one image and one resample, got 0 and 1000"):
        bootstrap_interval(PerImageConfusion(3))
    with pytest.raises(ValueError, match="the same targets in the same order"):
        bootstrap_difference(per_image, images(0.7, seed=1)[0])
    with pytest.raises(ValueError, match="the same targets in the same order"):
        bootstrap_difference(per_image, images(0.7, count=29)[0])
