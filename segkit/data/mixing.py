"""Samples made of two: CutMix, and objects of rare classes copied over."""

from collections.abc import Callable, Sequence

import numpy as np

from segkit.errors import UsageError

Sample = tuple[np.ndarray, np.ndarray]  # image (H, W, 3) uint8, mask (H, W)
Mix = Callable[[Sample, Sample, np.random.Generator], Sample]


def cutmix(sample: Sample, donor: Sample, random: np.random.Generator) -> Sample:
    """Puts a rectangle of the donor, at the same place, into the sample; its share of the area is uniform in 0..1.

    Source: Yun et al., "CutMix", 2019, section 3.1, with alpha 1; for segmentation French et al.,
    "Semi-supervised Semantic Segmentation Needs Strong, Varied Perturbations", 2020, section 3.3.

    Args:
        sample: Image (H, W, 3) and mask (H, W).
        donor: Of the same height and width.
        random: What the rectangle is drawn by.
    """
    (image, mask), (other_image, other_mask) = sample, donor
    _check_sizes(mask, other_mask)
    side = np.sqrt(random.random())
    height, width = (round(side * length) for length in mask.shape)
    top, left = random.integers(mask.shape[0] - height + 1), random.integers(mask.shape[1] - width + 1)
    window = np.s_[top : top + height, left : left + width]
    image, mask = image.copy(), mask.copy()
    image[window], mask[window] = other_image[window], other_mask[window]
    return image, mask


class CopyPaste:
    """Copies the donor's pixels of some classes onto the sample, at a place drawn for all of them together.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method", 2021, section 3, with
    hard edges; for classes in place of instances, as the first segkit users copied rare objects.

    Args:
        classes: The classes that are copied.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = tuple(classes)

    def __call__(self, sample: Sample, donor: Sample, random: np.random.Generator) -> Sample:
        (image, mask), (other_image, other_mask) = sample, donor
        _check_sizes(mask, other_mask)
        copied = np.isin(other_mask, self.classes)
        if not copied.any():
            return sample
        rows, columns = (np.flatnonzero(copied.any(axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        copied, blob, labels = copied[box], other_image[box], other_mask[box]
        top, left = (int(random.integers(n - m + 1)) for n, m in zip(mask.shape, copied.shape, strict=True))
        place = np.s_[top : top + copied.shape[0], left : left + copied.shape[1]]
        image, mask = image.copy(), mask.copy()
        image[place][copied], mask[place][copied] = blob[copied], labels[copied]
        return image, mask


def _check_sizes(mask: np.ndarray, other: np.ndarray) -> None:
    if mask.shape != other.shape:
        raise UsageError(f"both samples must be of one size, got {mask.shape} and {other.shape}")
