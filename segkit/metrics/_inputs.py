"""Check the inputs of the metrics, and count pairs of labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segkit.errors import UsageError
from segkit.metrics.labels import argmax_channels, as_batch, class_index, is_ignored, smallest_dtype


def check_classes(
    num_classes: int, class_names: Sequence[str] | None, exclude: Sequence[int]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names, `class_0 ...` by default, and a (C,) bool mask of the classes that enter the means."""
    if num_classes < 1:
        raise UsageError(f"`num_classes` must be 1 or more, got {num_classes}")
    if class_names is not None and len(class_names) != num_classes:
        raise UsageError(f"`num_classes` is {num_classes}, but `class_names` has {len(class_names)} names")
    if unknown := [label for label in exclude if not 0 <= label < num_classes]:
        raise UsageError(f"`exclude` must be labels in [0, {num_classes}), got {unknown}")
    included = np.ones(num_classes, dtype=bool)
    included[list(exclude)] = False
    return tuple(class_names or (f"class_{i}" for i in range(num_classes))), included


def read_arrays(prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Return both as tensors on one device: the accelerator if one of them is on it, otherwise the CPU."""
    prediction, target = _to_tensor(prediction), _to_tensor(target)
    if target.is_floating_point() or target.is_complex():
        raise UsageError(f"`target` must be integer labels, got {target.dtype}")
    device = target.device if prediction.device.type == "cpu" else prediction.device
    return prediction.to(device, non_blocking=True), target.to(device, non_blocking=True)


def read_labels(
    prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return predicted labels (the argmax of logits) and target labels, with the same shape and device."""
    prediction, target = read_arrays(prediction, target)
    if prediction.is_floating_point() and is_logits(prediction, target, 1):
        raise UsageError(
            "`prediction` has one channel, whose argmax would always be 0: use 2 classes, and pass labels, such as "
            "`(logits[:, 0] > 0).int()`"
        )
    if is_logits(prediction, target, num_classes):
        return argmax_channels(prediction), target
    if prediction.shape != target.shape:
        raise UsageError(
            f"`prediction` must have the target's shape {tuple(target.shape)}, or be logits with "
            f"{num_classes} channels before (H, W), got {tuple(prediction.shape)}"
        )
    if prediction.is_floating_point() or prediction.is_complex():
        raise UsageError(f"predicted labels must be integers, got {prediction.dtype}; logits have a channel dimension")
    return prediction, target


def is_logits(prediction: Tensor, target: Tensor, num_classes: int) -> bool:
    """Return whether the prediction has the target's shape plus a dimension of `num_classes` before (H, W)."""
    size = target.shape
    return len(size) >= 2 and prediction.shape == (*size[:-2], num_classes, *size[-2:])


def as_images(labels: Tensor) -> Tensor:
    """Reshape (H, W) or (..., H, W) to (N, H, W)."""
    if labels.ndim < 2:
        raise UsageError(f"`target` must be (N, H, W) or (H, W), got {tuple(labels.shape)}")
    return as_batch(labels, inner=2)


def count_pairs(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Count how often each pair of target label and predicted label occurs.

    Returns:
        (C + 2, C + 1) int64. Rows: the C target classes, then targets out of range, then ignored targets.
        Columns: the C predicted classes, then predictions out of range.
    """
    rows, columns = class_index(target, num_classes), class_index(prediction, num_classes)
    # The ignored row has the largest index, so that `maximum` can write it: it is vectorised, a masked fill is not.
    rows = torch.maximum(rows, is_ignored(target, ignore_index).to(rows.dtype).mul_(num_classes + 1))
    size = (num_classes + 2) * (num_classes + 1)
    cells = rows.to(smallest_dtype(size - 1)).mul_(num_classes + 1).add_(columns)
    return histogram(cells, size).view(num_classes + 2, num_classes + 1)


def histogram(cells: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """Count each integer in `cells`, all in [0, size), or sum its weights; returns (size,)."""
    if cells.device.type == "cpu":
        return torch.bincount(cells.flatten(), None if weights is None else weights.flatten(), minlength=size)
    return scatter_histogram(cells, size, weights)


def scatter_histogram(cells: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """Compute `histogram` on an accelerator, where `bincount` would read the maximum and wait for the device."""
    if weights is None:
        weights = torch.ones((), dtype=torch.int64, device=cells.device).expand(cells.numel())
    sums = torch.zeros(size, dtype=weights.dtype, device=cells.device)
    return sums.scatter_add_(0, cells.flatten().long(), weights.flatten())


def _to_tensor(x: Tensor | np.ndarray) -> Tensor:
    if isinstance(x, np.ndarray):  # torch takes no negative strides or foreign byte order, and warns if read-only
        x = np.require(x, x.dtype.newbyteorder("="), ["C", "W"])
    return torch.as_tensor(x)
