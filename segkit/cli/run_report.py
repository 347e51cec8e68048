"""RunReport: pictures, page and loggers of a run, kept up while it trains; when one fails, training goes on."""

import csv
import dataclasses
import io
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.config import TrainConfig, default_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    from segkit.cli.train_scores import Gallery
    from segkit.data import SegmentationDataset
    from segkit.metrics import ConfusionMatrix
    from segkit.report import Picture, RunPage
    from segkit.training import TrainState

_log = logging.getLogger(__name__)
CELL = 320  # pixels of a photograph's longest side in worst.png and best.png
LARGEST_SHARE = 0.05  # of the time, that pictures may take while a run trains
ABOUT = {
    "train_batch": "Training crops as the model sees them, with their truth",
    "val_predictions": "Validation images, evenly spaced: photograph, truth, prediction",
    "worst": "The validation images with the lowest mIoU, and what was taken for what",
    "best": "The validation images with the highest mIoU",
}


class RunReport:
    """Draws a run's pictures and writes report.html, after the epochs as far as that is cheap, and at the end.

    As a context it closes the loggers where training ends in an error; `finish` does so otherwise.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: "TrainState",
        train: "DataLoader",
        val_set: "SegmentationDataset",
        out: Path,
        device: "torch.device",
    ) -> None:
        from segkit.cli.environment import write_environment
        from segkit.report import batch_picture
        from segkit.training.trackers import Tracking

        self.config, self.out = config, out
        self.class_names = state.model.class_names
        self.environment = write_environment(out, device)
        self.images = (len(train.dataset), len(val_set))
        self.pictures: dict[str, np.ndarray] = {}
        self._next = 0.0
        batch = _first_batch(train)
        self._draw("train_batch", lambda: batch_picture(*batch, self.class_names))
        self._save("train_batch")
        self.tracking = Tracking(config.log, out, settings_text(config), state.history)

    def __enter__(self) -> "RunReport":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is not None:
            self.tracking.close()

    def update(self, state: "TrainState") -> None:
        """Logs the epoch that has just ended, and brings curves.png and report.html up to date unless that is dear."""
        from segkit.report import save_curves

        self.tracking.log(state.history[-1])
        started = time.monotonic()
        if started < self._next:
            return
        self._written("curves.png", lambda file: save_curves(state.history, file))
        self._write_page(state, f"In training: epoch {state.epoch} of {self.config.epochs} is done.")
        now = time.monotonic()
        self._next = now + (now - started) / LARGEST_SHARE

    def finish(self, state: "TrainState", confusion: "ConfusionMatrix", gallery: "Gallery") -> None:
        """Draws and writes everything; see `score_best` for the arguments."""
        from segkit.cli.train_scores import scored_picture
        from segkit.data import read_image
        from segkit.report import save_class_iou, save_confusion, save_curves

        names, matrix = self.class_names, confusion.matrix
        self._written("curves.png", lambda file: save_curves(state.history, file))
        iou, miou = best_iou(state), state.best_miou
        self._written("class_iou.png", lambda file: save_class_iou(names, iou, file, miou=miou))
        self._written("confusion_matrix.csv", lambda file: _write_matrix(matrix, names, file))
        self._written("confusion_matrix.png", lambda file: save_confusion(matrix, names, file))
        self._draw("worst", lambda: scored_picture(gallery.worst.rows(), names, CELL))
        self._draw("best", lambda: scored_picture(gallery.best.rows(), names, CELL))
        self._draw("val_predictions", lambda: scored_picture(gallery.even, names))
        self._write_page(state, self._ending(state), confusion)
        for name in ("worst", "best", "val_predictions"):  # the last one says that the run is finished
            self._save(name)
        if (drawn := self.out / "confusion_matrix.png").is_file():
            self.pictures["confusion_matrix"] = read_image(drawn)
        self.tracking.show(self.pictures, state.epoch)
        self.tracking.close()

    def _ending(self, state: "TrainState") -> str:
        if state.epoch < self.config.epochs:
            return f"Stopped early, after {state.epoch} of {self.config.epochs} epochs."
        return f"Finished, after {state.epoch} epochs."

    def _draw(self, name: str, draw: Callable[[], "np.ndarray"]) -> None:
        with told(self.out / f"{name}.png"):
            self.pictures[name] = draw()

    def _save(self, name: str) -> None:
        from segkit.data import write_image

        if name in self.pictures:
            self._written(f"{name}.png", lambda file: write_image(file, self.pictures[name]))

    def _write_page(self, state: "TrainState", status: str, confusion: "ConfusionMatrix | None" = None) -> None:
        from segkit.report import render, write_whole

        self._written(
            "report.html", lambda file: write_whole(file, render(self._page(state, status, confusion)).encode())
        )

    def _page(self, state: "TrainState", status: str, confusion: "ConfusionMatrix | None") -> "RunPage":
        from segkit.report import Picture, RunPage

        settings = settings_text(self.config)
        changed = {name for name in settings if getattr(self.config, name) != default_of(self.config, name)}
        order = [name for name in ("worst", "best", "val_predictions", "train_batch") if name in self.pictures]
        drawn = self.out / "confusion_matrix.png"
        return RunPage(
            name=self.out.name,
            status=status,
            summary=self._summary(state),
            history=state.history,
            best_epoch=state.best_epoch,
            class_names=self.class_names,
            iou=best_iou(state),
            confusion=confusion,
            confusion_picture=_confusion_picture(drawn) if confusion is not None and drawn.is_file() else None,
            pictures=[Picture.photograph(ABOUT[name], ABOUT[name], self.pictures[name]) for name in order],
            commands=self._commands(),
            changed={name: text for name, text in settings.items() if name in changed - {"out", "resume"}},
            settings=settings,
            environment={name: str(value) for name, value in self.environment.items()},
        )

    def _summary(self, state: "TrainState") -> dict[str, str]:
        seconds = sum(row["time"] for row in state.history)
        shown = {
            f"classes; {self.images[0]} training, {self.images[1]} validation images": f"{len(self.class_names)}",
            f"parameters of {self.config.model} on {self.config.backbone}": f"{_millions(state):.1f} M",
            f"for {len(state.history)} epochs": _duration(seconds),
        }
        if not state.best_epoch:
            return shown
        averaged = ", averaged weights" if state.best_weights == "ema" else ""
        best = {f"best mIoU, epoch {state.best_epoch}{averaged}": f"{100 * state.best_miou:.2f} %"}
        accuracy = state.history[state.best_epoch - 1]["pixel_accuracy"]
        return best | ({} if averaged else {"pixel accuracy there": f"{100 * accuracy:.2f} %"}) | shown

    def _commands(self) -> dict[str, str]:
        run, config = shlex.quote(str(self.out)), self.config
        patience = f" --early-stopping {2 * config.early_stopping}" if config.early_stopping else ""
        data = "--data test.json --images photographs/"
        if config.val and not config.masks and len(config.images) <= 1:
            data = shlex.join(
                ["--data", *map(str, config.val), *(["--images", str(config.images[0])] if config.images else [])]
            )
        return {
            "Segment photographs": f"python infer.py --weights {run} --source photographs/",
            "Score on images whose truth is known": f"python -m segkit evaluate --weights {run} {data}",
            "Train on": f"python train.py --resume {run} --epochs {2 * config.epochs}{patience}",
        }

    def _written(self, name: str, write: Callable[[Path], None]) -> None:
        with told(self.out / name):
            write(self.out / name)


@contextmanager
def told(file: Path) -> Iterator[None]:
    """A picture that fails, for whatever reason, is told in a line: none is worth a training."""
    try:
        yield
    except Exception as error:
        _log.warning("%s is left out: %s", file, f"{error}" or type(error).__name__)


def best_iou(state: "TrainState") -> list[float]:
    """The IoU of each class by the best weights so far, NaN where there is none."""
    if not state.best_epoch:
        return [math.nan] * len(state.model.class_names)
    prefix = "ema_" if state.best_weights == "ema" else ""
    best = state.history[state.best_epoch - 1]
    return [best[f"{prefix}iou/{name}"] for name in state.model.class_names]


def settings_text(config: TrainConfig) -> dict[str, str]:
    """All settings as one would type them."""
    return {field.name: _text(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _first_batch(loader: "DataLoader") -> tuple[list["np.ndarray"], list["np.ndarray"]]:
    """Crops of the first batch as the model sees them, and their labels; at most eight."""
    batch = [loader.dataset[sample] for sample in next(iter(loader.batch_sampler))[:8]]
    return [image.permute(1, 2, 0).numpy() for image, _ in batch], [target.numpy() for _, target in batch]


def _write_matrix(matrix: "np.ndarray", class_names: Sequence[str], file: Path) -> None:
    """Pixel counts as CSV: a row for each true class, a column for each predicted one."""
    from segkit.report import write_whole

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth", *class_names])
    writer.writerows([name, *row] for name, row in zip(class_names, matrix.tolist(), strict=True))
    write_whole(file, text.getvalue().encode())


def _confusion_picture(file: Path) -> "Picture":
    from segkit.report import Picture

    alt = "Confusion matrix: rows are true classes, columns predictions; the largest confusions are listed below"
    return Picture.drawing("Which share of each true class is taken for which class, by the best weights", alt, file)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _millions(state: "TrainState") -> float:
    return sum(p.numel() for p in state.model.parameters()) / 1e6
