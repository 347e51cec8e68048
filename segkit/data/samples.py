"""What loaders take one by one: images and masks as tensors, augmented by the sample's own seed or as they are."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segkit.data.dataset import SegmentationDataset
from segkit.data.findings import may_be_bad
from segkit.errors import DataError, UsageError
from segkit.labels import IGNORE_INDEX

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


_log = logging.getLogger(__name__)
ATTEMPTS = 20  # images that are tried in place of a bad one


class Augmented(Dataset):
    """Applies a transform, seeded for each sample: item (index, seed) -> (image (3, H, W), mask (H, W)) uint8.

    The mask of an item (index, seed, PADDING) is ignored everywhere.

    Args:
        data: Images and masks.
        transform: An albumentations pipeline.
        mix: Makes one sample of two, see `segkit.data.samples`.
        mix_share: Share of the samples that are mixed.
        donors: Indices of the images that the second sample is drawn from; all by default.
        on_bad: What happens to an image that cannot be read: `error`, or `skip` for another in its place,
            drawn by the sample's seed, with its own mask; it is logged once.
        max_bad: Largest share of the images that `skip` replaces; one always may be.
        decode_at_least: Take images and masks at a half, a quarter or an eighth, as far as both sides stay at least
            this, for transforms that shrink large photographs to a crop; 0 takes them whole.
    """

    def __init__(
        self,
        data: SegmentationDataset,
        transform: Callable[..., Any],
        *,
        mix: Mix | None = None,
        mix_share: float = 0.5,
        donors: Sequence[int] | None = None,
        on_bad: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        decode_at_least: int = 0,
    ) -> None:
        if on_bad not in ("error", "skip"):
            raise UsageError(f"on_bad must be 'error' or 'skip', got {on_bad!r}")
        self.data = data
        self.transform = transform
        self.mix = mix
        self.mix_share = mix_share
        self.donors = range(len(data)) if donors is None else donors
        self.on_bad = on_bad
        self.max_bad = max_bad
        self.decode_at_least = decode_at_least
        self._bad = torch.zeros(len(data), dtype=torch.bool).share_memory_()  # what one worker met, all know

    @property
    def replaced(self) -> list[str]:
        """Names of the images that could not be read so far, in this process and in the workers."""
        return [self.data.name(index) for index in self._bad.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, sample: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        index, seed, *padding = sample
        result = self._transformed(index, seed)
        if self.mix is not None and len(self.donors):
            random = np.random.default_rng((seed, 1))
            if random.random() < self.mix_share:
                donor = self.donors[int(random.integers(len(self.donors)))]
                result = self.mix(result, self._transformed(donor, int(random.integers(2**31))), random)
        image, mask = result
        return _to_tensors(image, np.full_like(mask, IGNORE_INDEX) if padding else mask)

    def _transformed(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        with naming(self.data, index):
            image, mask = self._read(index, seed)
            self.transform.set_random_seed(seed)
            result = self.transform(image=image, mask=mask)
        return result["image"], result["mask"]

    def _read(self, index: int, seed: int) -> Sample:
        """The image and mask; of a bad image's substitutes the first that can be read, which the files decide alone."""
        substitutes = np.random.default_rng((seed, 2))
        for _ in range(ATTEMPTS):
            if not self._bad[index]:
                try:
                    return self._sample(index)
                except DataError as error:
                    if self.on_bad == "error":
                        raise
                    self._replace(index, error)
            index = int(substitutes.integers(len(self.data)))
        raise DataError(f"{ATTEMPTS} images in a row cannot be read, the last one {self.data.name(index)}")

    def _replace(self, index: int, error: DataError) -> None:
        self._bad[index] = True
        bad, total = int(self._bad.sum()), len(self)
        if bad > may_be_bad(total, self.max_bad):
            raise DataError(
                f"{bad} of {total} training images cannot be read, more than max_bad={self.max_bad:g} (--max-bad) "
                f"replaces; the last one: {error}"
            ) from error
        _log.warning("%s; another image stands in for it", error)

    def _sample(self, index: int) -> Sample:
        return self.data.small_sample(index, self.decode_at_least) if self.decode_at_least else self.data[index]


class Plain(Dataset):
    """Images as they are: item index -> (image (3, H, W), mask (H, W)) uint8."""

    def __init__(self, data: SegmentationDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with naming(self.data, index):
            return _to_tensors(*self.data[index])


@contextmanager
def naming(data: SegmentationDataset, index: int) -> Iterator[None]:
    """Adds the image's name to errors that do not know it: of somebody's own data set or transform.

    Raises:
        RuntimeError: from that error.
    """
    try:
        yield
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeError(f"cannot load image {data.name(index)}: {type(error).__name__}: {error}") from error


def _to_tensors(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) and mask (H, W); the image's memory stays as it is, channels last."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), torch.from_numpy(np.ascontiguousarray(mask))
