"""What evaluate prints, and writes as CSV and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from segkit.metrics import Evaluation, Interval, PerImageConfusion, PerImageScores

Row = dict[str, Any]


def describe(rows: Sequence[Row], values: Mapping[str, float], images: int) -> str:
    """The table of the classes and the scores of the set, in percent; see `class_rows` and `set_scores`."""
    named = {"mean Dice": "mean_dice", "pixel accuracy": "pixel_accuracy", "boundary mIoU": "boundary_miou"}
    by_image = {"image by image: mIoU": "image_miou", "that of the worst 5 %": "worst_image_miou"}
    lines = [
        ", ".join(f"{text} {_percent(values[name])}" for text, name in part.items())
        for part in (named | {"calibration error": "ece"}, by_image)
    ]
    span = _span(values["miou_low"], values["miou_high"])
    head = f"mIoU {_percent(values['miou'])} {span}, 95 % of resamples of the {images} images"
    return "\n".join([*_class_table(rows), "", head, *lines])


def _class_table(rows: Sequence[Row]) -> list[str]:
    total = max(1, sum(row["support"] for row in rows))
    header = ["class", "IoU %", "95 % of resamples", "Dice", "precision", "recall", "boundary IoU", "pixels %"]
    names = ("dice", "precision", "recall", "boundary_iou")
    cells = [
        [
            *(row["class"], _percent(row["iou"]), _span(row["iou_low"], row["iou_high"])),
            *(_percent(row[name]) for name in names),
            _percent(row["support"] / total),
        ]
        for row in rows
    ]
    return _table(header, cells)


def describe_difference(rows: Sequence[Row]) -> str:
    """What `difference_rows` gives, in percentage points."""
    cells = [[row["class"], *_signed(row["difference"], row["low"], row["high"])] for row in rows]
    return "\n".join(_table(["class", "IoU difference", "95 % of resamples", ""], cells))


def class_rows(evaluation: "Evaluation", intervals: "Interval") -> list[Row]:
    """A row a class: scores in 0..1, NaN where it is not scored; support in pixels."""
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


def set_scores(evaluation: "Evaluation", intervals: "Interval") -> dict[str, float]:
    """All scores of the set by name, with miou_low and miou_high."""
    miou = {"miou_low": float(intervals.low[-1]), "miou_high": float(intervals.high[-1])}
    return {**evaluation.to_dict(), **miou}


def difference_rows(names: Sequence[str], included: np.ndarray, intervals: "Interval") -> list[Row]:
    """A row a class, NaN where it is not scored, and one of the mean: difference of the IoU, and its interval."""
    scored = np.append(included, True)
    columns = [np.where(scored, x, np.nan).tolist() for x in (intervals.estimate, intervals.low, intervals.high)]
    rows = zip((*names, "mIoU"), *columns, strict=True)
    return [dict(zip(("class", "difference", "low", "high"), row, strict=True)) for row in rows]


def image_rows(names: Sequence[str], scores: "PerImageScores", other: "PerImageScores | None" = None) -> list[Row]:
    """A row an image: mean IoU over its classes, and the IoU of each; empty for a class that it does not have."""
    rows = []
    for i, name in enumerate(names):
        row = {"image": name, "miou": _cell(scores.of_image[i])}
        if other is not None:
            row["compare_miou"] = _cell(other.of_image[i])
            row["difference"] = _cell(scores.of_image[i] - other.of_image[i])
        classes = zip(scores.class_names, scores.iou[i], strict=True)
        rows.append(row | {f"iou/{c}": _cell(value) for c, value in classes})
    return rows


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes numbers by name; what is not a number (NaN) is null."""
    plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in content.items()}
    file.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """The same with six digits for a fraction and nothing for NaN."""
    return [{k: _cell(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def image_caption(images: "PerImageConfusion", image: int, count: int = 2) -> str:
    """mIoU of an image and its largest confusions with their share of its pixels, a line each."""
    counts = images.counts[image].cpu().numpy()
    names = (*images.class_names, "no class")
    pairs = counts[: len(names) - 1]
    wrong = np.where(np.eye(*pairs.shape, dtype=bool), 0, pairs)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    lines = [
        f"{names[truth]} as {names[said]}: {100 * wrong[truth, said] / pairs.sum():.1f} %"
        for truth, said in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[truth, said]
    ]
    return "\n".join([f"mIoU {100 * images.compute().of_image[image]:.1f} %", *lines])


def _signed(difference: float, low: float, high: float) -> list[str]:
    """Difference and interval in percentage points; a word where the interval leaves zero out."""
    if math.isnan(difference):
        return ["-", "", ""]
    verdict = "better" if low > 0 else "worse" if high < 0 else ""
    return [f"{100 * difference:+.2f}", f"[{100 * low:+.2f}, {100 * high:+.2f}]", verdict]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _span(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{100 * low:.2f}, {100 * high:.2f}]"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
