"""PerImageConfusion: one confusion matrix an image, for what a sum over the whole set hides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from segkit.metrics._inputs import as_images, count_pairs, read_labels
from segkit.metrics._running import RunningCounts, sum_over_ranks
from segkit.metrics.confusion import ConfusionMatrix
from segkit.metrics.scores import divide, margins, mean_of_present, percent


@dataclass(frozen=True)
class PerImageScores:
    """IoU image by image, which large objects and easy images do not dominate; float64 in [0, 1].

    Source: Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation: Optimization and Evaluation
    of Fine-grained Intersection over Union", 2023, whose names stand in brackets. As there, an image speaks
    for the classes in its target only.

    Attributes:
        class_names: In index order.
        iou: (N, C); NaN for a class that the image's target does not have.
        of_image: (N,) mean over the classes of an image; NaN for an image without counted pixels.
        of_class: (C,) mean over the images of a class; NaN for a class that is in none.
        included: (C,) whether a class enters the means.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    of_image: np.ndarray
    of_class: np.ndarray
    included: np.ndarray

    @property
    def image_miou(self) -> float:
        """Mean over the images of the mean over their classes (mIoU^I)."""
        return mean_of_present(self.of_image)

    @property
    def class_miou(self) -> float:
        """Mean over the classes of the mean over their images (mIoU^C); a common class weighs no more than a rare."""
        return mean_of_present(self.of_class[self.included])

    def worst_image_miou(self, share: float = 0.05) -> float:
        """The mean over the worst `share` of the images alone, at least one (mIoU^I^q)."""
        return _mean_of_worst(self.of_image, share)

    def worst_class_miou(self, share: float = 0.05) -> float:
        """The mean over the classes, each over the worst `share` of its own images (mIoU^C^q)."""
        return mean_of_present(np.array([_mean_of_worst(column, share) for column in self.iou.T[self.included]]))

    @property
    def all_shares_image_miou(self) -> float:
        """Mean of `worst_image_miou` for the worst 10, 20 ... 100 % of the images (mIoU^I^Q)."""
        return mean_of_present(np.array([self.worst_image_miou(tenths / 10) for tenths in range(1, 11)]))

    @property
    def all_shares_class_miou(self) -> float:
        """Mean of `worst_class_miou` for the worst 10, 20 ... 100 % of the images (mIoU^C^Q)."""
        return mean_of_present(np.array([self.worst_class_miou(tenths / 10) for tenths in range(1, 11)]))

    def worst_images(self) -> np.ndarray:
        """Numbers of the images in the order they were counted, worst first; those without counted pixels last."""
        return np.argsort(self.of_image, kind="stable")

    def to_dict(self) -> dict[str, float]:
        """Flat floats for a logger: the means, the worst 5 % and the mean of all shares."""
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
    """A confusion matrix for each image seen, in the order in which they came; see `PerImageScores`.

    Takes 4 (C + 2) (C + 1) bytes an image: 728 for 12 classes, 92 kB for 150.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target label that is left out; None for none.
        class_names: For tables; `class_0 ...` by default.
        exclude: Classes that are left out of the means.

    Attributes:
        counts: (N, C + 2, C + 1) int32, each as in `ConfusionMatrix`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | None = 255,
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
        """Adds one batch (N, H, W) or image (H, W); both are what `ConfusionMatrix.update` takes."""
        prediction, target = map(as_images, read_labels(prediction, target, self.num_classes))
        images = [
            count_pairs(one, truth, self.num_classes, self.ignore_index)
            for one, truth in zip(prediction, target, strict=True)
        ]
        if images:
            self._add(torch.stack(images).int())

    def total(self) -> ConfusionMatrix:
        """The confusion matrix of the whole set."""
        whole = ConfusionMatrix(
            self.num_classes, ignore_index=self.ignore_index, class_names=self.class_names, exclude=self.exclude
        )
        whole.counts = self.counts.sum(0, dtype=torch.int64)
        return whole

    def compute(self) -> PerImageScores:
        """The scores of everything counted so far."""
        hits, support, predicted = margins(self.counts.cpu().numpy())
        iou = divide(hits, np.where(support > 0, support + predicted - hits, 0))
        return PerImageScores(
            class_names=self.class_names,
            iou=iou,
            of_image=np.array([mean_of_present(row) for row in iou[:, self.included]]),
            of_class=np.array([mean_of_present(column) for column in iou.T]),
            included=self.included,
        )

    def all_reduce(self) -> None:
        """Joins the images of all ranks, on all ranks, in the order of the ranks; once, before `compute()`."""
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
        raise ValueError(f"share must be in (0, 1], got {share}")
    values = np.sort(values[~np.isnan(values)])
    return mean_of_present(values[: max(1, int(share * len(values) + 1e-9))])
