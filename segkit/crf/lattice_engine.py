"""Dense CRF in plain torch on the permutohedral lattice, for CPU and CUDA, without a compiler."""

import torch
from torch import Tensor

from segkit.crf.lattice import Lattice
from segkit.crf.presets import CRFParameters
from segkit.crf.pydensecrf_engine import CLIP


class LatticeEngine:
    """Run mean-field inference with symmetric normalisation, with the same steps as pydensecrf.

    Keeps the appearance kernel of the last image and the smoothness kernel of the last size for the next call.

    Args:
        parameters: Number of steps, and the kernels.
        tolerance: Stop when a step changes less than this share of the labels; 0 never stops early.
    """

    def __init__(self, parameters: CRFParameters, tolerance: float = 0.0) -> None:
        self.parameters = parameters
        self.tolerance = tolerance
        self._smoothness: tuple[object, Lattice] | None = None
        self._appearance: tuple[Tensor, Lattice] | None = None

    @torch.no_grad()
    def __call__(self, probs: Tensor, image: Tensor) -> Tensor:
        """Refine probabilities (C, H, W) by the image (H, W, 3) uint8, on their device."""
        kernels = self._kernels(image)
        logits = probs.clamp(CLIP, 1).log_().flatten(1).t().contiguous()  # (H*W, C)
        q, labels = _softmax_(logits.clone()), None
        for _ in range(self.parameters.iterations):
            energy = logits.clone()
            for kernel in kernels:
                energy += kernel(q)
            q = _softmax_(energy)
            if self.tolerance:
                before, labels = labels, q.argmax(1)
                if before is not None and (labels != before).float().mean() < self.tolerance:
                    break
        return q.t().reshape(probs.shape)

    def _kernels(self, image: Tensor) -> list[Lattice]:
        p = self.parameters
        kernels = []
        if p.gaussian_weight:
            kernels.append(self._smoothness_kernel(image))
        if p.bilateral_weight:
            kernels.append(self._appearance_kernel(image))
        return kernels

    def _smoothness_kernel(self, image: Tensor) -> Lattice:
        p, key = self.parameters, (image.shape, image.device)
        if self._smoothness is None or self._smoothness[0] != key:
            self._smoothness = None  # freed first, so that two kernels are never in memory
            self._smoothness = key, Lattice(_positions(image) / p.gaussian_sigma, p.gaussian_weight)
        return self._smoothness[1]

    def _appearance_kernel(self, image: Tensor) -> Lattice:
        p, kept = self.parameters, self._appearance
        if kept is None or kept[0].device != image.device or not torch.equal(kept[0], image):
            self._appearance = kept = None
            colours = image.flatten(0, 1).t().float() / p.bilateral_colour_sigma
            features = torch.cat([_positions(image) / p.bilateral_sigma, colours])
            self._appearance = image.clone(), Lattice(features, p.bilateral_weight)
        return self._appearance[1]


def _positions(image: Tensor) -> Tensor:
    """Return x and y of each pixel, (2, H*W)."""
    height, width = (torch.arange(n, dtype=torch.float32, device=image.device) for n in image.shape[:2])
    y, x = torch.meshgrid(height, width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()])


def _softmax_(logits: Tensor) -> Tensor:
    """Compute the softmax of (N, C) over the classes in place; `torch.softmax` is five times slower on short rows."""
    logits -= logits.amax(1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(1, keepdim=True))
