"""COCO JSON files as images with label maps."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from segkit.data.dataset import SegmentationDataset
from segkit.data.images import DataError, read_image

Paths = str | os.PathLike | Sequence[str | os.PathLike]
BACKGROUND = "background"


class Item(NamedTuple):
    """One image of a COCO file."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W)
    annotations: list[dict[str, Any]]


class CocoSegmentation(SegmentationDataset):
    """Images and label maps from one or several COCO JSON files.

    Item i is `(image, mask)`: image (H, W, 3) uint8 RGB, mask (H, W) uint8 with 0 for background, then
    the categories in the order of their ids. Where objects overlap, the smaller lies on top.

    Args:
        annotations: A COCO JSON file, or several with the same categories.
        root: Folder of the images, one for all files or one for each; by default each JSON's own.
        transform: Called as `transform(image=image, mask=mask)`, as in albumentations; gives a mapping
            with `image` and `mask`.

    Attributes:
        class_names: `background` and the category names, in label order.
        items: Path, size and annotations of each image.

    Raises:
        DataError: a file is missing, is not COCO, or refers to an image that is not there.
    """

    def __init__(self, annotations: Paths, root: Paths | None = None, transform: Callable | None = None) -> None:
        files = _as_paths(annotations)
        roots = [file.parent for file in files] if root is None else _as_paths(root)
        if len(roots) == 1:
            roots *= len(files)
        if len(roots) != len(files):
            raise DataError(f"{len(files)} JSON files need one image folder or {len(files)}, got {len(roots)}")
        contents = [_read_json(file) for file in files]
        self.categories = _categories(contents[0], files[0])
        for content, file in zip(contents[1:], files[1:], strict=True):
            _check_same(self.categories, _categories(content, file), files[0], file)
        self.class_names = (BACKGROUND, *self.categories.values())
        self.transform = transform
        self.items = [
            item
            for content, file, folder in zip(contents, files, roots, strict=True)
            for item in _items(content, file, folder, self.categories)
        ]
        _check_images(self.items)
        self._label_of = {category: label for label, category in enumerate(self.categories, start=1)}

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].file_name

    def image(self, index: int) -> np.ndarray:
        item = self.items[index]
        return read_image(item.path, item.size)

    def mask(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of an image; the image file is not read."""
        item = self.items[index]
        shapes = [(self._label_of[a["category_id"]], _encode(a, item)) for a in item.annotations]
        shapes = [(label, shape) for label, shape in shapes if shape is not None]
        mask = np.zeros(item.size, dtype=np.uint8)
        for label, shape in sorted(shapes, key=lambda pair: -int(rle.area(pair[1]))):
            mask[rle.decode(shape).view(bool)] = label
        return mask


def _as_paths(value: Paths) -> list[Path]:
    return [Path(value)] if isinstance(value, str | os.PathLike) else [Path(v) for v in value]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"there is no annotation file at {file}") from None
    except IsADirectoryError:
        raise DataError(f"{file} is a folder, expected a COCO JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    missing = [key for key in ("images", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{file} is not a COCO file: it has no {' and no '.join(map(repr, missing))}")
    return content


def _categories(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Category names by id, in id order."""
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
    except (KeyError, TypeError):
        raise DataError(f"{file} is not a COCO file: each of its categories needs an id and a name") from None
    if len(names) != len(content["categories"]) or len(set(names.values())) != len(names):
        raise DataError(f"{file} gives two categories the same id or the same name")
    if not 0 < len(names) < 255:
        raise DataError(f"{file} has {len(names)} categories, expected 1 to 254")
    return dict(sorted(names.items()))


def _check_same(first: dict[int, str], second: dict[int, str], first_file: Path, second_file: Path) -> None:
    differing = [f"{i} {first.get(i)!r} / {second.get(i)!r}" for i in first | second if first.get(i) != second.get(i)]
    if differing:
        raise DataError(f"{first_file} and {second_file} differ in their categories: {', '.join(differing[:5])}")


def _items(content: Mapping[str, Any], file: Path, root: Path, categories: Mapping[int, str]) -> list[Item]:
    annotations = defaultdict(list)
    for annotation in content.get("annotations") or []:
        if annotation.get("category_id") not in categories:
            raise DataError(
                f"annotation {annotation.get('id')} in {file} has category_id {annotation.get('category_id')}, "
                f"which is no category there"
            )
        annotations[annotation.get("image_id")].append(annotation)
    try:
        items = {
            image["id"]: Item(
                root / image["file_name"],
                image["file_name"],
                (int(image["height"]), int(image["width"])),
                annotations.pop(image["id"], []),
            )
            for image in content["images"]
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is not a COCO file: an image lacks {error}") from None
    if len(items) != len(content["images"]):
        raise DataError(f"{file} has two images with the same id")
    if annotations:
        raise DataError(f"{file} has annotations for image {next(iter(annotations))}, which is no image there")
    return list(items.values())


def _check_images(items: Sequence[Item]) -> None:
    missing = [item.path for item in items if not item.path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(items)} images are not there, such as {missing[0]}; "
            "the image folder is given by --images (root=)"
        )


def _encode(annotation: Mapping[str, Any], item: Item) -> dict[str, Any] | None:
    """The region of an annotation as compressed RLE; None where it has no area to fill."""
    segmentation, (height, width) = annotation.get("segmentation"), item.size
    try:
        if isinstance(segmentation, Mapping):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"its size is {segmentation['size']}, the image has {[height, width]}")
            compressed = not isinstance(segmentation["counts"], list)
            return dict(segmentation) if compressed else rle.frPyObjects(segmentation, height, width)
        if not isinstance(segmentation, list | None):
            raise TypeError(f"expected polygons or RLE, got {type(segmentation).__name__}")
        # Three points make the smallest polygon; pycocotools would read four numbers as a box.
        polygons = [part for part in segmentation or [] if len(part) >= 6 and len(part) % 2 == 0]
        return rle.merge(rle.frPyObjects(polygons, height, width)) if polygons else None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"annotation {annotation.get('id')} of {item.file_name} has a segmentation that cannot be read: {error}"
        ) from error
