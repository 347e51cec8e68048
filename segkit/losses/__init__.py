"""Losses on logits (N, C, H, W) and class indices (N, H, W); ignored pixels count for nothing."""

from segkit.losses.combined import LOSSES, WeightedSum, create_loss
from segkit.losses.cross_entropy import BCELoss, CrossEntropyLoss, bce_loss, cross_entropy_loss
from segkit.losses.overlap import DiceLoss, dice_loss

__all__ = [
    "LOSSES",
    "BCELoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "WeightedSum",
    "bce_loss",
    "create_loss",
    "cross_entropy_loss",
    "dice_loss",
]
