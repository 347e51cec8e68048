"""What a backbone was trained with: mean, standard deviation and range of its input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.errors import UsageError


@dataclass(frozen=True)
class Preprocessing:
    """Turns uint8 RGB into what the backbone expects.

    Attributes:
        mean: Per channel, in units of `input_range`.
        std: Per channel, in units of `input_range`.
        input_range: The values that 0 and 255 are mapped to before mean and std.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalises (N, C, H, W) uint8 images to float32 of the same shape."""
        if images.dtype != torch.uint8:
            raise UsageError(f"images must be uint8 in 0..255, got {images.dtype}: they are normalised here, once")
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises (N, C, H, W) images in 0..255 of any type, such as resized ones, to float32."""
        scale, bias = self._affine(images)
        return _scale_and_shift(images, scale, bias)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        scale, bias = self._affine(images)
        return _scale_and_shift(images, 1 / scale, -bias / scale)

    def _affine(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What a value is multiplied by, and what is added then, for each channel."""
        low, high = self.input_range
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        scale, bias = (high - low) / 255 / std, (low - mean) / std
        return scale.float().to(images.device), bias.float().to(images.device)


def _scale_and_shift(images: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """images * scale + bias, in memory that is taken once."""
    n, channels, height, width = images.shape
    values = images.to(torch.float32, copy=True)
    if channels > 1 and values.is_contiguous(memory_format=torch.channels_last):
        # Whole rows: along an innermost axis of three values, a processor's vector units would stay empty.
        rows = values.permute(0, 2, 3, 1).view(n, height, width * channels)
        rows.mul_(scale.repeat(width)).add_(bias.repeat(width))
        return values
    return values.mul_(scale.view(1, -1, 1, 1)).add_(bias.view(1, -1, 1, 1))
