"""Writers of label formats: COCO JSON, folders of masks, YOLO segmentation, and LabelMe.

A writer has two steps for each image: `pieces` returns how the format writes a region, with the shape that a reader of
the format reads; `add` writes the image with these pieces. Between the two, the caller can draw the shapes, and compare
the mask with the original.
"""

import base64
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from segkit.data.formats.records import WHOLE
from segkit.data.images import write_mask
from segkit.data.outlines import bridged, outlines
from segkit.data.palette import IGNORED, Colour
from segkit.data.rasterize import Annotation, Shape, encode
from segkit.errors import DataError
from segkit.files import write_json, write_whole
from segkit.labels import IGNORE_INDEX, foreground_of

LABELME_VERSION = "5.0.0"  # the first version that reads shapes of the type mask; later versions read the same
_IGNORED_COLOUR = (224, 224, 192)  # of Pascal VOC


class Written(NamedTuple):
    """An image to write.

    Attributes:
        name: Path below the folder of images, with slashes.
        path: The file.
        size: (H, W) of its labels.
        id: Its id, if it comes from a COCO JSON.
    """

    name: str
    path: Path
    size: tuple[int, int]
    id: Any = None


class Piece(NamedTuple):
    """A region, or a part of one, in a format.

    Attributes:
        shape: What a reader of the format draws.
        content: What is written.
    """

    shape: Shape
    content: Any


Regions = Sequence[tuple[Annotation, list[Piece]]]  # in paint order, the last on top


class LabelWriter(ABC):
    """Write images with labels in one format.

    Args:
        folder: The folder to write to; it exists and is empty.
        class_names: In label order; the first is background if the format has regions.
        images: `copy` the image files into the folder, `link` them there (hard links, or copies on another disk), or
            `none`.

    Attributes:
        overlap: Which region lies on top when the format is read, a key of `segkit.data.rasterize.OVERLAPS`.
        holds_ignored: Whether the format has regions that are neither trained on nor scored.
        holds_regions: Whether the format has regions; otherwise it has one mask for each image.
    """

    overlap = "last"
    holds_ignored = True
    holds_regions = True

    def __init__(self, folder: Path, class_names: Sequence[str], images: str) -> None:
        self.folder, self.class_names, self.images = folder, tuple(class_names), images
        self._taken: dict[str, str] = {}

    def pieces(self, region: Annotation, size: tuple[int, int]) -> list[Piece]:
        """Return how the format writes a region of an image of (H, W) pixels."""
        raise NotImplementedError

    @abstractmethod
    def add(self, split: str, image: Written, regions: Regions, mask: np.ndarray) -> None:
        """Write an image.

        Args:
            split: Its split.
            image: The image.
            regions: Its regions with their pieces.
            mask: (H, W) uint8, its label map.

        Raises:
            DataError: Another image has the same label file.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write the files about all images."""

    def _put_image(self, image: Written, place: str) -> Path:
        """Copy or link the image to a path below the folder; return the path."""
        target = self.folder / place
        # Of two images that differ only in their suffix, one would get the labels of the other.
        stem = PurePosixPath(place).with_suffix("").as_posix()
        if stem in self._taken:
            other = self._taken[stem]
            twice = "are one file" if other == image.name else "differ only in the suffix"
            raise DataError(f"{other} and {image.name} {twice}, so both would have the labels {stem}; rename one")
        self._taken[stem] = image.name
        self._copy(image, target)
        return target

    def _copy(self, image: Written, target: Path) -> None:
        if self.images == "none":
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.images == "link":
            try:
                os.link(os.path.realpath(image.path), target)
                return
            except OSError:
                pass  # another disk, or a disk without hard links
        shutil.copyfile(image.path, target)


class CocoWriter(LabelWriter):
    """COCO JSON: train.json, val.json and test.json, or annotations.json of what is not divided.

    Args:
        folder: The folder to write to.
        class_names: In label order.
        images: What to do with the image files.
        category_ids: The category id of each label except background.
    """

    overlap = "smallest"

    def __init__(
        self, folder: Path, class_names: Sequence[str], images: str, category_ids: Mapping[int, int | str]
    ) -> None:
        super().__init__(folder, class_names, images)
        self._ids = category_ids
        self._splits: dict[str, tuple[list, list]] = {}

    def pieces(self, region: Annotation, size: tuple[int, int]) -> list[Piece]:
        if isinstance(region.shape, bytes):
            return [Piece(region.shape, {"size": list(size), "counts": region.shape.decode()})]
        return [Piece(region.shape, [polygon.tolist() for polygon in region.shape])]

    def add(self, split: str, image: Written, regions: Regions, mask: np.ndarray) -> None:
        images, annotations = self._splits.setdefault(split, ([], []))
        target = self.folder / f"images/{_below(split)}{image.name}"
        if not target.exists():  # a file may be listed twice
            self._copy(image, target)
        height, width = image.size
        identifier = len(images) + 1 if image.id is None else image.id
        images.append({"id": identifier, "file_name": image.name, "height": height, "width": width})
        for region, pieces in regions:
            for piece in pieces:
                rle = {"size": [height, width], "counts": encode(piece.shape, image.size)}
                is_ignored = region.label == IGNORE_INDEX
                # Tools that do not know "ignore" see a crowd of the first class.
                label = min(self._ids) if is_ignored else region.label
                annotations.append(
                    {
                        "id": region.id,
                        "image_id": identifier,
                        "category_id": self._ids[label],
                        "segmentation": piece.content,
                        "area": int(coco_mask.area(rle)),
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "iscrowd": int(region.crowd or is_ignored),
                        **({"ignore": 1} if is_ignored else {}),
                    }
                )

    def finish(self) -> None:
        categories = [{"id": self._ids[label], "name": self.class_names[label]} for label in self._ids]
        for split, (images, annotations) in self._splits.items():
            ids = {row["id"] for row in annotations if type(row["id"]) is int}
            if len(ids) < len(annotations):  # other formats have no ids
                for number, row in enumerate(annotations, start=1):
                    row["id"] = number
            content = {"images": images, "categories": categories, "annotations": annotations}
            write_json(self.folder / coco_name(split), content)


