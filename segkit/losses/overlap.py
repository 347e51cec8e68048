"""Losses on the overlap of the predicted and the true region of each class."""

import torch
from torch import Tensor, nn

from segkit.losses._inputs import check_inputs


def dice_loss(logits: Tensor, target: Tensor, *, ignore_index: int | None = 255, smooth: float = 0.0) -> Tensor:
    """1 minus the soft Dice coefficient of each class, the mean over the classes that are present.

    Dice of a class is (2 TP + smooth) / (2 TP + FP + FN + smooth) with soft counts over all pixels of
    the batch that are not ignored. A class without a pixel in the target is left out of the mean;
    its false positives are false negatives of the others. 0 where all pixels are ignored.

    Source: Milletari et al., "V-Net", 2016, section 3.
    Differs: softmax over any number of classes; sums in the denominator, not sums of squares.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) class indices.
        ignore_index: The label of pixels that count for nothing; None for none.
        smooth: Added to numerator and denominator.

    Returns:
        A scalar in [0, 1], float32 for half-precision logits.
    """
    logits, target, valid = check_inputs(logits, target, ignore_index)
    num_classes = logits.shape[1]
    probs = logits.softmax(1) * valid.unsqueeze(1)
    labels = target.flatten()
    hits = probs.gather(1, target.unsqueeze(1)).flatten()
    true_positive = hits.new_zeros(num_classes).index_add(0, labels, hits)
    support = hits.new_zeros(num_classes).index_add(0, labels, valid.flatten().to(hits.dtype))
    dice = (2 * true_positive + smooth) / (probs.sum((0, 2, 3)) + support + smooth).clamp(min=1e-12)
    present = support > 0
    return torch.where(present, 1 - dice, 0.0).sum() / present.sum().clamp(min=1)


class DiceLoss(nn.Module):
    """`dice_loss` as a module."""

    def __init__(self, *, ignore_index: int | None = 255, smooth: float = 0.0) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return dice_loss(logits, target, ignore_index=self.ignore_index, smooth=self.smooth)
