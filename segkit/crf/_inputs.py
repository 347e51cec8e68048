"""The checks on what enters the CRF; a mistake is one sentence."""

import numpy as np
import torch
from torch import Tensor

# pydensecrf counts up to 30 numbers a pixel in 32 bits and aborts the process where they overflow.
MAX_PIXELS = 2**26


def check_probs(probs: np.ndarray | Tensor) -> Tensor:
    """Probabilities (C, H, W) or (N, C, H, W) as a float32 tensor on their device.

    Raises:
        ValueError: a wrong shape or type, an image too large, or values that are not probabilities.
    """
    if not isinstance(probs, np.ndarray | Tensor):
        raise ValueError(f"probs must be a numpy array or a tensor, got {type(probs).__name__}")
    floating = probs.is_floating_point() if isinstance(probs, Tensor) else np.issubdtype(probs.dtype, np.floating)
    if probs.ndim not in (3, 4) or not floating:
        raise ValueError(f"probs must be (C, H, W) or (N, C, H, W) float, got {tuple(probs.shape)} {probs.dtype}")
    height, width = probs.shape[-2:]
    if min(probs.shape[-3:]) == 0 or height * width > MAX_PIXELS:
        raise ValueError(
            f"probs must hold a class and 1 to {MAX_PIXELS} pixels, got {tuple(probs.shape)}; tile larger images"
        )
    values = _as_tensor(probs).float()
    sums = values.sum(-3)
    if not bool((values.amin(-3) >= 0).all() & ((sums - 1).abs() < 1e-2).all()):  # NaN fails both
        raise ValueError("probs must be probabilities that sum to 1 over the classes, not logits, and hold no NaN")
    return values


def check_image(image: np.ndarray | Tensor, probs: Tensor) -> Tensor:
    """Image (H, W, 3) or images (N, H, W, 3) like `probs`, as a uint8 tensor.

    Raises:
        ValueError: a wrong shape or type.
    """
    expected = (*probs.shape[:-3], *probs.shape[-2:], 3)
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"image must be {expected} uint8 RGB, got {type(image).__name__}")
    if tuple(image.shape) != expected:
        raise ValueError(f"image must be {expected} uint8 RGB for probs {tuple(probs.shape)}, got {tuple(image.shape)}")
    if image.dtype not in (np.uint8, torch.uint8):
        # Rounded before it is multiplied by 255, an image has at most eight colours left.
        raise ValueError(f"image must be uint8 RGB, got {image.dtype}: (255 * image).round().clip(0, 255), then uint8")
    return _as_tensor(image)


def _as_tensor(values: np.ndarray | Tensor) -> Tensor:
    # Copies only what torch cannot share: read-only arrays and negative strides.
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.require(values, requirements="CW"))
