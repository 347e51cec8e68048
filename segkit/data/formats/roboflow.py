"""Roboflow: a folder for each of train, valid and test, with images and `_annotations.coco.json` or mask files.

COCO: the first category may be the project itself, without annotations. It is dropped if it is the supercategory of
another one and no split has an annotation of it. A split may lack classes, so ids differ: classes are joined by name.

Masks: `NAME_mask.png` next to `NAME.jpg`, and `_classes.csv` with the class of each pixel value.

Sources: roboflow/roboflow-100-benchmark issue 45, roboflow/rf-detr issue 609 and pull request 1303,
roboflow/roboflow-python issue 165 (read in 2026).
"""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from segkit.data.formats.pairs import by_stem, match, union
from segkit.data.formats.records import WHOLE, LabelFiles, LabelRecords, LabelSource, MaskFiles
from segkit.data.images import list_images
from segkit.errors import DataError
from segkit.files import parse_json
from segkit.labels import BACKGROUND, is_background

ANNOTATIONS, CLASSES = "_annotations.coco.json", "_classes.csv"
FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is an export of Roboflow; None if it is none."""
    found = next((folder for folder in _folders(path).values() if _file(folder) is not None), None)
    return f"{_file(found).name} is there" if found else None


def read(path: Path) -> LabelSource:
    """Return the images of an export by split.

    Raises:
        DataError: The folder has no such files, or they cannot be used.
    """
    files = {split: file for split, folder in _folders(path).items() if (file := _file(folder)) is not None}
    if not files:
        raise DataError(f"{path} has neither {ANNOTATIONS} nor {CLASSES}, nor folders train, valid and test with one")
    kinds = {file.name for file in files.values()}
    if len(kinds) > 1:
        raise DataError(f"{path} has {ANNOTATIONS} in one split and {CLASSES} in another; give one export")
    reader = _read_coco if ANNOTATIONS in kinds else _read_masks
    why = f"{kinds.pop()} in {', '.join(file.parent.name for file in files.values())}"
    return LabelSource("roboflow", path, why, {split: partial(reader, split, files) for split in files})


def _folders(path: Path) -> dict[str, Path]:
    if path.name == ANNOTATIONS and path.is_file():
        return {WHOLE: path.parent}
    if not path.is_dir() or _file(path) is not None:
        return {WHOLE: path}
    found = {split: next((path / n for n in names if _file(path / n)), None) for split, names in FOLDERS.items()}
    return {split: folder for split, folder in found.items() if folder is not None}


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in (ANNOTATIONS, CLASSES) if (folder / name).is_file()), None)


def _read_coco(split: str, paths: Mapping[str, Path]) -> LabelRecords:
    files = LabelFiles("roboflow 1")
    contents = {name: _load(path, files) for name, path in paths.items()}
    annotated: set[str] = set()
    for content in contents.values():
        used = {row["category_id"] for row in content["annotations"] if isinstance(row.get("category_id"), int)}
        annotated |= {row["name"] for row in content["categories"] if row["id"] in used}
    kept = {name: _without_root(content["categories"], annotated) for name, content in contents.items()}
    names = union([row["name"] for row in rows] for rows in kept.values())
    content, rows = contents[split], kept[split]
    absent = [name for name in names if name not in {row["name"] for row in rows}]
    new = max((row["id"] for row in content["categories"]), default=0) + 1
    added = [{"id": number, "name": name} for number, name in enumerate(absent, start=new)]
    changed = content | {"categories": [*rows, *added]}
    return LabelRecords(paths[split], paths[split].parent, changed, f"{files.digest} {split}", "smallest")


def _load(file: Path, files: LabelFiles) -> dict[str, Any]:
    content = parse_json(files.content(file), file, DataError)
    rows = {key: content.get(key) if isinstance(content, dict) else None for key in ("images", "categories")}
    rows["annotations"] = content.get("annotations") or [] if isinstance(content, dict) else None
    for key, values in rows.items():
        if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
            raise DataError(f"{file} is not a COCO file: its {key!r} must be a list of objects")
    for row in rows["categories"]:
        if type(row.get("id")) is not int or not isinstance(row.get("name"), str):
            raise DataError(f"{file}: a category must have a whole number as id and a text as name, got {row!r:.60}")
    return content | rows


def _without_root(categories: Sequence[Mapping[str, Any]], annotated: set[str]) -> list[Mapping[str, Any]]:
    """Return the categories except one that stands for the project."""
    return [
        row
        for row in categories
        if row["name"] in annotated
        or all(other is row or other.get("supercategory") != row["name"] for other in categories)
    ]


def _read_masks(split: str, paths: Mapping[str, Path]) -> MaskFiles:
    values = {name: _read_classes(path) for name, path in paths.items()}
    names = union(of_split.values() for of_split in values.values())
    folder, found = paths[split].parent, []
    files = list_images(folder)
    masks = by_stem(folder, "_mask", files)
    chosen = set(masks.values())
    pairs = match(by_stem(folder, "", (f for f in files if f not in chosen)), masks, folder, found, all_labelled=True)
    labels = {value: names.index(name) for value, name in values[split].items()}
    return MaskFiles(paths[split], pairs, names, values=labels, findings=found)


def _read_classes(file: Path) -> dict[int, str]:
    """Return the class of each pixel value, from lines such as `1, car` below a header."""
    values: dict[int, str] = {}
    for number, row in enumerate(csv.reader(LabelFiles("").text(file).splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and not cells[0].isdigit()):
            continue
        if len(cells) < 2 or not cells[0].isdecimal() or int(cells[0]) > 255 or not cells[1]:
            raise DataError(f"{file}, line {number}: expected a pixel value and a class such as 1, car, got {row}")
        if int(cells[0]) in values:
            raise DataError(f"{file}, line {number}: the pixel value {cells[0]} occurs twice")
        values[int(cells[0])] = BACKGROUND if is_background(cells[1]) else cells[1]
    if len(values) < 2:
        raise DataError(f"{file} names {len(values)} classes, expected two or more, one for each pixel value")
    return values
