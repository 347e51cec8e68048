"""Check the inputs of the CRF."""

import numpy as np
import torch
from torch import Tensor

from segkit.errors import UsageError

# pydensecrf counts up to 30 values per pixel in 32 bits, and aborts the process if they overflow.
MAX_CRF_PIXELS = 2**26


def check_probs(probs: np.ndarray | Tensor) -> Tensor:
    """Return probabilities (C, H, W) or (N, C, H, W) as a float32 tensor on their device.

    Raises:
        UsageError: The shape or type is wrong, the image is too large, or the values are not probabilities.
    """
    if not isinstance(probs, np.ndarray | Tensor):
        raise UsageError(f"`probs` must be a numpy array or a tensor, got {type(probs).__name__}")
    floating = probs.is_floating_point() if isinstance(probs, Tensor) else np.issubdtype(probs.dtype, np.floating)
    if probs.ndim not in (3, 4) or not floating:
        raise UsageError(f"`probs` must be (C, H, W) or (N, C, H, W) float, got {tuple(probs.shape)} {probs.dtype}")
    height, width = probs.shape[-2:]
    if min(probs.shape[-3:]) == 0 or height * width > MAX_CRF_PIXELS:
        raise UsageError(
            f"`probs` must have at least one class, and 1 to {MAX_CRF_PIXELS} pixels, got {tuple(probs.shape)}; "
            "tile larger images"
        )
    values = _as_tensor(probs).float()
    sums = values.sum(-3)
    if not bool((values.amin(-3) >= 0).all() & ((sums - 1).abs() < 1e-2).all()):  # NaN fails both tests
        single = "; for one class with the probability p, pass 1 - p and p" if values.shape[-3] == 1 else ""
        raise UsageError(
            f"`probs` must sum to 1 over the classes and be without NaN; logits need a softmax first{single}"
        )
    return values


def check_image(image: np.ndarray | Tensor, probs: Tensor) -> Tensor:
    """Return the image (H, W, 3), or images (N, H, W, 3), that belong to `probs` as a uint8 tensor.

    Raises:
        UsageError: The shape or type is wrong.
    """
    expected = (*probs.shape[:-3], *probs.shape[-2:], 3)
    if not isinstance(image, np.ndarray | Tensor):
        raise UsageError(f"`image` must be {expected} uint8 RGB, got {type(image).__name__}")
    if tuple(image.shape) != expected:
        raise UsageError(
            f"`image` must be {expected} uint8 RGB for `probs` {tuple(probs.shape)}, got {tuple(image.shape)}"
        )
    if image.dtype not in (np.uint8, torch.uint8):
        # Casting a 0..1 image to uint8 before multiplying by 255 would leave at most eight colours.
        raise UsageError(
            f"`image` must be uint8 RGB, got {image.dtype}; for values in 0..1: (255 * image).round().clip(0, 255)"
        )
    return _as_tensor(image)


def _as_tensor(values: np.ndarray | Tensor) -> Tensor:
    # Only arrays that torch cannot share are copied: read-only arrays, and arrays with negative strides.
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.require(values, requirements="CW"))
