"""Parameters of the dense CRF, and published sets of them by name."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

from segkit.errors import UsageError


@dataclass(frozen=True)
class CRFParameters:
    """Number of steps, and the smoothness and appearance kernels; `DenseCRF` explains each parameter.

    Raises:
        UsageError: A parameter is outside its range.
    """

    iterations: int = 10
    gaussian_sigma: float = 3.0
    gaussian_weight: float = 10.0
    bilateral_sigma: float = 10.0
    bilateral_colour_sigma: float = 5.0
    bilateral_weight: float = 10.0

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, Integral) or self.iterations < 0:
            raise UsageError(f"`iterations` must be a whole number of at least 0, got {self.iterations!r}")
        for name in ("gaussian_sigma", "bilateral_sigma", "bilateral_colour_sigma"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and value > 0 and math.isfinite(value)):
                raise UsageError(f"`{name}` must be positive, got {value!r}")
        for name in ("gaussian_weight", "bilateral_weight"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and value >= 0 and math.isfinite(value)):
                raise UsageError(f"`{name}` must be 0 or more, got {value!r}")


# Order: iterations; sigma and weight of the smoothness kernel; sigma, colour sigma and weight of the appearance kernel.
# Sigmas are in pixels of the images on which they were tuned: double them for images of twice the size.
PRESETS: dict[str, CRFParameters] = {
    # The recycled-waste solutions that segkit grew from, for images of 512 x 512.
    "seed": CRFParameters(10, 3, 10, 10, 5, 10),
    # Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", 2014,
    # arXiv 1412.7062: values from run_densecrf.sh in its released code (DeepLab-LargeFOV). Section 4 of the paper
    # fixes the smoothness kernel at 3, 3 and searches the appearance kernel in 50-100, 3-10, 3-6.
    "deeplab_v1": CRFParameters(10, 3, 3, 49, 5, 4),
    # Chen et al., "DeepLab", 2016, arXiv 1606.00915, values of its released models, for images of 513 x 513.
    "deeplab_v2_vgg16": CRFParameters(10, 2, 2, 65, 3, 4),
    "deeplab_v2_resnet101": CRFParameters(10, 1, 3, 67, 3, 4),
    # The example in the README of github.com/lucasb-eyer/pydensecrf.
    "pydensecrf_readme": CRFParameters(5, 3, 3, 80, 13, 10),
}
