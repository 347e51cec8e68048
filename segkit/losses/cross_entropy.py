"""Cross entropy: softmax over the classes or a sigmoid for each, of all pixels or of the hard ones alone."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from segkit.errors import UsageError
from segkit.losses._blocks import blocks, masked
from segkit.losses._inputs import Inputs, Loss, Mode, Reduction, check_weights, divide, reduce


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = 255,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax cross entropy, the mean over the pixels that are not ignored.

    Source: label smoothing after Szegedy et al., "Rethinking the Inception Architecture", 2016,
    section 7. Equal to `torch.nn.functional.cross_entropy` wherever that is finite.

    Differs: where all pixels are ignored, or of classes with weight 0, the loss is 0, with a graph, in place of NaN.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) class indices, or (N, C, H, W) float shares of the classes.
        ignore_index: The label of pixels that count for nothing; None for none.
        label_smoothing: In [0, 1]; the share of the target that is spread evenly over all classes.
        class_weights: (C,); the mean is then weighted by them. As in torch, the part that smoothing
            gives to a class has that class's weight.
        reduction: `mean`, `sum` or `none`.

    Returns:
        A scalar, or (N, H, W) unreduced; float32 for half-precision logits.
    """
    inputs = Inputs(logits, target, "multiclass", ignore_index)
    return _cross_entropy(inputs, class_weights, label_smoothing=label_smoothing, reduction=reduction)


def _cross_entropy(inputs: Inputs, weights: Tensor | None, *, label_smoothing: float, reduction: Reduction) -> Tensor:
    weights, classes = check_weights(weights, inputs), inputs.num_classes
    smoothing = _check_smoothing(label_smoothing)
    if not inputs.labelled:
        target = inputs.target * (1 - smoothing) + smoothing / classes
        target = target if weights is None else target * weights.view(-1, 1)
        losses = inputs.weigh(-(target * inputs.logits.log_softmax(1)).sum(1))
        return reduce(losses, inputs.num_valid(), reduction, losses.shape[:1] + inputs.shape[2:])
    terms = inputs.softmax
    if weights is None:
        hits, total = terms.nll, inputs.num_valid()
    else:
        scale = inputs.weigh(weights[inputs.target])
        hits, total = terms.nll * scale, scale.sum()
    if not smoothing:
        return reduce(hits, total, reduction, inputs.shape)
    ones = torch.ones(classes, dtype=inputs.dtype, device=hits.device) if weights is None else weights
    if reduction == "none":
        log_probs = inputs.dense_logits.log_softmax(1)
        spread = inputs.weigh(-(log_probs * ones.view(-1, 1)).sum(1))
        return reduce((1 - smoothing) * hits + smoothing / classes * spread, total, reduction, inputs.shape)
    spread = -(terms.log_prob_sum * ones).sum()
    if reduction == "mean":
        spread = torch.where(total > 0, spread, 0)  # as the rest is where all pixels are of classes without weight
    return reduce((1 - smoothing) * hits.sum() + smoothing / classes * spread, total, reduction, inputs.shape)


