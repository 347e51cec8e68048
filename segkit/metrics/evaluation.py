"""Evaluation: what a model is worth on a set of images, counted image by image."""

from collections.abc import Sequence

import numpy as np

from segkit.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from segkit.metrics.boundary import BoundaryIoU
from segkit.metrics.calibration import CalibrationError
from segkit.metrics.per_image import PerImageConfusion
from segkit.metrics.scores import Scores


class Evaluation:
    """A confusion matrix for each image, boundary IoU and calibration; memory holds no image.

    Args:
        class_names: In label order.
        ignore_index: Target label that is left out.
        exclude: Classes that are left out of the means.
    """

    def __init__(
        self, class_names: Sequence[str], *, ignore_index: int | None = 255, exclude: Sequence[int] = ()
    ) -> None:
        options = {"ignore_index": ignore_index, "class_names": class_names, "exclude": exclude}
        self.images = PerImageConfusion(len(class_names), **options)
        self.boundary = BoundaryIoU(len(class_names), **options)
        self.calibration = CalibrationError(len(class_names), from_logits=False, **options)

    def update(self, mask: np.ndarray, probs: np.ndarray, target: np.ndarray) -> None:
        """Adds an image: labels (H, W), probabilities (C, H, W) and true labels (H, W)."""
        self.images.update(mask, target)
        self.boundary.update(mask, target)
        self.calibration.update(probs, target)

    @property
    def scores(self) -> Scores:
        """The scores of the whole set."""
        return self.images.total().compute()

    def intervals(self) -> Interval:
        """Bootstrap intervals (C + 1,) over the images: IoU of each class, then mIoU."""
        return bootstrap_interval(self.images, _iou_and_mean)

    def intervals_of_difference(self, other: "Evaluation") -> Interval:
        """The same of what `other`, on the same images, is less by."""
        return bootstrap_difference(self.images, other.images, _iou_and_mean)

    def to_dict(self) -> dict[str, float]:
        """Flat floats for a logger: scores of the set, scores by image, boundary IoU, calibration."""
        return {
            **self.scores.to_dict(),
            **self.images.compute().to_dict(),
            **self.boundary.compute().to_dict(),
            **self.calibration.compute().to_dict(),
        }


def _iou_and_mean(scores: Scores) -> np.ndarray:
    return np.append(scores.iou, scores.miou)
