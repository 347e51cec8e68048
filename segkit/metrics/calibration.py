"""CalibrationError: whether 80 % of the pixels with confidence 0.8 are right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segkit.console import percent
from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.metrics._inputs import as_images, histogram, is_logits, read_arrays
from segkit.metrics._running import RunningCounts
from segkit.metrics.labels import as_batch, class_index, is_ignored, pixels_at_a_time
from segkit.metrics.scores import divide_or_nan, mean_of_present


@dataclass(frozen=True)
class CalibrationScores:
    """Hold the calibration of a set of images; float64 in [0, 1], NaN if there are no pixels to divide by.

    Attributes:
        class_names: Names of the classes, in label order.
        ece: Expected calibration error of the largest probability. Source: Guo et al., "On Calibration of
            Modern Neural Networks", 2017, section 2.
        static_ece: Mean of `class_ece`. Source: Nixon et al., "Measuring Calibration in Deep Learning",
            2019 (SCE).
        class_ece: (C,) calibration error of the probability of each class, over all pixels.
        confidence: (bins,) mean of the largest probability of the pixels in each bin, for a reliability diagram.
        accuracy: (bins,) share of the pixels in each bin that are right.
        share: (bins,) share of all pixels that are in each bin.
        ignored: Number of pixels whose target is `ignore_index`.
        out_of_range: Number of pixels skipped because their target is not a class, or a probability is NaN or
            outside [0, 1].
    """

    class_names: tuple[str, ...]
    ece: float
    static_ece: float
    class_ece: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    ignored: int
    out_of_range: int

    def to_dict(self) -> dict[str, float]:
        """Return flat floats for a logger: ece, static_ece, ece/NAME."""
        flat = {"ece": self.ece, "static_ece": self.static_ece}
        return flat | {f"ece/{name}": float(ece) for name, ece in zip(self.class_names, self.class_ece, strict=True)}

    def __str__(self) -> str:
        lines = ["confidence %  accuracy %  pixels %"]
        for confidence, accuracy, share in zip(self.confidence, self.accuracy, self.share, strict=True):
            lines.append(f"{percent(confidence):>12}  {percent(accuracy):>10}  {percent(share):>8}")
        return "\n".join([*lines, f"ECE {100 * self.ece:.2f} %, static ECE {100 * self.static_ece:.2f} %"])


class CalibrationError(RunningCounts):
    """Compute the calibration error in bins of equal width, batch by batch.

    Args:
        num_classes: Number of classes C.
        bins: Number of bins M. Bin m holds the probabilities in ((m - 1) / M, m / M]. The paper uses 15.
        from_logits: True if `update` gets logits, False if it gets probabilities.
        ignore_index: Target label of the pixels to ignore. None ignores no pixel.
        class_names: Names for tables. By default `class_0`, `class_1` and so on.
        exclude: Labels of the classes that do not enter `static_ece`.

    Attributes:
        counts: (3, C + 1, M + 2) float64. First axis: number of pixels, number of hits, sum of probabilities.
            Second axis: each class, then the largest probability. Third axis: each bin, then pixels out of
            range, then ignored pixels, whose sum may be NaN.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        bins: int = 15,
        from_logits: bool = True,
        ignore_index: int | None = IGNORE_INDEX,
        class_names: Sequence[str] | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        if bins < 1:
            raise UsageError(f"`bins` must be 1 or more, got {bins}")
        shape = (3, num_classes + 1, bins + 2)
        super().__init__(shape, torch.float64, num_classes, ignore_index, class_names, exclude)
        self.bins, self.from_logits = bins, from_logits

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add one batch or image.

        Args:
            prediction: (N, C, H, W) or (C, H, W) logits, or probabilities if `from_logits=False`.
            target: (N, H, W) or (H, W) labels of any integer type.

        Raises:
            UsageError: The prediction is not floating, or the shapes do not fit.
        """
        prediction, target = read_arrays(prediction, target)
        if is_logits(prediction, target, 1):
            raise UsageError(
                "`prediction` has one channel, whose softmax would always be 1: use 2 classes and "
                "`from_logits=False`, and pass the probabilities 1 - p and p of its sigmoid p"
            )
        if not is_logits(prediction, target, self.num_classes) or not prediction.is_floating_point():
            raise UsageError(
                f"`prediction` must be floating, with {self.num_classes} channels before the (H, W) of the target "
                f"{tuple(target.shape)}, got {tuple(prediction.shape)} {prediction.dtype}"
            )
        if prediction.device.type == "mps":  # MPS has no float64 for the sums
            prediction, target = prediction.cpu(), target.cpu()
        step = pixels_at_a_time(self.num_classes)
        for image, truth in zip(as_batch(prediction.detach(), inner=3), as_images(target), strict=True):
            for block, part in zip(image.flatten(1).split(step, dim=1), truth.flatten().split(step), strict=True):
                probs = block.float()
                self._add(self._sums(probs.softmax(0) if self.from_logits else probs, part))

    def _sums(self, probs: Tensor, target: Tensor) -> Tensor:
        """Sum (C, P) probabilities and a (P,) target into the layout of `counts`, (3, C + 1, M + 2)."""
        c, bins = self.num_classes, self.bins
        index = class_index(target, c)
        largest, label = probs.max(0)
        is_class = torch.arange(c, device=index.device)[:, None] == index
        hits = torch.cat([is_class, (label == index)[None]])  # (C + 1, P)
        probs = torch.cat([probs, largest[None]])
        # Rounding may lift an average of probabilities slightly above 1.
        out_of_range = ~((probs >= 0) & (probs <= 1 + 1e-5)).all(0) | (index == c)
        column = (probs * bins).ceil().clamp(1, bins).to(torch.int32) - 1
        column = torch.where(out_of_range, bins, column)
        column = torch.where(is_ignored(target, self.ignore_index), bins + 1, column)
        cells = column + (bins + 2) * torch.arange(c + 1, dtype=torch.int32, device=column.device)[:, None]
        size = (c + 1) * (bins + 2)
        numbers = histogram(cells.add(hits, alpha=size), 2 * size).view(2, size)
        sums = histogram(cells, size, probs.double())
        return torch.stack([numbers.sum(0), numbers[1], sums]).view(3, c + 1, bins + 2)

    def compute(self) -> CalibrationScores:
        """Return the scores of all images counted so far."""
        whole = self.counts.cpu().numpy()
        number, hits, sums = whole[..., : self.bins]  # each (C + 1, M)
        errors = divide_or_nan(np.abs(hits - sums).sum(-1), number.sum(-1))
        return CalibrationScores(
            class_names=self.class_names,
            ece=float(errors[-1]),
            static_ece=mean_of_present(errors[:-1][self.included]),
            class_ece=errors[:-1],
            confidence=divide_or_nan(sums[-1], number[-1]),
            accuracy=divide_or_nan(hits[-1], number[-1]),
            share=divide_or_nan(number[-1], np.full(self.bins, number[-1].sum())),
            ignored=int(whole[0, -1, -1]),
            out_of_range=int(whole[0, -1, -2]),
        )
