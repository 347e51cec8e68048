"""Dense CRF by pydensecrf: C++, one thread, one image at a time."""

import importlib
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from segkit.crf.presets import CRFParameters
from segkit.errors import MissingPackageError

CLIP = 1e-5  # lower limit of probabilities before the logarithm, as in pydensecrf


class PydensecrfEngine:
    """Run mean-field inference with pydensecrf. Keeps the kernels of the last image for the next call.

    Args:
        parameters: Number of steps, and the kernels.
        tolerance: Stop when a step changes less than this share of the labels; 0 never stops early.

    Raises:
        MissingPackageError: Pydensecrf is not installed.
    """

    def __init__(self, parameters: CRFParameters, tolerance: float = 0.0) -> None:
        self.parameters = parameters
        self.tolerance = tolerance
        self._module = import_pydensecrf()
        self._crf = self._image = self._classes = None

    def __call__(self, probs: Tensor, image: Tensor) -> Tensor:
        """Refine probabilities (C, H, W) by the image (H, W, 3) uint8, on the CPU."""
        classes = len(probs)
        crf = self._with_kernels(classes, image.numpy())
        unary = probs.clamp(CLIP, 1).log_().neg_().reshape(classes, -1)
        crf.setUnaryEnergy(unary.numpy())  # pydensecrf needs contiguous, writable buffers
        q, *scratch = crf.startInference()  # q: (C, H*W)
        labels = None
        for _ in range(self.parameters.iterations):
            crf.stepInference(q, *scratch)
            if self.tolerance:
                before, labels = labels, np.asarray(q).argmax(0)
                if before is not None and (labels != before).mean() < self.tolerance:
                    break
        return torch.from_numpy(np.array(q)).reshape(probs.shape)

    def _with_kernels(self, classes: int, image: np.ndarray) -> object:
        if self._classes != classes or self._image is None or not np.array_equal(self._image, image):
            self._crf = None  # freed first, so that two lattices are never in memory
            self._image, self._classes = np.array(image, order="C"), classes
            crf, p = self._module.DenseCRF2D(image.shape[1], image.shape[0], classes), self.parameters
            if p.gaussian_weight:
                crf.addPairwiseGaussian(sxy=p.gaussian_sigma, compat=p.gaussian_weight)
            if p.bilateral_weight:
                crf.addPairwiseBilateral(
                    sxy=p.bilateral_sigma, srgb=p.bilateral_colour_sigma, rgbim=self._image, compat=p.bilateral_weight
                )
            self._crf = crf
        return self._crf


def import_pydensecrf() -> ModuleType:
    """Import pydensecrf.densecrf, or raise an error that names the package to install."""
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise MissingPackageError(
            'backend="pydensecrf" needs `pip install pydensecrf2` (Python before 3.13, with a C++ compiler)'
        ) from error
