"""Changes that leave a loss the same, and options that turn one loss into another."""

import pytest
import torch
from helpers.loss_examples import DEFAULTS, MAINLY_ONE_MODE, VARIANTS, build, example, ignored_entries, modes_of

from segkit.losses import (
    LOSSES,
    bce_loss,
    cross_entropy_loss,
    dice_loss,
    jaccard_loss,
    lovasz_loss,
    tversky_loss,
)

BY_CLASS = ("dice", "jaccard", "tversky", "focal_tversky", "lovasz", "mcc")


def shuffle_pixels(x):
    order = torch.randperm(x.shape[-1] * x.shape[-2], generator=torch.Generator().manual_seed(1))
    return x.flatten(-2)[..., order].view(x.shape)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
@pytest.mark.parametrize(
    "move",
    [
        pytest.param(shuffle_pixels, id="shuffled"),
        pytest.param(lambda x: x.flip(-1), id="flipped", marks=pytest.mark.slow),
        pytest.param(lambda x: x.mT, id="transposed", marks=pytest.mark.slow),
        pytest.param(lambda x: x.flip(0), id="images-swapped"),
        pytest.param(lambda x: x.repeat_interleave(2, -1)[..., ::2], id="strided"),
    ],
)
def test_neither_the_place_of_a_pixel_nor_the_order_of_images_matters(name, mode, options, move):
    logits, target = example(mode)
    loss = build(name, mode, **options)
    same(loss(move(logits), move(target)), loss(logits, target))


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
@pytest.mark.parametrize(
    "regroup",
    [
        lambda x: torch.cat([x, x]),
        lambda x: torch.cat([x, x], -1),
        lambda x: torch.cat(list(x.split(1)), -1),
    ],
    ids=["batch-twice", "image-twice", "one-large-image"],
)
def test_a_batch_counts_as_one_set_of_pixels(name, mode, regroup):
    logits, target = example(mode)
    loss = build(name, mode)
    same(loss(regroup(logits), regroup(target)), loss(logits, target))


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
@pytest.mark.parametrize("size", [(2, 20), (2, 2, 2, 5)], ids=["points", "volume"])
def test_space_may_have_any_number_of_axes(name, mode, size):
    logits, target = example(mode, (2, 4, 5))
    loss = build(name, mode)
    shaped = target.view(*target.shape[:-2], *size[1:])
    same(loss(logits.view(*logits.shape[:2], *size[1:]), shaped), loss(logits, target))


@pytest.mark.parametrize(("name", "mode"), [case for case in DEFAULTS if case.values[1] != "binary"])
def test_the_names_of_the_classes_do_not_matter(name, mode):
    logits, target = example(mode)
    order = torch.tensor([2, 0, 1])
    if mode == "multilabel":
        renamed = target[:, order]
    else:
        renamed = torch.where(target == 255, 255, order.argsort()[target.clamp_max(2)])
    same(build(name, mode)(logits[:, order], renamed), build(name, mode)(logits, target))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bce"])
def test_a_softmax_loss_sees_only_differences_between_the_classes(name):
    logits, target = example()
    shift = 5 * torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same(build(name)(logits + shift, target), build(name)(logits, target))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        case
        for case in VARIANTS
        if case.values[1] == "multiclass" and case.values[0] != "lovasz" and "class_weights" not in case.values[2]
    ],
)
def test_labels_are_shares_of_0_and_1(name, mode, options):
    logits, target = example()
    shares = torch.nn.functional.one_hot(target.masked_fill(target == 255, 0), 3).movedim(-1, 1).double()
    shares = shares.masked_fill(ignored_entries(logits, target), 255)
    same(build(name, mode, **options)(logits, shares), build(name, mode, **options)(logits, target))


@pytest.mark.parametrize("name", [name for name in LOSSES if "binary" in modes_of(name)])
def test_binary_is_multilabel_with_one_class(name):
    logits, target = example("binary")
    expected = build(name, "multilabel")(logits, target.unsqueeze(1))
    same(build(name, "binary")(logits, target), expected)
    same(build(name, "binary")(logits, target.unsqueeze(1)), expected)


