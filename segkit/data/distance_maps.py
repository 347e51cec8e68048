"""signed_distance_maps: the target of the boundary loss."""

import cv2
import numpy as np

from segkit.errors import UsageError


def signed_distance_maps(mask: np.ndarray, num_classes: int, *, ignore_index: int | None = 255) -> np.ndarray:
    """Distance of each pixel to the region of each class, negative inside, where it is that to the outside.

    Source: Kervadec et al., "Boundary Loss for Highly Unbalanced Segmentation", 2019, section 2.2.

    Args:
        mask: (H, W) class indices.
        num_classes: Number of classes C.
        ignore_index: The label of pixels that count for nothing: they belong to no class, and their
            distance is 0; None for none.

    Returns:
        (C, H, W) float32, Euclidean and in pixels, at least 1 outside and at most -1 inside; 0 for a class
        that has no boundary, since it is absent or fills the image.
    """
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise UsageError(f"mask must be (H, W) integer class indices, got {mask.dtype} {mask.shape}")
    maps = np.zeros((num_classes, *mask.shape), dtype=np.float32)
    ignored = np.zeros(mask.shape, dtype=bool) if ignore_index is None else mask == ignore_index
    for index in np.unique(mask[~ignored]):
        if not 0 <= index < num_classes:
            raise UsageError(f"mask has label {index}, expected 0 to {num_classes - 1} or ignore_index={ignore_index}")
        inside = ((mask == index) & ~ignored).astype(np.uint8)
        if not inside.all():
            maps[index] = _distance(1 - inside) - _distance(inside)
    maps[:, ignored] = 0
    return maps


def _distance(region: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform(region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
