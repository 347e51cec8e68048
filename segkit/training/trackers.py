"""TensorBoard and Weights & Biases in addition to results.csv. Both are optional, and their errors stop no training."""

import importlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segkit.names import check_known

_log = logging.getLogger(__name__)
WANDB_ID = "wandb-id.txt"
WANDB_SECONDS = 60.0  # longest wait for the server, at the beginning and at the end
Row = Mapping[str, float]


class Tracker(Protocol):
    """Show a run in another program. Any call may raise; `Tracking` handles the error."""

    def log(self, row: Row) -> None:
        """Log a row of results.csv."""

    def show(self, name: str, picture: np.ndarray, epoch: int) -> None:
        """Log a picture (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """Write everything that is not written yet, and end."""


class TensorBoard:
    """Write event files to `out`/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], history: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Log the history again after a purge, so that a resumed run has every epoch exactly once.
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
    """Log to a run of Weights & Biases; its id is kept in the run folder. The user is never asked anything.

    `WANDB_MODE`, `WANDB_PROJECT` and its other environment variables are respected. Without an account the run is
    stored on the disk.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], history: Sequence[Row]) -> None:
        wandb = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or "online"
        if mode in ("online", "run", "shared") and not _is_logged_in(wandb):
            _log.warning(
                "wandb has no account here: the run is stored in %s; upload it with `wandb sync`", out / "wandb"
            )
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
            if row["epoch"] >= self.run.step:  # the server has the earlier steps
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
    """Pass rows and pictures on to trackers. A tracker that raises is named in a warning, and not used any more.

    Args:
        names: Names of `TRACKERS`.
        out: The run folder.
        settings: Plain values that the trackers store with the run.
        history: The rows of the finished epochs, if a run is resumed.

    Raises:
        UsageError: There is no tracker of that name.
    """

    def __init__(
        self, names: Sequence[str], out: Path, settings: Mapping[str, Any] | None = None, history: Sequence[Row] = ()
    ) -> None:
        for name in names:
            check_known("logger", name, TRACKERS)
        self.trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            tracker = self._guarded(name, TRACKERS[name], out, settings or {}, history)
            if tracker is not None:
                self.trackers[name] = tracker

    def log(self, row: Row) -> None:
        """Log a row of results.csv."""
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, tracker.log, row)

    def show(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Log pictures (H, W, 3) uint8 RGB by name."""
        for name, tracker in list(self.trackers.items()):
            for title, picture in pictures.items():
                if name in self.trackers:
                    self._guarded(name, tracker.show, title, picture, epoch)

    def close(self) -> None:
        """Close all trackers, which write everything that is not written yet."""
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
            _log.warning("`log=%s` is off: %s; to use it: pip install %s", name, _first_line(error), name)
        except Exception as error:  # loggers raise errors of many kinds, for networks, accounts, disks and bugs
            _log.warning("`log=%s` is off: %s; training continues", name, _first_line(error))
        self.trackers.pop(name, None)
        return None


def _is_logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # releases before 0.31 have no argument `prompt`
        return wandb.api.api_key is not None


def _scalars(row: Row) -> dict[str, float]:
    """Return the row without its epoch, which is the step, and without values that are NaN, as of absent classes."""
    return {name: float(value) for name, value in row.items() if name != "epoch" and not math.isnan(value)}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
