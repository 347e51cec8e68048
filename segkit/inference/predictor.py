"""Predictor: from a photograph to a label map, by one model or several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from segkit.crf import DenseCRF
from segkit.tta import TTA


@dataclass(frozen=True)
class Prediction:
    """What a Predictor says of an image.

    Attributes:
        mask: (H, W) uint8 labels.
        probs: (C, H, W) float32 class probabilities.
    """

    mask: np.ndarray
    probs: np.ndarray


class Predictor:
    """Label maps from uint8 images: `Predictor(model)(image).mask`.

    Each model normalises the image by its own preprocessing; their probabilities are averaged.

    Args:
        models: One Segmenter, or several with the same classes; put in eval mode and moved to `device`. What
            `segkit.models.optimize` gives will do as well.
        member_weights: Weight of each model, scaled to sum to 1; equal by default.
        tta: Test-time augmentation.
        crf: Refinement by the image's colours.
        device: Where the models run.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        *,
        member_weights: Sequence[float] | None = None,
        tta: TTA | None = None,
        crf: DenseCRF | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        members = [models] if isinstance(models, nn.Module) else list(models)
        if not members:
            raise ValueError("Predictor needs at least one model")
        for member in members[1:]:
            if member.class_names != members[0].class_names:
                raise ValueError(
                    f"the models differ in their classes: {members[0].class_names} and {member.class_names}"
                )
        self.device = torch.device(device)
        self.members = [member.to(self.device).eval() for member in members]
        self.member_weights = _normalise(member_weights, len(members))
        self.tta = tta or TTA()
        self.crf = crf

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.members[0].class_names

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Prediction:
        """Segments one image (H, W, 3) uint8 RGB of any size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1).unsqueeze(0)
        mean = 0
        for member, weight in zip(self.members, self.member_weights, strict=True):
            mean = mean + weight * self.tta(member, member.preprocessing(pixels))[0]
        probs = mean.cpu().numpy()
        if self.crf is not None:
            probs = self.crf(probs, image)
        return Prediction(probs.argmax(0).astype(np.uint8), probs)


def _normalise(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    weights = tuple(weights or [1.0] * count)
    if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"member_weights must be {count} numbers of at least 0, not all 0, got {weights}")
    return tuple(weight / sum(weights) for weight in weights)
