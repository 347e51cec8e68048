"""RunReport: the pictures and report.html of a training run, updated while it trains."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segkit.console import counted
from segkit.data import read_image, write_image
from segkit.files import write_csv, write_whole
from segkit.metrics import ConfusionMatrix
from segkit.report.gallery import Gallery, gallery_picture
from segkit.report.page import Picture, RunPage, render
from segkit.report.pictures import MATPLOTLIB_FAULT, batch_picture, save_class_iou, save_confusion, save_curves
from segkit.runs import RunFolder

_log = logging.getLogger(__name__)
CELL = 320  # longest side of a photograph in worst.png and best.png, in pixels
LARGEST_SHARE = 0.05  # share of the training time that curves and page may take
CAPTIONS = {
    "worst": "The validation images with the lowest mIoU, and their largest confusions",
    "best": "The validation images with the highest mIoU",
    "val_predictions": "Validation images, evenly spaced: photograph, truth, prediction",
    "train_batch": "Training crops as the model sees them, with their labels",
}
CONFUSION_CAPTIONS = (
    "What the best weights predict for the pixels of each true class",
    "Confusion matrix: rows are true classes, columns predictions; the largest confusions are in the table",
)


@dataclass(frozen=True)
class RunFacts:
    """What report.html shows of a run apart from its results.

    Attributes:
        class_names: Names of the classes, in label order.
        model: Decoder and backbone, such as "fpn on tf_efficientnet_b3".
        parameters: Number of parameters.
        images: Numbers of training and of validation images.
        epochs: Number of epochs at which the run ends.
        settings: All settings as text, by name.
        changed: Names of the settings that are not the default.
        commands: Shell commands for what to do next, by their purpose.
        environment: Versions, device and time as text, by name.
    """

    class_names: Sequence[str]
    model: str
    parameters: int
    images: tuple[int, int]
    epochs: int
    settings: Mapping[str, str] = field(default_factory=dict)
    changed: Collection[str] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


class RunResults(NamedTuple):
    """What a run has reached so far.

    Attributes:
        history: A row of results.csv for each finished epoch.
        best_epoch: The epoch with the best validation mIoU; 0 before the first validation.
        best_miou: Its mIoU, in [0, 1].
        best_weights: The weights that reached it: "raw", or "ema" for the averaged ones.
        iou: IoU of each class by these weights, if it is known from elsewhere than the row of the best epoch.
    """

    history: Sequence[Mapping[str, float]] = ()
    best_epoch: int = 0
    best_miou: float = -math.inf
    best_weights: str = "raw"
    iou: Sequence[float] | None = None

    def best_row(self) -> Mapping[str, float] | None:
        """Return the row of the best epoch.

        None if there is none: before the first validation; or if the run was killed after the best weights were saved,
        and their epoch was trained again with another result.
        """
        row = self.history[self.best_epoch - 1] if 1 <= self.best_epoch <= len(self.history) else {}
        return row if row.get(f"{self._prefix}miou") == self.best_miou else None

    def best_iou(self, class_names: Sequence[str]) -> list[float]:
        """Return the IoU of each class by the best weights, in [0, 1]; NaN for a class without one."""
        if self.iou is not None:
            return list(self.iou)
        row = self.best_row() or {}
        return [row.get(f"{self._prefix}iou/{name}", math.nan) for name in class_names]

    @property
    def _prefix(self) -> str:
        return "ema_" if self.best_weights == "ema" else ""


class RunReport:
    """Draw the pictures of a run and write report.html.

    A picture that fails is logged and skipped, because a picture must not end a training. Without matplotlib there are
    no charts.

    Args:
        run: The run folder.
        facts: What the page shows of the run.
        largest_share: Share of the training time that `update` may take.

    Attributes:
        pictures: The pictures by name, each (H, W, 3) uint8 RGB.
    """

    def __init__(self, run: RunFolder, facts: RunFacts, *, largest_share: float = LARGEST_SHARE) -> None:
        self.run, self.facts = run, facts
        self.pictures: dict[str, np.ndarray] = {}
        self._largest_share = largest_share
        self._next = 0.0
        self._matrix_is_drawn = False
        if MATPLOTLIB_FAULT is not None:
            _log.warning("%s; training continues without curves and charts", MATPLOTLIB_FAULT)

    def draw_batch(self, images: Sequence[np.ndarray], target: Sequence[np.ndarray]) -> None:
        """Write train_batch.png.

        Args:
            images: Training crops (H, W, 3), uint8 RGB.
            target: Their labels (H, W); 255 is ignored.
        """
        self._draw("train_batch", lambda: batch_picture(images, target, self.facts.class_names))
        self._save("train_batch", self.run.train_batch)

    def update(self, results: RunResults) -> None:
        """Update curves.png and report.html after an epoch, unless that takes too large a share of the time."""
        started = time.monotonic()
        if started < self._next:
            return
        self._draw_curves(results)
        self._write_page(results, f"Training: {len(results.history)} of {counted(self.facts.epochs, 'epoch')} done.")
        now = time.monotonic()
        self._next = now + (now - started) / self._largest_share

    def finish(self, results: RunResults, confusion: ConfusionMatrix, gallery: Gallery) -> None:
        """Draw all pictures and write the page at the end of a run.

        Args:
            results: What the run has reached.
            confusion: Confusion matrix of the best model on the validation images.
            gallery: The validation images to show, with the predictions of the best model.
        """
        run, names, matrix = self.run, self.facts.class_names, confusion.matrix
        self._draw_curves(results)
        with log_failure(run.confusion):
            write_confusion(run.confusion, confusion)
        if MATPLOTLIB_FAULT is None:
            with log_failure(run.class_iou):
                save_class_iou(names, results.best_iou(names), run.class_iou, miou=results.best_miou)
            with log_failure(run.confusion_picture):
                save_confusion(matrix, names, run.confusion_picture)
                self._matrix_is_drawn = True  # A file of that name may also show an earlier model.
        self._draw("worst", lambda: gallery_picture(gallery.worst.rows(), names, CELL))
        self._draw("best", lambda: gallery_picture(gallery.best.rows(), names, CELL))
        self._draw("val_predictions", lambda: gallery_picture(gallery.even, names))
        done = len(results.history)
        was_stopped = done < self.facts.epochs
        status = f"Stopped early after {done} of {counted(self.facts.epochs, 'epoch')}." if was_stopped else ""
        self._write_page(results, status or f"Finished after {counted(done, 'epoch')}.", confusion)
        self._save("worst", run.worst_images)
        self._save("best", run.best_images)
        self._save("val_predictions", run.val_predictions)
        if self._matrix_is_drawn:
            self.pictures["confusion_matrix"] = read_image(run.confusion_picture)

    def _draw_curves(self, results: RunResults) -> None:
        if MATPLOTLIB_FAULT is None:
            with log_failure(self.run.curves):
                save_curves(results.history, self.run.curves)

    def _draw(self, name: str, draw: Callable[[], np.ndarray]) -> None:
        with log_failure(self.run.path / f"{name}.png"):
            self.pictures[name] = draw()

    def _save(self, name: str, file: Path) -> None:
        if name in self.pictures:
            with log_failure(file):
                write_image(file, self.pictures[name])

    def _write_page(self, results: RunResults, status: str, confusion: ConfusionMatrix | None = None) -> None:
        facts, matrix = self.facts, None
        with log_failure(self.run.report):
            if self._matrix_is_drawn:
                matrix = Picture.drawing(*CONFUSION_CAPTIONS, self.run.confusion_picture)
            page = RunPage(
                name=self.run.path.name,
                status=status,
                summary=self._summary(results),
                history=results.history,
                best_epoch=results.best_epoch,
                class_names=facts.class_names,
                iou=results.best_iou(facts.class_names),
                confusion=confusion,
                confusion_picture=matrix,
                pictures=[
                    Picture.photograph(text, text, self.pictures[name])
                    for name, text in CAPTIONS.items()
                    if name in self.pictures
                ],
                commands=facts.commands,
                changed={name: text for name, text in facts.settings.items() if name in facts.changed},
                settings=facts.settings,
                environment=facts.environment,
            )
            write_whole(self.run.report, render(page))

    def _summary(self, results: RunResults) -> dict[str, str]:
        facts = self.facts
        train, val = facts.images
        minutes = sum(row["time"] for row in results.history) / 60
        duration = f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
        shown = {
            f"classes; {train} training, {counted(val, 'validation image')}": f"{len(facts.class_names)}",
            f"parameters of {facts.model}": f"{facts.parameters / 1e6:.1f} M",
            f"for {counted(len(results.history), 'epoch')}": duration,
        }
        if not results.best_epoch:
            return shown
        averaged = ", averaged weights" if results.best_weights == "ema" else ""
        best = {f"best mIoU, epoch {results.best_epoch}{averaged}": f"{100 * results.best_miou:.2f} %"}
        row = results.best_row()
        if averaged or row is None:
            return best | shown
        return best | {"pixel accuracy, same epoch": f"{100 * row['pixel_accuracy']:.2f} %"} | shown


@contextmanager
def log_failure(file: Path) -> Iterator[None]:
    """Log any error while `file` is drawn or written, and continue without it."""
    try:
        yield
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}"
        _log.warning("%s is skipped: %s", file, reason or f"{error}" or type(error).__name__)


def write_confusion(file: Path, confusion: ConfusionMatrix) -> None:
    """Write pixel counts as CSV: a row for each true class, a column for each predicted one."""
    rows = zip(confusion.class_names, confusion.matrix.tolist(), strict=True)
    write_csv(file, ["truth", *confusion.class_names], ([name, *counts] for name, counts in rows))
