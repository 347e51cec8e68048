"""What the softmax losses need from the logits, as formulas and in plain torch operations.

For logits z (N, C, P), p = softmax(z) over the classes and the label y of each pixel, with all sums over the
pixels i that are not ignored:

    nll[n, i]           = logsumexp(z[n, :, i]) - z[n, y, i]    -log p of the label; 0 at ignored pixels
    true_positive[n, c] = sum of p[n, c, i] over pixels with y = c
    prob_sum[n, c]      = sum of p[n, c, i]
    log_prob_sum[n, c]  = sum of log p[n, c, i]

Cross entropy, focal loss and OHEM are functions of `nll`, label smoothing adds `log_prob_sum`, and the overlap losses
take the two sums of p. `PlainTerms` computes them on GPUs, under a compiler and for second derivatives; on a CPU
`_softmax_cpu` is several times faster.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


class DeviceTraits(NamedTuple):
    """How losses compute on a device; tests pass the traits of devices that they do not have."""

    has_kernel: bool  # use `_softmax_cpu` instead of plain operations
    can_be_read: bool  # Reading a value for a check does not wait until the device has done all its work.
    sum_type: torch.dtype  # for sums over many pixels; small steps would be lost in large sums of float32


def device_traits(device_type: str) -> DeviceTraits:
    """Return the traits of a type of device, such as `cpu` or `cuda`."""
    compiling = torch.compiler.is_compiling()
    return DeviceTraits(
        has_kernel=device_type == "cpu" and not compiling,
        can_be_read=device_type != "cuda" and not compiling,
        sum_type=torch.float32 if device_type == "mps" else torch.float64,  # Apple's GPUs have no float64.
    )


class PlainTerms:
    """The terms in plain operations, each computed when it is first asked for.

    An inf or NaN in the logits of an ignored pixel spreads over that pixel, but not further: `torch.where` drops the
    pixel from every term, and `_ZeroGradient` drops it from the gradient.

    Args:
        logits: (N, C, P).
        target: (N, P) int64 in [0, C), also at ignored pixels.
        valid: (N, P) bool, false at ignored pixels; None if no pixel is ignored.
        sum_type: Type of `true_positive` and `prob_sum`. The other terms are in the type of the logits, at least
            float32.
    """

    def __init__(self, logits: Tensor, target: Tensor, valid: Tensor | None, sum_type: torch.dtype) -> None:
        self.logits = logits if valid is None else _ZeroGradient.apply(logits, valid)
        self.target, self.valid, self.sum_type = target, valid, sum_type
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self._log_probs: Tensor | None = None
        self._probs: Tensor | None = None
        self._one_hot: Tensor | None = None

    @property
    def nll(self) -> Tensor:
        """(N, P)."""
        nll = -self.log_probs.gather(1, self.target.unsqueeze(1)).squeeze(1)
        return nll if self.valid is None else torch.where(self.valid, nll, 0)

    @property
    def true_positive(self) -> Tensor:
        """(N, C)."""
        return torch.where(self.one_hot, self.probs, 0).sum(2).to(self.sum_type)

    @property
    def prob_sum(self) -> Tensor:
        """(N, C)."""
        return self._zero_ignored(self.probs).sum(2).to(self.sum_type)

    @property
    def log_prob_sum(self) -> Tensor:
        """(N, C)."""
        return self._zero_ignored(self.log_probs).sum(2)

    @property
    def support(self) -> Tensor:
        """(N, C) int64, the number of pixels of each class."""
        return self.one_hot.sum(2)

    @property
    def log_probs(self) -> Tensor:
        """(N, C, P), undefined at ignored pixels."""
        if self._log_probs is None:
            self._log_probs = self.logits.log_softmax(1, dtype=self.dtype)
        return self._log_probs

    @property
    def probs(self) -> Tensor:
        """(N, C, P), undefined at ignored pixels."""
        if self._probs is None:
            self._probs = self.logits.softmax(1, dtype=self.dtype)
        return self._probs

    @property
    def one_hot(self) -> Tensor:
        """(N, C, P) bool, false at ignored pixels.

        Sums by class go through this mask: on a GPU `scatter_add` would have all pixels of a class wait for one
        number. `scatter_` stops at labels outside the classes, which a comparison with each class would not.
        """
        if self._one_hot is None:
            ones = torch.ones_like(self.target, dtype=torch.bool) if self.valid is None else self.valid
            zeros = torch.zeros(self.logits.shape, dtype=torch.bool, device=self.logits.device)
            self._one_hot = zeros.scatter_(1, self.target.unsqueeze(1), ones.unsqueeze(1))
        return self._one_hot

    def _zero_ignored(self, values: Tensor) -> Tensor:
        return values if self.valid is None else torch.where(self.valid.unsqueeze(1), values, 0)


class _ZeroGradient(Function):
    """Return logits (N, C, P) unchanged, with a gradient of exactly 0 where `valid` (N, P) is false.

    Masking the logits themselves would cost one more pass over them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(valid)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (valid,) = ctx.saved_tensors
        return torch.where(valid.unsqueeze(1), grad, 0), None


def masked(logits: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return logits (N, C, P) in `dtype`, with 0 where `valid` (N, P) or (N, C, P) is false."""
    logits = logits.to(dtype)
    if valid is None:
        return logits
    return torch.where(valid if valid.ndim == 3 else valid.unsqueeze(1), logits, 0)
