"""What a backbone was trained with: mean, standard deviation and range of its input."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
            raise ValueError(f"images must be uint8 in 0..255, got {images.dtype}: they are normalised here, once")
        return self.normalise(images.float())

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises (N, C, H, W) float images in 0..255, such as resized ones."""
        mean, std, low, step = self._numbers(images)
        return images.mul(step).add(low).sub(mean).div(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std, low, step = self._numbers(images)
        return images.mul(std).add(mean).sub(low).div(step)

    def _numbers(self, images: Tensor) -> tuple[Tensor, Tensor, float, float]:
        low, high = self.input_range
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return mean, std, low, (high - low) / 255
