"""CocoSegmentation: COCO JSON files as images with label maps."""

import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np

from segkit.class_map import as_class_map
from segkit.data.coco_file import Allowed, CocoFile, ids_by_name, read_coco
from segkit.data.coco_images import Item
from segkit.data.dataset import ImageFiles, Paths, as_paths
from segkit.data.findings import Finding, find_shared_files, raise_or_warn, summarise
from segkit.data.formats.records import LabelRecords
from segkit.data.images import Reading, create_reading
from segkit.data.mask_cache import MaskCache
from segkit.data.rasterize import OVERLAPS, rasterize
from segkit.errors import UsageError
from segkit.files import MAX_PIXELS
from segkit.labels import BACKGROUND
from segkit.names import check_known

T = TypeVar("T")
Labels = str | os.PathLike | LabelRecords


class CocoSegmentation(ImageFiles):
    """Images and label maps from one or several COCO JSON files, or other labels that are regions.

    Item i is `(image, mask)`: image (H, W, 3) uint8 RGB, mask (H, W) uint8 with 0 for background, then the categories
    in the order of their ids. A category called background, in any case, is label 0, too.

    Args:
        annotations: A COCO JSON file, or several: the first one has the classes, the others may lack some. Categories
            are matched by name, so their ids may differ. Also what the reader of another format returns, see
            `segkit.data.find_source`.
        root: Folder of the images, one for all files or one for each. By default the folder of each JSON.
        transform: Called as `transform(image=image, mask=mask)`, as in albumentations; returns a mapping with `image`
            and `mask`.
        overlap: Which object lies on top if objects overlap: the `smallest`, the `last` annotation in the file, or the
            category with the highest id (`max-id`). `auto` is the rule of the format; of COCO, the smallest.
        class_names: The classes in label order, such as the classes of another data set or a model; the files may lack
            some. By default the categories of the first file.
        class_map: Merges, renames and drops categories: a file, or a mapping of names to classes, see
            `segkit.class_map.read_class_map`. All other names in these arguments are those of the classes.
        ignore_classes: Names of classes that are 255 in the target.
        mask_cache: A folder, which several processes may share, or `memory`: each mask is drawn once and kept there.
            None draws it each time. A changed JSON or rule draws the masks again.
        on_bad: `error` raises if images are missing, unreadable or of another size than the JSON says; `skip` drops
            these images.
        max_bad: Largest share of the images that `skip` drops; it may always drop one.
        crowd: `paint` treats crowds (iscrowd) like other objects; `ignore` paints them 255, below other objects.
        exif: `apply` rotates images by their EXIF orientation, if that fits the sizes in the JSON; `ignore` rotates
            none.
        max_pixels: Larger images are refused before they are decoded.
        allow_outside_root: Whether images may lie outside `root`, by absolute paths, `..` or links.
        rescale_annotations: Whether images may have another size than the JSON says. The annotations are then scaled
            to the image.
        merge_same_name: Whether categories with the same name are one class instead of an error.
        bbox_as_mask: Whether annotations without a segmentation are painted as their box.

    Attributes:
        class_names: `background` and the category names, in label order.
        categories: Names by category id, in id order.
        category_ids: The id of each category by name, as in the first file that has the category.
        items: Path, name, size and id of each image.
        annotations: The regions of each image.
        label_digests: A digest of the labels of each source that is not a COCO JSON.
        findings: All errors, warnings and notes about the files, one by one.
        notes: The findings, summed up in one line per kind.

    Raises:
        DataError: The files have errors; the message lists all of them.
    """

    def __init__(
        self,
        annotations: Labels | Sequence[Labels],
        root: Paths | None = None,
        transform: Callable | None = None,
        *,
        overlap: Literal["auto", "smallest", "last", "max-id"] = "auto",
        class_names: Sequence[str] | None = None,
        class_map: str | os.PathLike | Mapping[str, str] | None = None,
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
        check_known("`overlap`", overlap, ("auto", *OVERLAPS))
        check_known("`on_bad`", on_bad, ("error", "skip"))
        check_known("`crowd`", crowd, ("paint", "ignore"))
        self.transform, self.crowd = transform, crowd
        self.ignore_classes = tuple(ignore_classes)
        allowed = Allowed(allow_outside_root, rescale_annotations, merge_same_name, bbox_as_mask)
        parts = self._read(annotations, root, create_reading(exif, max_pixels), allowed, class_names, class_map)
        self.overlap = _common_overlap(parts) if overlap == "auto" else overlap
        _ = self.ignored_labels  # raises if a name is unknown
        self.notes = raise_or_warn(self.findings, on_bad, max_bad, len(self.items))
        if mask_cache is not None:
            folder = None if mask_cache == "memory" else mask_cache
            self.mask_cache = MaskCache(folder, "\n".join([self.overlap, crowd, *(part.digest for part in parts)]))

    @classmethod
    def inspect(
        cls,
        annotations: Labels | Sequence[Labels],
        root: Paths | None = None,
        *,
        class_names: Sequence[str] | None = None,
        class_map: str | os.PathLike | Mapping[str, str] | None = None,
        exif: Literal["apply", "ignore"] = "apply",
        max_pixels: int = MAX_PIXELS,
        allow_outside_root: bool = False,
        rescale_annotations: bool = False,
        merge_same_name: bool = False,
        bbox_as_mask: bool = False,
    ) -> "CocoSegmentation":
        """Read files as the constructor does, but add faults to `findings` instead of raising or warning.

        The data set has the images that can be used; annotations that cannot be read are dropped.

        Args:
            annotations: See the class, as for all other arguments.
            root: Folder of the images.
            class_names: The classes in label order.
            class_map: Merges, renames and drops categories.
            exif: `apply` or `ignore`.
            max_pixels: Larger images are a finding.
            allow_outside_root: Whether images may lie outside `root`.
            rescale_annotations: Whether images may have another size than the JSON says.
            merge_same_name: Whether categories with the same name are one class.
            bbox_as_mask: Whether annotations without a segmentation are painted as their box.

        Raises:
            DataError: A file is not a COCO JSON, or has other categories than `class_names` or the files before it.
        """
        data = cls.__new__(cls)
        data.transform, data.crowd = None, "paint"
        allowed = Allowed(allow_outside_root, rescale_annotations, merge_same_name, bbox_as_mask)
        parts = data._read(annotations, root, create_reading(exif, max_pixels), allowed, class_names, class_map)
        data.overlap = _common_overlap(parts)
        data.notes = summarise(data.findings)
        return data

    def _read(
        self,
        annotations: Labels | Sequence[Labels],
        root: Paths | None,
        reading: Reading,
        allowed: Allowed,
        class_names: Sequence[str] | None = None,
        class_map: str | os.PathLike | Mapping[str, str] | None = None,
    ) -> list[CocoFile]:
        """Read the files, and return them."""
        files = _as_labels(annotations)
        own_roots = [file.root if isinstance(file, LabelRecords) else file.parent for file in files]
        self.label_digests = tuple(file.digest for file in files if isinstance(file, LabelRecords))
        roots = own_roots if root is None else as_paths(root)
        if len(roots) == 1:
            roots *= len(files)
        if len(roots) != len(files):
            raise UsageError(f"{len(files)} JSON files need one folder of images or {len(files)}, got {len(roots)}")
        parts: list[CocoFile] = []
        mapping = as_class_map(class_map)
        for file, folder in zip(files, roots, strict=True):
            names = parts[0].class_names if parts else class_names
            parts.append(read_coco(file, folder, reading=reading, allowed=allowed, names=names, class_map=mapping))
        self.reading = reading
        self.categories = parts[0].categories
        self.category_ids = ids_by_name([part.categories for part in parts])
        self.class_names = (BACKGROUND, *parts[0].class_names)
        self.items: Packed[Item] = Packed(chain.from_iterable(part.items for part in parts))
        self.annotations = Packed(chain.from_iterable(part.annotations for part in parts))
        shared = find_shared_files(item.path for item in self.items)
        self.findings: Packed[Finding] = Packed([*chain.from_iterable(part.findings for part in parts), *shared])
        return parts

    def mask(self, index: int) -> np.ndarray:
        size = self.items[index].size
        return rasterize(self.annotations[index], size, overlap=self.overlap, crowd=self.crowd)


def _as_labels(annotations: Labels | Sequence[Labels]) -> list[Path | LabelRecords]:
    several = [annotations] if isinstance(annotations, Labels) else annotations
    return [one if isinstance(one, LabelRecords) else Path(one) for one in several]


def _common_overlap(parts: Sequence[CocoFile]) -> str:
    """Return the rule of overlaps that the formats of the labels have in common.

    Raises:
        UsageError: Their rules differ.
    """
    rules = {part.overlap for part in parts}
    if len(rules) > 1:
        raise UsageError(
            f"the formats of the labels have different rules of overlaps: give `overlap`, {' or '.join(sorted(rules))}"
        )
    return rules.pop() if rules else "smallest"


class Packed(Sequence, Generic[T]):
    """A sequence of objects that forked loader workers share: pickled into one array, and loaded one at a time.

    Reading an object of a list writes its reference count, so each forked worker would copy the list page by page over
    the epochs. The content of an array is only read.
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
