"""PerImageConfusion: a confusion matrix for each image, for scores that the sum over all images hides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from segkit.console import percent
from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.metrics._inputs import as_images, count_pairs, read_labels
from segkit.metrics._running import RunningCounts, sum_over_ranks
from segkit.metrics.confusion import ConfusionMatrix
from segkit.metrics.scores import divide_or_nan, margins, mean_of_present


@dataclass(frozen=True)
class PerImageScores:
    """Hold the IoU of each image, which large objects and easy images do not dominate; float64 in [0, 1].

    Source: Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation: Optimization and Evaluation
    of Fine-grained Intersection over Union", 2023. The paper's names are in brackets. As in the paper, the IoU
    of an image is defined only for the classes in its target.

    Attributes:
        class_names: Names of the classes, in label order.
        iou: (N, C) IoU of each class in each image; NaN for a class that is not in the image's target.
        of_image: (N,) mean over the classes of each image; NaN for an image without counted pixels.
        of_class: (C,) mean over the images of each class; NaN for a class that is in no image.
        included: (C,) bool, whether each class enters the means.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    of_image: np.ndarray
    of_class: np.ndarray
    included: np.ndarray

    @property
    def image_miou(self) -> float:
        """Mean over the images of `of_image` (mIoU^I)."""
        return mean_of_present(self.of_image)

    @property
    def class_miou(self) -> float:
        """Mean over the classes of `of_class` (mIoU^C), in which common and rare classes weigh the same."""
        return mean_of_present(self.of_class[self.included])

    def worst_image_miou(self, share: float = 0.05) -> float:
        """Return the mean over the worst `share` of the images, at least one (mIoU^I^q).

        Raises:
            UsageError: `share` is not in (0, 1].
        """
        return _mean_of_worst(self.of_image, share)

    def worst_class_miou(self, share: float = 0.05) -> float:
        """Return the mean over the classes, each over the worst `share` of its images (mIoU^C^q).

        Raises:
            UsageError: `share` is not in (0, 1].
        """
        return mean_of_present(np.array([_mean_of_worst(column, share) for column in self.iou.T[self.included]]))

    @property
    def all_shares_image_miou(self) -> float:
        """Mean of `worst_image_miou` over the shares 0.1, 0.2 ... 1 (mIoU^I^Q)."""
        return mean_of_present(np.array([self.worst_image_miou(tenths / 10) for tenths in range(1, 11)]))

    @property
    def all_shares_class_miou(self) -> float:
        """Mean of `worst_class_miou` over the shares 0.1, 0.2 ... 1 (mIoU^C^Q)."""
        return mean_of_present(np.array([self.worst_class_miou(tenths / 10) for tenths in range(1, 11)]))

    def worst_images(self) -> np.ndarray:
        """Return the indices of the images, worst first; images without counted pixels come last."""
        return np.argsort(self.of_image, kind="stable")

    def to_dict(self) -> dict[str, float]:
        """Return flat floats for a logger: the means, the worst 5 % and the mean over all shares."""
        return {
            "image_miou": self.image_miou,
            "class_miou": self.class_miou,
            "worst_image_miou": self.worst_image_miou(),
            "worst_class_miou": self.worst_class_miou(),
            "all_shares_image_miou": self.all_shares_image_miou,
            "all_shares_class_miou": self.all_shares_class_miou,
        }

    def __str__(self) -> str:
        lines = ["mIoU %         by image  by class"]
        for name, by_image, by_class in (
            ("all images", self.image_miou, self.class_miou),
            ("worst 5 %", self.worst_image_miou(), self.worst_class_miou()),
        ):
            lines.append(f"{name:<14} {percent(by_image):>9} {percent(by_class):>9}")
        return "\n".join(lines)


class PerImageConfusion(RunningCounts):
    """Count a confusion matrix for each image, in the order of the updates; see `PerImageScores`.

    Uses 4 (C + 2) (C + 1) bytes per image: 728 bytes for 12 classes, 92 kB for 150.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target label of the pixels to ignore. None ignores no pixel.
        class_names: Names for tables. By default `class_0`, `class_1` and so on.
        exclude: Labels of the classes that do not enter the means.

    Attributes:
        counts: (N, C + 2, C + 1) int32, for each image as in `ConfusionMatrix`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | None = IGNORE_INDEX,
        class_names: Sequence[str] | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        shape = (0, num_classes + 2, num_classes + 1)
        super().__init__(shape, torch.int32, num_classes, ignore_index, class_names, exclude)

    @property
    def counts(self) -> Tensor:
        if len(self._parts) > 1:
            device = next((part.device for part in self._parts if part.device.type != "cpu"), "cpu")
            self._parts = [torch.cat([part.to(device, non_blocking=True) for part in self._parts])]
        return self._parts[0]

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self._parts = [counts]

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add one batch (N, H, W) or image (H, W). Takes the same arguments as `ConfusionMatrix.update`."""
        prediction, target = map(as_images, read_labels(prediction, target, self.num_classes))
        images = [
            count_pairs(one, truth, self.num_classes, self.ignore_index)
            for one, truth in zip(prediction, target, strict=True)
        ]
        if images:
            self._add(torch.stack(images).int())

    def total(self) -> ConfusionMatrix:
        """Return the confusion matrix summed over all images."""
        whole = ConfusionMatrix(
            self.num_classes, ignore_index=self.ignore_index, class_names=self.class_names, exclude=self.exclude
        )
        whole.counts = self.counts.sum(0, dtype=torch.int64)
        return whole

    def compute(self) -> PerImageScores:
        """Return the scores of all images counted so far."""
        hits, support, predicted = margins(self.counts.cpu().numpy())
        iou = divide_or_nan(hits, np.where(support > 0, support + predicted - hits, 0))
        return PerImageScores(
            class_names=self.class_names,
            iou=iou,
            of_image=np.array([mean_of_present(row) for row in iou[:, self.included]]),
            of_class=np.array([mean_of_present(column) for column in iou.T]),
            included=self.included,
        )

    def all_reduce(self) -> None:
        """Concatenate the images of all ranks, in rank order, on every rank. Call once, before `compute()`."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        counts, rank = self.counts, dist.get_rank()
        lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64)
        lengths[rank] = len(counts)
        lengths = sum_over_ranks(lengths)
        start = int(lengths[:rank].sum())
        whole = counts.new_zeros(int(lengths.sum()), *counts.shape[1:])
        whole[start : start + len(counts)] = counts
        self.counts = sum_over_ranks(whole)

    def _add(self, counts: Tensor) -> None:
        self._parts.append(counts)

    def _fits(self, counts: Tensor) -> bool:
        return counts.ndim == 3 and counts.shape[1:] == self._shape[1:]


def _mean_of_worst(values: np.ndarray, share: float) -> float:
    if not 0 < share <= 1:
        raise UsageError(f"`share` must be in (0, 1], got {share}")
    values = np.sort(values[~np.isnan(values)])
    return mean_of_present(values[: max(1, int(share * len(values) + 1e-9))])
