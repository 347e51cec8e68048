"""Labels: the largest channel of logits, and labels of any integer type as class indices."""

import torch
from torch import Tensor


def argmax_channels(logits: Tensor) -> Tensor:
    """Label of the largest channel: (..., C, H, W) logits or probabilities -> (..., H, W).

    Equal to `torch.argmax` with the first of equal channels, several times as fast on a processor. A pixel
    with a NaN gets the label C, which is no class. The labels have the smallest integer type that holds C.
    """
    if logits.ndim < 3 or logits.shape[-3] == 0:
        raise ValueError(f"logits must be (..., C, H, W), got {tuple(logits.shape)}")
    channels, height, width = logits.shape[-3:]
    logits, dtype = computable(logits.detach()), smallest_dtype(channels)
    if logits.device.type != "cpu":
        largest, labels = logits.max(-3)
        return labels.masked_fill_(largest.isnan(), channels).to(dtype)
    labels = torch.empty(*logits.shape[:-3], height, width, dtype=dtype)
    step = pixels_at_a_time(channels)
    for image, row in zip(as_batch(logits, inner=3), as_batch(labels, inner=2).flatten(1), strict=True):
        planes = image.flatten(1)  # (C, H*W); a view of channels-last logits too
        for block, part in zip(planes.split(step, dim=1), row.split(step), strict=True):
            part.copy_(_first_largest(block, dtype))
    return labels


def as_batch(x: Tensor, inner: int) -> Tensor:
    """Joins all dimensions before the last `inner` ones, or makes one where there are no others."""
    return x[None] if x.ndim == inner else x.flatten(0, -inner - 1)


def pixels_at_a_time(channels: int) -> int:
    """How many pixels make a block small enough that what is computed from it stays in the cache."""
    return max(1, 2**20 // channels)


def _first_largest(block: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, P) -> (P,): torch's own argmax is not vectorised over the first dimension, these four operations are."""
    channels = len(block)
    from_last = torch.arange(channels, 0, -1, dtype=dtype)[:, None]  # C for the first channel, 1 for the last
    is_largest = block == block.amax(0)  # nowhere where there is a NaN
    return channels - is_largest.to(dtype).mul_(from_last).amax(0)


def class_index(labels: Tensor, num_classes: int) -> Tensor:
    """Labels of any integer type -> uint8, or int32 from 255 classes on; what is no class becomes `num_classes`."""
    labels = computable(labels)
    if torch.iinfo(labels.dtype).max < num_classes:
        labels = labels.long()
    if labels.dtype != torch.uint8:
        labels = labels.clamp(-1, num_classes)
    if num_classes < 255:
        return labels.to(torch.uint8).clamp(max=num_classes)  # -1 has become 255
    return torch.where(labels < 0, num_classes, labels.int())


def is_ignored(labels: Tensor, ignore_index: int | None) -> Tensor:
    """Where the label is `ignore_index`; nowhere where the labels' type cannot hold it, as 255 in int8."""
    labels = computable(labels)
    limits = torch.iinfo(labels.dtype)
    if ignore_index is None or not limits.min <= ignore_index <= limits.max:
        return torch.zeros_like(labels, dtype=torch.bool)
    return labels == ignore_index


def computable(x: Tensor) -> Tensor:
    """The same numbers in a type that torch calculates with, which bool and the wider unsigned ones are not."""
    return x.to(_COMPUTABLE.get(x.dtype, x.dtype))


_COMPUTABLE = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def smallest_dtype(largest: int) -> torch.dtype:
    """The smallest integer type that holds 0 ... `largest`."""
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return next(dtype for dtype in types if largest <= torch.iinfo(dtype).max)
