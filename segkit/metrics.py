"""ConfusionMatrix: counts over a whole set, and the scores that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; arrays are (C,) float64, NaN for a class with neither target nor prediction.

    Attributes:
        class_names: In index order.
        iou: Intersection over union of each class.
        support: Number of target pixels of each class, int64.
        miou: Mean IoU over the classes that occur.
        foreground_miou: The same without class 0.
        pixel_accuracy: Share of the counted pixels that are right.
        ignored: Number of pixels left out by `ignore_index`.
        out_of_range: Number of labels, in target or prediction, that are no class.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    support: np.ndarray
    miou: float
    foreground_miou: float
    pixel_accuracy: float
    ignored: int
    out_of_range: int

    def to_dict(self) -> dict[str, float]:
        """Flat floats for a logger: miou, foreground_miou, pixel_accuracy, iou/NAME."""
        flat = {name: getattr(self, name) for name in ("miou", "foreground_miou", "pixel_accuracy")}
        return flat | {f"iou/{name}": float(iou) for name, iou in zip(self.class_names, self.iou, strict=True)}

    def __str__(self) -> str:
        width = max(len("mean (mIoU)"), *map(len, self.class_names))
        total = max(1, int(self.support.sum()))
        lines = [f"{'class':<{width}}   IoU %  pixels %"]
        for name, iou, pixels in zip(self.class_names, self.iou, self.support, strict=True):
            lines.append(f"{name:<{width}}  {_percent(iou)}  {100 * pixels / total:8.2f}")
        lines.append(f"{'mean (mIoU)':<{width}}  {_percent(self.miou)}")
        return "\n".join(lines)


class ConfusionMatrix:
    """Counts of (target, prediction) over all images seen; ignored pixels never enter.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target label that is left out; None for none. Any other label outside [0, C) is
            counted apart and shown by `compute()`.
        class_names: For tables; `class_0 ...` by default.
        exclude: Classes that are left out of the means.

    Attributes:
        counts: (C + 2, C + 1) int64: rows are targets, then targets out of range, then ignored ones;
            columns are predictions, then predictions out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | None = 255,
        class_names: Sequence[str] | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but class_names has {len(class_names)} names")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = tuple(class_names or (f"class_{i}" for i in range(num_classes)))
        self.exclude = tuple(exclude)
        self.counts = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64)

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Adds one batch or image.

        Args:
            prediction: Labels of the target's shape, or logits with the class dimension before (H, W).
            target: (N, H, W) or (H, W) labels, any integer type.
        """
        prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(dim=-3)
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction must have the target's shape {tuple(target.shape)}, or logits (N, C, H, W), "
                f"got {tuple(prediction.shape)}"
            )
        c = self.num_classes
        rows = torch.where((target >= 0) & (target < c), target.long(), c)
        if self.ignore_index is not None:
            rows = torch.where(target == self.ignore_index, c + 1, rows)
        columns = torch.where((prediction >= 0) & (prediction < c), prediction.long(), c)
        cells = (rows * (c + 1) + columns.to(rows.device)).flatten()
        counts = torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)
        self.counts = self.counts.to(counts.device) + counts

    def merge(self, other: "ConfusionMatrix") -> None:
        """Adds the counts of another matrix over the same classes."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"cannot merge {other.num_classes} classes into {self.num_classes}")
        self.counts = self.counts + other.counts.to(self.counts.device)

    def reset(self) -> None:
        self.counts = torch.zeros_like(self.counts)

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: rows are targets, columns predictions."""
        return self.counts[: self.num_classes, : self.num_classes].cpu().numpy()

    def compute(self) -> Scores:
        """The scores of everything counted so far."""
        counts = self.counts.cpu().numpy()
        c = self.num_classes
        hits = np.diagonal(counts[:c, :c])
        support = counts[:c].sum(1)  # predictions out of range are misses
        union = support + counts[:c, :c].sum(0) - hits
        iou = np.divide(hits, union, out=np.full(c, np.nan), where=union > 0)
        counted = np.ones(c, dtype=bool)
        counted[list(self.exclude)] = False
        foreground = counted & (np.arange(c) > 0)
        return Scores(
            class_names=self.class_names,
            iou=iou,
            support=support,
            miou=_nanmean(iou[counted]),
            foreground_miou=_nanmean(iou[foreground]),
            pixel_accuracy=float(hits.sum() / support.sum()) if support.sum() else float("nan"),
            ignored=int(counts[c + 1].sum()),
            out_of_range=int(counts[c].sum() + counts[:c, c].sum()),
        )


def _nanmean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _percent(value: float) -> str:
    return "      -" if np.isnan(value) else f"{100 * value:7.2f}"
