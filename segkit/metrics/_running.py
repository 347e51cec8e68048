"""RunningCounts: what the metrics share, one tensor of sums that grows, merges, travels and is saved."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segkit.metrics._inputs import check_classes

Same = TypeVar("Same", bound="RunningCounts")


class RunningCounts:
    """Sums over all images seen, in `counts`, which is never changed in place: what was read of it stays.

    Args:
        shape: Of the counts.
        dtype: Of the counts.
        num_classes: Number of classes C.
        ignore_index: Target label that is left out; None for none.
        class_names: For tables; `class_0 ...` by default.
        exclude: Classes that are left out of the means.
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
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.exclude = tuple(exclude)
        self._shape, self._dtype = tuple(shape), dtype
        self.counts = torch.zeros(self._shape, dtype=dtype)

    def merge(self: Same, other: Same) -> None:
        """Adds the counts of another one with the same settings; `+=` does the same."""
        if type(other) is not type(self) or not self._fits(other.counts):
            raise ValueError(f"cannot merge {_describe(other)} into {_describe(self)}")
        self._add(other.counts)

    def __iadd__(self: Same, other: Same) -> Same:
        self.merge(other)
        return self

    def all_reduce(self) -> None:
        """Adds the counts of all ranks, on all ranks; once, before `compute()`. Without a process group, nothing."""
        self.counts = sum_over_ranks(self.counts)

    def reset(self) -> None:
        """Forgets what was counted."""
        self.counts = torch.zeros(self._shape, dtype=self._dtype, device=self.counts.device)

    def state_dict(self) -> dict[str, Tensor]:
        """What was counted, for `torch.save`."""
        return {"counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state_dict()` gave, with the same settings."""
        if set(state) != {"counts"} or not self._fits(state["counts"]):
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            raise ValueError(f"the state must be counts {self._shape}, got {shapes}")
        self.counts = state["counts"].to(self._dtype, copy=True)

    def _add(self, counts: Tensor) -> None:
        # To the accelerator where one of the two is on it, since the other way the processor would wait.
        device = self.counts.device if counts.device.type == "cpu" else counts.device
        self.counts = self.counts.to(device, non_blocking=True) + counts.to(device, non_blocking=True)

    def _fits(self, counts: Tensor) -> bool:
        return counts.shape == self._shape


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every rank's tensor of this shape; without a process group, the tensor itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    device = "cpu" if "cpu" in dist.get_backend_config() else torch.accelerator.current_accelerator()
    total = x.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(x.device)


def _describe(counts: object) -> str:
    classes = getattr(counts, "num_classes", None)
    return f"{type(counts).__name__} of {classes} classes" if classes else type(counts).__name__