def bce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    label_smoothing: float = 0.0,
    pos_weight: Tensor | float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross entropy with a sigmoid for each class; in mode `multiclass` against the one-hot target.

    The mean over classes and over the pixels that are not ignored; 0 where all are ignored.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices or (N, C, H, W) floats; `binary`: (N, H, W) or
            (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass`, `binary` or `multilabel`.
        ignore_index: The target value of what counts for nothing; None for none.
        label_smoothing: In [0, 1]; targets 0 and 1 become `label_smoothing / 2` and 1 minus that.
        pos_weight: A number or (C,): how much more a positive entry weighs than a negative one.
        reduction: `mean`, `sum` or `none`.

    Returns:
        A scalar, or the target's shape unreduced (in mode `multiclass` the mean over the classes);
        float32 for half-precision logits.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    return _bce(inputs, label_smoothing=label_smoothing, pos_weight=pos_weight, reduction=reduction)


def _bce(inputs: Inputs, *, label_smoothing: float, pos_weight: Tensor | float | None, reduction: Reduction) -> Tensor:
    smoothing = _check_smoothing(label_smoothing)
    if isinstance(pos_weight, int | float):
        pos_weight = torch.full((inputs.num_classes,), float(pos_weight))
    weights = check_weights(pos_weight, inputs)
    weights = None if weights is None else weights.view(-1, 1)
    if inputs.labelled:
        losses = _bce_of_labels(inputs, smoothing, weights)
        return reduce(losses, inputs.num_valid(), reduction, inputs.shape)
    target = inputs.target * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(inputs.logits, target, reduction="none", pos_weight=weights)
    if inputs.mode == "multiclass":
        losses = inputs.weigh(losses.mean(1))
        return reduce(losses, inputs.num_valid(), reduction, losses.shape[:1] + inputs.shape[2:])
    return reduce(inputs.weigh(losses), inputs.num_valid(), reduction, inputs.shape)


def _bce_of_labels(inputs: Inputs, smoothing: float, weights: Tensor | None) -> Tensor:
    """(N, P), the mean over the classes, against a one-hot target that is never made."""
    logits, labels, classes = inputs.logits, inputs.target.unsqueeze(1), inputs.num_classes
    weights = torch.ones(classes, 1, dtype=inputs.dtype, device=logits.device) if weights is None else weights
    hit, miss = 1 - smoothing / 2, smoothing / 2
    if torch.compiler.is_compiling():
        losses = _one_hot_bce(inputs.dense_logits, labels, weights, hit, miss)
    else:
        losses = _OneHotBCE.apply(logits, labels, inputs.valid, weights, hit, miss)
    return inputs.weigh(losses) / classes


def _one_hot_bce(logits: Tensor, labels: Tensor, weights: Tensor, hit: float, miss: float) -> Tensor:
    """The sum over the classes of (1 + (w - 1) t) softplus(z) - w t z, t being `hit` at the label, else `miss`.

    All entries are taken for negative first, then the one of the pixel's class is put right.
    """
    at_label, own = logits.gather(1, labels), weights[labels[:, 0], 0].unsqueeze(1)
    change = (hit - miss) * ((own - 1) * F.softplus(at_label) - own * at_label)
    losses = (1 + (weights - 1) * miss) * F.softplus(logits) - weights * miss * logits
    return losses.sum(1) + change.squeeze(1)


class _OneHotBCE(Function):
    """`_one_hot_bce` in blocks, with one sigmoid on the way back and nothing kept but the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, valid: Tensor | None, weights: Tensor, hit: float, miss: float
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, valid, weights)
        ctx.hit, ctx.miss = hit, miss
        losses = torch.empty_like(labels[:, 0], dtype=weights.dtype)
        for image, span in blocks(logits):
            z = masked(logits[image, :, span], valid if valid is None else valid[image, span], weights.dtype)
            losses[image, span] = _one_hot_bce(z, labels[image, :, span], weights, hit, miss)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, valid, weights = ctx.saved_tensors
        nothing = (None,) * 5
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            losses = _one_hot_bce(masked(logits, valid, weights.dtype), labels, weights, ctx.hit, ctx.miss)
            return torch.autograd.grad(losses, logits, grad, create_graph=True)[0], *nothing
        out = torch.empty_like(logits)
        for image, span in blocks(logits):
            index = labels[image, :, span]
            probs = masked(logits[image, :, span], valid if valid is None else valid[image, span], weights.dtype)
            probs = probs.sigmoid()
            own = weights[index[:, 0], 0].unsqueeze(1)
            change = (ctx.hit - ctx.miss) * ((own - 1) * probs.gather(1, index) - own)
            gradient = (1 + (weights - 1) * ctx.miss) * probs - weights * ctx.miss
            out[image, :, span] = gradient.scatter_add_(1, index, change).mul_(grad[image, None, span])
        return out, *nothing


def ohem_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Tensor:
    """Cross entropy of the hard pixels: those whose class has a probability below `threshold`.

    At least `min_kept` pixels of the batch are kept, the hardest ones (all, where there are fewer); ties
    are kept together. 0 where all are ignored.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining",
    2016, section 4; for pixels Wu et al., "Bridging Category-level and Instance-level Semantic Image
    Segmentation", 2016, section 3.2.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: As in `bce_loss`; with sigmoids, every entry of the target stands for a pixel.
        mode: `multiclass` (softmax), `binary` or `multilabel` (sigmoid).
        ignore_index: The target value of what counts for nothing; None for none.
        threshold: In (0, 1].
        min_kept: A number of pixels, over the whole batch.

    Returns:
        A scalar, float32 for half-precision logits.
    """
    return _ohem(Inputs(logits, target, mode, ignore_index), threshold, min_kept)


def _ohem(inputs: Inputs, threshold: float, min_kept: int) -> Tensor:
    losses = inputs.weigh(inputs.entry_losses()).flatten()
    valid = torch.ones_like(losses, dtype=torch.bool) if inputs.valid is None else inputs.valid.flatten()
    ranks = torch.where(valid, losses.detach(), -1.0)
    keep = ranks > -math.log(_check_threshold(threshold))
    if losses.numel():
        rank = min(max(min_kept, 1), losses.numel())
        keep = keep | (ranks >= ranks.kthvalue(losses.numel() - rank + 1).values)
    keep = keep & valid
    return divide((losses * keep).sum(), keep.sum())


class CrossEntropyLoss(Loss):
    """`cross_entropy_loss` as a module."""

    def __init__(
        self,
        *,
        ignore_index: int | None = 255,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        options = {"label_smoothing": _check_smoothing(label_smoothing), "reduction": reduction}
        super().__init__("multiclass", ignore_index, class_weights=class_weights, **options)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _cross_entropy(inputs, self.class_weights, **self.options)


class BCELoss(Loss):
    """`bce_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        label_smoothing: float = 0.0,
        pos_weight: Tensor | float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        options = {"label_smoothing": _check_smoothing(label_smoothing), "reduction": reduction}
        super().__init__(mode, ignore_index, pos_weight=pos_weight, **options)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _bce(inputs, **self.options)


class OHEMLoss(Loss):
    """`ohem_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        threshold: float = 0.7,
        min_kept: int = 100_000,
    ) -> None:
        super().__init__(mode, ignore_index, threshold=_check_threshold(threshold), min_kept=min_kept)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _ohem(inputs, **self.options)


def _check_smoothing(label_smoothing: float) -> float:
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    return label_smoothing


def _check_threshold(threshold: float) -> float:
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold must be in (0, 1], got {threshold}")
    return threshold
