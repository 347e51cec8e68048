import itertools
import subprocess
import sys

import numpy as np
import pytest

from segkit.data.image_groups import group_images
from segkit.folds.assign import assign_folds, fold_table, one_by_one_folds, random_folds, unevenness
from segkit.folds.counts import ClassCounts


def counts_of(pixels):
    """Return counts of (N, C) pixels, with one annotation for each class that has pixels."""
    pixels = np.asarray(pixels, dtype=np.float64)
    return ClassCounts((pixels > 0) * 1.0, (pixels > 0) * 1.0, pixels)


def drawn_counts(images=300, classes=6, seed=0):
    """Return counts with frequent and rare classes, and sizes that differ by orders of magnitude."""
    random = np.random.default_rng(seed)
    frequency = np.geomspace(3, 0.02, classes)
    annotations = random.poisson(frequency, (images, classes)).astype(float)
    pixels = np.ceil(annotations * np.exp(random.normal(6, 1.5, (images, classes))))
    return ClassCounts((annotations > 0) * 1.0, annotations, pixels)


def overall(counts, folds, k):
    return np.mean([unevenness(count, folds, k) for count in counts])


@pytest.mark.parametrize("k", [2, 3, 5, 10])
def test_every_image_validates_once_and_folds_are_as_large(k):
    folds = assign_folds(drawn_counts(), k)
    assert folds.shape == (300,)
    sizes = np.bincount(folds, minlength=k)
    assert len(sizes) == k
    assert sizes.max() - sizes.min() <= 2


def test_the_only_even_split_of_four_images_is_found():
    counts = counts_of([[60, 0], [0, 30], [60, 0], [0, 30]])
    for seed in range(10):
        folds = assign_folds(counts, 2, seed=seed)
        assert folds[0] != folds[2]
        assert folds[1] != folds[3]
        assert overall(counts, folds, 2) == 0


def test_pixels_are_even_if_the_number_of_images_does_not_decide():
    counts = counts_of([[100], [100], [1], [1]])
    for seed in range(10):
        folds = assign_folds(counts, 2, seed=seed)
        assert folds[0] != folds[1]


@pytest.mark.parametrize("k", [3, 5, 7])
def test_a_class_of_k_images_has_one_in_each_fold(k):
    counts = drawn_counts(images=200)
    rare = np.zeros((200, 2))
    random = np.random.default_rng(k)
    for column in range(2):
        rare[random.choice(200, k, replace=False), column] = np.exp(random.normal(6, 2, k)).round() + 1
    rare = counts_of(rare)
    counts = ClassCounts(*(np.concatenate(pair, axis=1) for pair in zip(counts, rare, strict=True)))
    for seed in range(5):
        folds = assign_folds(counts, k, seed=seed)
        for column in range(2):
            assert sorted(folds[rare.images[:, column] > 0]) == list(range(k))


def test_groups_are_never_split():
    groups = np.random.default_rng(1).integers(80, size=300)
    folds = assign_folds(drawn_counts(), 5, groups=groups)
    for group in range(80):
        assert len(set(folds[groups == group])) <= 1
    assert set(folds) == set(range(5))


def test_the_same_seed_makes_the_same_split_and_another_seed_another():
    counts = drawn_counts()
    assert (assign_folds(counts, 5, seed=3) == assign_folds(counts, 5, seed=3)).all()
    assert (assign_folds(counts, 5, seed=3) != assign_folds(counts, 5, seed=4)).any()


def test_the_order_of_the_images_does_not_matter():
    counts = drawn_counts()
    names = [f"{i:03}.jpg" for i in range(300)]
    order = np.random.default_rng(2).permutation(300)
    shuffled = ClassCounts(*(count[order] for count in counts))
    folds = assign_folds(counts, 5, groups=group_images(names))
    again = assign_folds(shuffled, 5, groups=group_images([names[i] for i in order]))
    assert (again == folds[order]).all()


def test_folds_are_more_even_than_random_and_greedy_ones():
    counts = drawn_counts(images=600)
    groups = np.arange(600)
    ours = assign_folds(counts, 5)
    greedy = one_by_one_folds(counts.annotations, groups, 5)
    chance = np.mean([overall(counts, random_folds(groups, 5, seed), 5) for seed in range(5)])
    assert overall(counts, ours, 5) < chance / 3
    for count in (counts.images, counts.pixels):
        assert unevenness(count, ours, 5) < unevenness(count, greedy, 5)


