"""RunningCounts: the base of the metrics, a tensor of sums that can be merged, reduced over ranks and saved."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segkit.errors import UsageError
from segkit.labels import check_ignore_index
from segkit.metrics._inputs import check_classes

Same = TypeVar("Same", bound="RunningCounts")


class RunningCounts:
    """Hold the sums over all images seen in the tensor `counts`.

    `counts` is replaced, never changed in place, so a reference to it stays valid after the next update.

    Args:
        shape: Shape of `counts`.
        dtype: Type of `counts`.
        num_classes: Number of classes C.
        ignore_index: Target label of the pixels to ignore. None ignores no pixel.
        class_names: Names for tables. By default `class_0`, `class_1` and so on.
        exclude: Labels of the classes that do not enter the means.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        num_classes: int,
        ignore_index: int | None,
        class_names: Sequence[str] | None,
        exclude: Sequence[int],
    ) -> None:
        self.class_names, self.included = check_classes(num_classes, class_names, exclude)
        check_ignore_index(num_classes, ignore_index)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.exclude = tuple(exclude)
        self._shape, self._dtype = tuple(shape), dtype
        self.counts = torch.zeros(self._shape, dtype=dtype)

    def merge(self: Same, other: Same) -> None:
        """Add the counts of another metric with the same settings; `a += b` does the same.

        Raises:
            UsageError: `other` is another kind of metric, or has another number of classes or bins.
        """
        if type(other) is not type(self) or not self._fits(other.counts):
            raise UsageError(f"cannot merge {_describe(other)} into {_describe(self)}")
        self._add(other.counts)

    def __iadd__(self: Same, other: Same) -> Same:
        self.merge(other)
        return self

    def all_reduce(self) -> None:
        """Sum the counts of all ranks, on every rank. Call once, before `compute()`.

        Does nothing without a process group.
        """
        self.counts = sum_over_ranks(self.counts)

    def reset(self) -> None:
        """Set all counts to zero."""
        self.counts = torch.zeros(self._shape, dtype=self._dtype, device=self.counts.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts, for `torch.save`."""
        return {"counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict()` of a metric with the same settings.

        Raises:
            UsageError: The state has other keys, or counts of another shape.
        """
        if set(state) != {"counts"} or not self._fits(state["counts"]):
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            raise UsageError(f"`state` must be counts {self._shape}, got {shapes}")
        self.counts = state["counts"].to(self._dtype, copy=True)

    def _add(self, counts: Tensor) -> None:
        # If one of the two is on an accelerator, add there: a copy to the CPU would wait for the device.
        device = self.counts.device if counts.device.type == "cpu" else counts.device
        self.counts = self.counts.to(device, non_blocking=True) + counts.to(device, non_blocking=True)

    def _fits(self, counts: Tensor) -> bool:
        return counts.shape == self._shape


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of this tensor over all ranks, or the tensor itself without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    device = "cpu" if "cpu" in dist.get_backend_config() else torch.accelerator.current_accelerator()
    total = x.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(x.device)


def _describe(counts: object) -> str:
    classes = getattr(counts, "num_classes", None)
    return f"{type(counts).__name__} of {classes} classes" if classes else type(counts).__name__
