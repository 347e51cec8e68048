"""CocoSegmentation: COCO JSON files as images with label maps."""

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np

from segkit.data.coco_file import Allowed, CocoFile, read_coco
from segkit.data.coco_images import Item, find_shared_files
from segkit.data.dataset import ImageFiles
from segkit.data.findings import Finding, tell
from segkit.data.images import Reading
from segkit.data.mask_cache import MaskCache
from segkit.data.rasterize import OVERLAPS, rasterize
from segkit.errors import DataError, UsageError
from segkit.files import MAX_PIXELS
from segkit.labels import BACKGROUND

Paths = str | os.PathLike | Sequence[str | os.PathLike]


class CocoSegmentation(ImageFiles):
    """Images and label maps from one or several COCO JSON files.

    Item i is `(image, mask)`: image (H, W, 3) uint8 RGB, mask (H, W) uint8 with 0 for background, then
    the categories in the order of their ids.

    Args:
        annotations: A COCO JSON file, or several whose categories have the same names.
        root: Folder of the images, one for all files or one for each; by default each JSON's own.
        transform: Called as `transform(image=image, mask=mask)`, as in albumentations; gives a mapping
            with `image` and `mask`.
        overlap: What lies on top where objects overlap: the `smallest` object, the `last` annotation in the
            file, or the category with the highest id (`max-id`).
        ignore_classes: Names of classes that are painted 255 in the target.
        mask_cache: Where masks are kept once they are drawn: a folder, which several processes may share,
            or `memory`. None draws them each time. The folder's masks are drawn anew when the JSON or the
            rules change.
        on_bad: `error` refuses to go on with images that are missing, unreadable or of another size than
            the JSON says; `skip` leaves them out.
        max_bad: Largest share of the images that `skip` leaves out; one always may be.
        crowd: `paint` treats crowds (iscrowd) like other objects; `ignore` paints them 255, beneath them.
        exif: `apply` turns images as their EXIF orientation says, where that fits the JSON's sizes; `ignore` none.
        max_pixels: Larger images are refused before they are decoded.
        allow_outside_root: Whether images may lie outside `root`, by absolute paths, `..` or links.
        rescale_annotations: Whether images may have another size than the JSON says, to which the annotations
            are then fitted.
        merge_same_name: Whether categories with one name are one class, rather than an error.
        bbox_as_mask: Whether annotations without a segmentation paint their box.

    Attributes:
        class_names: `background` and the category names, in label order.
        categories: Names by category id, in id order.
        items: Path, name, size and id of each image.
        annotations: The regions of each image.
        findings: All that is wrong or remarkable, one by one.
        notes: The same in a line for each kind, with counts.

    Raises:
        DataError: something is wrong with the files; all of it is listed.
    """

    def __init__(
        self,
        annotations: Paths,
        root: Paths | None = None,
        transform: Callable | None = None,
        *,
        overlap: Literal["smallest", "last", "max-id"] = "smallest",
        ignore_classes: Sequence[str] = (),
        mask_cache: str | os.PathLike | None = None,
        on_bad: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        crowd: Literal["paint", "ignore"] = "paint",
        exif: Literal["apply", "ignore"] = "apply",
        max_pixels: int = MAX_PIXELS,
        allow_outside_root: bool = False,
        rescale_annotations: bool = False,
        merge_same_name: bool = False,
        bbox_as_mask: bool = False,
    ) -> None:
        _check_choice("overlap", overlap, OVERLAPS)
        _check_choice("on_bad", on_bad, ("error", "skip"))
        _check_choice("crowd", crowd, ("paint", "ignore"))
        _check_choice("exif", exif, ("apply", "ignore"))
        self.reading = Reading(exif, max_pixels)
        allowed = Allowed(allow_outside_root, rescale_annotations, merge_same_name, bbox_as_mask)
        files = _as_paths(annotations)
        parts: list[CocoFile] = []
        for file, folder in zip(files, _roots(root, files), strict=True):
            names = parts[0].class_names if parts else None
            parts.append(read_coco(file, folder, reading=self.reading, allowed=allowed, names=names))
        self.transform, self.overlap, self.crowd = transform, overlap, crowd
        self.categories = parts[0].categories
        self.class_names = (BACKGROUND, *parts[0].class_names)
        self.ignore_classes = tuple(ignore_classes)
        _ = self.ignored_labels  # an unknown name is told here
        self.items: Packed[Item] = Packed(chain.from_iterable(part.items for part in parts))
        self.annotations = Packed(chain.from_iterable(part.annotations for part in parts))
        findings = [*chain.from_iterable(part.findings for part in parts), *find_shared_files(self.items)]
        self.notes = tell(findings, on_bad, max_bad, len(self.items))
        self.findings: Packed[Finding] = Packed(findings)
        if mask_cache is not None:
            folder = None if mask_cache == "memory" else mask_cache
            self.mask_cache = MaskCache(folder, "\n".join([overlap, crowd, *(part.digest for part in parts)]))

    def mask(self, index: int) -> np.ndarray:
        size = self.items[index].size
        return rasterize(self.annotations[index], size, overlap=self.overlap, crowd=self.crowd)


def _as_paths(value: Paths) -> list[Path]:
    return [Path(value)] if isinstance(value, str | os.PathLike) else [Path(v) for v in value]


def _roots(root: Paths | None, files: Sequence[Path]) -> list[Path]:
    roots = [file.parent for file in files] if root is None else _as_paths(root)
    if len(roots) == 1:
        roots *= len(files)
    if len(roots) != len(files):
        raise DataError(f"{len(files)} JSON files need one image folder or {len(files)}, got {len(roots)}")
    return roots


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")


T = TypeVar("T")


class Packed(Sequence, Generic[T]):
    """Objects kept as bytes in one array, made anew each time that one is asked for.

    To read a Python object is to write its reference count, so that each forked worker would come to own
    a copy of a list of them, page by page, as the epochs go on. An array's content is only read.
    """

    def __init__(self, values: Iterable[T]) -> None:
        parts = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
        self._ends = np.cumsum([0, *map(len, parts)])
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> T:
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]])
