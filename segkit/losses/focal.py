"""Focal loss: cross entropy with little weight on easy pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._blocks import sum_all
from segkit.losses._inputs import Inputs, Mode, Reduction, check_options, check_weights, reduce

# For gamma below 1 the slope of the modulating factor is infinite at 0; below this value it is cut, as the loss is 0.
SMALLEST = 1e-12


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the focal loss, (1 - p)^gamma * -log p, with p the probability of the true label.

    By default the mean over the pixels that are not ignored (with sigmoids over the entries; weighted if there are
    class weights); 0 if all are ignored. `gamma=0` is the cross entropy.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.2. With sigmoids and
    targets between 0 and 1, |target - p|^gamma: Li et al., "Generalized Focal Loss", 2020, section 3.1.
    Differs: mode `multiclass` has one softmax, not a sigmoid for each class.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices or (N, C, H, W) floats, the share of each class; `binary`:
            (N, H, W) or (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass`, `binary` or `multilabel`.
        ignore_index: Target value to ignore; None to ignore nothing.
        gamma: At least 0.
        alpha: With sigmoids: weight of positive entries; negative entries have weight 1 - `alpha`.
        class_weights: (C,), only in mode `multiclass`.
        reduction: `mean`, `sum` or `none`.

    Returns:
        A scalar, or for `reduction="none"` a value for each pixel (with sigmoids each entry); float32 for
        half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    check_options(reduction=reduction)
    if gamma < 0:
        raise UsageError(f"`gamma` must be at least 0, got {gamma}")
    inputs = Inputs.of(logits, target, mode, ignore_index)
    if inputs.mode == "multiclass" and alpha is not None:
        raise UsageError('`alpha` is for `mode="binary"` and `mode="multilabel"`; for multiclass use `class_weights`')
    if inputs.mode != "multiclass" and class_weights is not None:
        raise UsageError('`class_weights` is for `mode="multiclass"`; for binary and multilabel use `alpha`')
    weights = check_weights(class_weights, inputs)
    if inputs.has_labels:
        losses = inputs.nll_terms.nll
        losses = _modulate(-torch.expm1(-losses), gamma) * losses
        if weights is None:
            return reduce(losses, inputs.num_valid(), reduction, inputs.shape)
        pixel_weights = inputs.zero_ignored(weights[inputs.labels])
        return reduce(losses * pixel_weights, sum_all(pixel_weights), reduction, inputs.shape)
    if inputs.mode == "multiclass":
        log_probs = inputs.logits.log_softmax(1)
        losses = -inputs.target * _modulate(-torch.expm1(log_probs), gamma) * log_probs
        losses = losses if weights is None else losses * weights.view(-1, 1)
        losses = inputs.zero_ignored(losses.sum(1))
        return reduce(losses, inputs.num_valid(), reduction, losses.shape[:1] + inputs.shape[2:])
    losses = F.binary_cross_entropy_with_logits(inputs.logits, inputs.target, reduction="none")
    losses = losses * _modulate((inputs.target - inputs.logits.sigmoid()).abs(), gamma)
    if alpha is not None:
        losses = losses * (alpha * inputs.target + (1 - alpha) * (1 - inputs.target))
    return reduce(inputs.zero_ignored(losses), inputs.num_valid(), reduction, inputs.shape)


def _modulate(miss: Tensor, gamma: float) -> Tensor:
    return miss.clamp_min(SMALLEST) ** gamma


class FocalLoss(Loss):
    """`focal_loss` as a module."""

    function = staticmethod(focal_loss)
