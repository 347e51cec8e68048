"""SegmentationDataset: the interface of all sources of images with label maps."""

import bisect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from segkit.console import counted
from segkit.data.findings import Finding, Note
from segkit.data.images import AS_USUAL, Reading, read_image, reduce_mask
from segkit.data.mask_cache import MaskCache
from segkit.data.rasterize import Annotation
from segkit.errors import DataError, UsageError
from segkit.files import reduction
from segkit.labels import IGNORE_INDEX

CLASSES_SHOWN = 12  # class names in the repr of a data set
Paths = str | os.PathLike | Sequence[str | os.PathLike]


class SegmentationDataset:
    """Images with label maps. Your own source sets `class_names` and defines `__len__`, `image` and `mask`.

    Item i is `(image, target)`: image (H, W, 3) uint8 RGB, target (H, W) uint8 labels, 255 for pixels that are neither
    trained on nor scored. The transform, if there is one, is applied to both.

    Attributes:
        class_names: In label order.
        category_ids: The id of each class, by name, in the JSON that the labels come from; models keep it.
        ignore_classes: Names of classes that are 255 in the target.
        transform: Called as `transform(image=image, mask=target)`, as in albumentations; returns a mapping with
            `image` and `mask`.
        mask_cache: Keeps masks that are slow to make.
        notes: Errors, warnings and notes about the files, as text.
    """

    class_names: Sequence[str]
    category_ids: Mapping[str, int | str] = MappingProxyType({})
    ignore_classes: Sequence[str] = ()
    transform: Callable[..., Any] | None = None
    mask_cache: MaskCache | None = None
    notes: Sequence[Note] = ()
    _worker_seed: int | None = None  # seed of the worker that has seeded the transform

    def __repr__(self) -> str:
        names = self.class_names
        more = ", ..." if len(names) > CLASSES_SHOWN else ""
        return (
            f"<{type(self).__name__}: {counted(len(self), 'image')}, {counted(len(names), 'class')}: "
            f"{', '.join(names[:CLASSES_SHOWN])}{more}>"
        )

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        """Return the image (H, W, 3) uint8 RGB."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray:
        """Return the labels (H, W) uint8 of the source; does not read the image."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return the name of the image in messages and results."""
        return str(index)

    def whole_mask(self, index: int) -> np.ndarray:
        """Return `mask` through the cache, with the ignored classes."""
        cache = self.mask_cache
        return self.mask(index) if cache is None else cache.get(index, lambda: self.mask(index))

    def target(self, index: int) -> np.ndarray:
        """Return the labels (H, W) uint8 to learn: `mask`, through the cache, with ignored classes as 255."""
        mask, ignored = self.whole_mask(index), self.ignored_labels
        if not ignored:
            return mask
        labels = np.arange(256, dtype=np.uint8)
        labels[list(ignored)] = IGNORE_INDEX
        return labels[mask]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._transformed(self.image(index), self.target(index))

    def _transformed(self, image: np.ndarray, target: np.ndarray) -> tuple[Any, Any]:
        if self.transform is None:
            return image, target
        self._seed_transform_of_worker()
        result = self.transform(image=image, mask=target)
        return result["image"], result["mask"]

    def _seed_transform_of_worker(self) -> None:
        """Seed the transform once in each worker of a torch DataLoader, by the worker's seed.

        All workers start with copies of one random state, in each epoch again, and would draw the same augmentations.
        """
        torch_data = sys.modules.get("torch.utils.data")  # data are also read without torch
        worker = None if torch_data is None else torch_data.get_worker_info()
        if worker is None or worker.seed == self._worker_seed:
            return
        self._worker_seed = worker.seed
        if hasattr(self.transform, "set_random_seed"):
            self.transform.set_random_seed(worker.seed % 2**32)

    def small_image(self, index: int, factor: int) -> np.ndarray:
        """Return the image at 1/`factor` of its size, rounded up. A source may decode only as much as that needs."""
        return np.asarray(Image.fromarray(self.image(index)).reduce(factor))

    def small_sample(self, index: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the item at 1, 1/2, 1/4 or 1/8 of its size: the smallest with both sides >= `at_least`.

        The transform is applied to the small image and target.
        """
        target = self.target(index)
        factor = reduction(target.shape, at_least)
        if factor == 1:
            return self._transformed(self.image(index), target)
        return self._transformed(self.small_image(index, factor), reduce_mask(target, factor))

    @property
    def ignored_labels(self) -> tuple[int, ...]:
        """The labels of `ignore_classes`, as the `exclude` of a metric takes them."""
        unknown = [name for name in self.ignore_classes if name not in self.class_names]
        if unknown:
            raise DataError(
                f"there is no class {unknown[0]!r} to ignore; the classes are {', '.join(self.class_names)}"
            )
        return tuple(list(self.class_names).index(name) for name in self.ignore_classes)

    def subset(self, indices: Sequence[int]) -> "Subset":
        """Return the images with these indices, in this order."""
        return Subset(self, indices)

    def split(
        self, fraction: float, seed: int = 0, groups: np.ndarray | None = None
    ) -> tuple["SegmentationDataset", "SegmentationDataset"]:
        """Split into two sets at random; the second has about `fraction` of the images, at least one.

        Args:
            fraction: Share of the images in the second set, between 0 and 1.
            seed: Seed of the split.
            groups: (N,) integers; images with the same number stay together. By default each image is by itself.

        Raises:
            DataError: There are fewer than two images, or all are in one group.
        """
        if not 0 < fraction < 1:
            raise UsageError(f"`fraction` must be between 0 and 1, got {fraction}")
        if len(self) < 2:
            raise DataError(f"a set of {counted(len(self), 'image')} cannot be split in two; give `val`")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(1, round(fraction * len(self))), len(self) - 1)
        if groups is not None and len(np.unique(groups)) < len(self):
            order, count = _by_groups(np.unique(groups, return_inverse=True)[1], order, count)
        return self.subset(sorted(order[count:])), self.subset(sorted(order[:count]))


def _by_groups(groups: np.ndarray, order: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Return the images of a few groups followed by all others, and the number of the former, at most about `count`.

    Args:
        groups: (N,) integers from 0.
        order: (N,) a random order of the images; groups are tried in this order.
        count: Number of images wanted.
    """
    sizes = np.bincount(groups)
    if len(sizes) == 1:
        raise DataError(f"all {len(groups)} images belong to one group, so that they cannot be split; give `val`")
    chosen, total = [], 0
    for group in dict.fromkeys(groups[order].tolist()):
        if total + sizes[group] <= count:
            chosen.append(group)
            total += int(sizes[group])
    if not chosen:  # each group is larger
        chosen = [int(sizes.argmin())]
    is_second = np.isin(groups[order], chosen)
    return np.concatenate([order[is_second], order[~is_second]]), int(is_second.sum())


class Subset(SegmentationDataset):
    """Some images of a data set, with its classes, ignored classes, masks and transform."""

    def __init__(self, whole: SegmentationDataset, indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = [int(i) for i in indices]
        self.class_names, self.ignore_classes = whole.class_names, whole.ignore_classes
        self.category_ids = whole.category_ids
        self.transform = whole.transform

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        return self.whole.image(self.indices[index])

    def small_image(self, index: int, factor: int) -> np.ndarray:
        return self.whole.small_image(self.indices[index], factor)

    def mask(self, index: int) -> np.ndarray:
        return self.whole.mask(self.indices[index])

    def whole_mask(self, index: int) -> np.ndarray:
        return self.whole.whole_mask(self.indices[index])

    def target(self, index: int) -> np.ndarray:
        return self.whole.target(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])


def checked_target(data: SegmentationDataset, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the target of an image, to score a prediction.

    Metrics would skip labels that are not a class; a custom data set may have such labels by mistake.

    Args:
        data: The data set.
        index: The image.
        size: (H, W) of the image, if it is known.

    Raises:
        DataError: The target is not an array (H, W) of integers, has another size, or a label that is neither a class
            nor 255.
    """
    target = data.target(index)
    if not isinstance(target, np.ndarray):
        raise DataError(f"the labels of image {data.name(index)} must be an array, got {type(target).__name__}")
    if target.ndim != 2 or target.dtype.kind not in "ui" or (size is not None and target.shape != size):
        expected = "(H, W)" if size is None else size
        raise DataError(
            f"the labels of image {data.name(index)} must be integers {expected}, got {target.shape} {target.dtype}"
        )
    wrong = target[((target < 0) | (target >= len(data.class_names))) & (target != IGNORE_INDEX)]
    if wrong.size:
        raise DataError(
            f"image {data.name(index)} has the label {wrong[0]}, expected 0 to {len(data.class_names) - 1}, or "
            f"{IGNORE_INDEX} for pixels to ignore"
        )
    return target


class ImageFile(Protocol):
    """An image of a data set that consists of files."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W) of its label map


class ImageFiles(SegmentationDataset):
    """A data set whose images are the files of `items`; subclasses define `mask`.

    Attributes:
        items: Path, name and size of each image.
        annotations: The regions of each image, if masks are drawn from them; None if masks are files.
        findings: All errors, warnings and notes about the files, one by one.
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
        DataError: The sets have different classes or ignored classes.
    """

    def __init__(self, parts: Sequence[SegmentationDataset]) -> None:
        self.parts = list(parts)
        self.class_names, self.ignore_classes = parts[0].class_names, parts[0].ignore_classes
        self.category_ids = parts[0].category_ids
        self.transform = parts[0].transform
        for part in parts[1:]:
            if tuple(part.class_names) != tuple(self.class_names):
                raise DataError(
                    f"data sets to join differ in their classes: {', '.join(self.class_names)} / "
                    f"{', '.join(part.class_names)}"
                )
            if set(part.ignore_classes) != set(self.ignore_classes):
                raise DataError("data sets to join differ in their ignored classes")
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def image(self, index: int) -> np.ndarray:
        part, own = self._find(index)
        return part.image(own)

    def small_image(self, index: int, factor: int) -> np.ndarray:
        part, own = self._find(index)
        return part.small_image(own, factor)

    def mask(self, index: int) -> np.ndarray:
        part, own = self._find(index)
        return part.mask(own)

    def whole_mask(self, index: int) -> np.ndarray:
        part, own = self._find(index)
        return part.whole_mask(own)

    def target(self, index: int) -> np.ndarray:
        part, own = self._find(index)
        return part.target(own)

    def name(self, index: int) -> str:
        part, own = self._find(index)
        return part.name(own)

    def _find(self, index: int) -> tuple[SegmentationDataset, int]:
        """Return the part with this image, and its index there."""
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        return self.parts[number], index - self._ends[number] + len(self.parts[number])


def as_paths(value: Paths) -> list[Path]:
    """Return one path or several as a list."""
    return [Path(value)] if isinstance(value, str | os.PathLike) else [Path(one) for one in value]
