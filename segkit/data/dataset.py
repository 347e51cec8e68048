"""SegmentationDataset: what every source of images with label maps is to segkit."""

import bisect
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from segkit.data.findings import Finding, Note
from segkit.data.images import AS_USUAL, Reading, read_image, reduce_mask, reduction
from segkit.data.mask_cache import MaskCache
from segkit.data.rasterize import Annotation
from segkit.errors import DataError, UsageError
from segkit.labels import IGNORE_INDEX

Paths = str | os.PathLike | Sequence[str | os.PathLike]


class SegmentationDataset:
    """Images with label maps. A source of your own sets `class_names` and gives `__len__`, `image` and `mask`.

    Item i is `(image, target)`: image (H, W, 3) uint8 RGB, target (H, W) uint8 labels, 255 where a pixel
    counts for nothing; passed through the transform where there is one.

    Attributes:
        class_names: In label order.
        ignore_classes: Names of classes that are painted 255 in the target.
        transform: Called as `transform(image=image, mask=target)`, as in albumentations; gives a mapping
            with `image` and `mask`.
        mask_cache: Where masks are kept once they are drawn.
        notes: What is remarkable about the files, for people to read.
    """

    class_names: Sequence[str]
    ignore_classes: Sequence[str] = ()
    transform: Callable[..., Any] | None = None
    mask_cache: MaskCache | None = None
    notes: Sequence[Note] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray:
        """The labels (H, W) uint8 as the source has them; the image file is not read."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What messages and results call the image."""
        return str(index)

    def target(self, index: int) -> np.ndarray:
        """The labels (H, W) uint8 to learn: `mask`, from the cache where there is one, without the ignored classes."""
        cache = self.mask_cache
        mask = self.mask(index) if cache is None else cache.get(index, lambda: self.mask(index))
        ignored = self.ignored_labels
        if not ignored:
            return mask
        labels = np.arange(256, dtype=np.uint8)
        labels[list(ignored)] = IGNORE_INDEX
        return labels[mask]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.image(index), self.target(index)
        if self.transform is None:
            return image, target
        result = self.transform(image=image, mask=target)
        return result["image"], result["mask"]

    def small_image(self, index: int, factor: int) -> np.ndarray:
        """The image at 1/`factor` of its size, rounded up; sources that can do so decode no more than that."""
        return np.asarray(Image.fromarray(self.image(index)).reduce(factor))

    def small_sample(self, index: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and target at a half, a quarter or an eighth, as far as both sides stay at least `at_least`."""
        target = self.target(index)
        factor = reduction(target.shape, at_least)
        if factor == 1:
            return self.image(index), target
        return self.small_image(index, factor), reduce_mask(target, factor)

    @property
    def ignored_labels(self) -> tuple[int, ...]:
        """The labels of `ignore_classes`; also what a metric's `exclude` takes."""
        unknown = [name for name in self.ignore_classes if name not in self.class_names]
        if unknown:
            raise DataError(
                f"there is no class {unknown[0]!r} to ignore, the classes are {', '.join(self.class_names)}"
            )
        return tuple(list(self.class_names).index(name) for name in self.ignore_classes)

    def subset(self, indices: Sequence[int]) -> "Subset":
        """The images of the given indices, in that order."""
        return Subset(self, indices)

    def split(self, fraction: float, seed: int = 0) -> tuple["SegmentationDataset", "SegmentationDataset"]:
        """Two sets, the second with about `fraction` of the images (at least one), drawn by `seed`."""
        if not 0 < fraction < 1:
            raise UsageError(f"fraction must lie between 0 and 1, got {fraction}")
        if len(self) < 2:
            raise DataError(f"a set of {len(self)} images cannot be split in two; give a validation set by --val")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(1, round(fraction * len(self))), len(self) - 1)
        return self.subset(sorted(order[count:])), self.subset(sorted(order[:count]))


class Subset(SegmentationDataset):
    """Some images of a data set; its classes, ignored classes, masks and transform are those of the whole."""

    def __init__(self, whole: SegmentationDataset, indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = [int(i) for i in indices]
        self.class_names, self.ignore_classes = whole.class_names, whole.ignore_classes
        self.transform = whole.transform

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        return self.whole.image(self.indices[index])

    def small_image(self, index: int, factor: int) -> np.ndarray:
        return self.whole.small_image(self.indices[index], factor)

    def mask(self, index: int) -> np.ndarray:
        return self.whole.mask(self.indices[index])

    def target(self, index: int) -> np.ndarray:
        return self.whole.target(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])


class ImageFile(Protocol):
    """An image of a data set that consists of files."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W) that its labels have


class ImageFiles(SegmentationDataset):
    """A data set whose images are the files of `items`; subclasses define `mask`.

    Attributes:
        items: Path, name and size of each image.
        annotations: The regions of each image, if masks are drawn from them; None if masks are files.
        findings: Everything wrong or remarkable about the files, one by one.
        reading: How the image files are read.
    """

    items: Sequence[ImageFile]
    annotations: Sequence[Sequence[Annotation]] | None = None
    findings: Sequence[Finding] = ()
    reading: Reading = AS_USUAL

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].file_name

    def image(self, index: int) -> np.ndarray:
        item = self.items[index]
        return read_image(item.path, item.size, reading=self.reading)

    def small_image(self, index: int, factor: int) -> np.ndarray:
        item = self.items[index]
        return read_image(item.path, item.size, reduce=factor, reading=self.reading)


class JoinedDatasets(SegmentationDataset):
    """The images of several data sets with the same classes, one set after the other.

    Raises:
        DataError: the sets differ in their classes or in those that they ignore.
    """

    def __init__(self, parts: Sequence[SegmentationDataset]) -> None:
        self.parts = list(parts)
        self.class_names, self.ignore_classes = parts[0].class_names, parts[0].ignore_classes
        self.transform = parts[0].transform
        for part in parts[1:]:
            if tuple(part.class_names) != tuple(self.class_names):
                raise DataError(
                    f"data sets to join differ in their classes: {', '.join(self.class_names)} / "
                    f"{', '.join(part.class_names)}"
                )
            if set(part.ignore_classes) != set(self.ignore_classes):
                raise DataError("data sets to join differ in the classes that they ignore")
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def image(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.image(place)

    def small_image(self, index: int, factor: int) -> np.ndarray:
        part, place = self._find(index)
        return part.small_image(place, factor)

    def mask(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.mask(place)

    def target(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.target(place)

    def name(self, index: int) -> str:
        part, place = self._find(index)
        return part.name(place)

    def _find(self, index: int) -> tuple[SegmentationDataset, int]:
        """The part that holds an image, and the place there."""
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        return self.parts[number], index - self._ends[number] + len(self.parts[number])


def as_paths(value: Paths) -> list[Path]:
    """Return one path or several as a list."""
    return [Path(value)] if isinstance(value, str | os.PathLike) else [Path(one) for one in value]
