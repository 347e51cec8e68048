"""What the softmax losses need from the logits, as formulas and in plain torch operations.

For logits z (N, C, P), p = softmax(z) over the classes and the label y of each pixel, with all sums over the
pixels i that are not ignored:

    nll[n, i]           = logsumexp(z[n, :, i]) - z[n, y, i]    -log p of the label; 0 at ignored pixels
    true_positive[n, c] = sum of p[n, c, i] over pixels with y = c
    prob_sum[n, c]      = sum of p[n, c, i]
    log_prob_sum[n, c]  = sum of log p[n, c, i]
    nll_sum[n]          = sum of nll[n, i]

Cross entropy, focal loss and OHEM are functions of `nll`, label smoothing adds `log_prob_sum`, and the overlap losses
take the two sums of p. `PlainTerms` computes them on GPUs, under a compiler and for second derivatives; on a CPU
`_softmax_cpu` is several times faster.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


class DeviceTraits(NamedTuple):
    """How losses compute on a device; tests pass the traits of devices that they do not have."""

    has_kernel: bool  # use `_softmax_cpu` instead of plain operations
    can_be_read: bool  # Reading a value for a check does not wait until the device has done all its work.
    sum_type: torch.dtype  # for sums over many pixels; small steps would be lost in large sums of float32
    block_values: int = 1 << 19  # The kernels of a CPU compute with about this many logits at once: they fit in caches.
    sort_values: int = 1 << 24  # A GPU sorts about this many errors at once, which bounds the memory.


def device_traits(device_type: str) -> DeviceTraits:
    """Return the traits of a type of device, such as `cpu` or `cuda`."""
    compiling = torch.compiler.is_compiling()
    return DeviceTraits(
        has_kernel=device_type == "cpu" and not compiling,
        can_be_read=device_type != "cuda" and not compiling,
        sum_type=torch.float32 if device_type == "mps" else torch.float64,  # Apple's GPUs have no float64.
    )


NOTHING = torch.iinfo(torch.int32).min  # `ignore_index` of a target without ignored pixels; all devices can hold it


class PlainTerms:
    """The terms in plain operations, each computed when it is first asked for, with few operations.

    An inf or NaN in the logits of an ignored pixel spreads over that pixel, but not further: ignored pixels are dropped
    from every term, and their gradient is exactly 0.

    Args:
        logits: (N, C, P).
        target: (N, P) int64 in [0, C), or `ignore_index` at ignored pixels.
        valid: (N, P) bool, false at ignored pixels; None if no pixel is ignored.
        sum_type: Type in which to add up sums over many pixels. The terms are in the type of the logits, at least
            float32.
        ignore_index: What `target` holds at ignored pixels.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        valid: Tensor | None,
        sum_type: torch.dtype,
        ignore_index: int = NOTHING,
    ) -> None:
        self.logits, self.target, self.valid = logits, target, valid
        self.sum_type, self.ignore_index = sum_type, ignore_index
        self.ignored = None if valid is None else ~valid
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self._log_probs: Tensor | None = None
        self._probs: Tensor | None = None
        self._one_hot: Tensor | None = None

    @property
    def nll(self) -> Tensor:
        """(N, P)."""
        # Without a reduction, because torch's sum of it is not deterministic on CUDA.
        return F.nll_loss(self.log_probs, self.target, ignore_index=self.ignore_index, reduction="none")

    @property
    def nll_sum(self) -> Tensor:
        """(N,)."""
        return self.nll.sum(1)

    @property
    def true_positive(self) -> Tensor:
        """(N, C)."""
        return (self.probs * self.one_hot).sum(2)

    @property
    def prob_sum(self) -> Tensor:
        """(N, C)."""
        return self.probs.sum(2)

    @property
    def log_prob_sum(self) -> Tensor:
        """(N, C)."""
        return masked(self.log_probs, self.valid, self.dtype).sum(2)

    def log_prob_of_all_classes(self, weights: Tensor | None) -> Tensor:
        """Return the sum of weights (C,) * log p over the classes, (N, P)."""
        log_probs = self.log_probs if weights is None else self.log_probs * weights.view(-1, 1)
        sums = log_probs.sum(1)
        return sums if self.ignored is None else sums.masked_fill_(self.ignored, 0)

    @property
    def support(self) -> Tensor:
        """(N, C), the number of pixels of each class."""
        return self.one_hot.sum(2, dtype=self.dtype)

    @property
    def log_probs(self) -> Tensor:
        """(N, C, P), undefined at ignored pixels."""
        if self._log_probs is None:
            self._log_probs = without_gradient(self.logits, self.ignored).log_softmax(1, dtype=self.dtype)
        return self._log_probs

    @property
    def probs(self) -> Tensor:
        """(N, C, P), 0 at ignored pixels."""
        if self._probs is None:
            if self.ignored is None:
                self._probs = self.logits.softmax(1, dtype=self.dtype)
            else:
                self._probs = _MaskedSoftmax.apply(self.logits, self.ignored, self.dtype)
        return self._probs

    @property
    def one_hot(self) -> Tensor:
        """(N, C, P) bool, false at ignored pixels.

        Sums by class go through this mask: on a GPU `scatter_add` would have all pixels of a class wait for one
        number. `scatter_` stops at labels outside the classes, which a comparison with each class would not.
        """
        if self._one_hot is None:
            zeros = torch.zeros(self.logits.shape, dtype=torch.bool, device=self.logits.device)
            if self.valid is None:
                self._one_hot = zeros.scatter_(1, self.target.unsqueeze(1), True)
            else:
                labels = self.target * self.valid
                self._one_hot = zeros.scatter_(1, labels.unsqueeze(1), self.valid.unsqueeze(1))
        return self._one_hot


def without_gradient(logits: Tensor, ignored: Tensor | None) -> Tensor:
    """Return logits (N, C, P) unchanged, with a gradient of exactly 0 where `ignored` (N, P) is true.

    Masking the logits themselves would cost one more pass over them.
    """
    return logits if ignored is None else _ZeroGradient.apply(logits, ignored)


class _ZeroGradient(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ignored: Tensor) -> Tensor:
        ctx.save_for_backward(ignored)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ignored,) = ctx.saved_tensors
        return grad.masked_fill_(ignored.unsqueeze(1), 0), None  # In place: an operation on the logits just made it.


class _MaskedSoftmax(Function):
    """Return the softmax of logits (N, C, P) in `dtype`, with 0 where `ignored` (N, P) is true.

    The gradient is a multiple of the probability, so it is 0 there too.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ignored: Tensor, dtype: torch.dtype) -> Tensor:
        probs = logits.softmax(1, dtype=dtype).masked_fill_(ignored.unsqueeze(1), 0)
        ctx.save_for_backward(probs)
        ctx.dtype = logits.dtype
        return probs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (probs,) = ctx.saved_tensors
        gradient = torch.ops.aten._softmax_backward_data(grad, probs, 1, probs.dtype)
        return gradient.to(ctx.dtype), None, None


def masked(logits: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return logits (N, C, P) in `dtype`, with 0 where `valid` (N, P) or (N, C, P) is false."""
    logits = logits.to(dtype)
    if valid is None:
        return logits
    return torch.where(valid if valid.ndim == 3 else valid.unsqueeze(1), logits, 0)
