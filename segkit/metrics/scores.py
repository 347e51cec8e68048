"""Scores: IoU, Dice, precision and the rest, computed from a confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segkit.console import percent


@dataclass(frozen=True)
class Scores:
    """Hold the scores of a set of images; arrays are (C,) float64 in [0, 1], NaN for 0 / 0.

    Attributes:
        class_names: Names of the classes, in label order.
        iou: Intersection over union of each class; NaN for a class that is in no target and in no prediction.
        support: Number of target pixels of each class, int64.
        miou: Mean IoU over the classes that occur.
        foreground_miou: Mean IoU over the classes that occur, without class 0.
        pixel_accuracy: Share of the counted pixels that are right.
        ignored: Number of pixels whose target is `ignore_index`.
        out_of_range: Number of labels, in targets and predictions, that are not a class. Such a prediction is a
            miss. A pixel with such a target is skipped.
        dice: 2 IoU / (1 + IoU), also known as F1.
        precision: Share of the pixels predicted as the class that are right; NaN if there are none.
        recall: Share of the target pixels of the class that are found; NaN if there are none.
        mean_dice: Mean Dice over the classes that occur.
        mean_accuracy: Mean recall over the classes in the targets.
        frequency_weighted_iou: Mean IoU, each class weighted by its support.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    support: np.ndarray
    miou: float
    foreground_miou: float
    pixel_accuracy: float
    ignored: int
    out_of_range: int
    dice: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    mean_dice: float
    mean_accuracy: float
    frequency_weighted_iou: float

    def to_dict(self) -> dict[str, float]:
        """Return flat floats for a logger: the means under their names, and iou/NAME."""
        names = ("miou", "foreground_miou", "pixel_accuracy", "mean_accuracy", "mean_dice", "frequency_weighted_iou")
        flat = {name: getattr(self, name) for name in names}
        return flat | {f"iou/{name}": float(iou) for name, iou in zip(self.class_names, self.iou, strict=True)}

    def __str__(self) -> str:
        total = max(1, int(self.support.sum()))
        rows = [
            (name, iou, f"  {100 * pixels / total:8.2f}")
            for name, iou, pixels in zip(self.class_names, self.iou, self.support, strict=True)
        ]
        rows += [("mean (mIoU)", self.miou, ""), ("accuracy", self.pixel_accuracy, "")]
        lines = [share_table("class", ("  IoU %", "pixels %"), rows)]
        if self.out_of_range:
            lines.append(f"{self.out_of_range} labels are not a class")
        return "\n".join(lines)


def score_counts(counts: np.ndarray, class_names: Sequence[str], included: np.ndarray) -> Scores:
    """Compute the scores of a confusion matrix.

    Args:
        counts: (C + 2, C + 1) integers as in `ConfusionMatrix.counts`.
        class_names: Names of the C classes.
        included: (C,) bool, whether each class enters the means.
    """
    c = len(class_names)
    hits, support, predicted = margins(counts)
    iou, recall = divide_or_nan(hits, support + predicted - hits), divide_or_nan(hits, support)
    dice = divide_or_nan(2 * hits, support + predicted)
    weights = np.where(included, support, 0)
    return Scores(
        class_names=tuple(class_names),
        iou=iou,
        support=support,
        miou=mean_of_present(iou[included]),
        foreground_miou=mean_of_present(iou[1:][included[1:]]),
        pixel_accuracy=float(divide_or_nan(hits.sum(), support.sum())),
        ignored=int(counts[c + 1].sum()),
        out_of_range=int(counts[c].sum() + counts[:c, c].sum()),
        dice=dice,
        precision=divide_or_nan(hits, predicted),
        recall=recall,
        mean_dice=mean_of_present(dice[included]),
        mean_accuracy=mean_of_present(recall[included]),
        frequency_weighted_iou=float(divide_or_nan((weights * np.nan_to_num(iou)).sum(), weights.sum())),
    )


def margins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the true positives, target pixels and predicted pixels of each class, all (..., C).

    Args:
        counts: (..., C + 2, C + 1). Predictions on pixels whose target is not a class are skipped.
    """
    c = counts.shape[-1] - 1
    hits = np.diagonal(counts[..., :c, :c], axis1=-2, axis2=-1)
    return hits, counts[..., :c, :].sum(-1), counts[..., :c, :c].sum(-2)


def divide_or_nan(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the float64 quotient, with NaN for a division by zero."""
    part, whole = np.asarray(part), np.asarray(whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_of_present(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def share_table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, float, str]]) -> str:
    """Format rows of a name, a share in percent (`-` for NaN) and more text as a table."""
    width = max(len(first), *(len(name) for name, _, _ in rows))
    lines = [f"{first:<{width}}  {'  '.join(columns)}"]
    lines += [f"{name:<{width}}  {percent(value):>7}{rest}" for name, value, rest in rows]
    return "\n".join(lines)
