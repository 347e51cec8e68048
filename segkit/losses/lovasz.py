"""Lovasz losses: the convex extension of 1 - IoU from hard to soft predictions."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._inputs import Inputs, Mode, check_choice, divide
from segkit.losses._softmax import PlainTerms


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
    terms = inputs.softmax if softmax and not inputs.traits.has_kernel else None
    if isinstance(terms, PlainTerms):
        scores = terms.probs
    else:
        scores = inputs.dense_logits.softmax(1) if softmax else inputs.dense_logits
    n, num_classes, pixels = scores.shape
    if not scores.numel():
        return inputs.logits.sum() * 0
    # A CPU sorts single rows fastest; a GPU takes as many classes at once as memory allows.
    step = 1 if inputs.traits.has_kernel else max(1, inputs.traits.sort_values // (n * pixels))
    losses, included = [], []
    for start in range(0, num_classes, step):
        score = scores[:, start : start + step]  # (N, K, P), as all tensors of this group of K classes
        if inputs.valid is None:
            valid = torch.ones_like(score, dtype=torch.bool)
        else:
            valid = inputs.valid.unsqueeze(1) if softmax else inputs.valid[:, start : start + step]
            valid = valid.expand(score.shape)
        if isinstance(terms, PlainTerms):
            positive = terms.one_hot[:, start : start + step]
        elif softmax:
            positive = (inputs.target.unsqueeze(1) == start) & valid
        else:
            positive = (inputs.target[:, start : start + step] == 1) & valid
        errors = torch.where(positive, 1 - score, score) if softmax else 1 - torch.where(positive, score, -score)
        errors = errors if softmax else errors.relu()
        errors, positive, valid = (_rows(x, per_image) for x in (errors, positive, valid))
        if inputs.traits.has_kernel:
            images = zip(errors[0], positive[0], valid[0], strict=True)
            losses.append(torch.stack([_Extension.apply(*image) for image in images]).unsqueeze(0))
        else:
            losses.append(_Extension.apply(errors, positive, valid))
        included.append((positive if softmax and classes == "present" else valid).any(2))
    losses, included = torch.cat(losses), torch.cat(included)  # (C, N), or (C, 1) of the batch
    image_losses = divide(torch.where(included, losses, 0).sum(0), included.sum(0))
    image_included = included.any(0)
    return divide(torch.where(image_included, image_losses, 0).sum(), image_included.sum())


def _rows(x: Tensor, per_image: bool) -> Tensor:
    """Return (N, K, P) as (K, N, P), a row for each image, or (K, 1, N * P), a row for the batch."""
    x = x.transpose(0, 1)
    return x if per_image else x.reshape(len(x), 1, -1)


class _Extension(Function):
    """Lovasz extension of the Jaccard loss: errors (..., P) at least 0, positive (..., P), valid (..., P) -> (...).

    With the errors in descending order, each is weighted by the increase of 1 - IoU if its pixel becomes wrong after
    all pixels before it. These weights are also the gradient.
    """

    @staticmethod
    def forward(ctx: Any, errors: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
        # Ignored pixels come last, where they are neither positive nor negative and so have weight 0.
        order = _descending(errors.masked_fill(~valid, 0))
        positives, negatives = positive.gather(-1, order), (valid & ~positive).gather(-1, order)
        # Counts in int32 are exact in any order of summation.
        total = positive.sum(-1, keepdim=True, dtype=torch.int32)
        remaining = total - _running_count(positives)
        union = total + _running_count(negatives)
        jaccard = 1 - remaining.to(errors.dtype) / union.clamp_min(1)
        steps = jaccard.diff(prepend=torch.zeros_like(jaccard[..., :1]))
        weights = torch.empty_like(errors).scatter_(-1, order, steps).masked_fill_(~valid, 0)
        ctx.save_for_backward(weights)
        return (errors * weights).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * weights, None, None


def _running_count(mask: Tensor) -> Tensor:
    """Return how many values of each row (..., P) are true up to each place, int32.

    All rows are counted as one, because on a GPU torch computes each row of a cumsum in a single block of threads.
    """
    if mask.ndim == 1:
        return mask.cumsum(0, dtype=torch.int32)
    total = mask.sum(-1, dtype=torch.int32)
    before = total.flatten().cumsum(0, dtype=torch.int32).view(total.shape) - total
    return mask.flatten().cumsum(0, dtype=torch.int32).view(mask.shape) - before.unsqueeze(-1)


def _descending(errors: Tensor) -> Tensor:
    """Return the order that sorts errors (..., P) of at least 0 from the largest down, equal ones by index."""
    if errors.dtype != torch.float32 or errors.ndim > 1 or errors.is_cuda:
        return errors.sort(descending=True, stable=True).indices
    # On a CPU torch sorts one row of integers by radix sort, about fifteen times faster than floats. The bits of a
    # float of at least 0, read as an integer, have the same order, and their complement has the opposite order.
    return (~errors.contiguous().view(torch.int32)).sort(stable=True).indices


class LovaszLoss(Loss):
    """`lovasz_loss` as a module."""

    function = staticmethod(lovasz_loss)
