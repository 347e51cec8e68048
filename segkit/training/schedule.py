"""The learning rate of each update: timm's schedules with a linear warm-up, and plateaus."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import timm.scheduler
import torch
from timm.scheduler.scheduler import Scheduler

from segkit.errors import UsageError
from segkit.names import check_known

Direction = Literal["min", "max"]


class Plateau:
    """A factor of the learning rate that shrinks if a score makes no progress for more than `patience` epochs.

    The same rule as `torch.optim.lr_scheduler.ReduceLROnPlateau`, but as a factor, so that it can be combined with a
    warm-up.

    Args:
        direction: `min` for a loss, `max` for a score.
        patience: Number of epochs without progress that change nothing; the next one lowers the factor.
        decay: Number in 0..1 by which the factor is multiplied.
        threshold: Smallest change that counts as progress, as a share of the best score.
        floor: Smallest factor.

    Attributes:
        factor: The current factor, 1 at first.
        best: The best score so far.
        stale: Number of epochs since the last progress.
    """

    def __init__(
        self,
        direction: Direction,
        *,
        patience: int = 2,
        decay: float = 0.1,
        threshold: float = 1e-4,
        floor: float = 0.0,
    ) -> None:
        if direction not in ("min", "max"):
            raise UsageError(f"`direction` must be 'min' or 'max', got {direction!r}")
        self.direction = direction
        self.patience = patience
        self.decay = decay
        self.threshold = threshold
        self.floor = floor
        self.factor = 1.0
        self.forget_best()

    def forget_best(self) -> None:
        """Forget the best score, so that the next one becomes the best."""
        self.best = math.inf if self.direction == "min" else -math.inf
        self.stale = 0

    def step(self, score: float) -> None:
        """Update the factor after an epoch.

        Args:
            score: The score of the epoch. NaN counts as no progress.
        """
        if self._better(score):
            self.best, self.stale = score, 0
            return
        self.stale += 1
        if self.stale > self.patience:
            self.factor, self.stale = max(self.factor * self.decay, self.floor), 0

    def _better(self, score: float) -> bool:
        if math.isinf(self.best):
            return math.isfinite(score)
        margin = abs(self.best) * self.threshold
        return score < self.best - margin if self.direction == "min" else score > self.best + margin


class Schedule:
    """Set the learning rate of every parameter group before each update; groups may have an `lr_scale`.

    Args:
        shape: A scheduler of timm that counts updates.
        plateau: A further factor of the rate, or None.
        monitor: The validation result that the plateau looks at.

    Attributes:
        factor: Factor of all rates from the next update on, 1 at first. It is saved in checkpoints.
    """

    def __init__(
        self, shape: Scheduler, plateau: Plateau | None = None, monitor: Literal["loss", "miou"] = "loss"
    ) -> None:
        self.shape = shape
        self.plateau = plateau
        self.monitor = monitor
        self.factor = 1.0

    def step_update(self, update: int) -> None:
        """Set the rates of update number `update`, from 0. Call this before the update."""
        self.shape.step_update(update)
        factor = self.factor * (1.0 if self.plateau is None else self.plateau.factor)
        for group in self.shape.optimizer.param_groups:
            group["lr"] *= factor

    def end_epoch(self, *, loss: float, miou: float) -> None:
        """Update the plateau with the results of a validation. Call this after each epoch that has one."""
        if self.plateau is not None:
            self.plateau.step(loss if self.monitor == "loss" else miou)

    def forget_best(self) -> None:
        """Forget the best validation, because later ones are on other images."""
        if self.plateau is not None:
            self.plateau.forget_best()

    def state_dict(self) -> dict[str, Any]:
        """Return the values that do not follow from the settings and the number of updates."""
        plateau = self.plateau and {name: getattr(self.plateau, name) for name in ("factor", "best", "stale")}
        return {"factor": self.factor, "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the values that `state_dict` returned."""
        self.factor = state["factor"]
        for name, value in (state["plateau"] or {}).items():
            setattr(self.plateau, name, value)


