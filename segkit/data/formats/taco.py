"""TACO as it is downloaded: `annotations.json` next to the folders `batch_1`, `batch_2` ...

It is a COCO JSON whose category 0 is a class. The suffix of a photograph may have other capitals than in the JSON.

Source: Pedro F. Proença and Pedro Simões, "TACO: Trash Annotations in Context for Litter Detection" (2020),
pedropro/TACO.
"""

from functools import partial
from pathlib import Path

from segkit.data.formats.records import WHOLE, LabelFiles, LabelRecords, LabelSource
from segkit.errors import DataError
from segkit.files import parse_json

FILE = "annotations.json"
KEYS = ("images", "annotations", "categories")


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is the folder of TACO, or of its repository; None if it is neither."""
    folder = _folder(path)
    is_there = folder is not None and any(one.is_dir() for one in folder.glob("batch_*"))
    return f"{FILE} next to folders batch_N" if is_there else None


def read(path: Path) -> LabelSource:
    """Return the images of TACO; they are not divided.

    Raises:
        DataError: There is no annotations.json.
    """
    folder = _folder(path)
    if folder is None:
        raise DataError(f"{path} has no {FILE}")
    return LabelSource("taco", path, f"{FILE} next to folders batch_N", {WHOLE: partial(_read, folder / FILE)})


def _folder(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "data") if (folder / FILE).is_file()), None)


def _read(file: Path) -> LabelRecords:
    files = LabelFiles("taco 1")
    content = parse_json(files.content(file), file, DataError)
    for key in KEYS:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file} is not a COCO file: its {key!r} must be a list of objects")
    return LabelRecords(file, file.parent, content, files.digest, "smallest")
