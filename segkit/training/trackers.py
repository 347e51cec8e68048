"""TensorBoard and Weights & Biases beside results.csv: optional, and whatever they do, training goes on."""

import importlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segkit.errors import UsageError

_log = logging.getLogger(__name__)
WANDB_ID = "wandb-id.txt"
WANDB_SECONDS = 60.0  # that its server is waited for, at the beginning and at the end
Row = Mapping[str, float]


class Tracker(Protocol):
    """What shows a run somewhere else; each call may raise, see `Tracking`."""

    def log(self, row: Row) -> None:
        """Takes a row of results.csv."""

    def show(self, name: str, picture: np.ndarray, epoch: int) -> None:
        """Takes a picture (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """Writes what has not been written yet."""


class TensorBoard:
    """Event files in `out`/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], history: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was logged before is told again, and the step tells readers to forget it: no epoch is missing or double.
        self.writer = SummaryWriter(out / "tensorboard", purge_step=1 if history else None)
        for row in history:
            self.log(row)

    def log(self, row: Row) -> None:
        for name, value in _scalars(row).items():
            self.writer.add_scalar(name, value, int(row["epoch"]))

    def show(self, name: str, picture: np.ndarray, epoch: int) -> None:
        self.writer.add_image(name, picture, epoch, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases; its id is kept in the run folder. Never asks for anything.

    `WANDB_MODE`, `WANDB_PROJECT` and the other variables hold. Without an account the run is kept on the disk.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], history: Sequence[Row]) -> None:
        wandb = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or "online"
        if mode in ("online", "run", "shared") and not _is_logged_in(wandb):
            _log.warning("wandb has no account here: the run is kept in %s, for `wandb sync`", out / "wandb")
            mode = "offline"
        id_file = out / WANDB_ID
        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "segkit",
            name=out.name,
            id=id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else None,
            resume="allow",
            dir=str(out),
            mode=mode,
            config=dict(settings),
            settings={"init_timeout": WANDB_SECONDS, "finish_timeout": WANDB_SECONDS},
        )
        id_file.write_text(f"{self.run.id}\n", encoding="utf-8")
        for row in history:
            if row["epoch"] >= self.run.step:  # the steps before are there already
                self.log(row)

    def log(self, row: Row) -> None:
        self.run.log(_scalars(row), step=int(row["epoch"]))

    def show(self, name: str, picture: np.ndarray, epoch: int) -> None:
        self.run.log({name: self.image(picture)}, step=epoch)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], Sequence[Row]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


class Tracking:
    """Hands rows and pictures to trackers; one that raises is named in a line, and left out from there on.

    Args:
        names: Of `TRACKERS`.
        out: The run folder.
        settings: Plain values that the trackers keep with the run.
        history: The rows of the epochs that are finished, where a run is resumed.
    """

    def __init__(
        self, names: Sequence[str], out: Path, settings: Mapping[str, Any] | None = None, history: Sequence[Row] = ()
    ) -> None:
        if unknown := [name for name in names if name not in TRACKERS]:
            raise UsageError(f"unknown logger {unknown[0]!r}, expected some of {', '.join(TRACKERS)}")
        self.trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            tracker = self._guarded(name, TRACKERS[name], out, settings or {}, history)
            if tracker is not None:
                self.trackers[name] = tracker

    def log(self, row: Row) -> None:
        """Takes a row of results.csv."""
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, tracker.log, row)

    def show(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Takes pictures (H, W, 3) uint8 RGB by name."""
        for name, tracker in list(self.trackers.items()):
            for title, picture in pictures.items():
                if name in self.trackers:
                    self._guarded(name, tracker.show, title, picture, epoch)

    def close(self) -> None:
        """Lets the trackers write what they have not written yet."""
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, tracker.close)
        self.trackers.clear()

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _guarded(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except ImportError as error:
            _log.warning("--log %s is off: %s; to have it: pip install %s", name, _first_line(error), name)
        except Exception as error:  # a logger may fail in any way, of network, account, disk or its own
            _log.warning("--log %s is off: %s; training goes on", name, _first_line(error))
        self.trackers.pop(name, None)
        return None


def _is_logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # releases before 0.31 cannot be told not to ask
        return wandb.api.api_key is not None


def _scalars(row: Row) -> dict[str, float]:
    """The row without its epoch, which is the step, and without classes that do not occur."""
    return {name: float(value) for name, value in row.items() if name != "epoch" and not math.isnan(value)}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
