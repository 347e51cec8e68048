"""What every loss shares: checked inputs without the ignored pixels, and the sums that several losses need."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.losses._blocks import exact_type, masked
from segkit.losses._softmax import SoftmaxTerms, softmax_terms

Mode = Literal["multiclass", "binary", "multilabel"]
Reduction = Literal["mean", "sum", "none"]
MODES = ("multiclass", "binary", "multilabel")
REDUCTIONS = ("mean", "sum", "none")


class Counts(NamedTuple):
    """Soft counts of each class in each image, (N, C) in `exact_type`; ignored pixels are in none of them."""

    true_positive: Tensor
    prob_sum: Tensor  # true positives and false positives
    support: Tensor  # true positives and false negatives
    pixels: Tensor


class Inputs:
    """Checked logits and target of a loss, with what it takes to leave ignored pixels out.

    Whatever the logits hold at ignored pixels, it reaches neither a loss nor a gradient. Half-precision
    logits are raised to float32. What several losses need of the same inputs is computed once.

    Args:
        logits: (N, C, H, W), or any number of axes after the classes; C is 1 in mode `binary`.
        target: `multiclass`: (N, H, W) integer labels, or (N, C, H, W) float shares of the classes.
            `binary`: (N, H, W) or (N, 1, H, W), `multilabel`: (N, C, H, W): 0 and 1, or floats between.
        mode: A softmax over the classes, one sigmoid, or a sigmoid for each class.
        ignore_index: Target value of what counts for nothing; None for none. In float targets of mode
            `multiclass`, a pixel is ignored that holds it in all classes.

    Raises:
        ValueError: a wrong mode, shape or type, or labels outside the classes.

    Attributes:
        logits: (N, C, P) with P = H * W.
        target: (N, P) int64 labels, 0 at ignored pixels; else (N, C, P) floats in the sums' type.
        valid: Of the target's shape, or (N, P), bool; None where everything counts.
        shape: The target's shape, for losses that are not reduced.
    """

    def __init__(self, logits: Tensor, target: Tensor, mode: Mode, ignore_index: int | None) -> None:
        _check(logits, target, mode)
        self.mode, self.shape = mode, target.shape
        self.num_classes = logits.shape[1]
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self.labelled = mode == "multiclass" and not target.is_floating_point()
        self.logits = logits.flatten(2)
        valid = _valid(target, ignore_index)
        if valid is not None and mode == "multiclass" and not self.labelled:
            valid = valid.any(1, keepdim=True)
        if valid is not None and not target.is_cuda and not torch.compiler.is_compiling() and valid.all():
            valid = None
        if valid is not None:
            target = torch.where(valid, target, 0)
        if self.labelled:
            self.target = target.flatten(1).long()
            self.valid = None if valid is None else valid.flatten(1)
        else:
            self.target = target.reshape(self.logits.shape).to(self.dtype)
            if mode == "multiclass":
                self.valid = None if valid is None else valid.flatten(1)
            else:
                self.valid = None if valid is None else valid.reshape(self.logits.shape)
            self.logits = masked(self.logits, self.valid, self.dtype)
        high = self.num_classes - 1 if self.labelled else 1
        _check_range(self.target, high, ignore_index, what="labels" if self.labelled else "values")
        self._terms: SoftmaxTerms | None = None

    @property
    def softmax(self) -> SoftmaxTerms:
        """The sums of the softmax losses; of inputs with labels alone."""
        if self._terms is None:
            self._terms = softmax_terms(self.logits, self.target, self.valid)
        return self._terms

    @property
    def dense_logits(self) -> Tensor:
        """(N, C, P) in the sums' type, 0 at ignored pixels."""
        return masked(self.logits, self.valid, self.dtype) if self.labelled else self.logits

    def weigh(self, x: Tensor) -> Tensor:
        """`x`, of the shape of `valid`, with 0 at ignored pixels."""
        return x if self.valid is None else x * self.valid

    def num_valid(self) -> Tensor:
        """How many entries of the target count, as a scalar."""
        if self.valid is not None:
            return self.valid.sum().to(self.dtype)
        numel = self.target.shape[0] * self.target.shape[-1] if self.mode == "multiclass" else self.target.numel()
        return torch.tensor(numel, dtype=self.dtype, device=self.target.device)

    def entry_losses(self) -> Tensor:
        """Cross entropy of each pixel (N, P) or, with sigmoids, of each entry (N, C, P); 0 where ignored."""
        if self.labelled:
            return self.softmax.nll
        if self.mode == "multiclass":
            return -(self.target * self.logits.log_softmax(1)).sum(1)
        return self.weigh(F.binary_cross_entropy_with_logits(self.logits, self.target, reduction="none"))

    def counts(self) -> Counts:
        """Soft counts by softmax or sigmoid."""
        exact = exact_type(self.logits.device)
        support, pixels = self.support().to(exact), self._pixels().to(exact)
        if self.labelled:
            return Counts(self.softmax.true_positive, self.softmax.prob_sum, support, pixels)
        probs = self.logits.softmax(1) if self.mode == "multiclass" else self.logits.sigmoid()
        probs = masked(probs, self.valid, self.dtype)
        # For shares between 0 and 1, the overlap is the smaller of the two: only so is p = t the best prediction
        # (Wang et al., "Dice Semimetric Losses", 2023, section 3). For 0 and 1 that is p * t.
        hits = torch.minimum(probs, self.target)
        return Counts(hits.sum(2).to(exact), probs.sum(2).to(exact), support, pixels)

    def support(self) -> Tensor:
        """(N, C): how many pixels are of the class."""
        if not self.labelled:
            return self.target.sum(2)
        ones = torch.ones_like(self.target) if self.valid is None else self.valid.long()
        zeros = self.target.new_zeros(self.target.shape[0], self.num_classes)
        return zeros.scatter_add(1, self.target, ones).to(self.dtype)

    def _pixels(self) -> Tensor:
        n, pixels = self.logits.shape[0], self.logits.shape[2]
        if self.valid is None:
            return torch.full((n, 1), pixels, dtype=self.dtype, device=self.logits.device)
        return self.valid.sum(-1).to(self.dtype).view(n, -1)


