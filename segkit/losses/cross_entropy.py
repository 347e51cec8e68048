"""Cross entropy: softmax or a sigmoid for each class, over all pixels or only over the hard ones."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._blocks import Buffers, in_blocks, sum_all
from segkit.losses._inputs import Inputs, Mode, Reduction, check_options, check_weights, divide, reduce
from segkit.losses._softmax import PlainTerms, masked, without_gradient


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    class_weights: Tensor | Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the softmax cross entropy, by default the mean over the pixels that are not ignored.

    Equal to `torch.nn.functional.cross_entropy` wherever that is finite.

    Source: label smoothing after Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7.
    Differs: if all pixels are ignored, or of classes with weight 0, the loss is 0, with a graph, instead of NaN.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) class indices, or (N, C, H, W) floats, the share of each class.
        ignore_index: Target value to ignore; None to ignore nothing.
        label_smoothing: Share of the target, in [0, 1], that is spread evenly over all classes.
        class_weights: (C,) weights, which the mean is then weighted by. As in torch, the part that smoothing assigns
            to a class has the weight of that class.
        reduction: `mean`, `sum` or `none`.

    Returns:
        A scalar, or (N, H, W) for `reduction="none"`; float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    check_options(label_smoothing=label_smoothing, reduction=reduction)
    inputs = Inputs.of(logits, target, "multiclass", ignore_index)
    weights, num_classes = check_weights(class_weights, inputs), inputs.num_classes
    if not inputs.has_labels:
        shares = inputs.target * (1 - label_smoothing) + label_smoothing / num_classes
        shares = shares if weights is None else shares * weights.view(-1, 1)
        losses = inputs.zero_ignored(-(shares * inputs.logits.log_softmax(1)).sum(1))
        return reduce(losses, inputs.num_valid(), reduction, losses.shape[:1] + inputs.shape[2:])
    terms = inputs.softmax if label_smoothing else inputs.nll_terms
    if weights is None:
        # On a CPU the kernel has the sums already.
        has_sums = reduction != "none" and not isinstance(terms, PlainTerms)
        losses, total = terms.nll_sum if has_sums else terms.nll, inputs.num_valid()
    else:
        pixel_weights = inputs.zero_ignored(weights[inputs.labels])
        losses, total = terms.nll * pixel_weights, sum_all(pixel_weights)
    if not label_smoothing:
        return reduce(losses, total, reduction, inputs.shape)
    kept, spread = 1 - label_smoothing, label_smoothing / num_classes
    if isinstance(terms, PlainTerms):
        of_all_classes = terms.log_prob_of_all_classes(weights)
    elif reduction == "none":
        log_probs = inputs.dense_logits.log_softmax(1)
        of_all_classes = inputs.zero_ignored((log_probs if weights is None else log_probs * weights.view(-1, 1)).sum(1))
    else:
        of_all_classes = (terms.log_prob_sum if weights is None else terms.log_prob_sum * weights).sum()
        losses = sum_all(losses)
    losses = torch.sub(kept * losses, of_all_classes, alpha=spread)
    if weights is not None and reduction == "mean":  # The part of all classes is 0 too if `total` is 0.
        losses = torch.where(total > 0, losses, 0)
    return reduce(losses, total, reduction, inputs.shape)


def bce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    pos_weight: Tensor | float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the binary cross entropy with a sigmoid for each class; in mode `multiclass` with the one-hot target.

    By default the mean over classes and over the pixels that are not ignored; 0 if all are ignored.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices or (N, C, H, W) floats; `binary`: (N, H, W) or
            (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass`, `binary` or `multilabel`.
        ignore_index: Target value to ignore; None to ignore nothing.
        label_smoothing: In [0, 1]; targets 0 and 1 become `label_smoothing / 2` and `1 - label_smoothing / 2`.
        pos_weight: Weight of positive entries relative to negative ones, a number or (C,).
        reduction: `mean`, `sum` or `none`.

    Returns:
        A scalar, or for `reduction="none"` the shape of the target (in mode `multiclass` the mean over the classes);
        float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    check_options(label_smoothing=label_smoothing, reduction=reduction)
    inputs = Inputs.of(logits, target, mode, ignore_index)
    if isinstance(pos_weight, (int, float)):  # torch 2.7 does not compile `int | float`.
        pos_weight = torch.full((inputs.num_classes,), float(pos_weight))
    weights = check_weights(pos_weight, inputs)
    weights = None if weights is None else weights.view(-1, 1)
    if inputs.has_labels:
        losses = _bce_of_labels(inputs, label_smoothing, weights)
        return reduce(losses, inputs.num_valid(), reduction, inputs.shape)
    smoothed = inputs.target * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(inputs.logits, smoothed, reduction="none", pos_weight=weights)
    if inputs.mode == "multiclass":
        losses = inputs.zero_ignored(losses.mean(1))
        return reduce(losses, inputs.num_valid(), reduction, losses.shape[:1] + inputs.shape[2:])
    return reduce(inputs.zero_ignored(losses), inputs.num_valid(), reduction, inputs.shape)


def _bce_of_labels(inputs: Inputs, smoothing: float, weights: Tensor | None) -> Tensor:
    """Return (N, P), the mean over the classes; on a CPU without making the one-hot target."""
    logits, labels, num_classes = inputs.logits, inputs.labels.unsqueeze(1), inputs.num_classes
    positive, negative = 1 - smoothing / 2, smoothing / 2
    if not inputs.traits.has_kernel:
        target = torch.full(logits.shape, negative, dtype=inputs.dtype, device=logits.device)
        target.scatter_(1, labels, positive)
        ignored = None if inputs.valid is None else ~inputs.valid
        logits = without_gradient(logits, ignored).to(inputs.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weights).mean(1)
        return losses if ignored is None else losses.masked_fill_(ignored, 0)
    weights = torch.ones(num_classes, 1, dtype=inputs.dtype, device=logits.device) if weights is None else weights
    losses = _OneHotBCE.apply(logits, labels, inputs.valid, weights, positive, negative, inputs.traits.block_values)
    return inputs.zero_ignored(losses) / num_classes


def _one_hot_bce(logits: Tensor, labels: Tensor, weights: Tensor, positive: float, negative: float) -> Tensor:
    """Return the sum over the classes of (1 + (w - 1) t) softplus(z) - w t z, with w the weight of a positive entry.

    t is `positive` at the label and `negative` at the other classes. The sum is computed with t = `negative` for all
    classes; then the entry of the label is corrected.
    """
    at_label, label_weight = logits.gather(1, labels), weights[labels[:, 0], 0].unsqueeze(1)
    change = (positive - negative) * ((label_weight - 1) * F.softplus(at_label) - label_weight * at_label)
    losses = (1 + (weights - 1) * negative) * F.softplus(logits) - weights * negative * logits
    return losses.sum(1) + change.squeeze(1)


class _OneHotBCE(Function):
    """Compute `_one_hot_bce` in blocks, with one sigmoid in the backward pass, keeping only the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        valid: Tensor | None,
        weights: Tensor,
        positive: float,
        negative: float,
        block_values: int,
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, valid, weights)
        ctx.positive, ctx.negative, ctx.block_values = positive, negative, block_values
        losses = torch.empty_like(labels[:, 0], dtype=weights.dtype)

        def work(
            buffers: Buffers, image: slice, z: Tensor, labels: Tensor, valid: Tensor | None, losses: Tensor
        ) -> None:
            losses.copy_(_one_hot_bce(masked(z, valid, weights.dtype), labels, weights, positive, negative))

        in_blocks(work, block_values, logits, labels, valid, losses)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, valid, weights = ctx.saved_tensors
        positive, negative = ctx.positive, ctx.negative
        no_gradients = (None,) * 6
        if torch.is_grad_enabled():  # The caller will differentiate the gradient itself.
            losses = _one_hot_bce(masked(logits, valid, weights.dtype), labels, weights, positive, negative)
            return torch.autograd.grad(losses, logits, grad, create_graph=True)[0], *no_gradients
        out = torch.empty_like(logits)

        def work(
            buffers: Buffers, image: slice, z: Tensor, index: Tensor, valid: Tensor | None, grad: Tensor, out: Tensor
        ) -> None:
            probs = masked(z, valid, weights.dtype).sigmoid()
            label_weight = weights[index[:, 0], 0].unsqueeze(1)
            change = (positive - negative) * ((label_weight - 1) * probs.gather(1, index) - label_weight)
            gradient = (1 + (weights - 1) * negative) * probs - weights * negative
            out.copy_(gradient.scatter_add_(1, index, change).mul_(grad.unsqueeze(1)))

        in_blocks(work, ctx.block_values, logits, labels, valid, grad, out)
        return out, *no_gradients


