"""What the softmax losses need of the logits, in one pass over them that keeps no probabilities."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from segkit.losses._blocks import blocks, exact_type, masked

LARGE = 1e30  # float32 sums between this and its reciprocal are exact to the last digit or two


class SoftmaxTerms(NamedTuple):
    """Sums of p = softmax(logits) against class indices; ignored pixels count for nothing.

    `true_positive` and `prob_sum` are in `exact_type`, the others in the logits' type, float32 at least.
    """

    nll: Tensor  # (N, P) -log p of the target's class, 0 at ignored pixels
    true_positive: Tensor  # (N, C) sum of p over the pixels of the class
    prob_sum: Tensor  # (N, C) sum of p over all pixels
    log_prob_sum: Tensor  # (N, C) sum of log p over all pixels


def softmax_terms(logits: Tensor, target: Tensor, valid: Tensor | None) -> SoftmaxTerms:
    """Takes logits (N, C, P), target (N, P) int64 in [0, C), valid (N, P) bool or None where all pixels count."""
    if torch.compiler.is_compiling():
        return _plain_terms(logits, target, valid)
    return SoftmaxTerms(*_SoftmaxTerms.apply(logits, target, valid))


def _plain_terms(logits: Tensor, target: Tensor, valid: Tensor | None) -> SoftmaxTerms:
    """The same in plain operations, which a compiler joins and which can be differentiated twice."""
    logits = masked(logits, valid, torch.promote_types(logits.dtype, torch.float32))
    weight = torch.ones_like(target, dtype=logits.dtype) if valid is None else valid.to(logits.dtype)
    log_probs = logits.log_softmax(1)
    nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
    nll = nll if valid is None else torch.where(valid, nll, 0)
    probs, rows = log_probs.exp(), weight.unsqueeze(1)
    exact = exact_type(logits.device)
    hits = ((-nll).exp() * weight).to(exact)
    true_positive = torch.zeros_like(probs[..., 0], dtype=exact).scatter_add(1, target, hits)
    return SoftmaxTerms(nll, true_positive, (probs * rows).sum(2).to(exact), (log_probs * rows).sum(2))


class _SoftmaxTerms(Function):
    """Works through the pixels in blocks, and in the backward pass once more, with log(sum(exp(logits))) at hand."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        with torch.autocast(logits.device.type, enabled=False):
            terms, log_sum, ctx.poisoned, ctx.small = _forward(logits, target, valid)
        ctx.save_for_backward(logits, target, valid, terms.nll, log_sum)
        ctx.set_materialize_grads(False)
        return tuple(terms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        logits, target, valid, nll, log_sum = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            if torch.is_grad_enabled():  # the gradient is to be differentiated itself
                return _differentiable_backward(logits, target, valid, grads), None, None
            return _backward(logits, target, valid, nll, log_sum, ctx.poisoned, ctx.small, grads), None, None


def _forward(logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[SoftmaxTerms, Tensor, bool, bool]:
    """The terms, log(sum(exp(logits))) (N, P), and two flags for the way back.

    The first: ignored pixels hold logits that must be masked. The second: all (other) logits are small
    enough for plain exponentials.
    """
    n, classes, pixels = logits.shape
    dtype, exact = torch.promote_types(logits.dtype, torch.float32), exact_type(logits.device)
    nll = logits.new_empty(n, pixels, dtype=dtype)
    log_sum = torch.empty_like(nll)
    true_positive, prob_sum, log_prob_sum = logits.new_zeros(3, n, classes, dtype=exact).unbind()
    poisoned, all_small, buffer = False, True, Buffer()
    for image, span in blocks(logits):
        z, labels = logits[image, :, span].to(dtype), target[image, span]
        counted = None if valid is None else valid[image, span]
        exps = torch.exp(z, out=buffer.like(z))
        sums, shift = exps.sum(1), 0
        if counted is not None and not _is_small(sums):
            poisoned, z = True, masked(z, counted, dtype)
            exps = torch.exp(z, out=buffer.like(z))
            sums = exps.sum(1)
        if not _is_small(sums):
            all_small, shift = False, z.amax(1)
            exps = (z - shift.unsqueeze(1)).exp_()
            sums = exps.sum(1)
        log_sums = torch.add(sums.log(), shift, out=log_sum[image, span])
        losses = torch.sub(log_sums, z.gather(1, labels.unsqueeze(1)).squeeze(1), out=nll[image, span])
        ones = torch.ones_like(sums) if counted is None else counted.to(dtype)
        if counted is not None:
            losses.masked_fill_(~counted, 0)
        true_positive[image].scatter_add_(1, labels, ((-losses).exp_() * ones).to(exact))
        # Not by a product of matrices, which adds up pixel by pixel: a large image would be pixels out.
        prob_sum[image] += exps.mul_((ones / sums).unsqueeze(1)).sum(2)
        log_prob_sum[image] += _masked_sum(z, ones, counted)
        log_prob_sum[image] -= (log_sums * ones).sum(1, keepdim=True, dtype=exact)
    terms = SoftmaxTerms(nll, true_positive, prob_sum, log_prob_sum.to(dtype))
    return terms, log_sum, poisoned, all_small


def _backward(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    nll: Tensor,
    log_sum: Tensor,
    poisoned: bool,
    small: bool,
    grads: tuple[Tensor | None, ...],
) -> Tensor:
    grad_nll, grad_hits, grad_probs, grad_log_probs = (grad if grad is None else grad.to(nll.dtype) for grad in grads)
    out, buffer, second = torch.empty_like(logits), Buffer(), Buffer()
    for image, span in blocks(logits):
        z, labels = logits[image, :, span].to(nll.dtype), target[image, span]
        counted = None if valid is None else valid[image, span]
        if poisoned:
            z = masked(z, counted, nll.dtype)
        if small:
            exps, scale = torch.exp(z, out=buffer.like(z)), (-log_sum[image, span]).exp_().unsqueeze(1)
        else:
            exps, scale = (z - log_sum[image, span].unsqueeze(1)).exp_(), torch.ones_like(nll[image, None, span])
        # The gradient by -log p at the target, to which that by p adds.
        by_nll = torch.zeros_like(nll[image, span]) if grad_nll is None else grad_nll[image, span]
        if grad_hits is not None:
            by_nll = by_nll - grad_hits[image].gather(1, labels) * (-nll[image, span]).exp_()
        if counted is not None:
            by_nll = by_nll * counted
            scale = scale * counted.unsqueeze(1)
        row = by_nll.unsqueeze(1) * scale
        if grad_log_probs is not None:
            by_log_probs = grad_log_probs[image].unsqueeze(2)
            row -= by_log_probs.sum(1, keepdim=True) * scale
        if grad_probs is None:
            factor = row
        else:
            # (pull of the class - mean pull at the pixel) * scale, for all classes and pixels, as one product.
            by_probs = grad_probs[image].unsqueeze(2)
            if z.is_cuda:  # where products of matrices may have been allowed fewer digits than the difference needs
                row -= (exps * by_probs).sum(1, keepdim=True).mul_(scale).mul_(scale)
                factor = torch.addcmul(row, by_probs, scale)
            else:
                row -= (by_probs.mT @ exps).mul_(scale).mul_(scale)
                columns = torch.cat([by_probs, torch.ones_like(by_probs)], 2)
                factor = torch.matmul(columns, torch.cat([scale, row], 1), out=second.like(z))
        gradient = out[image, :, span] if out.dtype == nll.dtype else torch.empty_like(exps)
        torch.mul(exps, factor, out=gradient)
        if grad_log_probs is not None:
            gradient += by_log_probs if counted is None else by_log_probs * counted.unsqueeze(1)
        gradient.scatter_add_(1, labels.unsqueeze(1), -by_nll.unsqueeze(1))
        if out.dtype != nll.dtype:
            out[image, :, span] = gradient
    return out


def _differentiable_backward(
    logits: Tensor, target: Tensor, valid: Tensor | None, grads: tuple[Tensor | None, ...]
) -> Tensor:
    given = [(term, grad) for term, grad in zip(_plain_terms(logits, target, valid), grads, strict=True)]
    terms, pulls = zip(*((term, grad) for term, grad in given if grad is not None), strict=True)
    return torch.autograd.grad(terms, logits, pulls, create_graph=True)[0]


def _masked_sum(z: Tensor, ones: Tensor, counted: Tensor | None) -> Tensor:
    """(1, C) sums of z (1, C, P) over the counted pixels; -inf at an ignored one shows here, and in no exponential."""
    if z.is_cuda:
        return (z * ones.unsqueeze(1)).sum(2)
    sums = (z @ ones.unsqueeze(2)).squeeze(2)
    if counted is None or sums.isfinite().all():
        return sums
    return masked(z, counted, z.dtype).sum(2)


def _is_small(sums: Tensor) -> bool:
    """Whether sums of plain exponentials are as exact as those of exponentials of (logit - largest logit)."""
    if sums.is_cuda or not sums.numel():  # a GPU would have to be waited for
        return False
    low, high = sums.aminmax()
    return low.item() >= 1 / LARGE and high.item() <= LARGE  # false for NaN too


class Buffer:
    """Memory that is taken from the system once, not for every block again."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised tensor of the shape and type of `x`; what it gave before is given up."""
        if self.memory is None or self.memory.numel() < x.numel():
            self.memory = x.new_empty(x.numel())
        return torch.as_strided(self.memory, x.shape, torch.empty_like(x, device="meta").stride())