class Loss(nn.Module):
    """A loss of logits and target. What it computes is in `evaluate`, so that several can share their inputs."""

    def __init__(self, mode: Mode, ignore_index: int | None, **options: object) -> None:
        super().__init__()
        if mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.mode = mode
        self.ignore_index = ignore_index
        self.options = options
        weights = options.pop("class_weights", None)
        self.register_buffer("class_weights", None if weights is None else torch.as_tensor(weights).float())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.evaluate(Inputs(logits, target, self.mode, self.ignore_index))

    def evaluate(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        shown = {"mode": self.mode, "ignore_index": self.ignore_index} | self.options
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def reduce(losses: Tensor, total: Tensor, reduction: Reduction, shape: torch.Size) -> Tensor:
    """The sum of `losses`, the sum divided by `total` (0 where that is 0), or the losses in `shape`."""
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return losses.view(shape)
    return losses.sum() if reduction == "sum" else divide(losses.sum(), total)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 with a graph where `b` is 0."""
    return a / torch.where(b > 0, b, 1)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_weights(weights: Tensor | None, inputs: Inputs) -> Tensor | None:
    """The class weights as (C,) beside the logits."""
    if weights is None:
        return None
    weights = torch.as_tensor(weights).to(inputs.logits.device, inputs.dtype)
    if weights.shape != (inputs.num_classes,):
        raise UsageError(f"expected {inputs.num_classes} weights, one for each class, got {tuple(weights.shape)}")
    return weights


def _valid(target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Where the target is not `ignore_index`; None where its type cannot hold that, as uint8 cannot hold -100."""
    if ignore_index is None:
        return None
    if target.dtype != torch.bool and not target.is_floating_point():
        limits = torch.iinfo(target.dtype)
        if not limits.min <= ignore_index <= limits.max:  # torch would compare with the number that it wraps to
            return None
    return target != ignore_index


def _check(logits: Tensor, target: Tensor, mode: Mode) -> None:
    check_choice("mode", mode, MODES)
    n, *_ = logits.shape
    per_pixel, per_class = (n, *logits.shape[2:]), tuple(logits.shape)
    if not logits.is_floating_point():
        raise UsageError(f"logits must be floating-point numbers, got {logits.dtype}")
    if logits.ndim < 3:
        raise UsageError(f"logits must be (N, C, H, W), got {tuple(logits.shape)}")
    if target.is_complex():
        raise UsageError(f"target must be real, got {target.dtype}")
    if mode == "multiclass":
        if tuple(target.shape) not in (per_pixel, per_class):
            raise UsageError(
                f"target must be (N, H, W) like logits (N, C, H, W), got {tuple(target.shape)} for "
                f"{tuple(logits.shape)}"
            )
        if target.dtype == torch.bool or target.is_floating_point() != (tuple(target.shape) == per_class):
            raise UsageError(
                "target must be (N, H, W) integer class indices or (N, C, H, W) float shares of the classes, got "
                f"{target.dtype} {tuple(target.shape)}"
            )
    elif mode == "binary" and logits.shape[1] != 1:
        raise UsageError(f"mode 'binary' takes logits (N, 1, H, W), got {tuple(logits.shape)}")
    elif tuple(target.shape) not in ((per_pixel, per_class) if mode == "binary" else (per_class,)):
        raise UsageError(f"target must be {per_class} like the logits in mode {mode!r}, got {tuple(target.shape)}")


def _check_range(target: Tensor, highest: int, ignore_index: int | None, *, what: str) -> None:
    # On a GPU the check would wait for the device; there the data pipeline has checked already.
    if target.is_cuda or torch.compiler.is_compiling() or target.numel() == 0:
        return
    low, high = (value.item() for value in target.aminmax())
    if not (low >= 0 and high <= highest):
        raise UsageError(
            f"target has {what} from {low} to {high}, expected 0 to {highest} or ignore_index={ignore_index}"
        )
