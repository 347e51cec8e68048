"""Focal loss: cross entropy that easy pixels hardly enter."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.errors import UsageError
from segkit.losses._inputs import Inputs, Loss, Mode, Reduction, check_weights, reduce

# The modulating factor's slope is infinite at 0 for gamma below 1; so near to it the loss itself is 0.
SMALLEST = 1e-12


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Focal loss: (1 - p)^gamma times the cross entropy -log p, p being the probability of what is true.

    The mean over the pixels that are not ignored (over the entries, with sigmoids; weighted by the class
    weights, where given); 0 where all are ignored. `gamma=0` is the cross entropy.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.2. With sigmoids and
    targets between 0 and 1, |target - p|^gamma: Li et al., "Generalized Focal Loss", 2020, section 3.1.
    Differs: mode `multiclass` has one softmax, not a sigmoid for each class.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices or (N, C, H, W) float shares; `binary`: (N, H, W) or
            (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass`, `binary` or `multilabel`.
        ignore_index: The target value of what counts for nothing; None for none.
        gamma: At least 0.
        alpha: With sigmoids: positive entries weigh `alpha`, negative ones `1 - alpha`.
        class_weights: (C,), in mode `multiclass`.
        reduction: `mean`, `sum` or `none`.

    Returns:
        A scalar, or a value for each pixel (with sigmoids each entry) unreduced; float32 for
        half-precision logits.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    return _focal(inputs, class_weights, gamma=gamma, alpha=alpha, reduction=reduction)


def _focal(
    inputs: Inputs, weights: Tensor | None, *, gamma: float, alpha: float | None, reduction: Reduction
) -> Tensor:
    if gamma < 0:
        raise UsageError(f"gamma must be at least 0, got {gamma}")
    if inputs.mode == "multiclass" and alpha is not None:
        raise UsageError("alpha is for the modes binary and multilabel; in multiclass give class_weights")
    if inputs.mode != "multiclass" and weights is not None:
        raise UsageError("class_weights is for the mode multiclass; in binary and multilabel give alpha")
    weights = check_weights(weights, inputs)
    if inputs.labelled:
        losses = inputs.softmax.nll
        losses = _modulate(-torch.expm1(-losses), gamma) * losses
        if weights is None:
            return reduce(losses, inputs.num_valid(), reduction, inputs.shape)
        scale = inputs.weigh(weights[inputs.target])
        return reduce(losses * scale, scale.sum(), reduction, inputs.shape)
    if inputs.mode == "multiclass":
        log_probs = inputs.logits.log_softmax(1)
        losses = -inputs.target * _modulate(-torch.expm1(log_probs), gamma) * log_probs
        losses = losses if weights is None else losses * weights.view(-1, 1)
        losses = inputs.weigh(losses.sum(1))
        return reduce(losses, inputs.num_valid(), reduction, losses.shape[:1] + inputs.shape[2:])
    losses = F.binary_cross_entropy_with_logits(inputs.logits, inputs.target, reduction="none")
    losses = losses * _modulate((inputs.target - inputs.logits.sigmoid()).abs(), gamma)
    if alpha is not None:
        losses = losses * (alpha * inputs.target + (1 - alpha) * (1 - inputs.target))
    return reduce(inputs.weigh(losses), inputs.num_valid(), reduction, inputs.shape)


def _modulate(miss: Tensor, gamma: float) -> Tensor:
    return miss.clamp_min(SMALLEST) ** gamma


class FocalLoss(Loss):
    """`focal_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        gamma: float = 2.0,
        alpha: float | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        options = {"gamma": gamma, "alpha": alpha, "reduction": reduction}
        super().__init__(mode, ignore_index, class_weights=class_weights, **options)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _focal(inputs, self.class_weights, **self.options)
