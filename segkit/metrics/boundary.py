"""BoundaryIoU: IoU of the pixels near the contours, which large regions do not dominate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.metrics._inputs import as_images, count_pairs, read_labels
from segkit.metrics._running import RunningCounts
from segkit.metrics.labels import class_index, is_ignored
from segkit.metrics.scores import divide_or_nan, mean_of_present, share_table


@dataclass(frozen=True)
class BoundaryScores:
    """Hold the boundary IoU of a set of images.

    Attributes:
        class_names: Names of the classes, in label order.
        iou: (C,) float64 in [0, 1]; NaN for a class that is in no target and in no prediction.
        miou: Mean over the classes that occur.
        foreground_miou: Mean over the classes that occur, without class 0.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    miou: float
    foreground_miou: float

    def to_dict(self) -> dict[str, float]:
        """Return flat floats for a logger: boundary_miou, boundary_foreground_miou, boundary_iou/NAME."""
        flat = {"boundary_miou": self.miou, "boundary_foreground_miou": self.foreground_miou}
        return flat | {f"boundary_iou/{name}": float(iou) for name, iou in zip(self.class_names, self.iou, strict=True)}

    def __str__(self) -> str:
        rows = [(name, iou, "") for name, iou in zip(self.class_names, self.iou, strict=True)]
        return share_table("class", ("boundary IoU %",), [*rows, ("mean", self.miou, "")])


class BoundaryIoU(RunningCounts):
    """Compute the IoU of the band of each class: its pixels near another class or the image border.

    Pixels are summed over all images before the division, as for mIoU. A region that is at most two bands
    wide lies completely in its band, so its boundary IoU equals its IoU.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021;
    distances are measured in a square neighbourhood, as in its reference code.
    Differs: the bands are of classes, not of objects. A pixel with an ignored or invalid target is skipped,
    and makes no contour for its neighbours.

    Args:
        num_classes: Number of classes C.
        dilation_ratio: Width of the band as a share of the image diagonal; the band is at least one pixel
            wide. The paper uses 0.02, and 0.005 for the large images of Cityscapes.
        ignore_index: Target label of the pixels to ignore. None ignores no pixel.
        class_names: Names for tables. By default `class_0`, `class_1` and so on.
        exclude: Labels of the classes that do not enter the means.

    Attributes:
        counts: As in `ConfusionMatrix`, with the pixels outside their own band counted as out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dilation_ratio: float = 0.02,
        ignore_index: int | None = IGNORE_INDEX,
        class_names: Sequence[str] | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        if dilation_ratio <= 0:
            raise UsageError(f"`dilation_ratio` must be positive, got {dilation_ratio}")
        shape = (num_classes + 2, num_classes + 1)
        super().__init__(shape, torch.int64, num_classes, ignore_index, class_names, exclude)
        self.dilation_ratio = dilation_ratio

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add one batch or image. Takes the same arguments as `ConfusionMatrix.update`."""
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
        """Return the scores of all images counted so far."""
        c = self.num_classes
        counts = self.counts.cpu().numpy()[: c + 1]
        hits, union = counts.diagonal()[:c], (counts.sum(0) + counts.sum(1) - counts.diagonal())[:c]
        iou = divide_or_nan(hits, union)
        included = self.included
        return BoundaryScores(
            self.class_names, iou, mean_of_present(iou[included]), mean_of_present(iou[1:][included[1:]])
        )


def band(labels: Tensor, removed: Tensor, distance: int, outside: int) -> Tensor:
    """Return where another label, or the image border, is at most `distance` pixels away.

    The square around a pixel holds a single label if its maximum and minimum are equal, so one pass covers
    all classes.

    Args:
        labels: (..., H, W) integers in [0, outside].
        removed: (..., H, W) bool; these pixels make no contour.
        distance: Chebyshev distance in pixels.
        outside: Label of the pixels around the image.

    Returns:
        (..., H, W) bool.
    """
    around, square = (distance,) * 4, 2 * distance + 1
    largest = F.pad(labels.masked_fill(removed, 0), around, value=outside)
    smallest = F.pad(labels.masked_fill(removed, outside), around, value=outside)
    for dim in (-1, -2):
        largest = _sliding(torch.maximum, largest, square, dim)
        smallest = _sliding(torch.minimum, smallest, square, dim)
    return (largest != labels) | (smallest != labels)


def _sliding(combine: Callable[[Tensor, Tensor], Tensor], x: Tensor, window: int, dim: int) -> Tensor:
    """Return the maximum or minimum of each `window` neighbours along `dim`, which gets `window - 1` shorter.

    Windows double: 1, 2, 4 ... Each is combined from two of half its size; in the last step the two overlap.
    """
    width = 1
    while width < window:
        shift = min(width, window - width)
        length = x.shape[dim] - shift
        x = combine(x.narrow(dim, 0, length), x.narrow(dim, shift, length))
        width += shift
    return x
