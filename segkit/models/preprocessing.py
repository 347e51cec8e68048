"""Preprocessing: mean, standard deviation and range of the images that a backbone was trained on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from segkit.errors import UsageError


@dataclass(frozen=True)
class Preprocessing:
    """Convert uint8 RGB images to the normalised values that the backbone expects.

    Attributes:
        mean: Mean of each channel, in units of `input_range`.
        std: Standard deviation of each channel, in units of `input_range`.
        input_range: The values that 0 and 255 are mapped to before mean and std are applied.

    Raises:
        UsageError: A value is not a finite number, a standard deviation is not positive, or the lengths do not fit.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            values = getattr(self, name)
            values = tuple(values) if isinstance(values, Iterable) else ()
            if not values or not all(isinstance(value, Real) and math.isfinite(value) for value in values):
                raise UsageError(f"`{name}` of the preprocessing must be finite numbers, got {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if len(self.mean) != len(self.std) or not min(self.std) > 0:
            raise UsageError(
                f"`std` must have a positive number for each of the {len(self.mean)} channels, got {self.std}"
            )
        if len(self.input_range) != 2 or self.input_range[0] >= self.input_range[1]:
            raise UsageError(f"`input_range` must be two numbers, the lower one first, got {self.input_range}")

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Normalise uint8 images to a tensor (N, C, H, W) float32, the input of a model.

        Args:
            images: A tensor (N, C, H, W), or an array (H, W, C) or (N, H, W, C).

        Raises:
            UsageError: The images have another shape or type.
        """
        given = f"{tuple(images.shape)} {images.dtype}" if hasattr(images, "shape") else type(images).__name__
        if isinstance(images, np.ndarray) and images.ndim in (3, 4) and images.dtype == np.uint8:
            images = torch.from_numpy(np.require(images, requirements=("C", "W")))
            images = (images if images.ndim == 4 else images[None]).permute(0, 3, 1, 2)
        channels = len(self.mean)
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
            raise UsageError(
                f"`images` must be a tensor (N, {channels}, H, W) or an array (H, W, {channels}) of uint8, got {given}"
            )
        if images.dtype != torch.uint8:
            raise UsageError(f"`images` must be uint8 in 0..255, got {images.dtype}; are they normalised already?")
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise (N, C, H, W) images in 0..255 of any type, such as resized ones, to float32."""
        scale, bias = self._affine(images)
        return _scale_and_shift(images, scale, bias)

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo `normalise`."""
        scale, bias = self._affine(images)
        return _scale_and_shift(images, 1 / scale, -bias / scale)

    def _affine(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor and the summand of each channel."""
        low, high = self.input_range
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        affine = torch.stack([(high - low) / 255 / std, (low - mean) / std]).float()
        if images.is_cuda:
            affine = affine.pin_memory()  # A copy from other memory waits until the GPU has finished its work.
        scale, bias = affine.to(images.device, non_blocking=True)
        return scale, bias


def _scale_and_shift(images: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return images * scale + bias, with a single allocation."""
    n, channels, height, width = images.shape
    values = images.to(torch.float32, copy=True)
    if channels > 1 and values.is_contiguous(memory_format=torch.channels_last):
        # Compute on whole rows: an innermost axis of three values would leave the vector units of a CPU empty.
        rows = values.permute(0, 2, 3, 1).view(n, height, width * channels)
        rows.mul_(scale.repeat(width)).add_(bias.repeat(width))
        return values
    return values.mul_(scale.view(1, -1, 1, 1)).add_(bias.view(1, -1, 1, 1))
