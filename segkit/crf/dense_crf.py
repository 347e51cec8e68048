"""DenseCRF: refines class probabilities by the colours of the image, with pydensecrf."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseCRF:
    """Fully connected CRF with Gaussian edge potentials.

    Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials", 2011, equation 3. The default parameters are those of the recycled-waste solutions
    that segkit grew from.

    Args:
        iterations: Steps of mean-field inference.
        gaussian_sigma: Reach of the smoothness kernel, in pixels.
        gaussian_weight: Its weight.
        bilateral_sigma: Reach of the appearance kernel, in pixels.
        bilateral_colour_sigma: Its reach in colour, in steps of 0..255.
        bilateral_weight: Its weight.

    Raises:
        ImportError: pydensecrf is not installed.
    """

    iterations: int = 10
    gaussian_sigma: float = 3.0
    gaussian_weight: float = 10.0
    bilateral_sigma: float = 10.0
    bilateral_colour_sigma: float = 5.0
    bilateral_weight: float = 10.0

    def __post_init__(self) -> None:
        _pydensecrf()  # better now than after the first image

    def __call__(self, probs: np.ndarray | Tensor, image: np.ndarray) -> np.ndarray | Tensor:
        """Refines one image or a batch.

        Args:
            probs: (C, H, W) or (N, C, H, W) probabilities that sum to 1 over the classes.
            image: (H, W, 3) or (N, H, W, 3) uint8 RGB.

        Returns:
            Probabilities like `probs`, float32, of the same kind (numpy or torch).

        Raises:
            ValueError: a wrong shape or type, values that are not probabilities.
        """
        values = probs.detach().cpu().numpy() if isinstance(probs, Tensor) else np.asarray(probs)
        _check(values, image)
        if values.ndim == 4:
            refined = np.stack([self._refine(p, i) for p, i in zip(values, image, strict=True)])
        else:
            refined = self._refine(values, image)
        return torch.from_numpy(refined).to(probs.device) if isinstance(probs, Tensor) else refined

    def _refine(self, probs: np.ndarray, image: np.ndarray) -> np.ndarray:
        classes, height, width = probs.shape
        # pydensecrf wants contiguous, writable buffers, and copies keep the caller's arrays its own.
        unary = -np.log(np.clip(probs, 1e-5, 1.0)).astype(np.float32).reshape(classes, -1)
        crf = _pydensecrf().DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(np.ascontiguousarray(unary))
        crf.addPairwiseGaussian(sxy=self.gaussian_sigma, compat=self.gaussian_weight)
        crf.addPairwiseBilateral(
            sxy=self.bilateral_sigma,
            srgb=self.bilateral_colour_sigma,
            rgbim=np.array(image, order="C"),
            compat=self.bilateral_weight,
        )
        return np.array(crf.inference(self.iterations), dtype=np.float32).reshape(probs.shape)


def _pydensecrf() -> ModuleType:
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise ImportError(
            "DenseCRF needs pydensecrf: `pip install pydensecrf2` (Python before 3.13, with a C++ compiler)"
        ) from error
    return pydensecrf.densecrf


def _check(probs: np.ndarray, image: np.ndarray) -> None:
    if probs.ndim not in (3, 4) or not np.issubdtype(probs.dtype, np.floating):
        raise ValueError(f"probs must be (C, H, W) or (N, C, H, W) float, got {probs.shape} {probs.dtype}")
    expected = (*probs.shape[:-3], *probs.shape[-2:], 3)
    if not isinstance(image, np.ndarray) or image.shape != expected or image.dtype != np.uint8:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be a numpy array {expected} uint8 RGB for probs {probs.shape}, got {got}")
    sums = probs.sum(-3, dtype=np.float64)
    if not (probs.min(initial=0) >= 0 and np.abs(sums - 1).max(initial=0) < 1e-2):  # NaN fails both
        raise ValueError("probs must be probabilities that sum to 1 over the classes, not logits, and hold no NaN")
