"""Label formats: what the usual labelling tools write, read as images with regions or with masks.

A reader is a module with two functions: `recognise(path)` returns what shows that the path has its format, or None;
`read(path)` returns a `LabelSource`. A new reader is added to `FORMATS`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

from segkit.data.formats import (
    cityscapes,
    cvat,
    cvat_masks,
    label_studio,
    labelme,
    roboflow,
    taco,
    voc,
    yolo,
    zerowaste,
)
from segkit.data.formats.records import (
    SPLITS,
    WHOLE,
    LabelFiles,
    LabelledImage,
    LabelRecords,
    LabelSource,
    MaskFiles,
    Region,
)
from segkit.errors import DataError
from segkit.names import check_known

__all__ = [
    "FORMATS",
    "SPLITS",
    "WHOLE",
    "LabelFiles",
    "LabelRecords",
    "LabelSource",
    "LabelledImage",
    "MaskFiles",
    "Region",
    "find_source",
]

# The readers by name, in the order in which they look at a path: the most certain signs first.
FORMATS: Mapping[str, ModuleType] = MappingProxyType(
    {
        **{"roboflow": roboflow, "yolo": yolo, "taco": taco, "cityscapes": cityscapes, "zerowaste": zerowaste},
        **{"cvat": cvat, "cvat-masks": cvat_masks, "voc": voc, "label-studio": label_studio, "labelme": labelme},
    }
)


def find_source(path: Path, format: str | None = None) -> LabelSource | None:
    """Return the labelled images at a path; None for a COCO JSON, which `CocoSegmentation` reads itself.

    Args:
        path: A file or a folder.
        format: Its format, a key of `FORMATS` or "coco". By default it is recognised by what lies there.

    Raises:
        DataError: Nothing at the path is recognised, or it cannot be read.
        UsageError: There is no such format.
    """
    if format is not None:
        check_known("`format`", format, (*FORMATS, "coco"))
        if format != "coco" and not path.exists():
            raise DataError(f"there is no file or folder {path}")
        return None if format == "coco" else FORMATS[format].read(path)
    if not path.exists():  # the reader of COCO JSON says it
        return None
    for reader in FORMATS.values():
        if reader.recognise(path) is not None:
            return reader.read(path)
    if path.suffix.lower() == ".zip":
        raise DataError(f"{path} is an archive; unpack it, and give the folder")
    hint = _hint(path) if path.is_dir() or path.suffix.lower() != ".json" else ""
    if path.is_dir():
        other = hint or (
            "; give a COCO JSON file, or folders of images with the folder of their masks as `masks`, or with their "
            "names as `mask_name`"
        )
        raise DataError(f"{path} has no labels of a known format ({', '.join(FORMATS)}){other}")
    if hint:
        raise DataError(f"{path} is not a file of labels of a known format{hint}")
    return None


def _hint(path: Path) -> str:
    """Return what else to give: a folder above or below `path` that has a known format, or a JSON file in it."""
    # The signs of these two are in the content of all files, so that the folders above could take long.
    quick = {name: reader for name, reader in FORMATS.items() if name not in ("labelme", "label-studio")}
    below = sorted(one for one in path.iterdir() if one.is_dir()) if path.is_dir() else []
    for folders, readers in ((path.absolute().parents[:4], quick), (below, FORMATS)):
        for folder in folders:
            name = next((name for name, reader in readers.items() if reader.recognise(folder) is not None), None)
            if name is not None:
                return f", but {folder} is {name}; did you mean that?"
    json = next((file for one in (path, path / "annotations") for file in sorted(one.glob("*.json"))), None)
    return f"; did you mean {json}?" if json else ""
