"""ConfusionMatrix: counts over a whole set, and the scores that follow from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segkit.metrics._inputs import count_pairs, read_labels
from segkit.metrics._running import RunningCounts
from segkit.metrics.scores import Scores, score_counts


class ConfusionMatrix(RunningCounts):
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
        shape = (num_classes + 2, num_classes + 1)
        super().__init__(shape, torch.int64, num_classes, ignore_index, class_names, exclude)

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Adds one batch or image; on an accelerator it does not wait for the result.

        Args:
            prediction: Labels of the target's shape and any integer type, or logits or probabilities
                (N, C, H, W) or (C, H, W). A pixel whose logits hold a NaN is out of range.
            target: (N, H, W) or (H, W) labels of any integer type.
        """
        prediction, target = read_labels(prediction, target, self.num_classes)
        self._add(count_pairs(prediction, target, self.num_classes, self.ignore_index))

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: rows are targets, columns predictions."""
        return self.counts[: self.num_classes, : self.num_classes].cpu().numpy()

    def compute(self) -> Scores:
        """The scores of everything counted so far."""
        return score_counts(self.counts.cpu().numpy(), self.class_names, self.included)
