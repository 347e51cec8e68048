"""Losses on the overlap of the predicted and the true region of each class: functions of their soft counts."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._inputs import Absent, Inputs, Mode, check_options, divide

TINY = 1e-15  # Added to a denominator, so that the score of a class without pixels is 0 instead of 0 / 0.
SMALLEST_SHARE = 1e-9  # Added to a share of the pixels under a root, whose slope is infinite at 0.
SMALLEST = 1e-7  # Least score under a logarithm and least loss under a root: their slopes are infinite at 0.


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    smooth: float = 0.0,
    absent: Absent = "skip",
    per_image: bool = False,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Compute 1 - Dice of each class and return the mean over the classes.

    The Dice coefficient of a class is (2 TP + smooth) / (2 TP + FP + FN + smooth), with soft counts over all pixels
    of the batch that are not ignored. The loss is 0 if all pixels are ignored.

    Source: Milletari et al., "V-Net", 2016, section 3. Targets between 0 and 1: Wang et al., "Dice
    Semimetric Losses", 2023, section 3.
    Differs: softmax over any number of classes; sums in the denominator, not sums of squares.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices or (N, C, H, W) floats, the share of each class; `binary`:
            (N, H, W) or (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass` (softmax), `binary` or `multilabel` (sigmoid).
        ignore_index: Target value to ignore; None to ignore nothing.
        smooth: Added to numerator and denominator.
        absent: What to do with a class that has no pixel in the target. `skip`: exclude it from the mean; its false
            positives still count as false negatives of other classes. `penalise`: include its loss, which is
            1 - smooth / (FP + smooth) and needs `smooth` > 0. `zero`: include a loss of 0, as SMP does. On an image
            without any object (mode `binary`), `skip` and `zero` return 0 with a gradient of 0, `penalise` pushes all
            predictions down.
        per_image: Compute Dice for each image and average over images, instead of counting over the batch.
        log: Use -log(Dice) instead of 1 - Dice.
        classes: Indices of the classes to average over; by default all.

    Returns:
        A scalar, in [0, 1] without `log`; float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    inputs = Inputs.of(logits, target, mode, ignore_index)
    counts = _Counts(inputs, per_image, classes)
    score = _ratio(2 * counts.true_positive, counts.prob_sum + counts.support, smooth)
    return _mean(_loss_of(score, log), counts, absent, smooth).to(inputs.dtype)


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 0.0,
    absent: Absent = "skip",
    per_image: bool = False,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Compute 1 - Tversky index of each class and return the mean over the classes.

    The index of a class is (TP + smooth) / (TP + alpha FP + beta FN + smooth). `alpha = beta = 0.5` is Dice (with half
    its `smooth`), `alpha = beta = 1` is Jaccard. With `gamma` this is the focal Tversky loss: the loss of each class
    to the power of 1 / gamma.

    Source: Salehi et al., "Tversky Loss Function for Image Segmentation", 2017, section 2.2; Abraham &
    Khan, "A Novel Focal Tversky Loss Function", 2019, equation 4 (gamma 4/3).

    Args:
        logits: (N, C, H, W), as in `dice_loss`; so are all arguments that are not listed here.
        target: See `dice_loss`.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        gamma: Above 0. Values above 1 put more weight on classes that overlap well, values below 1 on classes that
            overlap little.

    Returns:
        A scalar, in [0, 1] without `log`; float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    if not gamma > 0:
        raise UsageError(f"`gamma` must be positive, got {gamma}")
    inputs = Inputs.of(logits, target, mode, ignore_index)
    counts = _Counts(inputs, per_image, classes)
    hits = counts.true_positive
    false_positive, false_negative = counts.prob_sum - hits, counts.support - hits
    score = _ratio(hits, hits + alpha * false_positive + beta * false_negative, smooth)
    losses = _loss_of(score, log)
    if gamma != 1:
        losses = losses.clamp_min(SMALLEST) ** (1 / gamma)
    return _mean(losses, counts, absent, smooth).to(inputs.dtype)


def jaccard_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    smooth: float = 0.0,
    absent: Absent = "skip",
    per_image: bool = False,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Compute 1 - Jaccard index (IoU) of each class and return the mean over the classes.

    The index of a class is (TP + smooth) / (TP + FP + FN + smooth). Arguments, result and errors are the same as of
    `dice_loss`.

    Source: Rahman & Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation", 2016, section 3.
    """
    inputs = Inputs.of(logits, target, mode, ignore_index)
    options = {"smooth": smooth, "absent": absent, "per_image": per_image, "log": log, "classes": classes}
    return tversky_loss(inputs, target, alpha=1.0, beta=1.0, **options)


