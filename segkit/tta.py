"""Test-time augmentation: views of an image, their exact inverses, a running mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "h": ((), (3,)),
    "v": ((), (2,)),
    "hv": ((), (3,), (2,), (2, 3)),
}


@dataclass(frozen=True)
class TTA:
    """Mean of the class probabilities over flips and scales.

    The flips of one scale run as one batch. Each scale is resized from the image itself, and its
    probabilities back to the image's exact size.

    Args:
        scales: Factors of height and width.
        flips: `none`, `h`, `v` or `hv` (both, and both at once); the image as it is always takes part.
    """

    scales: Sequence[float] = (1.0,)
    flips: str = "none"

    def __post_init__(self) -> None:
        if self.flips not in FLIPS:
            raise ValueError(f"unknown flips {self.flips!r}, expected one of {', '.join(FLIPS)}")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive, got {self.scales}")
        object.__setattr__(self, "scales", tuple(dict.fromkeys(self.scales)))

    @torch.inference_mode()
    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> probabilities (N, C, H, W) float32; the model's mode is kept."""
        was_training = model.training
        model.eval()
        try:
            maps = [self._at_scale(model, images, scale) for scale in self.scales]
        finally:
            model.train(was_training)
        return torch.stack(maps).mean(0) if len(maps) > 1 else maps[0]

    def _at_scale(self, model: nn.Module, images: Tensor, scale: float) -> Tensor:
        size = images.shape[-2:]
        scaled = [max(1, round(length * scale)) for length in size]
        if scaled != list(size):
            images = F.interpolate(images, size=scaled, mode="bilinear", align_corners=False)
        views = FLIPS[self.flips]
        logits = model(torch.cat([images.flip(dims) for dims in views]))
        batches = logits.float().softmax(1).chunk(len(views))
        probs = torch.stack([p.flip(dims) for p, dims in zip(batches, views, strict=True)]).mean(0)
        if scaled != list(size):
            probs = F.interpolate(probs, size=size, mode="bilinear", align_corners=False)
        return probs