def coco_name(split: str) -> str:
    """Return the name of the COCO JSON of a split."""
    return "annotations.json" if split == WHOLE else f"{split}.json"


class YoloWriter(LabelWriter):
    """YOLO segmentation: data.yaml, images/SPLIT/NAME.jpg and labels/SPLIT/NAME.txt; see `segkit.data.formats.yolo`."""

    overlap = "smallest"
    holds_ignored = False

    def __init__(self, folder: Path, class_names: Sequence[str], images: str) -> None:
        super().__init__(folder, class_names, images)
        self._number = {label: label - 1 for label in range(1, len(class_names))}
        self._splits: dict[str, None] = {}

    def pieces(self, region: Annotation, size: tuple[int, int]) -> list[Piece]:
        scale = np.array(size[::-1], dtype=np.float64)
        polygons = region.shape if isinstance(region.shape, list) else []
        points = [polygon.reshape(-1, 2) for polygon in polygons]
        if polygons and all((one >= 0).all() and (one <= scale).all() for one in points):
            # Not less than the exact share: multiplied again it would be rounded down to another pixel.
            shares = [one / scale for one in points]
            shares = [np.where(s * scale < one, np.nextafter(s, 2), s) for s, one in zip(shares, points, strict=True)]
            texts = [" ".join(map(repr, s.ravel().tolist())) for s in shares]
        else:  # points beyond the image are refused by Ultralytics
            drawn = _decode(region.shape, size)
            rings = [bridged(part, drawn) / scale for part in outlines(drawn)]
            # The points are a quarter of a pixel away from where a pixel changes.
            texts = [" ".join(f"{share:.7g}" for share in ring.ravel().tolist()) for ring in rings]
        label = self._number[region.label]
        return [Piece([(_numbers(t).reshape(-1, 2) * scale).ravel()], f"{label} {t}\n") for t in texts]

    def add(self, split: str, image: Written, regions: Regions, mask: np.ndarray) -> None:
        self._splits[split] = None
        self._put_image(image, f"images/{_below(split)}{image.name}")
        file = (self.folder / f"labels/{_below(split)}{image.name}").with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(piece.content for _, pieces in regions for piece in pieces))

    def finish(self) -> None:
        content: dict[str, Any] = {split: f"images/{split}" for split in self._splits if split != WHOLE}
        content["names"] = {number: self.class_names[label] for label, number in self._number.items()}
        write_whole(self.folder / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


class LabelMeWriter(LabelWriter):
    """LabelMe: NAME.json next to each image, in a folder for each split; and labels.txt with the classes."""

    def __init__(self, folder: Path, class_names: Sequence[str], images: str) -> None:
        super().__init__(folder, class_names, images)
        _check_lines(class_names, "labels.txt")
        if "__ignore__" in class_names:
            raise DataError("LabelMe's shapes of the class '__ignore__' mean ignored pixels; `class_map` renames it")
        self._names = dict(enumerate(class_names[1:], start=1))
        self._names[IGNORE_INDEX] = "__ignore__"

    def pieces(self, region: Annotation, size: tuple[int, int]) -> list[Piece]:
        if isinstance(region.shape, list):
            polygons = [polygon for polygon in region.shape if len(polygon)]
            return [Piece([p], {"points": p.reshape(-1, 2).tolist(), "shape_type": "polygon"}) for p in polygons]
        found = []
        drawn = _decode(region.shape, size)
        for part in outlines(drawn):
            polygon = bridged(part, drawn).ravel()
            if len(part) == 1:
                found.append(Piece([polygon], {"points": part[0].tolist(), "shape_type": "polygon"}))
                continue
            shape = encode([polygon], size)  # a polygon of LabelMe has no holes
            low, high = part[0].min(0).astype(int), part[0].max(0).astype(int)
            crop = _decode(shape, size)[low[1] : high[1] + 1, low[0] : high[0] + 1]
            content = {"points": [low.tolist(), high.tolist()], "shape_type": "mask", "mask": _png(crop)}
            found.append(Piece(shape, content))
        return found

    def add(self, split: str, image: Written, regions: Regions, mask: np.ndarray) -> None:
        target = self._put_image(image, f"{_below(split)}{image.name}")
        shapes = [
            {
                "label": self._names[region.label],
                "group_id": number if len(pieces) > 1 else None,  # the parts of one object
                "description": "",
                "flags": {},
                "mask": None,
                **piece.content,
            }
            for number, (region, pieces) in enumerate(regions, start=1)
            for piece in pieces
        ]
        content = {
            **{"version": LABELME_VERSION, "flags": {}, "shapes": shapes},
            **{"imagePath": target.name, "imageData": None, "imageHeight": image.size[0], "imageWidth": image.size[1]},
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target.with_suffix(".json"), text)

    def finish(self) -> None:
        labels = ["__ignore__", "_background_", *(name for label, name in self._names.items() if label < IGNORE_INDEX)]
        write_whole(self.folder / "labels.txt", "".join(f"{name}\n" for name in labels))


class MaskWriter(LabelWriter):
    """Index PNGs in the folders of Pascal VOC, with the labelmap.txt of CVAT's "Segmentation mask 1.1".

    The pixel values are the labels in the order of classes.txt, and 255 is ignored; the colours are as in labelmap.txt.
    """

    holds_regions = False

    def __init__(self, folder: Path, class_names: Sequence[str], images: str) -> None:
        super().__init__(folder, class_names, images)
        odd = [name for name in class_names if ":" in name or name.startswith("#") or name.lower() == IGNORED]
        if odd:
            raise DataError(
                f"the class {odd[0]!r} cannot be in labelmap.txt: a name has no colon, does not begin with #, and is "
                "not ignore; `class_map` renames it"
            )
        _check_lines(class_names, "labelmap.txt")
        colours = {label: (0, 0, 0) for label in range(len(class_names))}
        colours |= {label: voc_colour(number) for number, label in enumerate(foreground_of(class_names), start=1)}
        self.colours = [colours[label] for label in range(len(class_names))]
        self._palette = np.zeros((256, 3), dtype=np.uint8)
        self._palette[: len(self.colours)] = self.colours
        self._palette[IGNORE_INDEX] = _IGNORED_COLOUR
        self._lists: dict[str, list[str]] = {}
        self._has_ignored = False

    def add(self, split: str, image: Written, regions: Regions, mask: np.ndarray) -> None:
        name = image.name
        if any(PurePosixPath(name).with_suffix("").as_posix() in of_split for of_split in self._lists.values()):
            name = f"{_below(split)}{name}"  # two splits have an image of this name
        stem = PurePosixPath(name).with_suffix("").as_posix()
        self._put_image(image, f"JPEGImages/{name}")
        file = self.folder / f"SegmentationClass/{stem}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_mask(file, mask, self._palette)
        self._has_ignored |= bool((mask == IGNORE_INDEX).any())
        self._lists.setdefault(split, []).append(stem)

    def finish(self) -> None:
        folder = self.folder / "ImageSets" / "Segmentation"
        folder.mkdir(parents=True, exist_ok=True)
        for split, stems in self._lists.items():
            name = "default" if split == WHOLE else split
            write_whole(folder / f"{name}.txt", "".join(f"{stem}\n" for stem in stems))
        rows = list(zip(self.class_names, self.colours, strict=True))
        if self._has_ignored:
            rows.append((IGNORED, _IGNORED_COLOUR))
        lines = [f"{name}:{','.join(map(str, colour))}::\n" for name, colour in rows]
        write_whole(self.folder / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(lines))
        write_whole(self.folder / "classes.txt", "".join(f"{name}\n" for name in self.class_names))


def voc_colour(label: int) -> Colour:
    """Return the colour of a label in the palette of Pascal VOC: its bits, dealt out to red, green and blue."""
    return tuple(sum((label >> 3 * i + channel & 1) << 7 - i for i in range(8)) for channel in range(3))


def _check_lines(class_names: Sequence[str], file: str) -> None:
    """Raise DataError if a file that has one name in each line cannot hold a name."""
    for name in class_names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(
                f"the class {name!r} cannot be in {file}: a name is one line, without blanks at its ends; `class_map` "
                "renames it"
            )


def _below(split: str) -> str:
    return "" if split == WHOLE else f"{split}/"


def _decode(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode({"size": list(size), "counts": encode(shape, size)}).astype(bool)


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64)


def _png(crop: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(crop.astype(np.uint8) * 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


WRITERS: Mapping[str, type[LabelWriter]] = {
    "coco": CocoWriter,
    "masks": MaskWriter,
    "yolo": YoloWriter,
    "labelme": LabelMeWriter,
}
