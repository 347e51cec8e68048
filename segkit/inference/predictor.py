"""Predictor: from a photograph to a label map, by one model or several."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.sliding_window import SlidingWindow
from segkit.tta import TTA, Member

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]  # such as DenseCRF: (C, H, W), (H, W, 3) -> (C, H, W)
PROBS = ("memory", "disk", "none")
LARGEST_BIAS = 20  # a factor of 5e8; much more leaves no other class in float32


@dataclass(frozen=True)
class Prediction:
    """What a Predictor says of an image.

    Attributes:
        mask: (H, W) uint8 labels.
        probs: (C, H, W) float32 class probabilities; None where they are not kept.
    """

    mask: np.ndarray
    probs: np.ndarray | None


class Predictor:
    """Label maps from uint8 images: `Predictor(model)(image).mask`.

    The image is resized once for each scale, and normalised for each model by its own preprocessing; their
    probabilities are averaged.

    Args:
        models: One Segmenter, or several with the same classes; put in eval mode and moved to `device`. What
            `segkit.models.optimize` gives will do as well.
        member_weights: Weight of each model, scaled to sum to 1; equal by default.
        tta: Test-time augmentation.
        window: Runs images that are larger than the window piece by piece.
        class_bias: What is added to the log-probabilities of single classes, by name, before they are scaled to
            sum to 1 again: above 0 a class is found more often. See `python -m segkit tune`.
        crf: Refinement by the image's colours.
        device: Where the models run.
        probs: Where probabilities are kept: in `memory`, on `disk` (a memory-mapped file that goes with the
            array), or `none`: then an image of any size takes, above its label map, one band of windows.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        *,
        member_weights: Sequence[float] | None = None,
        tta: TTA | None = None,
        window: SlidingWindow | None = None,
        class_bias: Mapping[str, float] | None = None,
        crf: Refine | None = None,
        device: str | torch.device = "cpu",
        probs: str = "memory",
    ) -> None:
        models = [models] if isinstance(models, nn.Module) else list(models)
        _check_members(models)
        self.device = torch.device(device)
        self.members = [model.to(self.device).eval() for model in models]
        self.member_weights = _normalise(member_weights, len(models))
        self.tta = tta or TTA()
        self.window = window
        self.class_factors = _factors(class_bias or {}, self.class_names)
        self.crf = crf
        self.probs = probs
        if probs not in PROBS:
            raise UsageError(f"unknown probs {probs!r}, expected one of {', '.join(PROBS)}")
        if self.tta.merge == "logits":
            raise UsageError(
                "a Predictor averages probabilities; for the softmax of the mean logits take merge='gmean'"
            )
        if crf is not None and probs == "none":
            raise UsageError("the CRF needs the probabilities, so they cannot be 'none'")

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.members[0].class_names

    def __call__(self, image: np.ndarray) -> Prediction:
        """Segments one image (H, W, 3) uint8 RGB of any size."""
        prediction = self.by_models(image)
        return prediction if self.crf is None else with_probs(self.crf(prediction.probs, image))

    @torch.inference_mode()
    def by_models(self, image: np.ndarray) -> Prediction:
        """What the models say, before the CRF."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UsageError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        pixels = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)
        if self.window is None or max(np.subtract(image.shape[:2], self.window.size)) <= 0:
            bands = [(0, self._predict(pixels[None])[0])]
        else:
            bands = self.window.bands(self._predict, pixels)
        return self._gathered(bands, image.shape[:2])

    def _predict(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> probabilities (N, C, H, W) on the CPU."""
        members = [
            Member(model, model.preprocessing.normalise, weight)
            for model, weight in zip(self.members, self.member_weights, strict=True)
            if weight > 0
        ]
        return self.tta.ensemble(members, pixels.to(self.device).float()).cpu()

    def _biased(self, probs: Tensor) -> Tensor:
        """(C, H, W) probabilities, each class times its factor."""
        if self.class_factors is None:
            return probs
        weighted = probs * self.class_factors[:, None, None]
        return weighted / weighted.sum(0)

    def _gathered(self, bands: Iterable[tuple[int, Tensor]], size: tuple[int, int]) -> Prediction:
        mask, probs = np.empty(size, dtype=np.uint8), None
        for top, models_say in bands:
            band = self._biased(models_say)
            rows = slice(top, top + band.shape[1])
            mask[rows] = band.argmax(0).numpy()
            if self.probs == "none":
                continue
            if band.shape[1:] == size and self.probs == "memory":
                return Prediction(mask, band.numpy())
            if probs is None:
                probs = _allocate((len(band), *size), on_disk=self.probs == "disk")
            probs[:, rows] = band.numpy()
        return Prediction(mask, probs)


def with_probs(probs: np.ndarray) -> Prediction:
    """The prediction of probabilities (C, H, W)."""
    return Prediction(probs.argmax(0).astype(np.uint8), probs)


def _allocate(shape: tuple[int, ...], *, on_disk: bool) -> np.ndarray:
    if not on_disk:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile() as file:  # its space is freed with the array
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def _check_members(models: Sequence[nn.Module]) -> None:
    if not models:
        raise UsageError("Predictor needs at least one model")
    for model in models[1:]:
        if model.class_names != models[0].class_names:
            raise UsageError(f"the models differ in their classes: {models[0].class_names} and {model.class_names}")


def _factors(bias: Mapping[str, float], class_names: Sequence[str]) -> Tensor | None:
    """(C,) what an addition to the logarithms of the probabilities multiplies them by; None for no addition."""
    for name in bias:
        if name not in class_names:
            raise UsageError(f"there is no class {name!r} for class_bias, the classes are {', '.join(class_names)}")
    values = torch.tensor([float(bias.get(name, 0.0)) for name in class_names])
    if not values.abs().max() <= LARGEST_BIAS:
        raise UsageError(f"class_bias must be numbers in -{LARGEST_BIAS} .. {LARGEST_BIAS}, got {dict(bias)}")
    return values.exp() if values.any() else None


def _normalise(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    weights = tuple(weights or [1.0] * count)
    if len(weights) != count or not min(weights) >= 0 or not sum(weights) > 0:
        raise UsageError(f"member_weights must be {count} numbers of at least 0, not all 0, got {weights}")
    return tuple(weight / sum(weights) for weight in weights)
