"""Samples of the loaders: image and mask as tensors, augmented by the seed of the sample or unchanged."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segkit.data.dataset import SegmentationDataset
from segkit.data.findings import may_be_bad
from segkit.data.transforms import training_scale
from segkit.errors import DataError, SegkitError, UsageError, as_segkit_error
from segkit.labels import IGNORE_INDEX
from segkit.names import check_known
from segkit.training_scale import TrainingScale

Sample = tuple[np.ndarray, np.ndarray]  # image (H, W, 3) uint8, mask (H, W)
Mix = Callable[[Sample, Sample, np.random.Generator], Sample]
ATTEMPTS = 20  # substitutes that are tried for a bad image
_log = logging.getLogger(__name__)


def cutmix(sample: Sample, donor: Sample, random: np.random.Generator) -> Sample:
    """Replace a rectangle of the sample by the same rectangle of the donor; its share of the area is uniform in 0..1.

    Source: Yun et al., "CutMix", 2019, section 3.1, with alpha 1; for segmentation French et al.,
    "Semi-supervised Semantic Segmentation Needs Strong, Varied Perturbations", 2020, section 3.3.

    Args:
        sample: Image (H, W, 3) and mask (H, W).
        donor: Image and mask of the same height and width.
        random: Draws the rectangle.
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
    """Copy the donor's pixels of some classes to a random position in the sample, all with the same offset.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method", 2021, section 3.
    Differs: hard edges, and classes instead of instances.

    Args:
        classes: The classes to copy.
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
        window = np.s_[top : top + copied.shape[0], left : left + copied.shape[1]]
        image, mask = image.copy(), mask.copy()
        image[window][copied], mask[window][copied] = blob[copied], labels[copied]
        return image, mask


def _check_sizes(mask: np.ndarray, other: np.ndarray) -> None:
    if mask.shape != other.shape:
        raise UsageError(f"both samples must have the same size, got {mask.shape} and {other.shape}")


class Augmented(Dataset):
    """Augmented samples: item (index, seed) is (image (3, H, W), mask (H, W)), both uint8.

    If the transform normalises, the image is float32. The mask of an item (index, seed, PADDING) is 255 everywhere.

    Args:
        data: Images and masks.
        transform: An albumentations pipeline; it is seeded for each sample. It may end with Normalize and ToTensorV2.
        mix: Makes one sample out of two, such as `cutmix` or a `CopyPaste`.
        mix_share: Share of the samples that are mixed.
        donors: Indices of the images that the second sample is drawn from. By default all.
        on_bad: `error` raises if an image cannot be read. `skip` takes another image and its mask instead, drawn by the
            seed of the sample, and logs it once per image.
        max_bad: Largest share of the images that `skip` may replace; it may always replace one.
        decode_at_least: Read images and masks at 1/2, 1/4 or 1/8 of their size, the smallest whose shorter side is at
            least this; for transforms that shrink large photographs to a crop. 0 reads them at full size.
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
        check_known("`on_bad`", on_bad, ("error", "skip"))
        if not hasattr(transform, "set_random_seed"):
            raise UsageError(
                "`transform` must be a pipeline of albumentations (A.Compose), or have a method `set_random_seed`, "
                f"got a {type(transform).__name__}"
            )
        self.data = data
        self.transform = transform
        self.mix = mix
        self.mix_share = mix_share
        self.donors = range(len(data)) if donors is None else donors
        self.on_bad = on_bad
        self.max_bad = max_bad
        self.decode_at_least = decode_at_least
        self._bad = torch.zeros(len(data), dtype=torch.bool)
        with suppress(RuntimeError):  # /dev/shm is full; each worker then has its own copy
            self._bad.share_memory_()  # all workers see it

    @property
    def replaced(self) -> list[str]:
        """Names of the images that could not be read so far, in this process or a worker."""
        return [self.data.name(index) for index in self._bad.nonzero().flatten().tolist()]

    @property
    def training_scale(self) -> TrainingScale:
        """The size at which whole images are shown: for `model.training_scale` of a model that learns from these."""
        return replace(training_scale(self.transform), decode_at_least=self.decode_at_least)

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

    def _transformed(self, index: int, seed: int) -> Sample:
        with name_image_in_errors(self.data, index):
            image, mask = self._read(index, seed)
            self.transform.set_random_seed(seed)
            result = self.transform(image=image, mask=mask)
            return _as_arrays(result["image"], result["mask"])

    def _read(self, index: int, seed: int) -> Sample:
        """Return image and mask, or a substitute, which depends only on the seed and on which files can be read."""
        substitutes = np.random.default_rng((seed, 2))
        for _ in range(ATTEMPTS):
            if not self._bad[index]:
                try:
                    if self.decode_at_least:
                        return _as_arrays(*self.data.small_sample(index, self.decode_at_least))
                    return _as_arrays(*self.data[index])
                except DataError as error:
                    if self.on_bad == "error":
                        raise
                    self._bad[index] = True
                    bad, total = int(self._bad.sum()), len(self)
                    if bad > may_be_bad(total, self.max_bad):
                        raise DataError(
                            f"{bad} of {total} training images cannot be read, more than "
                            f"`max_bad={self.max_bad:g}` allows; the last one: {error}"
                        ) from error
                    _log.warning("%s; another image is used instead", error)
            index = int(substitutes.integers(len(self.data)))
        raise DataError(f"{ATTEMPTS} images in a row cannot be read, the last one {self.data.name(index)}")


class Plain(Dataset):
    """Unchanged samples: item i is (image (3, H, W), mask (H, W)), both uint8."""

    def __init__(self, data: SegmentationDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with name_image_in_errors(self.data, index):
            return _to_tensors(*_as_arrays(*self.data[index]))


@contextmanager
def name_image_in_errors(data: SegmentationDataset, index: int) -> Iterator[None]:
    """Re-raise an error of a custom data set or transform as a RuntimeError that names the image.

    Errors of the machine are translated here, because an OSError loses its code on the way out of a worker process.
    """
    try:
        yield
    except (SegkitError, MemoryError):
        raise
    except OSError as error:
        raise as_segkit_error(error) or error  # noqa: B904
    except Exception as error:
        raise RuntimeError(f"cannot load image {data.name(index)}: {type(error).__name__}: {error}") from error


def _as_arrays(image: np.ndarray | Tensor, mask: np.ndarray | Tensor) -> Sample:
    """Return an image (H, W, 3) and a mask (H, W), also of the tensors that ToTensorV2 makes, (3, H, W) and (H, W).

    Raises:
        UsageError: Image or mask has another shape.
    """
    if isinstance(image, Tensor):
        image = image.movedim(0, -1).numpy()
    mask = np.asarray(mask)
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != mask.shape:
        raise UsageError(
            "an image must be an array (H, W, 3) or a tensor (3, H, W), and its mask (H, W) of the same size; after "
            f"the transform they are (height, width, channels) {image.shape} and {mask.shape}"
        )
    return image, mask


def _to_tensors(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return image (3, H, W) and mask (H, W) as tensors; the image keeps its memory layout, channels last."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), torch.from_numpy(np.ascontiguousarray(mask))
