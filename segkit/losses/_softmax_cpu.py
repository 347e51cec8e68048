"""The terms of `_softmax` on a CPU, in blocks of pixels that stay in the caches, without keeping probabilities.

The forward pass keeps logsumexp(z) and nll of each pixel. The backward pass computes p = exp(z - logsumexp(z)) again.
With the gradients of the loss

    a[n, i] = d loss / d nll,              b[n, c] = d loss / d true_positive,
    d[n, c] = d loss / d prob_sum,         e[n, c] = d loss / d log_prob_sum,
    f[n]    = d loss / d nll_sum,

and g = a + f - b[y] * p[y], the gradient of a pixel with label y is

    d loss / d z[k] = p[k] * (g + d[k] - sum over c of (d[c] * p[c]) - sum over c of e[c]) - [k = y] * g + e[k]

Two shortcuts make it fast. `plain_exp`: exp(z) is computed without subtracting the largest logit first, as long as the
sums of a block show that nothing overflowed or underflowed. `mask_logits`: the logits of ignored pixels are replaced
by 0 only if a block holds some that are too large, inf or NaN; otherwise a factor of 0 after exp(z) is enough.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from segkit.losses._blocks import Buffers, in_blocks
from segkit.losses._softmax import NOTHING, PlainTerms, masked

LARGE = 1e30  # float32 sums between this and its reciprocal are exact to the last digit or two


class SoftmaxTerms(NamedTuple):
    """The terms of `_softmax`; the sums of p in float64, the others in the type of the logits, at least float32."""

    nll: Tensor  # (N, P)
    true_positive: Tensor  # (N, C)
    prob_sum: Tensor  # (N, C)
    log_prob_sum: Tensor  # (N, C)
    nll_sum: Tensor  # (N,)


def softmax_terms(
    logits: Tensor, target: Tensor, ignore_index: int | None, block_values: int, *, only_nll: bool = False
) -> SoftmaxTerms:
    """Return the terms of logits (N, C, P) and target (N, P), class indices in any type of integers.

    Without an ignored pixel it is faster with `ignore_index=None`. With `only_nll` the terms other than `nll` and
    `nll_sum` are not computed and are 0.
    """
    return SoftmaxTerms(*_SoftmaxTerms.apply(logits, target, ignore_index, block_values, only_nll))


def labels_and_valid(target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Return int64 labels with 0 at ignored pixels, and which pixels are not ignored, None for all."""
    labels = target.long()
    if ignore_index is None:
        return labels, None
    valid = labels != ignore_index
    return labels * valid, valid


