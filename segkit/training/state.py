"""TrainState: everything that changes during training; and the random states of the process."""

import math
import os
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3

from segkit.models import Segmenter
from segkit.training.schedule import Schedule


@dataclass
class TrainState:
    """Everything that changes during training, and the settings and data that a resumed run must share.

    Attributes:
        model: The model.
        optimizer: The optimizer of its parameters.
        scheduler: The schedule of the learning rate.
        scaler: The scaler of the gradients; disabled without fp16.
        ema: The moving average of the weights, or None.
        epoch: Number of finished epochs.
        step: Number of finished batches of the current epoch.
        updates: Number of steps since the start, including skipped ones.
        overflows: Number of steps in a row that fp16 skipped.
        left_out: Number of steps of the current epoch that were skipped because they were not finite.
        loss_sum: Sum of the loss over the images of the current epoch so far.
        image_count: Number of these images.
        seconds: Duration of the current epoch so far.
        best_miou: Best validation mIoU so far.
        best_epoch: The epoch that reached it.
        best_weights: The weights that reached it, `raw` or `ema`.
        stale_epochs: Number of epochs from the best one to the last validation.
        finished: Whether the run has reached its end: all epochs are done, or it was stopped early.
        history: One row of results for each finished epoch.
        settings: Settings that a resumed run must share.
        data: Digests of the data under `train` and `val`; a resumed run must have the same.
        steps_per_epoch: Number of updates in an epoch, for the schedule.
        random: The random states to continue with; None to continue with the ones of the process.
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
        """Move on to the start of the next epoch.

        Args:
            row: The results of the epoch that ends.
            validated: Whether the epoch was validated. If not, `stale_epochs` and the schedule do not change.
        """
        self.epoch += 1
        self._reset_epoch()
        self.history.append(row)
        if validated:
            self.stale_epochs = self.epoch - self.best_epoch
            self.scheduler.end_epoch(loss=row["val_loss"], miou=row["miou"])

    def restart_epoch(self) -> None:
        """Move back to the start of the current epoch, counted in epochs of `steps_per_epoch`."""
        self._reset_epoch()
        self.updates = self.epoch * self.steps_per_epoch

    def forget_best(self) -> None:
        """Forget the best validation, because later ones are on other images."""
        self.best_miou, self.best_epoch, self.stale_epochs = -math.inf, 0, 0
        self.scheduler.forget_best()

    def _reset_epoch(self) -> None:
        self.step, self.left_out, self.loss_sum, self.image_count, self.seconds = 0, 0, 0.0, 0, 0.0


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch on all devices. This changes the random states of the whole process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from this global state
    torch.manual_seed(seed)


def make_deterministic() -> None:
    """Make torch use deterministic kernels in the whole process, and warn of operations that have none.

    Only a workflow calls this. It also sets the environment variable CUBLAS_WORKSPACE_CONFIG, as torch requires.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Any]:
    """Return the random states of Python, numpy and torch, in types that `torch.load(weights_only=True)` accepts."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set the random states that `random_state` returned; GPUs that this machine lacks are skipped."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)


def has_ended(epoch: int, stale_epochs: int, epochs: int, early_stopping: int) -> bool:
    """Return whether a training has reached its last epoch, or has gone too long without a better mIoU.

    Args:
        epoch: Number of finished epochs.
        stale_epochs: Number of epochs since the best validation.
        epochs: Number of epochs of the whole training.
        early_stopping: Number of stale epochs after which to stop; 0 for never.
    """
    return epoch >= epochs or 0 < early_stopping <= stale_epochs