@pytest.mark.parametrize("name", [name for name in LOSSES if "binary" in modes_of(name)])
def test_a_target_of_truth_values_is_one_of_0_and_1(name):
    logits, target = example("binary", ignored=0)
    same(build(name, "binary")(logits, target.bool()), build(name, "binary")(logits, target))


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_multilabel_loss_is_the_mean_of_binary_ones(name):
    logits, target = example("multilabel")
    singles = [build(name, "binary")(logits[:, [c]], target[:, c]) for c in range(3)]
    same(build(name, "multilabel")(logits, target), torch.stack(singles).mean())


@pytest.mark.parametrize("name", BY_CLASS)
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_per_image_is_the_mean_over_images(name, mode):
    logits, target = example(mode)
    singles = [build(name, mode)(logits[[n]], target[[n]]) for n in range(2)]
    same(build(name, mode, per_image=True)(logits, target), torch.stack(singles).mean())


@pytest.mark.parametrize("name", ["ce", "bce", "focal"])
def test_a_summed_loss_can_be_split_over_the_batch(name):
    logits, target = example()
    loss = build(name, reduction="sum")
    same(loss(logits, target), loss(logits[:1], target[:1]) + loss(logits[1:], target[1:]))


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_tversky_lies_between_dice_and_jaccard(mode, smooth):
    inputs, options = example(mode), {"mode": mode}
    same(tversky_loss(*inputs, smooth=smooth, **options), dice_loss(*inputs, smooth=2 * smooth, **options))
    ends = tversky_loss(*inputs, alpha=1, beta=1, smooth=smooth, **options)
    same(ends, jaccard_loss(*inputs, smooth=smooth, **options))


def test_of_one_class_dice_follows_from_jaccard():
    inputs = example("binary")
    dice, jaccard = (1 - loss(*inputs, mode="binary") for loss in (dice_loss, jaccard_loss))
    same(dice, 2 * jaccard / (1 + jaccard))


def test_of_one_class_the_log_is_that_of_the_score():
    inputs = example("binary")
    same(dice_loss(*inputs, mode="binary", log=True), -(1 - dice_loss(*inputs, mode="binary")).log())


def test_focal_tversky_is_tversky_of_each_class_to_a_power():
    logits, target = example()
    by_class = [tversky_loss(logits, target, alpha=0.3, beta=0.7, classes=[c]) for c in range(3)]
    same(build("focal_tversky")(logits, target), torch.stack(by_class).pow(0.75).mean())


def test_of_a_sure_prediction_jaccard_and_lovasz_are_1_minus_the_iou():
    _, target = example()
    predicted = target[:, torch.arange(4).roll(1)].clamp_max(2)
    sure = 100 * torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).double()
    counts = target != 255
    ious = [
        ((predicted == c) & (target == c)).sum() / (((predicted == c) & counts) | (target == c)).sum() for c in range(3)
    ]
    expected = 1 - torch.stack(ious).double().mean()
    for loss in (jaccard_loss, lovasz_loss):
        torch.testing.assert_close(loss(sure, target), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_lovasz_hinge_is_convex(seed):
    logits, target = example("binary")
    a, b = 3 * torch.randn(2, *logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ends = [lovasz_loss(z, target, mode="binary") for z in (a, b)]
    for share in (0.25, 0.5, 0.75):
        between = lovasz_loss(share * a + (1 - share) * b, target, mode="binary")
        assert between <= share * ends[0] + (1 - share) * ends[1] + 1e-12


@pytest.mark.parametrize("loss", [cross_entropy_loss, bce_loss])
def test_cross_entropies_are_convex(loss):
    _, target = example()
    a, b = 3 * torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert loss((a + b) / 2, target) < (loss(a, target) + loss(b, target)) / 2
