"""SlidingWindow: predict large images window by window, and blend the windows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.errors import UsageError
from segkit.names import check_known

_LOWEST = 1e-3  # smallest blending weight, so that the sum of the weights is positive at every pixel
_SIGMA = 1 / 8  # as a share of the side of the window; Isensee et al., "nnU-Net", 2021, supplementary note 4.5


@dataclass(frozen=True)
class SlidingWindow:
    """Cut an image into overlapping windows, and blend the predictions of the windows.

    Only one band of rows is in memory at a time, as high as a window and as wide as the image. Windows are cut from the
    image at its own size: only `Predictor(model, window=...)` uses the scale that a model was trained at.

    Args:
        size: Height and width of the window in pixels, or one number for both.
        overlap: Smallest share of a window that the next window covers again, 0 <= overlap < 1.
        blend: `gaussian` weights the middle of a window more than its border, `constant` weights all pixels equally.
        batch_size: Number of windows that are predicted at once.
        above: Images whose input to the model has at most this many pixels are not cut.

    Raises:
        UsageError: A value is out of range.
    """

    size: int | tuple[int, int] = 512
    overlap: float = 0.5
    blend: str = "gaussian"
    batch_size: int = 4
    above: int = 0

    def __post_init__(self) -> None:
        sides = tuple(self.size) if isinstance(self.size, Sequence | np.ndarray) else (self.size, self.size)
        if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 1 for side in (*sides, self.batch_size)):
            raise UsageError(
                "`size` must be one or two whole numbers of at least 1, and `batch_size` one, got "
                f"{self.size!r} and {self.batch_size!r}"
            )
        if not isinstance(self.overlap, Real) or not 0 <= self.overlap < 1:
            raise UsageError(f"`overlap` must be at least 0 and less than 1, got {self.overlap!r}")
        check_known("blend", self.blend, ("gaussian", "constant"))
        if not isinstance(self.above, Integral) or self.above < 0:
            raise UsageError(f"`above` must be a whole number of 0 or more, got {self.above!r}")
        object.__setattr__(self, "size", tuple(map(int, sides)))
        for name, plain in (("overlap", float), ("batch_size", int), ("above", int)):
            object.__setattr__(self, name, plain(getattr(self, name)))  # JSON takes no numbers of numpy

    @classmethod
    def read(cls, stored: Any) -> "SlidingWindow | None":
        """Return the window in the header of a model file; None for whole images, and in a file of an older segkit.

        Raises:
            UsageError: It is something else.
        """
        if stored is None:
            return None
        names = [field.name for field in fields(cls)]
        if not isinstance(stored, dict) or not stored.keys() <= set(names):
            raise UsageError(f"`window` must have {', '.join(names)}, got {stored!r}")
        return cls(**stored)

    def write(self) -> dict[str, Any]:
        """Return what `read` takes, in plain types."""
        return asdict(self)

    def __str__(self) -> str:
        sides = " x ".join(map(str, dict.fromkeys(self.size)))
        large = f" above {self.above / 2**20:.3g} megapixels" if self.above else ""
        return f"windows of {sides} pixels{large}"

    def of(
        self, height: int, width: int, *, factors: tuple[float, float] = (1.0, 1.0), reduce: int = 1
    ) -> "SlidingWindow | None":
        """Return the window in pixels of an image of this size; None if the image is predicted whole.

        Args:
            height: Height of the image.
            width: Width of the image.
            factors: Factors of height and width by which windows are resized before the model.
            reduce: The sides become multiples of this.
        """
        size = tuple(
            max(1, math.ceil(side / factor / reduce)) * reduce for side, factor in zip(self.size, factors, strict=True)
        )
        is_large = height * factors[0] * width * factors[1] > self.above
        # The predictions of a batch of windows are resized to pixels of the image: a smaller batch keeps their memory
        # the same.
        batch_size = max(1, int(self.batch_size * min(1.0, factors[0] * factors[1])))
        cut = replace(self, size=size, batch_size=batch_size)
        return cut if is_large and (height > size[0] or width > size[1]) else None

    def __call__(self, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Return the blended prediction (C, H, W) float32 of an image (C_in, H, W).

        Args:
            predict: Windows (N, C_in, h, w) -> predictions (N, C, h, w).
            image: (C_in, H, W).
        """
        return torch.cat([band for _, band in self.bands(predict, image)], dim=1)

    def bands(self, predict: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the result of `__call__` in bands from top to bottom: (first row, (C, rows, W) float32)."""
        height, width = (min(side, length) for side, length in zip(self.size, image.shape[1:], strict=True))
        tops = _starts(image.shape[1], height, self.overlap)
        lefts = _starts(image.shape[2], width, self.overlap)
        band = None  # (C, height, W); its first row is row `top` of the image
        for top, after in zip(tops, [*tops[1:], image.shape[1]], strict=True):
            strip = image[:, top : top + height]
            for left, probs in self._windows(predict, strip, lefts, width):
                if band is None:  # on the device of the predictions, which may not be the image's
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
    """Return the first pixel of each window: evenly spaced, from 0 to the last that fits."""
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def _sums(starts: list[int], weights: Tensor, length: int) -> Tensor:
    """Return the sum of the weights of all windows at each pixel of one side."""
    total = weights.new_zeros(length)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
