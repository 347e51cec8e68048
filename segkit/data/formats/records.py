"""What the reader of a label format returns: images with regions or with mask files, divided into splits."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from segkit.data.findings import Finding
from segkit.errors import DataError, UsageError, as_segkit_error

WHOLE = "all"  # the split of a source that is not divided
SPLITS = ("train", "val", "test")
# Keys of an image record that only readers write, see `LabelledImage`.
OTHER_NAMES = "segkit_other_names"
IF_MISSING = "segkit_if_missing"


class Region(NamedTuple):
    """A labelled region of an image.

    Attributes:
        class_name: Its class; None for pixels that are neither trained on nor scored.
        segmentation: As in COCO: polygons [[x, y, x, y, ...], ...] in pixels, or RLE {"size": [H, W], "counts": ...}.
            None if there is only a box.
        where: Where it is in the label file, such as "line 3"; messages name it.
        box: x, y, width and height in pixels, of a region without a segmentation.
    """

    class_name: str | None
    segmentation: list[list[float]] | dict[str, Any] | None
    where: str
    box: list[float] | None = None


class LabelledImage(NamedTuple):
    """An image with its regions in the order of painting, the later ones on top.

    Attributes:
        file_name: Path below the image folder, with slashes.
        size: (H, W) in pixels of the frame that the regions were drawn in. None if the labels do not say it.
        regions: Its regions; none if it is background.
        other_names: Paths at which the image may lie if there is no file `file_name`, the most likely first.
        if_missing: What the message about a missing image adds, such as how to write it.
    """

    file_name: str
    size: tuple[int, int] | None
    regions: Sequence[Region]
    other_names: Sequence[str] = ()
    if_missing: str = ""


@dataclass(frozen=True)
class LabelRecords:
    """Images whose labels are regions. `CocoSegmentation` takes them like a COCO JSON.

    Attributes:
        path: The file or folder that messages name.
        root: Folder of the images.
        content: Images, annotations and categories as in a COCO JSON.
        digest: Changes with everything that the masks depend on.
        overlap: Which region lies on top by the rule of the format, a key of `segkit.data.rasterize.OVERLAPS`.
        findings: Errors, warnings and notes of the reader.
    """

    path: Path
    root: Path
    content: dict[str, Any]
    digest: str
    overlap: str = "last"
    findings: Sequence[Finding] = ()

    @classmethod
    def of_images(
        cls,
        images: Iterable[LabelledImage],
        class_names: Sequence[str],
        *,
        path: Path,
        root: Path,
        files: "LabelFiles",
        overlap: str = "last",
        findings: Sequence[Finding] = (),
    ) -> "LabelRecords":
        """Return the records of images with regions.

        Args:
            images: The images.
            class_names: The classes in label order; one may be called background, which is label 0.
            path: The file or folder that messages name.
            root: Folder of the images.
            files: The label files that were read.
            overlap: Which region lies on top: by default the later one of the image.
            findings: Errors, warnings and notes of the reader.
        """
        ids = {name: number for number, name in enumerate(class_names, start=1)}
        rows: dict[str, list] = {"images": [], "annotations": []}
        for number, image in enumerate(images, start=1):
            height, width = image.size or (None, None)
            row = {"id": number, "file_name": image.file_name, "height": height, "width": width}
            rows["images"].append(row | {OTHER_NAMES: image.other_names, IF_MISSING: image.if_missing})
            for region in image.regions:
                # An ignored region has no class, but COCO wants one; `ignore` decides its label.
                annotation = {
                    "id": f"{image.file_name}, {region.where}",
                    "image_id": number,
                    "category_id": ids[region.class_name] if region.class_name is not None else 1,
                    "segmentation": region.segmentation or [],
                }
                if region.class_name is None:
                    annotation["ignore"] = 1
                if region.box is not None:
                    annotation["bbox"] = region.box
                rows["annotations"].append(annotation)
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        # Masks are kept by the number of their image, and the label files need not name the images.
        names = "\0".join(row["file_name"] for row in rows["images"]).encode(errors="surrogateescape")
        digest = hashlib.sha256(f"{files.digest}\0".encode() + names).hexdigest()
        return cls(path, root, {**rows, "categories": categories}, digest, overlap, tuple(findings))

    def below(self, root: Path) -> "LabelRecords":
        """Return the same records with names of images that start from `root`, a folder above the folder of images."""
        folder = self.root.absolute().relative_to(root.absolute())
        images = [{**row, "file_name": (folder / str(row["file_name"])).as_posix()} for row in self.content["images"]]
        return replace(self, root=root, content={**self.content, "images": images})

    @classmethod
    def joined(cls, parts: Sequence["LabelRecords"]) -> "LabelRecords":
        """Return the records of several parts as one; the names of their images start from one folder.

        Images, annotations and categories get new ids; categories are matched by name.

        Raises:
            UsageError: The formats have different rules of overlaps.
        """
        rules = {part.overlap for part in parts}
        if len(rules) > 1:
            raise UsageError(
                f"{parts[0].path} and {parts[-1].path} have different rules for which object lies on top of another: "
                f"{' and '.join(sorted(rules))}"
            )
        root = Path(os.path.commonpath([part.root.absolute() for part in parts]))
        parts = [part.below(root) for part in parts]
        ids: dict[str, int] = {}
        rows: dict[str, list] = {"images": [], "annotations": []}
        for part in parts:
            names = {row["id"]: row["name"] for row in part.content["categories"]}
            for name in names.values():
                ids.setdefault(name, len(ids) + 1)
            new_ids = {}
            for row in part.content["images"]:
                new_ids[row["id"]] = len(rows["images"]) + 1
                rows["images"].append({**row, "id": new_ids[row["id"]]})
            for row in part.content.get("annotations") or []:
                image, category = new_ids.get(row.get("image_id")), names.get(row.get("category_id"))
                meant = {"image_id": image, "category_id": None if category is None else ids[category]}
                rows["annotations"].append({**row, "id": len(rows["annotations"]) + 1, **meant})
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        digest = hashlib.sha256("\0".join(part.digest for part in parts).encode()).hexdigest()
        findings = tuple(finding for part in parts for finding in part.findings)
        return cls(parts[0].path, root, {**rows, "categories": categories}, digest, *rules, findings)


@dataclass(frozen=True)
class MaskFiles:
    """Images whose labels are mask files. `FolderSegmentation` takes them like two folders.

    Attributes:
        path: The file or folder that messages name.
        pairs: The image file, the name of the image, and the mask file.
        class_names: In label order.
        colours: The class name of each colour (red, green, blue); `ignore` means 255. None if the masks have values.
        values: The label of each pixel value; 255 is ignored. None if the values are the labels, and 255 is ignored.
        findings: Errors, warnings and notes of the reader.
    """

    path: Path
    pairs: Sequence[tuple[Path, str, Path]]
    class_names: Sequence[str]
    colours: Mapping[tuple[int, int, int], str] | None = None
    values: Mapping[int, int] | None = None
    findings: Sequence[Finding] = ()


@dataclass(frozen=True)
class LabelSource:
    """What lies at a path: its format, and its images by split.

    Attributes:
        format: Name of the format, a key of `segkit.data.formats.FORMATS`.
        path: The file or folder.
        why: What it was recognised by, such as "data.yaml names the classes".
        splits: Functions that read the images of "train", "val" and "test"; of "all" if they are not divided.
    """

    format: str
    path: Path
    why: str
    splits: Mapping[str, Callable[[], LabelRecords | MaskFiles]]

    def read(self, *splits: str) -> list[LabelRecords | MaskFiles]:
        """Return the labels of some splits; of a source that is not divided, all of its labels.

        Raises:
            DataError: It is divided, but has no such split; or a label file cannot be read.
        """
        if WHOLE in self.splits:
            return [self.splits[WHOLE]()]
        absent = [split for split in splits if split not in self.splits]
        if absent:
            raise DataError(f"{self.path} has no split {absent[0]!r}, it has {', '.join(self.splits)}")
        return [self.splits[split]() for split in splits]


@dataclass
class LabelFiles:
    """Reads label files, and keeps one digest of all that were read.

    Attributes:
        format: Name and version of the reader; the digest changes with it.
    """

    format: str
    _hash: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256(self.format.encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def content(self, path: Path) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: It does not exist, or cannot be read.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"there is no label file at {path}") from None
        except OSError as error:
            raise as_segkit_error(error) or DataError(f"cannot read {path}: {error.strerror}") from error
        self._hash.update(f"\0{len(content)} {path.name}\0".encode(errors="surrogateescape"))
        self._hash.update(content)
        return content

    def text(self, path: Path) -> str:
        """Return the text of a file in UTF-8.

        Raises:
            DataError: It does not exist, cannot be read, or is not UTF-8.
        """
        try:
            return self.content(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it in that encoding") from None
