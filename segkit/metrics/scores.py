"""Scores: what follows from a confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; arrays are (C,) float64 in [0, 1], NaN where there is nothing to divide by.

    Attributes:
        class_names: In index order.
        iou: Intersection over union of each class; NaN for a class with neither target nor prediction.
        support: Number of target pixels of each class, int64.
        miou: Mean IoU over the classes that occur.
        foreground_miou: The same without class 0.
        pixel_accuracy: Share of the counted pixels that are right.
        ignored: Number of pixels left out by `ignore_index`.
        out_of_range: Number of labels, in target or prediction, that are no class. A prediction of none is a
            miss; a pixel with such a target is left out.
        dice: 2 IoU / (1 + IoU), also known as F1.
        precision: Share of the pixels predicted as the class that are right; NaN where there are none.
        recall: Share of the class's pixels that are found; NaN where there are none.
        mean_dice: Mean over the classes that occur.
        mean_accuracy: Mean recall over the classes in the target.
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
        """Flat floats for a logger: the means by their names, and iou/NAME."""
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
        lines = [table("class", ("  IoU %", "pixels %"), rows)]
        if self.out_of_range:
            lines.append(f"{self.out_of_range} labels are no class")
        return "\n".join(lines)


def score_counts(counts: np.ndarray, class_names: Sequence[str], included: np.ndarray) -> Scores:
    """The scores of a confusion matrix.

    Args:
        counts: (C + 2, C + 1) integers as in `ConfusionMatrix.counts`.
        class_names: C names.
        included: (C,) whether a class enters the means.
    """
    c = len(class_names)
    hits, support, predicted = margins(counts)
    iou, recall = divide(hits, support + predicted - hits), divide(hits, support)
    dice = divide(2 * hits, support + predicted)
    weights = np.where(included, support, 0)
    return Scores(
        class_names=tuple(class_names),
        iou=iou,
        support=support,
        miou=mean_of_present(iou[included]),
        foreground_miou=mean_of_present(iou[1:][included[1:]]),
        pixel_accuracy=float(divide(hits.sum(), support.sum())),
        ignored=int(counts[c + 1].sum()),
        out_of_range=int(counts[c].sum() + counts[:c, c].sum()),
        dice=dice,
        precision=divide(hits, predicted),
        recall=recall,
        mean_dice=mean_of_present(dice[included]),
        mean_accuracy=mean_of_present(recall[included]),
        frequency_weighted_iou=float(divide((weights * np.nan_to_num(iou)).sum(), weights.sum())),
    )


def margins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., C + 2, C + 1) counts -> (..., C) pixels found, in the target, and predicted where the target is a class."""
    c = counts.shape[-1] - 1
    hits = np.diagonal(counts[..., :c, :c], axis1=-2, axis2=-1)
    return hits, counts[..., :c, :].sum(-1), counts[..., :c, :c].sum(-2)


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Float64 quotient, NaN where the whole is zero."""
    part, whole = np.asarray(part), np.asarray(whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_of_present(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN where all is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, float, str]]) -> str:
    """Lines of a name, a share in percent or `-` for NaN, and further text."""
    width = max(len(first), *(len(name) for name, _, _ in rows))
    lines = [f"{first:<{width}}  {'  '.join(columns)}"]
    lines += [f"{name:<{width}}  {percent(value)}{rest}" for name, value, rest in rows]
    return "\n".join(lines)


def percent(value: float) -> str:
    return "      -" if np.isnan(value) else f"{100 * value:7.2f}"
