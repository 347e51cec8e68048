"""Defects of losses in other libraries, each with the place of its report; our losses have none of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_examples import SIGMOID, WEIGHTS, build, example, ignored_entries, loss_and_gradient

from segkit.losses import (
    LOSSES,
    bce_loss,
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    generalized_dice_loss,
    jaccard_loss,
    lovasz_loss,
    ohem_loss,
    tversky_loss,
)
from segkit.metrics import ConfusionMatrix

IGNORED = torch.full((2, 4, 5), 255)


def even(classes, *labels):
    """Return logits of 0 and a target for one row of pixels with these labels."""
    return torch.zeros(1, classes, 1, len(labels)), torch.tensor([[labels]])


# Ignored pixels in the denominator: SMP #852, mmsegmentation #546 and #886, PaddleSeg's `+ EPS`.
@pytest.mark.parametrize("labels", [(0, 1), (0, 1, 255), (0, 1, 255, 255, 255, 255)])
@pytest.mark.parametrize(("name", "expected"), [("ce", math.log(2)), ("bce", math.log(2)), ("focal", math.log(2) / 4)])
def test_the_mean_is_over_the_pixels_that_count(name, expected, labels):
    assert build(name)(*even(2, *labels)).item() == pytest.approx(expected)


# mmsegmentation #1088 and PR 2996: a Dice of 0.5 if all pixels are ignored; kornia: such an image counts as 1.
@pytest.mark.parametrize("per_image", [False, True])
def test_an_ignored_image_is_no_miss(per_image):
    logits, target = example()
    target[1] = 255
    alone = dice_loss(logits[:1], target[:1], per_image=per_image)
    torch.testing.assert_close(dice_loss(logits, target, per_image=per_image), alone)


# mmsegmentation's DiceLoss: `ignore_index` drops a channel of the prediction and keeps the pixels.
def test_an_ignored_class_stays_a_class_that_can_be_predicted():
    logits, target = example(ignore_index=1)
    _, gradient = loss_and_gradient(lambda z: dice_loss(z, target, ignore_index=1), logits)
    assert (gradient[:, 1][target != 1] != 0).all()
    assert (gradient.movedim(1, -1)[target == 1] == 0).all()


# `ignore_index` without effect: SMP PR 366 and PR 1151, PaddleSeg PR 933, kornia #839, MONAI #8734.
@pytest.mark.parametrize("name", LOSSES)
def test_the_ignored_value_decides(name):
    logits, target = example(ignore_index=1)
    assert build(name, ignore_index=1)(logits, target) != build(name, ignore_index=2)(logits, target)


# 255 as an index into weights or a one-hot target: PaddleSeg #2270, torch #91383, #69339 and #72056, mmsegmentation.
@pytest.mark.parametrize("name", ["ce", "focal"])
def test_weights_are_never_looked_up_at_the_ignored_value(name):
    logits, target = example()
    counted = target != 255
    kept = logits.movedim(1, -1)[counted].T[None, :, None], target[counted][None, None]
    weighted = build(name, class_weights=WEIGHTS)
    torch.testing.assert_close(weighted(logits, target), weighted(*kept))


# Label smoothing that leaks a gradient into ignored pixels: torch #73205.
@pytest.mark.parametrize("name", ["ce", "bce"])
def test_smoothing_does_not_reach_ignored_pixels(name):
    logits, target = example()
    _, gradient = loss_and_gradient(build(name, label_smoothing=0.2), logits, target)
    assert (gradient[ignored_entries(logits, target)] == 0).all()


# torch #104776: the share that smoothing assigns to another class has the weight of that class, as in torch.
def test_with_smoothing_each_class_has_its_own_weight():
    logits = torch.tensor([[[[1.0]], [[0.0]]]])
    other = math.log(1 + math.e)  # -log p of class 1; -log p of class 0 is `other - 1`
    expected = (0.8 * 3 * (other - 1) + 0.1 * 3 * (other - 1) + 0.1 * 5 * other) / 3
    loss = cross_entropy_loss(logits, torch.tensor([[[0]]]), class_weights=[3.0, 5.0], label_smoothing=0.2)
    # The target is 1 - eps for the label plus eps / C for each class: 0.8 + 0.1 and 0.1.
    assert loss.item() == pytest.approx(expected)


# NaN, no graph, a Python number or the shape (0, 3) if all is ignored: torch #70348, SMP, mmsegmentation's OHEM.
@pytest.mark.parametrize("name", LOSSES)
def test_without_a_pixel_that_counts_the_loss_is_a_0_to_train_with(name):
    loss, gradient = loss_and_gradient(build(name), example()[0], IGNORED)
    assert loss.shape == ()
    assert loss == 0
    assert (gradient == 0).all()


# Sums in float16 overflow at 65,504: SMP #463.
@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky"])
def test_half_precision_sums_of_large_images_do_not_overflow(name):
    logits = torch.zeros(2, 3, 512, 512, dtype=torch.float16)
    target = torch.zeros(2, 512, 512, dtype=torch.uint8)
    score = {"dice": 1 / 2, "jaccard": 1 / 3, "tversky": 1 / 2}[name]
    assert build(name)(logits, target).item() == pytest.approx(1 - score, abs=1e-4)


# SMP: SoftCrossEntropyLoss() raises TypeError, and its unreduced loss has one axis too many.
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_built_without_arguments(name):
    assert LOSSES[name]()(*example()) > 0


@pytest.mark.parametrize("name", ["ce", "bce", "focal"])
def test_an_unreduced_loss_has_the_shape_of_the_target(name):
    assert build(name, reduction="none")(*example()).shape == (2, 4, 5)


# SMP: SoftBCEWithLogitsLoss takes no integers.
@pytest.mark.parametrize("mode", SIGMOID)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_binary_cross_entropy_takes_integers(mode, dtype):
    logits, target = example(mode)
    expected = bce_loss(logits, target.double(), mode=mode)
    torch.testing.assert_close(bce_loss(logits, target.to(dtype), mode=mode), expected)


# SMP: multilabel focal loss with an ignore_index raises IndexError.
def test_multilabel_focal_loss_can_ignore():
    logits, target = example("multilabel")
    counted = target != 255
    kept = logits[counted].view(1, 1, -1), target[counted].view(1, 1, -1)
    torch.testing.assert_close(focal_loss(logits, target, mode="multilabel"), focal_loss(*kept, mode="multilabel"))


# SMP, toolbelt: reduction="batchwise_mean" is a sum over the batch.
@pytest.mark.parametrize("name", ["ce", "bce", "focal"])
def test_a_reduction_is_what_its_name_says(name):
    inputs = example()
    mean, total, single = (build(name, reduction=reduction)(*inputs) for reduction in ("mean", "sum", "none"))
    torch.testing.assert_close(total, single.sum())
    torch.testing.assert_close(mean, total / (inputs[1] != 255).sum())


# A loss multiplied in place by its mask cannot be differentiated twice, and 0 * inf is NaN.
@pytest.mark.parametrize("name", LOSSES)
def test_a_penalty_on_the_gradient_can_be_trained_with(name):
    logits, target = example()
    ignored = ignored_entries(logits, target)
    logits = torch.where(ignored, math.inf, logits).requires_grad_()
    (gradient,) = torch.autograd.grad(build(name)(logits, target), logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    assert (second[ignored] == 0).all()
    assert second.isfinite().all()
    assert (second != 0).any()


# Loss and metric disagree about classes without a pixel: ivadomed #183, MONAI #4160; SMP counts them, as `zero` does.
@pytest.mark.parametrize("loss", [jaccard_loss, lovasz_loss])
def test_a_class_neither_there_nor_predicted_is_skipped_by_loss_and_metric(loss):
    target = torch.tensor([[[0, 0, 0, 2, 2, 255]]])
    predicted = torch.tensor([[[0, 0, 2, 2, 2, 1]]])
    metric = ConfusionMatrix(num_classes=5, ignore_index=255)
    metric.update(predicted, target)
    logits = 50.0 * F.one_hot(predicted, 5).movedim(-1, 1)
    assert loss(logits, target).item() == pytest.approx(1 - metric.compute().miou, abs=1e-6)


def test_what_an_absent_class_costs_is_a_choice():
    inputs = even(5, 0, 1)  # p = 0.2: Dice is 2 * 0.2 / (0.4 + 1) = 2 / 7 for both classes that occur
    assert dice_loss(*inputs).item() == pytest.approx(5 / 7)
    assert dice_loss(*inputs, absent="zero").item() == pytest.approx(2 / 5 * 5 / 7)
    present, absent = 1 - (0.4 + 1) / (1.4 + 1), 1 - 1 / (0.4 + 1)
    assert dice_loss(*inputs, absent="penalise", smooth=1).item() == pytest.approx((2 * present + 3 * absent) / 5)


@pytest.mark.parametrize(("absent", "moves"), [("skip", False), ("zero", False), ("penalise", True)])
def test_an_empty_frame_is_learned_from_if_asked_for(absent, moves):
    logits, target = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2)
    _, gradient = loss_and_gradient(lambda z: dice_loss(z, target, mode="binary", absent=absent, smooth=1.0), logits)
    assert (gradient > 0).all() if moves else (gradient == 0).all()


# SMP: `smooth` of Dice doubled when Dice was rewritten as a Tversky index.
def test_smooth_is_added_once():
    assert dice_loss(*even(2, 0, 1), smooth=1.0).item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1))


# With products of two shares, a prediction equal to a soft target has a Dice of 0.66 (Wang et al. 2023).
@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "generalized_dice"])
def test_a_prediction_equal_to_a_soft_target_costs_nothing(name):
    logits, _ = example()
    assert build(name)(logits, logits.softmax(1)).item() == pytest.approx(0, abs=1e-12)


# SMP #734: focal Tversky takes the power of the mean; for a power below 1 the slope at 0 is infinite.
def test_the_power_of_focal_tversky_is_that_of_each_class():
    logits, target = even(2, 0, 0, 0, 1)
    scores = [1.5 / (1.5 + 0.3 * 0.5 + 0.7 * 1.5), 0.5 / (0.5 + 0.3 * 1.5 + 0.7 * 0.5)]
    expected = sum((1 - score) ** 0.75 for score in scores) / 2
    assert tversky_loss(logits, target, alpha=0.3, beta=0.7, gamma=4 / 3).item() == pytest.approx(expected)


# MONAI #369 and #4510: the weight of an absent class is infinite.
def test_generalised_dice_skips_absent_classes():
    loss, gradient = loss_and_gradient(generalized_dice_loss, *even(4, 0, 1))
    assert loss.item() == pytest.approx(1 - 2 * 0.25 / (0.5 + 1))
    assert gradient.isfinite().all()


# SMP #671 and #808: the multiclass focal loss is made of sigmoids, so that adding 5 to all logits changes it.
def test_multiclass_focal_loss_is_made_of_a_softmax():
    logits, target = even(3, 0)
    expected = (2 / 3) ** 2 * math.log(3)
    assert focal_loss(logits, target).item() == pytest.approx(expected)
    assert focal_loss(logits + 5, target).item() == pytest.approx(expected)


# pow(0, gamma - 1) is infinite; detaching the factor avoids that, but the gradient is wrong then.
def test_the_focal_factor_has_a_gradient():
    logits = torch.tensor([[[[0.3]], [[0.0]]]])
    _, gradient = loss_and_gradient(lambda z: focal_loss(z, torch.tensor([[[0]]])), logits)
    p = 1 / (1 + math.exp(-0.3))
    by_p = 2 * (1 - p) * math.log(p) - (1 - p) ** 2 / p
    assert gradient[0, 0].item() == pytest.approx(by_p * p * (1 - p))


# Pixels confused with classes: 0.878 for a perfect prediction (SMP PR 461, toolbelt #61).
def test_a_perfect_prediction_has_a_lovasz_loss_of_0():
    _, target = example(ignored=0)
    logits = 100.0 * F.one_hot(target, 3).movedim(-1, 1)
    assert lovasz_loss(logits, target).item() == pytest.approx(0, abs=1e-6)


# SMP's Lovasz loss: treats all classes of a multilabel target as one, calls torch.dot with two types.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_lovasz_hinge_weighs_classes_equally_in_any_precision(dtype):
    logits = torch.tensor([[[[0.5, -2.0]], [[3.0, 0.0]]]], dtype=dtype)
    target = torch.tensor([[[[1, 0]], [[0, 1]]]])
    # Class 0: errors 0.5 (its only pixel) and 0. Class 1: 4 (a false positive, Jaccard loss 1 / 2), then 1 (loss 1).
    assert lovasz_loss(logits, target, mode="multilabel").item() == pytest.approx((0.5 + (4 / 2 + 1 / 2)) / 2)


# classes=[1, 2] that selects other classes, or classes=12 that means all of them.
def test_a_choice_of_classes_is_taken_at_its_word():
    inputs = example(classes=4)
    singles = torch.stack([dice_loss(*inputs, classes=[c]) for c in range(4)])
    torch.testing.assert_close(dice_loss(*inputs, classes=[1, 2]), singles[1:3].mean())
    torch.testing.assert_close(dice_loss(*inputs, classes=range(4)), dice_loss(*inputs))


# mmsegmentation's OHEM: NaN if all probabilities are equal. PaddleSeg's: drops ties, keeps ignored pixels.
@pytest.mark.parametrize("min_kept", [1, 2, 100])
def test_pixels_as_hard_as_the_last_one_kept_are_kept(min_kept):
    assert ohem_loss(*even(2, 0, 1, 0, 255), threshold=0.1, min_kept=min_kept).item() == pytest.approx(math.log(2))


def test_ignored_pixels_are_none_of_those_to_be_kept():
    logits, target = even(2, 0, 0, 255, 255, 255)
    logits[0, 0, 0, 1] = 4.0
    losses = [math.log(2), math.log(1 + math.exp(-4))]
    loss = ohem_loss(logits, target, threshold=0.1, min_kept=2)
    assert loss.item() == pytest.approx(sum(losses) / 2)
