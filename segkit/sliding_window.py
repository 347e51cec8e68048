"""SlidingWindow: images of any size through a window, blended where windows overlap, in bands of rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segkit.errors import UsageError

_LOWEST = 1e-3  # of the blending weights: every pixel must count for something
_SIGMA = 1 / 8  # of the window's side; Isensee et al., "nnU-Net", 2021, supplementary note 4.5


@dataclass(frozen=True)
class SlidingWindow:
    """Cuts an image into overlapping windows and blends what is predicted for them.

    Memory holds one band of rows, of the window's height and the image's width, whatever the image's height.

    Args:
        size: Height and width of the window, in pixels; one number for both.
        overlap: Least share of a window that the next one covers again, 0 <= overlap < 1.
        blend: `gaussian` trusts the middle of a window more than its border; `constant` all of it alike.
        batch_size: Windows that run at once.
    """

    size: int | tuple[int, int] = 512
    overlap: float = 0.5
    blend: str = "gaussian"
    batch_size: int = 4

    def __post_init__(self) -> None:
        sides = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        if len(sides) != 2 or min(sides) < 1 or self.batch_size < 1:
            raise UsageError(f"size and batch_size must be at least 1, got {self.size} and {self.batch_size}")
        if not 0 <= self.overlap < 1:
            raise UsageError(f"overlap must be at least 0 and less than 1, got {self.overlap}")
        if self.blend not in ("gaussian", "constant"):
            raise UsageError(f"unknown blend {self.blend!r}, expected gaussian or constant")
        object.__setattr__(self, "size", sides)

    def __call__(self, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Image (C_in, H, W) -> (C, H, W), from `predict`: windows (N, C_in, h, w) -> (N, C, h, w)."""
        return torch.cat([band for _, band in self.bands(predict, image)], dim=1)

    def bands(self, predict: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What `__call__` gives, from the top to the bottom: (first row, (C, rows, W) float32)."""
        height, width = (min(side, length) for side, length in zip(self.size, image.shape[1:], strict=True))
        tops = _starts(image.shape[1], height, self.overlap)
        lefts = _starts(image.shape[2], width, self.overlap)
        band = None  # (C, height, W), whose first row is the image's row `top`
        for top, after in zip(tops, [*tops[1:], image.shape[1]], strict=True):
            strip = image[:, top : top + height]
            for left, probs in self._windows(predict, strip, lefts, width):
                if band is None:  # on the device of the predictions, which the image need not be on
                    band = probs.new_zeros(len(probs), height, image.shape[2])
                    down, across = self._weights(height, probs.device), self._weights(width, probs.device)
                    row_sums, column_sums = _sums(tops, down, image.shape[1]), _sums(lefts, across, image.shape[2])
                band[:, :, left : left + width].add_(probs * down[:, None] * across)
            done = after - top
            yield top, band[:, :done] / (row_sums[top:after, None] * column_sums)
            band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], dim=1)

    def _windows(
        self, predict: Callable[[Tensor], Tensor], strip: Tensor, lefts: list[int], width: int
    ) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(lefts), self.batch_size):
            part = lefts[start : start + self.batch_size]
            results = predict(torch.stack([strip[:, :, left : left + width] for left in part]))
            yield from zip(part, results.float(), strict=True)

    def _weights(self, length: int, device: torch.device) -> Tensor:
        if self.blend == "constant":
            return torch.ones(length, device=device)
        x = (torch.arange(length, device=device) - (length - 1) / 2) / (_SIGMA * length)
        return torch.exp(-x.square() / 2).clamp(min=_LOWEST)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin: the first at 0, the last at the end, evenly spaced."""
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def _sums(starts: list[int], weights: Tensor, length: int) -> Tensor:
    """What the weights of all windows add up to along one side."""
    total = weights.new_zeros(length)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
