"""What the models of all folds are worth together, each on the images that it has not seen."""

import csv
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from segkit.data import SegmentationDataset
    from segkit.folds.split import Folds
    from segkit.metrics import ConfusionMatrix
    from segkit.training.validation import Precision

SUMMARY, CONFUSION, COMMAND = "summary.csv", "oof_confusion.csv", "infer_command.txt"
Row = dict[str, Any]


def sum_up(config: TrainConfig, folds: "Folds", out: Path) -> None:
    """Scores every image by the model that has not seen it; prints tables and the infer command, and writes them."""
    from segkit.files import write_records
    from segkit.training import autocast
    from segkit.workflows.devices import pick_device

    device = pick_device(config.device)
    of_fold = [
        score_fold(folds[fold][1], out / f"fold{fold}", device, autocast(device, config.amp))
        for fold in range(len(folds))
    ]
    total = _new_confusion(folds.data)
    for confusion in of_fold:
        total += confusion
    values = np.stack([_values(confusion) for confusion in of_fold])
    epochs = [_best_epoch(out / f"fold{fold}") for fold in range(len(folds))]
    write_records(out / SUMMARY, summary_rows(total.class_names, epochs, values))
    write_confusion(out / CONFUSION, total)
    command = f"python infer.py --weights {shlex.quote(str(out))}/fold* --source photographs/"
    (out / COMMAND).write_text(f"{command}\n", encoding="utf-8")
    print(f"\nout of fold: {len(folds.data)} images, each by the model that has not seen it, in one confusion matrix")
    print(describe(total, values))
    print(f"\n{out}: {SUMMARY}, {CONFUSION}, splits.json, {COMMAND}")
    print(f"use them together: {command}")


def is_summed_up(out: Path, k: int) -> bool:
    """Whether the summary is there, and no older than the models."""
    last = out / COMMAND
    models = [out / f"fold{fold}" / "best.safetensors" for fold in range(k)]
    return last.is_file() and all(model.stat().st_mtime_ns <= last.stat().st_mtime_ns for model in models)


def remove_summary(out: Path) -> None:
    """Removes what would be out of date after further training."""
    for name in (SUMMARY, CONFUSION, COMMAND):
        (out / name).unlink(missing_ok=True)


def score_fold(
    data: "SegmentationDataset", run: Path, device: "torch.device", autocast: "Precision"
) -> "ConfusionMatrix":
    """The confusion of a run's best weights on its validation images, in the precision that it was validated in."""
    import torch

    from segkit.console import Console
    from segkit.inference import Predictor, segment_dataset
    from segkit.models import load_model

    model = load_model(run).to(device, memory_format=torch.channels_last)  # as it was validated, to the last pixel
    confusion = _new_confusion(data)
    with autocast():
        found = segment_dataset(data, Predictor(model, device=device, probs="none"))
        for one in Console(verbose=True).progress(found, total=len(data)):
            confusion.update(one.prediction.mask, one.target)
    return confusion


def summary_rows(class_names: Sequence[str], best_epochs: Sequence[int], values: np.ndarray) -> list[Row]:
    """A row for each fold, one for their mean and one for their standard deviation; what a fold lacks is empty.

    Args:
        class_names: C names.
        best_epochs: The epoch of each fold's best weights.
        values: (k, C + 1) mIoU and the IoU of each class.
    """
    names = ["miou", *(f"iou/{name}" for name in class_names)]
    rows = [*zip(range(len(values)), best_epochs, values, strict=True)]
    rows += [("mean", "", mean_of_folds(values)), ("sd", "", spread_of_folds(values))]
    return [
        {"fold": fold, "best_epoch": epoch}
        | {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in zip(names, of_fold, strict=True)}
        for fold, epoch, of_fold in rows
    ]


def mean_of_folds(values: np.ndarray) -> np.ndarray:
    """(k, D) -> (D,) means over the folds that have a value; NaN where none has."""
    return _over_folds(values, 1, np.mean)


def spread_of_folds(values: np.ndarray) -> np.ndarray:
    """(k, D) -> (D,) standard deviations of a sample; NaN where fewer than two folds have a value."""
    return _over_folds(values, 2, lambda column: np.std(column, ddof=1))


def write_confusion(file: Path, confusion: "ConfusionMatrix") -> None:
    """Writes counts of pixels as CSV: a row for each class in the truth, a column for each prediction."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["truth", *confusion.class_names])
        writer.writerows(
            [name, *row] for name, row in zip(confusion.class_names, confusion.matrix.tolist(), strict=True)
        )


def describe(total: "ConfusionMatrix", values: np.ndarray) -> str:
    """The table of the classes: IoU by the matrix of all images, and mean and spread of the folds' own (k, C + 1)."""
    from segkit.metrics.scores import percent, table

    of_folds = zip(mean_of_folds(values), spread_of_folds(values), strict=True)
    rows = [
        (name, value, f"  {percent(mean):>13}  {percent(spread)}")
        for name, value, (mean, spread) in zip(
            ("mean (mIoU)", *total.class_names), _values(total), of_folds, strict=True
        )
    ]
    return table("class", ("  IoU %", "mean of folds", "     sd"), [*rows[1:], rows[0]])


def _values(confusion: "ConfusionMatrix") -> np.ndarray:
    """(C + 1,) mIoU and the IoU of each class; NaN for what does not count."""
    scores = confusion.compute()
    return np.array([scores.miou, *np.where(confusion.included, scores.iou, np.nan)])


def _over_folds(values: np.ndarray, least: int, function: Any) -> np.ndarray:
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([function(column) if len(column) >= least else np.nan for column in columns])


def _new_confusion(data: "SegmentationDataset") -> "ConfusionMatrix":
    from segkit.metrics import ConfusionMatrix

    return ConfusionMatrix(len(data.class_names), class_names=data.class_names, exclude=data.ignored_labels)


def _best_epoch(run: Path) -> int:
    from segkit.models import find_model_file, read_header

    return read_header(find_model_file(run))["extra"]["epoch"]
