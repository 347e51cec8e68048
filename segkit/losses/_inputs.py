"""What every loss needs: checked inputs without the ignored pixels, checked options, and reductions."""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.errors import UsageError
from segkit.labels import check_ignore_index
from segkit.losses._blocks import Buffers, in_blocks, sum_all
from segkit.losses._softmax import NOTHING, DeviceTraits, PlainTerms, device_traits, masked
from segkit.losses._softmax_cpu import SoftmaxTerms, labels_and_valid, softmax_terms

Mode = Literal["multiclass", "binary", "multilabel"]
Reduction = Literal["mean", "sum", "none"]
Absent = Literal["skip", "penalise", "zero"]
CHOICES = {
    "mode": ("multiclass", "binary", "multilabel"),
    "reduction": ("mean", "sum", "none"),
    "absent": ("skip", "penalise", "zero"),
}


class Counts(NamedTuple):
    """Soft counts of each class in each image, (N, C) each, without ignored pixels."""

    true_positive: Tensor
    prob_sum: Tensor  # true positives and false positives
    support: Tensor  # true positives and false negatives


class Inputs:
    """Checked logits and target of a loss, ready to be summed without the ignored pixels.

    The logits of ignored pixels, even inf or NaN, change neither a loss nor a gradient. Half-precision logits are
    computed with in float32. Losses that share the same Inputs share its softmax and its counts.

    Args:
        logits: (N, C, H, W), or with any other number of axes after the classes; C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) integer labels, or (N, C, H, W) floats, the share of each class.
            `binary`: (N, H, W) or (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: `multiclass` for a softmax over the classes, `binary` for one sigmoid, `multilabel` for a sigmoid of
            each class.
        ignore_index: Target value to ignore; None to ignore nothing. In float targets of mode `multiclass` a pixel is
            ignored if it holds this value in all classes.
        traits: How to compute; by default the fastest way on the device of the logits.
        is_shared: Several losses will be computed from these inputs.

    Raises:
        UsageError: The mode, a shape or a type is wrong, labels are outside the classes, or `ignore_index` is 255 with
            more than 255 classes. On CUDA labels are not
            checked here, because reading them would wait for the device: the losses stop with a device error instead.

    Attributes:
        logits: (N, C, P) with P = H * W.
        target: (N, P) labels, `ignore_index` at ignored pixels; or (N, C, P) floats in `dtype`, 0 there.
        has_labels: Whether the target holds class indices.
        shape: Shape of the target, for losses that are not reduced.
        dtype: Type of the losses.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        mode: Mode,
        ignore_index: int | None,
        *,
        traits: DeviceTraits | None = None,
        is_shared: bool = False,
    ) -> None:
        _check(logits, target, mode)
        self.traits = traits or device_traits(logits.device.type)
        self.is_shared = is_shared
        self.mode, self.shape = mode, target.shape
        self.num_classes = logits.shape[1]
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self.has_labels = mode == "multiclass" and not target.is_floating_point()
        if self.has_labels:
            check_ignore_index(self.num_classes, ignore_index)
        self.logits = logits.flatten(2)
        self._labels: Tensor | None = None
        self._valid: Tensor | None = None
        self._num_valid: Tensor | None = None  # (N, 1), if the labels have been read
        self._softmax: SoftmaxTerms | PlainTerms | None = None
        self._counts: Tensor | None = None
        if self.has_labels and self.traits.has_kernel:
            self._read_labels(target, ignore_index)
            return
        valid = _valid(target, ignore_index)
        if valid is not None and mode == "multiclass" and not self.has_labels:
            valid = valid.any(1, keepdim=True)
        if valid is not None and self.traits.can_be_read and valid.all():
            valid = None
        self.ignore_index = NOTHING if valid is None or ignore_index is None else ignore_index
        if self.has_labels:
            self.target = target.flatten(1).long()
            self._valid = None if valid is None else valid.flatten(1)
        else:
            target = target if valid is None else target * valid
            self.target = target.reshape(self.logits.shape).to(self.dtype)
            if mode == "multiclass":
                self._valid = None if valid is None else valid.flatten(1)
            else:
                self._valid = None if valid is None else valid.reshape(self.logits.shape)
            self.logits = masked(self.logits, self.valid, self.dtype)
        if self.traits.can_be_read:
            known = self.labels if self.has_labels else self.target
            if known.numel():
                low, high = (value.item() for value in known.aminmax())
                self._check_range(low, high, ignore_index)

    def _read_labels(self, target: Tensor, ignore_index: int | None) -> None:
        """Set what depends on the labels, in one pass over them on a CPU, and check their range."""
        self.target = target.flatten(1)

        def work(buffers: Buffers, image: slice, target: Tensor) -> tuple[int, int, int]:
            labels, valid = labels_and_valid(target, ignore_index)
            low, high = labels.aminmax()
            return labels.numel() if valid is None else int(valid.sum()), int(low), int(high)

        done = in_blocks(work, self.traits.block_values, self.target.unsqueeze(1))
        self._num_valid = torch.zeros(len(target), 1, dtype=torch.long)
        if done:
            numbers, lows, highs = zip(*done, strict=True)
            self._check_range(min(lows), max(highs), ignore_index)
            self._num_valid += torch.tensor(numbers).view(len(target), -1).sum(1, keepdim=True)
        self.ignore_index = None if self._num_valid.sum() == self.target.numel() else ignore_index

    def _check_range(self, low: float, high: float, ignore_index: int | None) -> None:
        highest = self.num_classes - 1 if self.has_labels else 1
        if not (low >= 0 and high <= highest):
            raise UsageError(
                f"target has {'labels' if self.has_labels else 'values'} from {low} to {high}, expected 0 to {highest} "
                f"or {ignore_index=}"
            )

    @classmethod
    def of(cls, logits: "Tensor | Inputs", target: Tensor, mode: Mode, ignore_index: int | None) -> "Inputs":
        """Return the checked inputs, or `logits` itself if a module passes inputs that were checked before."""
        return logits if isinstance(logits, Inputs) else cls(logits, target, mode, ignore_index)

    @property
    def valid(self) -> Tensor | None:
        """(N, P), or (N, C, P) with sigmoids, bool; None if nothing is ignored."""
        if self._valid is None and self._num_valid is not None and self.ignore_index is not None:
            self._valid = self.target != self.ignore_index
        return self._valid

    @property
    def labels(self) -> Tensor:
        """(N, P) int64 labels, 0 at ignored pixels."""
        if self._labels is None:
            self._labels = self.target.long() if self.valid is None else self.target.long() * self.valid
        return self._labels

    @property
    def softmax(self) -> SoftmaxTerms | PlainTerms:
        """The sums of `_softmax`, for inputs with labels."""
        if self._softmax is None:
            self._softmax = self._terms()
        return self._softmax

    @property
    def nll_terms(self) -> SoftmaxTerms | PlainTerms:
        """As `softmax`, for losses that only need `nll` and `nll_sum`: others may be 0 if no other loss needs them."""
        if self._softmax is None and self.traits.has_kernel and not self.is_shared:
            return self._terms(only_nll=True)
        return self.softmax

    def _terms(self, only_nll: bool = False) -> SoftmaxTerms | PlainTerms:
        if self.traits.has_kernel:
            values = self.traits.block_values
            return softmax_terms(self.logits, self.target, self.ignore_index, values, only_nll=only_nll)
        return PlainTerms(self.logits, self.target, self.valid, self.traits.sum_type, self.ignore_index)

    @property
    def dense_logits(self) -> Tensor:
        """(N, C, P) in `dtype`, 0 at ignored pixels."""
        return masked(self.logits, self.valid, self.dtype) if self.has_labels else self.logits

    def zero_ignored(self, values: Tensor) -> Tensor:
        """Return `values`, which have the shape of `valid`, with 0 at ignored pixels."""
        return values if self.valid is None else values * self.valid

    def num_valid(self) -> Tensor | int:
        """Return the number of pixels, or with sigmoids of entries, that are not ignored."""
        if self._num_valid is not None:
            return self._num_valid.sum()
        if self.valid is not None:
            return self.valid.sum()
        return self.target.shape[0] * self.target.shape[-1] if self.mode == "multiclass" else self.target.numel()

    def entry_losses(self) -> Tensor:
        """Return the cross entropy of each pixel (N, P) or, with sigmoids, of each entry (N, C, P); 0 if ignored."""
        if self.has_labels:
            return self.nll_terms.nll
        if self.mode == "multiclass":
            return -(self.target * self.logits.log_softmax(1)).sum(1)
        return self.zero_ignored(F.binary_cross_entropy_with_logits(self.logits, self.target, reduction="none"))

    def counts(self) -> Tensor:
        """Return the soft counts of the softmax or of the sigmoids: `Counts` as one tensor (3, N, C) in `sum_type`."""
        if self._counts is None:
            self._counts = torch.stack(self._count()).to(self.traits.sum_type)
        return self._counts

    def _count(self) -> Counts:
        if self.has_labels:
            return Counts(self.softmax.true_positive, self.softmax.prob_sum, self._support())
        probs = self.logits.softmax(1) if self.mode == "multiclass" else self.logits.sigmoid()
        probs = masked(probs, self.valid, self.dtype)
        # The overlap is min(p, t) instead of p * t, which is the same for a target of 0 or 1: for a target between,
        # only the minimum makes p = t the best prediction (Wang et al., "Dice Semimetric Losses", 2023, section 3).
        overlap = torch.minimum(probs, self.target)
        return Counts(overlap.sum(2), probs.sum(2), self.target.sum(2))

    def _support(self) -> Tensor:
        """Return the number of pixels of each label, (N, C)."""
        if isinstance(self.softmax, PlainTerms):
            return self.softmax.support

        def work(buffers: Buffers, image: slice, target: Tensor) -> Tensor:
            labels, valid = labels_and_valid(target, self.ignore_index)
            counts = torch.bincount(labels.flatten(), minlength=self.num_classes)
            if valid is not None:
                counts[0] -= labels.numel() - valid.sum()  # Ignored pixels have label 0.
            return counts

        n, done = len(self.target), in_blocks(work, self.traits.block_values, self.target.unsqueeze(1))
        counts = torch.stack(done).view(n, -1, self.num_classes).sum(1) if done else torch.zeros(n, self.num_classes)
        return counts.to(self.traits.sum_type)

    def pixels(self) -> Tensor:
        """Return the number of pixels of each image that are not ignored, (N, 1), or with sigmoids (N, C)."""
        n, pixels = self.logits.shape[0], self.logits.shape[2]
        if self._num_valid is not None:
            return self._num_valid.to(self.traits.sum_type)
        if self.valid is None:
            return torch.full((n, 1), pixels, dtype=self.traits.sum_type, device=self.logits.device)
        return self.valid.sum(-1, keepdim=self.valid.ndim == 2).to(self.traits.sum_type)


def reduce(losses: Tensor, total: Tensor | int, reduction: Reduction, shape: torch.Size) -> Tensor:
    """Return the sum of `losses`, the sum divided by `total` (0 if that is 0), or the losses in `shape`."""
    if reduction == "none":
        return losses.view(shape)
    total_loss = sum_all(losses)
    return total_loss if reduction == "sum" else divide(total_loss, total)


def divide(a: Tensor, b: Tensor | int) -> Tensor:
    """Return `a / b`; if `b` is 0, return `a`, which is then 0 and has a graph."""
    if isinstance(b, int):
        return a / max(b, 1)
    if b.is_floating_point():
        return a / torch.where(b > 0, b, 1)
    return a / b.clamp_min(1)


def check_options(**options: Any) -> None:
    """Raise UsageError if an option with the same meaning in all losses has a wrong value.

    Args:
        **options: `mode`, `reduction`, `absent`, `label_smoothing` and `threshold` are checked.
    """
    for name, value in options.items():
        if name in CHOICES:
            check_choice(name, value, CHOICES[name])
    if not 0 <= options.get("label_smoothing", 0) <= 1:
        raise UsageError(f"`label_smoothing` must be in [0, 1], got {options['label_smoothing']}")
    if not 0 < options.get("threshold", 1) <= 1:
        raise UsageError(f"`threshold` must be in (0, 1], got {options['threshold']}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError if the value of option `name` is not one of `choices`."""
    if value not in choices:
        raise UsageError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}")