class _SoftmaxTerms(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, ignore_index: int | None, block_values: int, only_nll: bool
    ) -> tuple[Tensor, ...]:
        terms, log_sum, ctx.plain_exp, ctx.mask_logits = _forward(logits, target, ignore_index, block_values, only_nll)
        ctx.ignore_index, ctx.block_values = ignore_index, block_values
        ctx.save_for_backward(logits, target, terms.nll, log_sum)
        ctx.set_materialize_grads(False)
        return tuple(terms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        logits, target, nll, log_sum = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():  # The caller will differentiate the gradient itself.
                return _differentiable_backward(logits, target, ctx.ignore_index, grads), None, None, None, None
            options = {
                name: getattr(ctx, name) for name in ("ignore_index", "plain_exp", "mask_logits", "block_values")
            }
            return _backward(logits, target, nll, log_sum, grads, **options), None, None, None, None


def _forward(
    logits: Tensor, target: Tensor, ignore_index: int | None, block_values: int, only_nll: bool
) -> tuple[SoftmaxTerms, Tensor, bool, bool]:
    """Return the terms, logsumexp(z) (N, P), and whether the backward pass may use plain_exp and needs mask_logits."""
    n, classes, pixels = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    nll = logits.new_empty(n, pixels, dtype=dtype)
    log_sum = torch.empty_like(nll)

    def work(
        buffers: Buffers, image: slice, z: Tensor, target: Tensor, losses: Tensor, log_sums: Tensor
    ) -> tuple[Tensor, bool, bool]:
        z, (labels, valid) = z.to(dtype), labels_and_valid(target, ignore_index)
        exps = torch.exp(z, out=buffers.like(z, "exps"))
        sums, shift = exps.sum(1), 0
        plain_exp, mask_logits = True, False
        if valid is not None and not _in_range(sums):
            mask_logits, z = True, masked(z, valid, dtype)
            exps = torch.exp(z, out=buffers.like(z, "exps"))
            sums = exps.sum(1)
        if not _in_range(sums):
            plain_exp, shift = False, z.amax(1)
            exps = (z - shift.unsqueeze(1)).exp_()
            sums = exps.sum(1)
        torch.add(sums.log(), shift, out=log_sums)
        torch.sub(log_sums, z.gather(1, labels.unsqueeze(1)).squeeze(1), out=losses)
        if valid is not None:
            losses.masked_fill_(~valid, 0)
        # The sums of this block: true_positive, prob_sum, log_prob_sum and, at class 0, nll_sum.
        block = torch.zeros(4, classes, dtype=torch.float64)
        block[3, 0] = losses.sum()
        if only_nll:
            return block, plain_exp, mask_logits
        ones = torch.ones_like(sums) if valid is None else valid.to(dtype)
        block[0].scatter_add_(0, labels[0], ((-losses).exp_() * ones)[0].to(torch.float64))
        # No matmul here: it accumulates in float32 and would lose whole pixels on large images.
        block[1] = exps.mul_((ones / sums).unsqueeze(1)).sum(2)[0]
        block[2] = _sum_of_valid(z, ones, valid)[0]
        block[2] -= (log_sums * ones).sum(dtype=torch.float64)
        return block, plain_exp, mask_logits

    done = in_blocks(work, block_values, logits, target, nll, log_sum)
    sums = torch.zeros(n, 4, classes, dtype=torch.float64)
    if done:
        sums = torch.stack([block for block, *_ in done]).view(n, -1, 4, classes).sum(1)
    true_positive, prob_sum, log_prob_sum, nll_sum = (x.contiguous() for x in sums.unbind(1))
    terms = SoftmaxTerms(nll, true_positive, prob_sum, log_prob_sum.to(dtype), nll_sum[:, 0].to(dtype))
    return terms, log_sum, all(plain_exp for _, plain_exp, _ in done), any(mask_logits for *_, mask_logits in done)


def _backward(
    logits: Tensor,
    target: Tensor,
    nll: Tensor,
    log_sum: Tensor,
    grads: tuple[Tensor | None, ...],
    *,
    ignore_index: int | None,
    plain_exp: bool,
    mask_logits: bool,
    block_values: int,
) -> Tensor:
    """Return the gradient of the logits by the formula above; `grads` are a, b, d, e and f, None if all 0."""
    a, b, d, e, f = (grad if grad is None else grad.to(nll.dtype) for grad in grads)

    def work(
        buffers: Buffers,
        image: slice,
        z: Tensor,
        target: Tensor,
        nll: Tensor,
        log_sum: Tensor,
        gradient: Tensor,
        g: Tensor | None,
    ) -> None:
        z, (labels, valid) = z.to(nll.dtype), labels_and_valid(target, ignore_index)
        if mask_logits:
            z = masked(z, valid, nll.dtype)
        # p = exps * scale, and 0 at ignored pixels.
        if plain_exp:
            exps, scale = torch.exp(z, out=buffers.like(z, "exps")), (-log_sum).exp_().unsqueeze(1)
        else:
            exps, scale = (z - log_sum.unsqueeze(1)).exp_(), torch.ones_like(nll).unsqueeze(1)
        g = torch.zeros_like(nll) if g is None else g
        if f is not None:
            g = g + f[image].unsqueeze(1)
        if b is not None:
            g = g - b[image].gather(1, labels) * (-nll).exp_()
        if valid is not None:
            g = g * valid
            scale = scale * valid.unsqueeze(1)
        factor = g.unsqueeze(1) * scale  # exps is multiplied by this: the bracket of the formula times scale.
        if e is not None:
            block_e = e[image].unsqueeze(2)
            factor -= block_e.sum(1, keepdim=True) * scale
        if d is not None:
            block_d = d[image].unsqueeze(2)
            factor -= (block_d.mT @ exps).mul_(scale).mul_(scale)
            # d[k] * scale + factor for all classes and pixels, as one product of (C, 2) and (2, P).
            columns = torch.cat([block_d, torch.ones_like(block_d)], 2)
            factor = torch.matmul(columns, torch.cat([scale, factor], 1), out=buffers.like(z, "factor"))
        part = gradient if gradient.dtype == nll.dtype else torch.empty_like(exps)
        torch.mul(exps, factor, out=part)
        if e is not None:
            part += block_e if valid is None else block_e * valid.unsqueeze(1)
        part.scatter_add_(1, labels.unsqueeze(1), -g.unsqueeze(1))
        if part is not gradient:
            gradient.copy_(part)

    out = torch.empty_like(logits)
    in_blocks(work, block_values, logits, target, nll, log_sum, out, a)
    return out


def _differentiable_backward(
    logits: Tensor, target: Tensor, ignore_index: int | None, grads: tuple[Tensor | None, ...]
) -> Tensor:
    labels, valid = labels_and_valid(target, ignore_index)
    if valid is not None:
        labels = labels.masked_fill(~valid, NOTHING)
    plain = PlainTerms(logits, labels, valid, torch.float64)
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
