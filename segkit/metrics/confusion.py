"""ConfusionMatrix: pixel counts of a set of images, and the scores computed from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segkit.labels import IGNORE_INDEX
from segkit.metrics._inputs import count_pairs, read_labels
from segkit.metrics._running import RunningCounts
from segkit.metrics.scores import Scores, score_counts


class ConfusionMatrix(RunningCounts):
    """Count pairs of target label and predicted label over all images.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target label of the pixels to ignore. None ignores no pixel. Other labels outside [0, C)
            are counted separately, and `compute()` returns their number.
        class_names: Names for tables. By default `class_0`, `class_1` and so on.
        exclude: Labels of the classes that do not enter the means.

    Attributes:
        counts: (C + 2, C + 1) int64. Rows: the C target classes, then targets out of range, then ignored
            targets. Columns: the C predicted classes, then predictions out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | None = IGNORE_INDEX,
        class_names: Sequence[str] | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        shape = (num_classes + 2, num_classes + 1)
        super().__init__(shape, torch.int64, num_classes, ignore_index, class_names, exclude)

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add one batch or image. On an accelerator this does not wait for the device.

        Args:
            prediction: Labels with the target's shape, of any integer type; or logits or probabilities
                (N, C, H, W) or (C, H, W). A pixel with a NaN logit counts as out of range.
            target: (N, H, W) or (H, W) labels of any integer type.

        Raises:
            UsageError: The shapes do not fit, or labels are not integers.
        """
        prediction, target = read_labels(prediction, target, self.num_classes)
        self._add(count_pairs(prediction, target, self.num_classes, self.ignore_index))

    @property
    def matrix(self) -> np.ndarray:
        """The confusion matrix, (C, C) int64: rows are targets, columns are predictions."""
        return self.counts[: self.num_classes, : self.num_classes].cpu().numpy()

    def compute(self) -> Scores:
        """Return the scores of all images counted so far."""
        return score_counts(self.counts.cpu().numpy(), self.class_names, self.included)
