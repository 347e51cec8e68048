"""The pieces in which losses work through large maps, so that what they compute on the way stays in the caches."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_VALUES = 1 << 20  # logits worked on at a time on a CPU


def blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Image and pixel ranges that cover (N, C, P): small ones on a CPU, all at once on a GPU."""
    n, classes, pixels = logits.shape
    if logits.is_cuda:
        yield slice(None), slice(None)
        return
    step = max(1024, BLOCK_VALUES // max(classes, 1))
    for image in range(n):
        for start in range(0, pixels, step):
            yield slice(image, image + 1), slice(start, start + step)


def exact_type(device: torch.device) -> torch.dtype:
    """The type for sums over many pixels, of which float32 would lose the small ones; Apple's GPUs have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def masked(logits: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Logits (N, C, P) in another type, with 0 where valid (N, P) or (N, C, P) is false."""
    logits = logits.to(dtype)
    if valid is None:
        return logits
    return torch.where(valid if valid.ndim == 3 else valid.unsqueeze(1), logits, 0)
