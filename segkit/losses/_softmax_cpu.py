"""The terms of `_softmax` on a CPU, in blocks of pixels that stay in the caches, without keeping probabilities.

The forward pass keeps logsumexp(z) and nll of each pixel. The backward pass computes p = exp(z - logsumexp(z)) again.
With the gradients of the loss

    a[n, i] = d loss / d nll,              b[n, c] = d loss / d true_positive,
    d[n, c] = d loss / d prob_sum,         e[n, c] = d loss / d log_prob_sum,

and g = a - b[y] * p[y], the gradient of a pixel with label y is

    d loss / d z[k] = p[k] * (g + d[k] - sum over c of (d[c] * p[c]) - sum over c of e[c]) - [k = y] * g + e[k]

Two shortcuts make it fast. `plain_exp`: exp(z) is computed without subtracting the largest logit first, as long as the
sums of a block show that nothing overflowed or underflowed. `mask_logits`: the logits of ignored pixels are replaced
by 0 only if a block holds some that are too large, inf or NaN; otherwise a factor of 0 after exp(z) is enough.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from segkit.losses._softmax import NOTHING, PlainTerms, masked

LARGE = 1e30  # float32 sums between this and its reciprocal are exact to the last digit or two


class SoftmaxTerms(NamedTuple):
    """The terms of `_softmax`; the sums of p in float64, the others in the type of the logits, at least float32."""

    nll: Tensor  # (N, P)
    true_positive: Tensor  # (N, C)
    prob_sum: Tensor  # (N, C)
    log_prob_sum: Tensor  # (N, C)


def softmax_terms(logits: Tensor, target: Tensor, valid: Tensor | None, block_values: int) -> SoftmaxTerms:
    """Return the terms of logits (N, C, P); `target` is 0 at ignored pixels, where `valid` is false."""
    return SoftmaxTerms(*_SoftmaxTerms.apply(logits, target, valid, block_values))


def blocks(logits: Tensor, values: int) -> Iterator[tuple[slice, slice]]:
    """Yield ranges of images and pixels that cover (N, C, P): on a CPU with about `values` logits, else one for all."""
    n, classes, pixels = logits.shape
    if logits.device.type != "cpu":
        yield slice(None), slice(None)
        return
    step = max(1024, values // max(classes, 1))
    for image in range(n):
        for start in range(0, pixels, step):
            yield slice(image, image + 1), slice(start, start + step)


class _SoftmaxTerms(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, valid: Tensor | None, block_values: int
    ) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", enabled=False):
            terms, log_sum, ctx.plain_exp, ctx.mask_logits = _forward(logits, target, valid, block_values)
        ctx.block_values = block_values
        ctx.save_for_backward(logits, target, valid, terms.nll, log_sum)
        ctx.set_materialize_grads(False)
        return tuple(terms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, target, valid, nll, log_sum = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():  # The caller will differentiate the gradient itself.
                return _differentiable_backward(logits, target, valid, grads), None, None, None
            options = {name: getattr(ctx, name) for name in ("plain_exp", "mask_logits", "block_values")}
            return _backward(logits, target, valid, nll, log_sum, grads, **options), None, None, None


def _forward(
    logits: Tensor, target: Tensor, valid: Tensor | None, block_values: int
) -> tuple[SoftmaxTerms, Tensor, bool, bool]:
    """Return the terms, logsumexp(z) (N, P), and whether the backward pass may use plain_exp and needs mask_logits."""
    n, classes, pixels = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    nll = logits.new_empty(n, pixels, dtype=dtype)
    log_sum = torch.empty_like(nll)
    true_positive, prob_sum, log_prob_sum = logits.new_zeros(3, n, classes, dtype=torch.float64).unbind()
    plain_exp, mask_logits, buffer = True, False, Buffer()
    for image, span in blocks(logits, block_values):
        z, labels = logits[image, :, span].to(dtype), target[image, span]
        block_valid = None if valid is None else valid[image, span]
        exps = torch.exp(z, out=buffer.like(z))
        sums, shift = exps.sum(1), 0
        if block_valid is not None and not _in_range(sums):
            mask_logits, z = True, masked(z, block_valid, dtype)
            exps = torch.exp(z, out=buffer.like(z))
            sums = exps.sum(1)
        if not _in_range(sums):
            plain_exp, shift = False, z.amax(1)
            exps = (z - shift.unsqueeze(1)).exp_()
            sums = exps.sum(1)
        log_sums = torch.add(sums.log(), shift, out=log_sum[image, span])
        losses = torch.sub(log_sums, z.gather(1, labels.unsqueeze(1)).squeeze(1), out=nll[image, span])
        ones = torch.ones_like(sums) if block_valid is None else block_valid.to(dtype)
        if block_valid is not None:
            losses.masked_fill_(~block_valid, 0)
        true_positive[image].scatter_add_(1, labels, ((-losses).exp_() * ones).to(torch.float64))
        # No matmul here: it accumulates in float32 and would lose whole pixels on large images.
        prob_sum[image] += exps.mul_((ones / sums).unsqueeze(1)).sum(2)
        log_prob_sum[image] += _sum_of_valid(z, ones, block_valid)
        log_prob_sum[image] -= (log_sums * ones).sum(1, keepdim=True, dtype=torch.float64)
    terms = SoftmaxTerms(nll, true_positive, prob_sum, log_prob_sum.to(dtype))
    return terms, log_sum, plain_exp, mask_logits


def _backward(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    nll: Tensor,
    log_sum: Tensor,
    grads: tuple[Tensor | None, ...],
    *,
    plain_exp: bool,
    mask_logits: bool,
    block_values: int,
) -> Tensor:
    """Return the gradient of the logits by the formula above; `grads` are a, b, d and e, None if all 0."""
    a, b, d, e = (grad if grad is None else grad.to(nll.dtype) for grad in grads)
    out, buffer, second = torch.empty_like(logits), Buffer(), Buffer()
    for image, span in blocks(logits, block_values):
        z, labels = logits[image, :, span].to(nll.dtype), target[image, span]
        block_valid = None if valid is None else valid[image, span]
        if mask_logits:
            z = masked(z, block_valid, nll.dtype)
        # p = exps * scale, and 0 at ignored pixels.
        if plain_exp:
            exps, scale = torch.exp(z, out=buffer.like(z)), (-log_sum[image, span]).exp_().unsqueeze(1)
        else:
            exps, scale = (z - log_sum[image, span].unsqueeze(1)).exp_(), torch.ones_like(nll[image, None, span])
        g = torch.zeros_like(nll[image, span]) if a is None else a[image, span]
        if b is not None:
            g = g - b[image].gather(1, labels) * (-nll[image, span]).exp_()
        if block_valid is not None:
            g = g * block_valid
            scale = scale * block_valid.unsqueeze(1)
        factor = g.unsqueeze(1) * scale  # exps is multiplied by this: the bracket of the formula times scale.
        if e is not None:
            block_e = e[image].unsqueeze(2)
            factor -= block_e.sum(1, keepdim=True) * scale
        if d is not None:
            block_d = d[image].unsqueeze(2)
            factor -= (block_d.mT @ exps).mul_(scale).mul_(scale)
            # d[k] * scale + factor for all classes and pixels, as one product of (C, 2) and (2, P).
            columns = torch.cat([block_d, torch.ones_like(block_d)], 2)
            factor = torch.matmul(columns, torch.cat([scale, factor], 1), out=second.like(z))
        gradient = out[image, :, span] if out.dtype == nll.dtype else torch.empty_like(exps)
        torch.mul(exps, factor, out=gradient)
        if e is not None:
            gradient += block_e if block_valid is None else block_e * block_valid.unsqueeze(1)
        gradient.scatter_add_(1, labels.unsqueeze(1), -g.unsqueeze(1))
        if out.dtype != nll.dtype:
            out[image, :, span] = gradient
    return out


def _differentiable_backward(
    logits: Tensor, target: Tensor, valid: Tensor | None, grads: tuple[Tensor | None, ...]
) -> Tensor:
    if valid is not None:
        target = target.masked_fill(~valid, NOTHING)
    plain = PlainTerms(logits, target, valid, torch.float64)
    given = {name: grad for name, grad in zip(SoftmaxTerms._fields, grads, strict=True) if grad is not None}
    terms = [getattr(plain, name) for name in given]
    return torch.autograd.grad(terms, logits, list(given.values()), create_graph=True)[0]


def _sum_of_valid(z: Tensor, ones: Tensor, valid: Tensor | None) -> Tensor:
    """Return (1, C) sums of z (1, C, P) over valid pixels."""
    sums = (z @ ones.unsqueeze(2)).squeeze(2)
    if valid is None or sums.isfinite().all():
        return sums
    return masked(z, valid, z.dtype).sum(2)  # -inf at an ignored pixel times 0 was NaN; sums of exp(z) hide it.


def _in_range(sums: Tensor) -> bool:
    """Return whether sums of exp(z) are as exact as sums of exp(z - max z): neither too large, too small nor NaN."""
    if not sums.numel():
        return False
    low, high = sums.aminmax()
    return low.item() >= 1 / LARGE and high.item() <= LARGE  # Both are false for NaN.


class Buffer:
    """Memory that is allocated once and used again for every block."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """Return an uninitialised tensor of the shape and type of `x`; it overwrites the one returned before."""
        if self.memory is None or self.memory.numel() < x.numel():
            self.memory = x.new_empty(x.numel())
        return torch.as_strided(self.memory, x.shape, torch.empty_like(x, device="meta").stride())
