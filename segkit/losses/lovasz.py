"""Lovasz losses: the convex extension of 1 - IoU from hard to soft predictions."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._inputs import Inputs, Mode, check_choice, divide


def lovasz_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
    classes: Literal["present", "all"] = "present",
    per_image: bool = False,
) -> Tensor:
    """Compute the Lovasz-softmax loss (mode `multiclass`) or the Lovasz hinge, the mean over the classes.

    For probabilities of 0 and 1 the softmax loss of a class is 1 - IoU. The loss is 0 if all pixels are ignored.

    Source: Berman et al., "The Lovasz-Softmax Loss", 2018, equations 8, 9 and 11; hinge: Yu & Blaschko,
    "Learning Submodular Losses with the Lovasz Hinge", 2015.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices; `binary`: (N, H, W) or (N, 1, H, W), `multilabel`:
            (N, C, H, W): 0 and 1.
        mode: `multiclass`, `binary` or `multilabel`.
        ignore_index: Target value to ignore; None to ignore nothing.
        classes: `present` to skip classes without a pixel in the target, or `all`. The hinge always takes all
            classes, so that it learns to leave an empty image empty.
        per_image: Compute the loss of each image and average over images.

    Returns:
        A scalar; float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, the target is soft, or labels are outside the classes.
    """
    check_choice("classes", classes, ("present", "all"))
    inputs = Inputs.of(logits, target, mode, ignore_index)
    softmax = inputs.mode == "multiclass"
    if softmax and not inputs.has_labels:
        raise UsageError("the Lovasz loss takes class indices (N, H, W), not shares of the classes")
    if not softmax and not torch.compiler.is_compiling() and (inputs.target.frac() != 0).any():
        raise UsageError("the Lovasz loss takes targets of 0 and 1, not values between")
    scores = inputs.dense_logits
    scores = (scores.softmax(1) if softmax else scores).unbind(1)
    losses, included = [], []
    for index, score in enumerate(scores):  # (N, P) each
        positive = inputs.target == index if softmax else inputs.target[:, index] == 1
        valid = torch.ones_like(positive) if inputs.valid is None else inputs.valid
        valid = valid if valid.ndim == 2 else valid[:, index]
        positive = positive & valid
        errors = torch.where(positive, 1 - score, score) if softmax else 1 - torch.where(positive, score, -score)
        errors = errors if softmax else errors.relu()
        for images in range(len(errors)) if per_image else [slice(None)]:
            losses.append(_Extension.apply(*(x[images].flatten() for x in (errors, positive, valid))))
            needed = positive if softmax and classes == "present" else valid
            included.append(needed[images].any())
    if not losses:
        return inputs.logits.sum() * 0
    losses, included = torch.stack(losses), torch.stack(included)
    losses, included = losses.view(len(scores), -1), included.view(len(scores), -1)
    image_losses = divide(torch.where(included, losses, 0).sum(0), included.sum(0))
    image_included = included.any(0)
    return divide(torch.where(image_included, image_losses, 0).sum(), image_included.sum())


class _Extension(Function):
    """Lovasz extension of the Jaccard loss: errors (P,) at least 0, positive (P,), valid (P,) -> scalar.

    With the errors in descending order, each is weighted by the increase of 1 - IoU if its pixel becomes wrong after
    all pixels before it. These weights are also the gradient.
    """

    @staticmethod
    def forward(ctx: Any, errors: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
        # Ignored pixels come last, where they are neither positive nor negative and so have weight 0.
        order = _descending(errors.masked_fill(~valid, 0))
        positives, negatives = positive[order], (valid & ~positive)[order]
        # Counts in int32 are exact in any order of summation.
        remaining = positive.sum(dtype=torch.int32) - positives.cumsum(0, dtype=torch.int32)
        union = positive.sum(dtype=torch.int32) + negatives.cumsum(0, dtype=torch.int32)
        jaccard = 1 - remaining.to(errors.dtype) / union.clamp_min(1)
        steps = jaccard.diff(prepend=jaccard.new_zeros(1))
        weights = torch.empty_like(errors).scatter_(0, order, steps).masked_fill_(~valid, 0)
        ctx.save_for_backward(weights)
        return (errors * weights).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return grad * weights, None, None


def _descending(errors: Tensor) -> Tensor:
    """Return the order that sorts errors (P,) of at least 0 from the largest down, equal ones by index."""
    if errors.dtype != torch.float32 or errors.is_cuda:
        return errors.sort(descending=True, stable=True).indices
    # On a CPU torch sorts integers by radix sort, about fifteen times faster than floats. The bits of a float of at
    # least 0, read as an integer, have the same order, and their complement has the opposite order.
    return (~errors.contiguous().view(torch.int32)).sort(stable=True).indices


class LovaszLoss(Loss):
    """`lovasz_loss` as a module."""

    function = staticmethod(lovasz_loss)