def ohem_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Tensor:
    """Compute the cross entropy of the hard pixels: their label has a probability below `threshold`.

    At least the `min_kept` hardest pixels of the batch are kept (all if there are fewer), and all pixels that are as
    hard as the last one kept. The loss is 0 if all pixels are ignored.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining",
    2016, section 4; for pixels Wu et al., "Bridging Category-level and Instance-level Semantic Image
    Segmentation", 2016, section 3.2.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: As in `bce_loss`; with sigmoids, each entry of the target is treated as a pixel.
        mode: `multiclass` (softmax), `binary` or `multilabel` (sigmoid).
        ignore_index: Target value to ignore; None to ignore nothing.
        threshold: In (0, 1].
        min_kept: Number of pixels of the whole batch.

    Returns:
        A scalar, float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    check_options(threshold=threshold)
    inputs = Inputs.of(logits, target, mode, ignore_index)
    losses = inputs.zero_ignored(inputs.entry_losses()).flatten()
    valid = torch.ones_like(losses, dtype=torch.bool) if inputs.valid is None else inputs.valid.flatten()
    hardness = torch.where(valid, losses.detach(), -1.0)
    keep = hardness > -math.log(threshold)
    if losses.numel():
        rank = min(max(min_kept, 1), losses.numel())
        keep = keep | (hardness >= hardness.kthvalue(losses.numel() - rank + 1).values)
    keep = keep & valid
    return divide(sum_all(losses * keep), keep.sum())


class CrossEntropyLoss(Loss):
    """`cross_entropy_loss` as a module."""

    function = staticmethod(cross_entropy_loss)


class BCELoss(Loss):
    """`bce_loss` as a module."""

    function = staticmethod(bce_loss)


class OHEMLoss(Loss):
    """`ohem_loss` as a module."""

    function = staticmethod(ohem_loss)