def generalized_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    per_image: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Compute 1 - one Dice coefficient for all classes, each with weight 1 / (number of its pixels)^2.

    Arguments, result and errors are the same as of `dice_loss`.

    Source: Sudre et al., "Generalised Dice Overlap as a Deep Learning Loss Function for Highly
    Unbalanced Segmentations", 2017, section 2.
    Differs: skips classes without a pixel in the target, whose weight would be infinite.
    """
    inputs = Inputs.of(logits, target, mode, ignore_index)
    counts = _Counts(inputs, per_image, classes)
    # Supports are divided by the number of pixels: a common factor of all weights does not change the score, and
    # 1 / support^2 stays in range.
    share = counts.support / counts.pixels.amax(1, keepdim=True).clamp_min(1)
    weights = torch.where(share > 0, 1 / torch.where(share > 0, share, 1) ** 2, 0)
    hits = 2 * (weights * counts.true_positive).sum(1)
    scores = divide(hits, (weights * (counts.prob_sum + counts.support)).sum(1))
    present = (share > 0).any(1)
    return divide(torch.where(present, 1 - scores, 0).sum(), present.sum()).to(inputs.dtype)


def mcc_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    per_image: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Compute 1 - Matthews' correlation coefficient of each class against the rest; return the mean over the classes.

    Skips a class that has no pixel or every pixel in the target, because its coefficient is undefined. Arguments and
    errors are the same as of `dice_loss`.

    Source: Abhishek & Hamarneh, "Matthews Correlation Coefficient Loss for Deep Convolutional Networks",
    2021, section 2.

    Returns:
        A scalar in [0, 2]; float32 for half-precision logits.
    """
    inputs = Inputs.of(logits, target, mode, ignore_index)
    counts = _Counts(inputs, per_image, classes)
    # With all counts divided by the number of pixels, predicted P and true T: MCC = (TP - P T) / sqrt(P (1-P) T (1-T)).
    total = counts.pixels.clamp_min(1)
    hits, predicted, true = counts.true_positive / total, counts.prob_sum / total, counts.support / total
    variances = predicted * (1 - predicted) * true * (1 - true)
    scores = (hits - predicted * true) / (variances.clamp_min(0) + SMALLEST_SHARE**2).sqrt()
    # A class with every pixel is skipped, like a class without a pixel.
    counts.support = counts.support * (counts.support < counts.pixels)
    return _mean(1 - scores.clamp_max(1), counts, "skip", 0.0).to(inputs.dtype)


class _Counts:
    """The soft counts of the chosen classes, (N, C) per image or (1, C) of the batch."""

    def __init__(self, inputs: Inputs, per_image: bool, classes: Sequence[int] | None) -> None:
        self.inputs, self.per_image, self.index = inputs, per_image, None
        if classes is not None:
            highest = inputs.num_classes - 1
            if isinstance(classes, int) or len(classes) == 0 or not all(0 <= index <= highest for index in classes):
                raise UsageError(f"`classes` must be a sequence of indices from 0 to {highest}, got {classes!r}")
            self.index = torch.as_tensor(classes, device=inputs.logits.device)
        self.true_positive, self.prob_sum, support = self._select(inputs.counts()).unbind()
        # `counts` has a graph. A number of pixels is a constant, while a sum of shares may be trained too.
        self.support = support.detach() if inputs.has_labels else support

    @property
    def pixels(self) -> Tensor:
        """The number of pixels that are not ignored; (N, 1) or (1, 1) if all classes have the same pixels."""
        return self._select(self.inputs.pixels())

    def _select(self, sums: Tensor) -> Tensor:
        sums = sums if self.per_image else sums.sum(-2, keepdim=True)
        return sums if self.index is None or sums.shape[-1] == 1 else sums[..., self.index]


def _ratio(hits: Tensor, total: Tensor, smooth: float) -> Tensor:
    return (hits + smooth if smooth else hits) / (total + (smooth + TINY))


def _loss_of(score: Tensor, log: bool) -> Tensor:
    return -score.clamp_min(SMALLEST).log() if log else 1 - score


def _mean(losses: Tensor, counts: _Counts, absent: Absent, smooth: float) -> Tensor:
    """Return the mean of losses (N, C) over the classes, as `absent` says, then over images with valid pixels."""
    check_options(absent=absent)
    if absent == "penalise" and not smooth > 0:
        raise UsageError(
            '`absent="penalise"` needs `smooth` > 0: with 0 the loss of an absent class is always 1, without a gradient'
        )
    included = counts.support.sign()  # 1 for classes with pixels, 0 for others
    if absent == "skip":
        number = included.sum(1, keepdim=True)
        weights, images = included / number.clamp_min(1), number
    else:
        images = counts.pixels.amax(1, keepdim=True)
        weights = (included if absent == "zero" else images.sign()) / losses.shape[1]
    if len(losses) != 1:
        weights = weights / images.sign().sum().clamp_min(1)
    return (losses * weights).sum()


class DiceLoss(Loss):
    """`dice_loss` as a module."""

    function = staticmethod(dice_loss)


class JaccardLoss(Loss):
    """`jaccard_loss` as a module."""

    function = staticmethod(jaccard_loss)


class TverskyLoss(Loss):
    """`tversky_loss` as a module."""

    function = staticmethod(tversky_loss)


class FocalTverskyLoss(TverskyLoss):
    """`tversky_loss` as a module, with the gamma of the focal Tversky paper and its weights of FP and FN."""

    defaults: ClassVar = {"alpha": 0.3, "beta": 0.7, "gamma": 4 / 3}
    fixed: ClassVar = {"log": False}


class GeneralizedDiceLoss(Loss):
    """`generalized_dice_loss` as a module."""

    function = staticmethod(generalized_dice_loss)


class MCCLoss(Loss):
    """`mcc_loss` as a module."""

    function = staticmethod(mcc_loss)
