"""The checks that every loss makes once, and the one place where ignored pixels are taken out."""

from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """Checked inputs: at ignored pixels the logits are 0 without gradient and the target is 0."""

    logits: Tensor  # (N, C, H, W) float32 or float64
    target: Tensor  # (N, H, W) int64 in [0, C)
    valid: Tensor  # (N, H, W) bool


def check_inputs(logits: Tensor, target: Tensor, ignore_index: int | None) -> Inputs:
    """Checks shapes, types and labels; takes whatever the logits hold at ignored pixels out of the graph.

    Half-precision logits are raised to float32, in which sums over a million pixels are safe.

    Raises:
        ValueError: a wrong shape, a target that is not integer, or a label outside [0, C).
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"target must be (N, H, W) like logits (N, C, H, W): got {tuple(target.shape)} for {tuple(logits.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"target must hold integer class indices, got {target.dtype}")
    target = target.long()
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    target = torch.where(valid, target, 0)
    _check_labels(target, logits.shape[1], ignore_index)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return Inputs(torch.where(valid.unsqueeze(1), logits, 0.0), target, valid)


def _check_labels(target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    # On a GPU the check would wait for the device; there the data pipeline has checked already.
    if target.is_cuda or target.numel() == 0:
        return
    low, high = target.min().item(), target.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"target has labels from {low} to {high}, expected 0 to {num_classes - 1} or ignore_index={ignore_index}"
        )
