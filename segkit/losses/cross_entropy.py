"""Cross entropy, softmax over the classes or a sigmoid for each."""

import torch.nn.functional as F
from torch import Tensor, nn

from segkit.losses._inputs import check_inputs


def cross_entropy_loss(
    logits: Tensor, target: Tensor, *, ignore_index: int | None = 255, label_smoothing: float = 0.0
) -> Tensor:
    """Softmax cross entropy, the mean over the pixels that are not ignored.

    Source: label smoothing after Szegedy et al., "Rethinking the Inception Architecture", 2016,
    section 7. Equal to `torch.nn.functional.cross_entropy` wherever that is finite.

    Differs: where all pixels are ignored the loss is 0, with a graph, in place of NaN.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) class indices.
        ignore_index: The label of pixels that count for nothing; None for none.
        label_smoothing: In [0, 1]; the share of the target that is spread evenly over all classes.

    Returns:
        A scalar, float32 for half-precision logits.
    """
    logits, target, valid = check_inputs(logits, target, ignore_index)
    losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)  # (N, H, W)
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def bce_loss(logits: Tensor, target: Tensor, *, ignore_index: int | None = 255, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross entropy with a sigmoid for each class, against the one-hot target.

    The mean over classes and over the pixels that are not ignored; 0 where all are ignored.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) class indices.
        ignore_index: The label of pixels that count for nothing; None for none.
        label_smoothing: In [0, 1]; targets 0 and 1 become `label_smoothing / 2` and 1 minus that.

    Returns:
        A scalar, float32 for half-precision logits.
    """
    logits, target, valid = check_inputs(logits, target, ignore_index)
    # Against a target t: softplus(z) - t z, so that the one-hot target need not be made.
    at_target = logits.gather(1, target.unsqueeze(1)).squeeze(1)  # (N, H, W)
    hit, miss = 1 - label_smoothing / 2, label_smoothing / 2
    losses = F.softplus(logits).sum(1) - (hit - miss) * at_target - miss * logits.sum(1)
    return (losses * valid).sum() / (valid.sum().clamp(min=1) * logits.shape[1])


class CrossEntropyLoss(nn.Module):
    """`cross_entropy_loss` as a module."""

    def __init__(self, *, ignore_index: int | None = 255, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = _check_smoothing(label_smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy_loss(logits, target, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing)


class BCELoss(nn.Module):
    """`bce_loss` as a module."""

    def __init__(self, *, ignore_index: int | None = 255, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = _check_smoothing(label_smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return bce_loss(logits, target, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing)


def _check_smoothing(label_smoothing: float) -> float:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    return label_smoothing
