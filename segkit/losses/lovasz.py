"""Lovasz losses: the convex extension of the IoU to predictions that are not sure."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from segkit.errors import UsageError
from segkit.losses._inputs import Inputs, Loss, Mode, check_choice, divide


def lovasz_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
    classes: Literal["present", "all"] = "present",
    per_image: bool = False,
) -> Tensor:
    """Lovasz-softmax in mode `multiclass`, Lovasz hinge in the others: the mean over the classes.

    Where the prediction is sure, the softmax loss of a class is 1 - IoU. 0 where all pixels are ignored.

    Source: Berman et al., "The Lovasz-Softmax Loss", 2018, equations 8, 9 and 11; hinge: Yu & Blaschko,
    "Learning Submodular Losses with the Lovasz Hinge", 2015.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) class indices; `binary`: (N, H, W) or (N, 1, H, W), `multilabel`:
            (N, C, H, W): 0 and 1.
        mode: `multiclass`, `binary` or `multilabel`.
        ignore_index: The target value of what counts for nothing; None for none.
        classes: `present`: classes without a pixel in the target are left out, or `all`. The hinge
            counts all, since an empty frame is to stay empty.
        per_image: The loss of each image, then the mean over images.

    Returns:
        A scalar; float32 for half-precision logits.
    """
    return _lovasz(Inputs(logits, target, mode, ignore_index), classes=classes, per_image=per_image)


def _lovasz(inputs: Inputs, *, classes: str, per_image: bool) -> Tensor:
    check_choice("classes", classes, ("present", "all"))
    softmax = inputs.mode == "multiclass"
    if softmax and not inputs.labelled:
        raise UsageError("the Lovasz loss takes class indices (N, H, W), not shares of the classes")
    if not softmax and not torch.compiler.is_compiling() and (inputs.target.frac() != 0).any():
        raise UsageError("the Lovasz loss takes targets 0 and 1, not values between")
    scores = inputs.dense_logits
    scores = (scores.softmax(1) if softmax else scores).unbind(1)
    losses, counted = [], []
    for index, score in enumerate(scores):  # each (N, P)
        positive = inputs.target == index if softmax else inputs.target[:, index] == 1
        valid = torch.ones_like(positive) if inputs.valid is None else inputs.valid
        valid = valid if valid.ndim == 2 else valid[:, index]
        positive = positive & valid
        errors = torch.where(positive, 1 - score, score) if softmax else 1 - torch.where(positive, score, -score)
        errors = errors if softmax else errors.relu()
        for rows in range(len(errors)) if per_image else [slice(None)]:
            losses.append(_Extension.apply(*(x[rows].flatten() for x in (errors, positive, valid))))
            counts = positive if softmax and classes == "present" else valid
            counted.append(counts[rows].any())
    if not losses:
        return inputs.logits.sum() * 0
    losses, counted = torch.stack(losses), torch.stack(counted)
    losses, counted = losses.view(len(scores), -1), counted.view(len(scores), -1)
    by_image = divide(torch.where(counted, losses, 0).sum(0), counted.sum(0))
    seen = counted.any(0)
    return divide(torch.where(seen, by_image, 0).sum(), seen.sum())


class _Extension(Function):
    """Lovasz extension of the Jaccard loss: errors (P,) at least 0, positive (P,), valid (P,) -> scalar.

    With the errors sorted from the largest down, each is weighted by what its pixel adds to 1 - IoU when
    the pixels before it are wrong already. The weights are the gradient.
    """

    @staticmethod
    def forward(ctx: Any, errors: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
        # Ignored pixels go last and are neither hit nor miss there, so that they weigh nothing.
        order = _descending(errors.masked_fill(~valid, 0))
        positives, negatives = positive[order], (valid & ~positive)[order]
        # Counts are exact in int32, and their order of summation does not matter.
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
    """The order that sorts errors (P,) that are not negative from the largest down, equal ones by index."""
    if errors.dtype != torch.float32 or errors.is_cuda:
        return errors.sort(descending=True, stable=True).indices
    # On a CPU torch sorts integers by their digits, some fifteen times faster than it compares floats. The bits of a
    # float that is not negative, read as an integer, keep the order; a complement turns it round.
    return (~errors.contiguous().view(torch.int32)).sort(stable=True).indices


class LovaszLoss(Loss):
    """`lovasz_loss` as a module."""

    def __init__(
        self,
        *,
        mode: Mode = "multiclass",
        ignore_index: int | None = 255,
        classes: Literal["present", "all"] = "present",
        per_image: bool = False,
    ) -> None:
        super().__init__(mode, ignore_index, classes=classes, per_image=per_image)

    def evaluate(self, inputs: Inputs) -> Tensor:
        return _lovasz(inputs, **self.options)