def check_weights(weights: Any, inputs: Inputs) -> Tensor | None:
    """Return the class weights as (C,) in the type and on the device of the losses."""
    if weights is None:
        return None
    weights = torch.as_tensor(weights).to(inputs.logits.device, inputs.dtype)
    if weights.shape != (inputs.num_classes,):
        raise UsageError(f"expected {inputs.num_classes} weights, one for each class, got {tuple(weights.shape)}")
    return weights


def _valid(target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Return where the target is not `ignore_index`; None if its type cannot hold that, as uint8 cannot hold -100."""
    if ignore_index is None:
        return None
    if target.dtype != torch.bool and not target.is_floating_point():
        limits = torch.iinfo(target.dtype)
        if not limits.min <= ignore_index <= limits.max:  # torch would wrap ignore_index and compare with the result.
            return None
    return target != ignore_index


def _check(logits: Tensor, target: Tensor, mode: Mode) -> None:
    check_options(mode=mode)
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} must be a tensor, got {type(value).__name__}")
    if logits.ndim < 3:
        raise UsageError(f"logits must be (N, C, H, W), got {tuple(logits.shape)}")
    n, *_ = logits.shape
    per_pixel, per_class = (n, *logits.shape[2:]), tuple(logits.shape)
    if not logits.is_floating_point():
        raise UsageError(f"logits must be floating-point numbers, got {logits.dtype}")
    if target.is_complex():
        raise UsageError(f"target must be real, got {target.dtype}")
    if mode == "multiclass":
        if logits.shape[1] == 1:
            raise UsageError(
                'logits of one channel have a softmax of 1 everywhere, so nothing is learnt: use `mode="binary"`'
            )
        if tuple(target.shape) not in (per_pixel, per_class):
            raise UsageError(
                f"target must be (N, H, W) for logits (N, C, H, W), got {tuple(target.shape)} for {tuple(logits.shape)}"
            )
        if target.dtype == torch.bool or target.is_floating_point() != (tuple(target.shape) == per_class):
            raise UsageError(
                "target must be (N, H, W) integer class indices or (N, C, H, W) float shares of the classes, got "
                f"{target.dtype} {tuple(target.shape)}"
            )
    elif mode == "binary" and logits.shape[1] != 1:
        raise UsageError(f'`mode="binary"` takes logits (N, 1, H, W), got {tuple(logits.shape)}')
    elif tuple(target.shape) not in ((per_pixel, per_class) if mode == "binary" else (per_class,)):
        raise UsageError(
            f'target must be {per_class}, as the logits are, for `mode="{mode}"`, got {tuple(target.shape)}'
        )
