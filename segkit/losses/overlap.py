"""Losses on the overlap of the predicted and the true region of each class, from its soft counts alone."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segkit.errors import UsageError
from segkit.losses._inputs import Counts, Inputs, Loss, Mode, check_choice, divide

Absent = Literal["skip", "penalise", "zero"]
ABSENT = ("skip", "penalise", "zero")
SMALLEST_SHARE = 1e-9  # of all pixels; keeps the slope of a root finite where nothing is predicted
SMALLEST = 1e-7  # of a score under a logarithm, and of a loss under a root, whose slopes are infinite at 0


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    smooth: float = 0.0,
    absent: Absent = "skip",
    per_image: bool = False,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """1 minus the soft Dice coefficient of each class, the mean over the classes.

    Dice of a class is (2 TP + smooth) / (2 TP + FP + FN + smooth) with soft counts over all pixels of
    the batch that are not ignored. 0 where all pixels are ignored.

    Source: Milletari et al., "V-Net", 2016, section 3. Targets between 0 and 1: Wang et al., "Dice
    Semimetric Losses", 2023, section 3.
    Differs: softmax over any number of classes; sums in the denominator, not sums of squares.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices or (N, C, H, W) float shares; `binary`: (N, H, W) or
            (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass` (softmax), `binary` or `multilabel` (sigmoid).
        ignore_index: The target value of what counts for nothing; None for none.
        smooth: Added to numerator and denominator.
        absent: What a class does that has no pixel in the target. `skip`: it is left out of the mean; its
            false positives are false negatives of the others. `penalise`: it counts, with the loss
            1 - smooth / (FP + smooth), which needs smooth > 0. `zero`: its loss is 0 and it counts in the
            mean, as in SMP. On an empty frame (mode `binary`), `skip` and `zero` give 0 without a
            gradient, `penalise` pushes all predictions down.
        per_image: Dice of each image, then the mean over images, in place of counts over the batch.
        log: -log(Dice) in place of 1 - Dice.
        classes: The classes that count; all by default.

    Returns:
        A scalar, in [0, 1] without `log`; float32 for half-precision logits.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    return _dice(inputs, smooth=smooth, absent=absent, per_image=per_image, log=log, classes=classes)


def jaccard_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    smooth: float = 0.0,
    absent: Absent = "skip",
    per_image: bool = False,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """1 minus the soft Jaccard index (IoU) of each class: (TP + smooth) / (TP + FP + FN + smooth).

    Source: Rahman & Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation", 2016, section 3. Arguments and result as in `dice_loss`.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    return _tversky(inputs, 1.0, 1.0, 1.0, smooth=smooth, absent=absent, per_image=per_image, log=log, classes=classes)


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 0.0,
    absent: Absent = "skip",
    per_image: bool = False,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """1 minus the Tversky index of each class: (TP + smooth) / (TP + alpha FP + beta FN + smooth).

    `alpha = beta = 0.5` is Dice (with half its `smooth`), `alpha = beta = 1` is Jaccard. With `gamma`, the
    focal Tversky loss: each class's loss to the power of 1 / gamma.

    Source: Salehi et al., "Tversky Loss Function for Image Segmentation", 2017, section 2.2; Abraham &
    Khan, "A Novel Focal Tversky Loss Function", 2019, equation 4 (gamma 4/3).

    Args:
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        gamma: Above 1 for more weight on classes that overlap well, below 1 on those that do not.

    The other arguments and the result are those of `dice_loss`.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    options = {"smooth": smooth, "absent": absent, "per_image": per_image, "log": log, "classes": classes}
    return _tversky(inputs, alpha, beta, gamma, **options)


def generalized_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    per_image: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """1 minus one Dice coefficient for all classes, in which each weighs 1 / (number of its pixels)^2.

    Source: Sudre et al., "Generalised Dice Overlap as a Deep Learning Loss Function for Highly
    Unbalanced Segmentations", 2017, section 2.
    Differs: a class without a pixel in the target, whose weight would be infinite, is left out.
    Arguments and result as in `dice_loss`.
    """
    return _generalized_dice(Inputs(logits, target, mode, ignore_index), per_image=per_image, classes=classes)


def mcc_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    per_image: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """1 minus Matthews' correlation coefficient of each class against the rest, the mean over the classes.

    A class to which no pixel belongs, or every pixel, has no coefficient and is left out.

    Source: Abhishek & Hamarneh, "Matthews Correlation Coefficient Loss for Deep Convolutional Networks",
    2021, section 2.
    Arguments as in `dice_loss`.

    Returns:
        A scalar in [0, 2]; float32 for half-precision logits.
    """
    return _mcc(Inputs(logits, target, mode, ignore_index), per_image=per_image, classes=classes)


def _dice(
    inputs: Inputs, *, smooth: float, absent: Absent, per_image: bool, log: bool, classes: Sequence[int] | None
) -> Tensor:
    counts = _select(inputs.counts(), per_image, classes)
    score = _ratio(2 * counts.true_positive + smooth, counts.prob_sum + counts.support + smooth)
    return _mean(_loss_of(score, log), counts, absent, smooth).to(inputs.dtype)


def _tversky(
    inputs: Inputs,
    alpha: float,
    beta: float,
    gamma: float,
    *,
    smooth: float,
    absent: Absent,
    per_image: bool,
    log: bool,
    classes: Sequence[int] | None,
) -> Tensor:
    if not gamma > 0:
        raise UsageError(f"gamma must be positive, got {gamma}")
    counts = _select(inputs.counts(), per_image, classes)
    hits = counts.true_positive
    false_positive, false_negative = counts.prob_sum - hits, counts.support - hits
    score = _ratio(hits + smooth, hits + alpha * false_positive + beta * false_negative + smooth)
    losses = _loss_of(score, log)
    if gamma != 1:
        losses = losses.clamp_min(SMALLEST) ** (1 / gamma)
    return _mean(losses, counts, absent, smooth).to(inputs.dtype)


def _generalized_dice(inputs: Inputs, *, per_image: bool, classes: Sequence[int] | None) -> Tensor:
    counts = _select(inputs.counts(), per_image, classes)
    # Shares of one number of pixels in place of numbers: the score is the same, and the squares stay small.
    share = counts.support / counts.pixels.amax(1, keepdim=True).clamp_min(1)
    weights = torch.where(share > 0, 1 / torch.where(share > 0, share, 1) ** 2, 0)
    hits = 2 * (weights * counts.true_positive).sum(1)
    scores = divide(hits, (weights * (counts.prob_sum + counts.support)).sum(1))
    seen = (share > 0).any(1)
    return divide(torch.where(seen, 1 - scores, 0).sum(), seen.sum()).to(inputs.dtype)


def _mcc(inputs: Inputs, *, per_image: bool, classes: Sequence[int] | None) -> Tensor:
    counts = _select(inputs.counts(), per_image, classes)
    total = counts.pixels.clamp_min(1)
    hits, predicted, true = (x / total for x in counts[:3])
    # With shares of all pixels: TP TN - FP FN = TP - predicted true, and the four sums are these and their rests.
    spread = predicted * (1 - predicted) * true * (1 - true)
    scores = (hits - predicted * true) / (spread.clamp_min(0) + SMALLEST_SHARE**2).sqrt()
    counts = counts._replace(support=torch.where(counts.support < counts.pixels, counts.support, 0))
    return _mean(1 - scores.clamp_max(1), counts, "skip", 0.0).to(inputs.dtype)


def _select(counts: Counts, per_image: bool, classes: Sequence[int] | None) -> Counts:
    """Counts (1, C), or (N, C) per image, of the classes asked for."""
    if not per_image:
        counts = Counts(*(x.sum(0, keepdim=True) for x in counts))
    if classes is None:
        return counts
    highest = counts.support.shape[1] - 1
    if isinstance(classes, int) or len(classes) == 0 or not all(0 <= index <= highest for index in classes):
        raise UsageError(f"classes must be a sequence of indices from 0 to {highest}, got {classes!r}")
    index = torch.as_tensor(classes, device=counts.support.device)
    pixels = counts.pixels if counts.pixels.shape[1] == 1 else counts.pixels[:, index]
    return Counts(*(x[:, index] for x in counts[:3]), pixels)


def _ratio(hits: Tensor, total: Tensor) -> Tensor:
    return hits / total.clamp_min(1e-12)


def _loss_of(score: Tensor, log: bool) -> Tensor:
    return -score.clamp_min(SMALLEST).log() if log else 1 - score


def _mean(losses: Tensor, counts: Counts, absent: Absent, smooth: float) -> Tensor:
    """The mean over the classes (see `absent`), then over the rows that have something to count."""
    check_choice("absent", absent, ABSENT)
    if absent == "penalise" and not smooth > 0:
        raise UsageError(
            "absent='penalise' needs smooth > 0: without it the loss of an absent class is 1 whatever it is"
        )
    present = counts.support > 0
    if absent == "skip":
        rows = present.any(1)
        losses = divide(torch.where(present, losses, 0).sum(1), present.sum(1))
    else:
        rows = (counts.pixels > 0).any(1)
        losses = losses if absent == "penalise" else torch.where(present, losses, 0)
        losses = losses.mean(1)
    return divide(torch.where(rows, losses, 0).sum(), rows.sum())


class DiceLoss(Loss):
    """`dice_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        smooth: float = 0.0,
        absent: Absent = "skip",
        per_image: bool = False,
        log: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        options = {"smooth": smooth, "absent": absent, "per_image": per_image, "log": log, "classes": classes}
        super().__init__(mode, ignore_index, **options)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _dice(inputs, **self.options)


class JaccardLoss(Loss):
    """`jaccard_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        smooth: float = 0.0,
        absent: Absent = "skip",
        per_image: bool = False,
        log: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        options = {"smooth": smooth, "absent": absent, "per_image": per_image, "log": log, "classes": classes}
        super().__init__(mode, ignore_index, **options)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _tversky(inputs, 1.0, 1.0, 1.0, **self.options)


class TverskyLoss(Loss):
    """`tversky_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        smooth: float = 0.0,
        absent: Absent = "skip",
        per_image: bool = False,
        log: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        options = {"smooth": smooth, "absent": absent, "per_image": per_image, "log": log, "classes": classes}
        super().__init__(mode, ignore_index, alpha=alpha, beta=beta, gamma=gamma, **options)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _tversky(inputs, **self.options)


class FocalTverskyLoss(TverskyLoss):
    """`tversky_loss` as a module, with the paper's gamma and weights of false positives and negatives."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        smooth: float = 0.0,
        absent: Absent = "skip",
        per_image: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        options = {"smooth": smooth, "absent": absent, "per_image": per_image, "classes": classes}
        super().__init__(mode=mode, ignore_index=ignore_index, alpha=alpha, beta=beta, gamma=gamma, **options)


class GeneralizedDiceLoss(Loss):
    """`generalized_dice_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        per_image: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(mode, ignore_index, per_image=per_image, classes=classes)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _generalized_dice(inputs, **self.options)


class MCCLoss(Loss):
    """`mcc_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        per_image: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(mode, ignore_index, per_image=per_image, classes=classes)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _mcc(inputs, **self.options)