@pytest.mark.parametrize("classes", [6, 11])
def test_folds_of_sixty_images_are_as_even_as_greedy_ones_in_each_count(classes):
    for seed in range(4):
        counts = drawn_counts(images=60, classes=classes, seed=seed)
        greedy = one_by_one_folds(counts.annotations, np.arange(60), 5)
        folds = assign_folds(counts, 5, seed=seed)
        for count in counts:
            assert unevenness(count, folds, 5) <= unevenness(count, greedy, 5) + 0.01


def test_no_better_split_of_eight_images_exists_by_more_than_a_little():
    counts = drawn_counts(images=8, classes=3, seed=5)
    splits = [np.array([0, *rest]) for rest in itertools.product((0, 1), repeat=7) if sum(rest) == 4]
    best = min(overall(counts, folds, 2) for folds in splits)
    assert overall(counts, assign_folds(counts, 2), 2) <= 1.25 * best


@pytest.mark.parametrize(
    "counts", [counts_of(np.zeros((7, 3))), counts_of(np.ones((7, 1))), counts_of(np.ones((7, 0)))]
)
def test_images_without_annotations_one_class_and_no_class_are_divided(counts):
    assert sorted(np.bincount(assign_folds(counts, 3))) == [2, 2, 3]


def test_as_many_folds_as_images_leave_none_empty():
    for seed in range(5):
        folds = assign_folds(drawn_counts(images=12), 12, seed=seed)
        assert sorted(folds) == list(range(12))


def test_one_huge_group_leaves_no_fold_empty():
    groups = np.array([0] * 95 + [1, 2, 3, 4, 5])
    assert set(assign_folds(drawn_counts(images=100), 5, groups=groups)) == set(range(5))


def test_images_that_only_train_are_in_no_fold_unless_their_group_validates():
    counts = counts_of(np.ones((6, 1)))
    groups, only = np.array([5, 6, 7, 8, 5, 9]), np.array([0, 0, 0, 0, 1, 1], dtype=bool)
    folds = assign_folds(counts, 2, groups=groups, train_only=only)
    assert sorted(folds[:4]) == [0, 0, 1, 1]
    assert folds[4] == folds[0]
    assert folds[5] == -1


def test_images_that_only_train_do_not_change_the_split_of_the_others():
    counts = drawn_counts(images=60)
    only = np.arange(60) >= 40
    without = assign_folds(ClassCounts(*(count[:40] for count in counts)), 4)
    assert (assign_folds(counts, 4, train_only=only)[:40] == without).all()


@pytest.mark.parametrize(
    ("k", "groups", "message"),
    [
        (1, None, "at least 2, got 1"),
        (5, None, "5 folds need at least 5 images, got 4$"),
        (4, [0, 0, 1, 2], "got 4, which form 3 groups that stay together"),
    ],
)
def test_a_wrong_number_of_folds_is_one_sentence(k, groups, message):
    with pytest.raises(ValueError, match=message):
        assign_folds(counts_of(np.ones((4, 1))), k, groups=groups)


def test_shares_and_unevenness_worked_out_by_hand():
    count = np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=float)
    folds = np.array([0, 1, 1])
    table = fold_table(count, folds, 2)
    assert table[:, :2].tolist() == [[0.75, 0.5], [0.25, 0.5]]
    assert np.isnan(table[:, 2]).all()
    # class 0: standard deviation of (3, 1) is 1, their mean 2; class 1: even; class 2 is nowhere.
    assert unevenness(count, folds, 2) == pytest.approx((0.5 + 0) / 2)
    assert unevenness(np.zeros((3, 2)), folds, 2) == 0


def test_the_greedy_split_by_annotations_follows_its_rule():
    counts, k = drawn_counts(images=60, seed=3).annotations, 4
    counts = counts[:, counts.any(0)]
    sums, expected = np.zeros((k, counts.shape[1])), np.empty(60, dtype=int)
    for image in np.argsort(-counts.std(1), kind="stable"):
        deviations = []
        for fold in range(k):
            trial = sums.copy()
            trial[fold] += counts[image]
            deviations.append((trial / counts.sum(0)).std(0).mean().round(12))
        expected[image] = np.argmin(deviations)
        sums[expected[image]] += counts[image]
    found = one_by_one_folds(counts, np.arange(60), k)
    assert unevenness(counts, found, k) == pytest.approx(unevenness(counts, expected, k), abs=0.02)
    assert (found == expected).mean() > 0.9  # rounding may break ties in another way


def test_dividing_does_not_import_torch():
    code = (
        "import sys, segkit.data as d; d.assign_folds, d.DataError; print({'torch', 'albumentations'} & {*sys.modules})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
