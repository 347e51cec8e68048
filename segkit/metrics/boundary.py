"""BoundaryIoU: IoU of the bands along the contours, which the insides of large regions cannot outvote."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.metrics._inputs import as_images, count_pairs, read_labels
from segkit.metrics._running import RunningCounts
from segkit.metrics.labels import class_index, is_ignored
from segkit.metrics.scores import divide, mean_of_present, table


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary IoU over a whole set.

    Attributes:
        class_names: In index order.
        iou: (C,) float64 in [0, 1]; NaN for a class with neither target nor prediction.
        miou: Mean over the classes that occur.
        foreground_miou: The same without class 0.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    miou: float
    foreground_miou: float

    def to_dict(self) -> dict[str, float]:
        """Flat floats for a logger: boundary_miou, boundary_foreground_miou, boundary_iou/NAME."""
        flat = {"boundary_miou": self.miou, "boundary_foreground_miou": self.foreground_miou}
        return flat | {f"boundary_iou/{name}": float(iou) for name, iou in zip(self.class_names, self.iou, strict=True)}

    def __str__(self) -> str:
        rows = [(name, iou, "") for name, iou in zip(self.class_names, self.iou, strict=True)]
        return table("class", ("boundary IoU %",), [*rows, ("mean", self.miou, "")])


class BoundaryIoU(RunningCounts):
    """IoU of each class's band: its pixels no further than a small distance from another class or the border.

    The pixels of all images are summed before the division, as for mIoU. A class no wider than two bands
    has its plain IoU.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021;
    distances are those of its reference code, in a square neighbourhood.
    Differs: classes in place of objects. A pixel whose target is ignored or no class is left out, and makes
    no contour for its neighbours.

    Args:
        num_classes: Number of classes C.
        dilation_ratio: Width of the band as a share of the image's diagonal; at least one pixel. The paper
            has 0.02, and 0.005 for the large images of Cityscapes.
        ignore_index: Target label that is left out; None for none.
        class_names: For tables; `class_0 ...` by default.
        exclude: Classes that are left out of the means.

    Attributes:
        counts: As in `ConfusionMatrix`; there, what is not in its own band is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dilation_ratio: float = 0.02,
        ignore_index: int | None = 255,
        class_names: Sequence[str] | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        if dilation_ratio <= 0:
            raise ValueError(f"dilation_ratio must be positive, got {dilation_ratio}")
        shape = (num_classes + 2, num_classes + 1)
        super().__init__(shape, torch.int64, num_classes, ignore_index, class_names, exclude)
        self.dilation_ratio = dilation_ratio

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Adds one batch or image; both are what `ConfusionMatrix.update` takes."""
        prediction, target = read_labels(prediction, target, self.num_classes)
        c, (height, width) = self.num_classes, as_images(target).shape[-2:]
        distance = max(1, round(self.dilation_ratio * math.hypot(height, width)))
        removed = is_ignored(target, self.ignore_index) | (class_index(target, c) == c)
        in_band = [
            torch.where(band(index, removed, distance, outside=c), index, c)
            for index in (class_index(prediction, c), class_index(target, c))
        ]
        self._add(count_pairs(in_band[0], torch.where(removed, c + 1, in_band[1]), c, ignore_index=c + 1))

    def compute(self) -> BoundaryScores:
        """The scores of everything counted so far."""
        c = self.num_classes
        counts = self.counts.cpu().numpy()[: c + 1]
        hits, union = counts.diagonal()[:c], (counts.sum(0) + counts.sum(1) - counts.diagonal())[:c]
        iou = divide(hits, union)
        included = self.included
        return BoundaryScores(
            self.class_names, iou, mean_of_present(iou[included]), mean_of_present(iou[1:][included[1:]])
        )


def band(labels: Tensor, removed: Tensor, distance: int, outside: int) -> Tensor:
    """Where another label, or the border of the image, is `distance` pixels or less away.

    The square around a pixel holds one label only where the largest and the smallest of it are the same,
    so that all classes are done at once.

    Args:
        labels: (..., H, W) integers in [0, outside].
        removed: (..., H, W) bool; these count as the label of whoever looks.
        distance: In pixels, to the side, up or down, whichever is farther.
        outside: The label around the image.
    """
    around, square = (distance,) * 4, 2 * distance + 1
    largest = F.pad(labels.masked_fill(removed, 0), around, value=outside)
    smallest = F.pad(labels.masked_fill(removed, outside), around, value=outside)
    for dim in (-1, -2):
        largest = _sliding(torch.maximum, largest, square, dim)
        smallest = _sliding(torch.minimum, smallest, square, dim)
    return (largest != labels) | (smallest != labels)


def _sliding(combine: Callable[[Tensor, Tensor], Tensor], x: Tensor, window: int, dim: int) -> Tensor:
    """The largest or smallest of each `window` neighbours along one dimension, which becomes `window - 1` shorter.

    Windows of 1, 2, 4 ... neighbours are joined from two of half the size, the last from two that overlap.
    """
    width = 1
    while width < window:
        shift = min(width, window - width)
        length = x.shape[dim] - shift
        x = combine(x.narrow(dim, 0, length), x.narrow(dim, shift, length))
        width += shift
    return x
