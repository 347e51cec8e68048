"""Evaluation: all metrics of a model on a set of images."""

from collections.abc import Sequence

import numpy as np

from segkit.labels import IGNORE_INDEX
from segkit.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from segkit.metrics.boundary import BoundaryIoU
from segkit.metrics.calibration import CalibrationError
from segkit.metrics.per_image import PerImageConfusion
from segkit.metrics.scores import Scores


class Evaluation:
    """Collect the confusion matrix of each image, boundary IoU and calibration. Keeps no image in memory.

    Args:
        class_names: Names of the classes, in label order.
        ignore_index: Target label of the pixels to ignore. None ignores no pixel.
        exclude: Labels of the classes that do not enter the means.
    """

    def __init__(
        self, class_names: Sequence[str], *, ignore_index: int | None = IGNORE_INDEX, exclude: Sequence[int] = ()
    ) -> None:
        options = {"ignore_index": ignore_index, "class_names": class_names, "exclude": exclude}
        self.images = PerImageConfusion(len(class_names), **options)
        self.boundary = BoundaryIoU(len(class_names), **options)
        self.calibration = CalibrationError(len(class_names), from_logits=False, **options)

    def update(self, mask: np.ndarray, probs: np.ndarray, target: np.ndarray) -> None:
        """Add one image.

        Args:
            mask: (H, W) predicted labels.
            probs: (C, H, W) predicted probabilities.
            target: (H, W) true labels.
        """
        self.images.update(mask, target)
        self.boundary.update(mask, target)
        self.calibration.update(probs, target)

    @property
    def scores(self) -> Scores:
        """The scores of all images together."""
        return self.images.total().compute()

    def intervals(self) -> Interval:
        """Return the bootstrap intervals (C + 1,) over the images: IoU of each class, then mIoU."""
        return bootstrap_interval(self.images, _iou_and_mean)

    def intervals_of_difference(self, other: "Evaluation") -> Interval:
        """Return the bootstrap intervals (C + 1,) of this model's IoU minus `other`'s, on the same images."""
        return bootstrap_difference(self.images, other.images, _iou_and_mean)

    def to_dict(self) -> dict[str, float]:
        """Return flat floats for a logger: scores of the set, scores per image, boundary IoU, calibration."""
        return {
            **self.scores.to_dict(),
            **self.images.compute().to_dict(),
            **self.boundary.compute().to_dict(),
            **self.calibration.compute().to_dict(),
        }


def _iou_and_mean(scores: Scores) -> np.ndarray:
    return np.append(scores.iou, scores.miou)
