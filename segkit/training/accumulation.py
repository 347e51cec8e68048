"""Gradients of several batches and processes summed up, so that they stand for one large batch."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from segkit.training.distributed import ALONE, Ranks

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


def pixel_shares(targets: Sequence[Tensor], ranks: Ranks = ALONE, ignore_index: int = 255) -> tuple[list[float], int]:
    """What each batch's mean loss counts for in its window: its share of the window's valid pixels.

    The mean over all pixels of a window is not the mean of the batches' means where they ignore
    different numbers of pixels; weighed by these shares it is. For losses that are no mean over valid
    pixels (Dice and its kin, or a cross entropy with class weights) it stays an approximation.

    Args:
        targets: (N, H, W) each.
        ranks: The processes whose batches make up the window.
        ignore_index: The label of pixels that count for nothing.

    Returns:
        The shares, which add up to 1 over all processes, and the number of the window's images; of several
        processes' images those without a valid pixel, such as `TrainBatches` pads with, are not counted.
    """
    if ranks.count == 1 and len(targets) == 1:
        return [1.0], len(targets[0])
    valid = [(target != ignore_index).flatten(1).sum(1) for target in targets]
    images = sum(len(one) if ranks.count == 1 else int(one.count_nonzero()) for one in valid)
    pixels = [int(one.sum()) for one in valid]
    total, images = ranks.sum(torch.tensor([sum(pixels), images])).tolist()
    return [count / max(total, 1) for count in pixels], images
