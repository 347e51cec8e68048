"""The scores of an evaluation as tables: printed, and as records for CSV and JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segkit.console import percent, table
from segkit.metrics import Evaluation, Interval, PerImageScores

Row = dict[str, Any]


def describe(rows: Sequence[Row], values: Mapping[str, float], images: int) -> str:
    """Return the table of the classes and the scores of the set, in percent.

    Args:
        rows: See `class_rows`.
        values: See `set_scores`.
        images: Number of images.
    """
    of_set = {"mean Dice": "mean_dice", "pixel accuracy": "pixel_accuracy", "boundary mIoU": "boundary_miou"}
    of_images = {"mean over images: mIoU": "image_miou", "mIoU of the worst 5 % of images": "worst_image_miou"}
    lines = [
        ", ".join(f"{text} {percent(values[name])}" for text, name in part.items())
        for part in (of_set | {"calibration error": "ece"}, of_images)
    ]
    span = _span(values["miou_low"], values["miou_high"])
    head = f"mIoU {percent(values['miou'])} {span}, in 95 % of resamples of the {images} images"
    total = max(1, sum(row["support"] for row in rows))
    header = ["class", "IoU %", "95 % of resamples", "Dice", "precision", "recall", "boundary IoU", "pixels %"]
    names = ("dice", "precision", "recall", "boundary_iou")
    cells = [
        [
            *(row["class"], percent(row["iou"]), _span(row["iou_low"], row["iou_high"])),
            *(percent(row[name]) for name in names),
            percent(row["support"] / total),
        ]
        for row in rows
    ]
    return "\n".join([*table(header, cells), "", head, *lines])


def describe_difference(rows: Sequence[Row]) -> str:
    """Return the table of the rows of `difference_rows`, in percentage points, with a word if zero is not in 95 %."""
    cells = []
    for row in rows:
        if math.isnan(row["difference"]):
            cells.append([row["class"], "-", "", ""])
            continue
        difference, low, high = (f"{100 * row[name]:+.2f}" for name in ("difference", "low", "high"))
        verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else ""
        cells.append([row["class"], difference, f"[{low}, {high}]", verdict])
    return "\n".join(table(["class", "IoU difference", "95 % of resamples", ""], cells))


def class_rows(evaluation: Evaluation, intervals: Interval) -> list[Row]:
    """Return one record per class: scores in 0..1, NaN if it is not scored; support in pixels."""
    scores = evaluation.scores
    columns = {
        **{"iou": scores.iou, "iou_low": intervals.low[:-1], "iou_high": intervals.high[:-1]},
        **{"dice": scores.dice, "precision": scores.precision, "recall": scores.recall},
        "boundary_iou": evaluation.boundary.compute().iou,
        "calibration_error": evaluation.calibration.compute().class_ece,
    }
    scored = [np.where(evaluation.images.included, column, np.nan).tolist() for column in columns.values()]
    rows = zip(scores.class_names, *scored, scores.support.tolist(), strict=True)
    return [dict(zip(("class", *columns, "support"), row, strict=True)) for row in rows]


def set_scores(evaluation: Evaluation, intervals: Interval) -> dict[str, float]:
    """Return all scores of the set by name, with miou_low and miou_high."""
    miou = {"miou_low": float(intervals.low[-1]), "miou_high": float(intervals.high[-1])}
    return {**evaluation.to_dict(), **miou}


def difference_rows(names: Sequence[str], included: np.ndarray, intervals: Interval) -> list[Row]:
    """Return the IoU difference of each class, NaN if it is not scored, and of mIoU, each with its interval."""
    scored = np.append(included, True)
    columns = [np.where(scored, x, np.nan).tolist() for x in (intervals.estimate, intervals.low, intervals.high)]
    rows = zip((*names, "mIoU"), *columns, strict=True)
    return [dict(zip(("class", "difference", "low", "high"), row, strict=True)) for row in rows]


def image_rows(names: Sequence[str], scores: PerImageScores, other: PerImageScores | None = None) -> list[Row]:
    """Return one record per image: mIoU over its classes, and the IoU of each; empty for a class that it lacks.

    Args:
        names: The names of the images.
        scores: Their scores.
        other: Scores of the same images to compare with.
    """
    rows = []
    for i, name in enumerate(names):
        row = {"image": name, "miou": _cell(scores.of_image[i])}
        if other is not None:
            row["compare_miou"] = _cell(other.of_image[i])
            row["difference"] = _cell(scores.of_image[i] - other.of_image[i])
        classes = zip(scores.class_names, scores.iou[i], strict=True)
        rows.append(row | {f"iou/{c}": _cell(value) for c, value in classes})
    return rows


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return the numbers with None for NaN, which JSON lacks."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the records for a CSV: six digits for fractions, and an empty cell for NaN."""
    return [{k: _cell(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _span(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{100 * low:.2f}, {100 * high:.2f}]"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
