"""TrainState: everything that changes while training."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3

from segkit.models import Segmenter
from segkit.training.schedule import Schedule


@dataclass
class TrainState:
    """Everything that changes while training, and what it may not be mixed up with.

    Attributes:
        ema: The moving average of the weights, if there is one.
        epoch: Number of finished epochs.
        step: Batches of the current epoch that are done.
        updates: Steps since the start, those included that changed nothing.
        overflows: Updates that fp16 skipped in a row.
        left_out: Steps of the current epoch that were not finite and changed nothing.
        loss_sum: Sum of the loss over the images of the current epoch so far.
        image_count: How many they are.
        seconds: What the current epoch has taken so far.
        best_miou: Best validation mIoU so far.
        best_epoch: The epoch that reached it.
        best_weights: Which weights reached it, `raw` or `ema`.
        stale_epochs: Epochs from then to the last validation.
        finished: Whether the run has reached its end: all epochs are done, or it was stopped early.
        history: One row of results for each finished epoch.
        settings: Settings that a resumed run must share.
        data: Digests of the data, `val` that of what validates; a resumed run must have the same.
        steps_per_epoch: Updates in an epoch, which the schedule counts by.
        random: The random states to go on with; None for those of the process.
    """

    model: Segmenter
    optimizer: torch.optim.Optimizer
    scheduler: Schedule
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    epoch: int = 0
    step: int = 0
    updates: int = 0
    overflows: int = 0
    left_out: int = 0
    loss_sum: float = 0.0
    image_count: int = 0
    seconds: float = 0.0
    best_miou: float = -math.inf
    best_epoch: int = 0
    best_weights: str = "raw"
    stale_epochs: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    steps_per_epoch: int = 0
    random: dict[str, Any] | None = None

    def end_epoch(self, row: dict[str, float], *, validated: bool = True) -> None:
        """Moves on to the start of the next epoch; `row` is what this one has reached."""
        self.epoch += 1
        self.step, self.left_out, self.loss_sum, self.image_count, self.seconds = 0, 0, 0.0, 0, 0.0
        self.history.append(row)
        if validated:  # without, nobody knows whether it was better
            self.stale_epochs = self.epoch - self.best_epoch
            self.scheduler.end_epoch(loss=row["val_loss"], miou=row["miou"])

    def begin_epoch_anew(self) -> None:
        """Moves back to the start of the current epoch, counted in epochs of `steps_per_epoch`."""
        self.step, self.left_out, self.loss_sum, self.image_count, self.seconds = 0, 0, 0.0, 0, 0.0
        self.updates = self.epoch * self.steps_per_epoch

    def forget_best(self) -> None:
        """The next validation is the best one so far: its images are not those of the ones before."""
        self.best_miou, self.best_epoch, self.stale_epochs = -math.inf, 0, 0
        self.scheduler.forget_best()
