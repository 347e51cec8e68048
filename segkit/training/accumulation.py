"""Gradients of several batches summed up, so that they stand for one large batch."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Groups of `size` batches that make one update; the last one may be smaller."""
    window = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def pixel_shares(targets: Sequence[Tensor], ignore_index: int = 255) -> list[float | Tensor]:
    """What each batch's mean loss counts for in its window: its share of the window's valid pixels.

    The mean over all pixels of a window is not the mean of the batches' means where they ignore
    different numbers of pixels; weighed by these shares it is. For losses that are no mean over valid
    pixels (Dice and its kin, or a cross entropy with class weights) it stays an approximation.

    Args:
        targets: (N, H, W) each.
        ignore_index: The label of pixels that count for nothing.
    """
    if len(targets) == 1:
        return [1.0]
    counts = torch.stack([(target != ignore_index).sum() for target in targets])
    return list((counts / counts.sum().clamp(min=1)).unbind())