def create_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str = "cosine",
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_factor: float = 0.01,
    min_lr: float = 0.0,
    monitor: Literal["loss", "miou"] = "loss",
    patience: int = 2,
    plateau_factor: float = 0.1,
    milestones: Sequence[float] = (),
) -> Schedule:
    """Create the schedule of a training: a linear warm-up, then the named course.

    Args:
        optimizer: The optimizer. Its learning rate is the highest one.
        name: `cosine`, `poly` (power 0.9) and `tanh` fall to `min_lr`; `multistep` is multiplied by `plateau_factor`
            at each of the `milestones`; `constant` stays; `plateau` is multiplied by `plateau_factor` whenever the
            validation makes no progress for more than `patience` epochs.
        epochs: Number of epochs of the whole training.
        steps_per_epoch: Number of updates in an epoch.
        warmup_epochs: Number of epochs over which the rate rises.
        warmup_factor: Rate at the start of the warm-up, as a share of the highest.
        min_lr: Lowest rate after the warm-up; groups with an `lr_scale` have their share of it.
        monitor: The result that `plateau` looks at: the validation `loss` (lower is better) or the `miou` (higher is).
        patience: Number of validations without progress after which `plateau` waits no longer.
        plateau_factor: Factor of `plateau` and `multistep`, below 1.
        milestones: Epochs, from the start, at which `multistep` lowers the rate.

    Raises:
        UsageError: There is no such schedule or monitor.
    """
    check_known("schedule", name, SHAPES)
    check_known("`monitor`", monitor, DIRECTIONS)
    steps = epochs * steps_per_epoch
    warmup = min(round(warmup_epochs * steps_per_epoch), steps - 1)
    lr = optimizer.defaults["lr"]
    options = {"warmup_t": warmup, "warmup_prefix": True, "warmup_lr_init": lr * warmup_factor, "t_in_epochs": False}
    if name == "multistep":
        # timm counts from the end of the warm-up and lowers the rate one update before the milestone.
        updates = [round(epoch * steps_per_epoch) - warmup + 1 for epoch in sorted(milestones)]
        build = partial(_multistep, updates=updates, factor=plateau_factor)
    else:
        build = SHAPES[name if steps - warmup > 1 else "constant"]
    shape = build(optimizer, steps - warmup, min_lr, options)
    if name != "plateau":
        return Schedule(shape)
    plateau = Plateau(DIRECTIONS[monitor], patience=patience, decay=plateau_factor, floor=min_lr / lr)
    return Schedule(shape, plateau, monitor)


def _cosine(optimizer: torch.optim.Optimizer, steps: int, min_lr: float, options: dict[str, Any]) -> Scheduler:
    return timm.scheduler.CosineLRScheduler(optimizer, t_initial=steps, lr_min=min_lr, **options)


def _poly(optimizer: torch.optim.Optimizer, steps: int, min_lr: float, options: dict[str, Any]) -> Scheduler:
    """Return a schedule with power 0.9. Source: Chen et al., "DeepLab", 2017, section 4.1."""
    return timm.scheduler.PolyLRScheduler(optimizer, t_initial=steps, power=0.9, lr_min=min_lr, **options)


def _tanh(optimizer: torch.optim.Optimizer, steps: int, min_lr: float, options: dict[str, Any]) -> Scheduler:
    return timm.scheduler.TanhLRScheduler(optimizer, t_initial=steps, lr_min=min_lr, **options)


def _multistep(
    optimizer: torch.optim.Optimizer,
    steps: int,
    min_lr: float,
    options: dict[str, Any],
    *,
    updates: Sequence[int] = (),
    factor: float = 1.0,
) -> Scheduler:
    return timm.scheduler.MultiStepLRScheduler(optimizer, decay_t=list(updates), decay_rate=factor, **options)


def _constant(optimizer: torch.optim.Optimizer, steps: int, min_lr: float, options: dict[str, Any]) -> Scheduler:
    return timm.scheduler.StepLRScheduler(optimizer, decay_t=steps, decay_rate=1.0, **options)


DIRECTIONS: dict[str, Direction] = {"loss": "min", "miou": "max"}
SHAPES: dict[str, Callable[..., Scheduler]] = {
    "cosine": _cosine,
    "poly": _poly,
    "tanh": _tanh,
    "multistep": _multistep,
    "constant": _constant,
    "plateau": _constant,
}
