"""COCO files in, the COCO files of the folds out: train_data0.json, valid_data0.json, train_data1.json ..."""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segkit.errors import DataError, UsageError

Record = dict[str, Any]
_FOLD_FILE = re.compile(r"(train|valid)_data\d+\.json")


class FoldSource(NamedTuple):
    """The N images of a COCO file, and behind them those that only ever train, each with its annotations."""

    content: Record  # the first file as it was read
    images: list[Record]
    annotations: list[list[Record]]
    train_only: np.ndarray  # (N,) bool
    loose: int  # annotations that belong to no image or no category, and are left out

    @property
    def categories(self) -> dict[Any, str]:
        """Category names by id, in id order."""
        return _categories(self.content)


def read_fold_source(file: Path, train_only: Sequence[Path] = ()) -> FoldSource:
    """Reads the JSON file to divide and the JSON files whose images only train.

    Images and annotations of the latter get new ids, behind those of the first file.

    Raises:
        DataError: a file is missing or not COCO, gives an image id twice, or has other categories than the first.
    """
    contents = [_read(path) for path in (file, *train_only)]
    categories = _categories(contents[0])
    images, annotations, loose = [], [], 0
    for path, content in zip((file, *train_only), contents, strict=True):
        if _categories(content) != categories:
            raise DataError(f"{path} has other categories than {file}: they must be the same, ids and names")
        new_images, new_annotations, new_loose = _by_image(content, path, categories)
        if images:
            _renumber(images, annotations, new_images, new_annotations)
        images, annotations, loose = images + new_images, annotations + new_annotations, loose + new_loose
    only = np.arange(len(images)) >= len(contents[0]["images"] or [])
    return FoldSource(contents[0], images, annotations, only, loose)


def write_fold_files(source: FoldSource, folds: np.ndarray, k: int, out: Path, *, overwrite: bool = False) -> None:
    """Writes the 2 k files; all else in the first COCO file, such as categories and info, goes into each of them.

    They are complete before the first gets its name, and older ones go before that: nobody finds half a file, or
    folds of two splits.

    Args:
        source: The images.
        folds: (N,) the fold that each image validates in, -1 for none, see `assign_folds`.
        k: Number of folds.
        out: Folder of the files.
        overwrite: Replace the fold files that are there.

    Raises:
        ValueError: fold files are there already, or `out` is no folder.
    """
    old = check_fold_folder(out, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".folds-") as scratch:
        for name, text in _fold_texts(source, folds, k):
            Path(scratch, name).write_text(text, encoding="utf-8")
        for path in old:
            path.unlink()
        for path in Path(scratch).iterdir():
            os.replace(path, out / path.name)


def check_fold_folder(out: Path, *, overwrite: bool) -> list[Path]:
    """The fold files that are in the folder; ValueError where they may not be replaced."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder")
    old = sorted(path for path in out.glob("*.json") if _FOLD_FILE.fullmatch(path.name))
    if old and not overwrite:
        raise UsageError(f"{old[0]} exists already; choose another --out, or replace all folds there by --overwrite")
    return old


def _fold_texts(source: FoldSource, folds: np.ndarray, k: int) -> list[tuple[str, str]]:
    """Name and JSON text of each file; every record is encoded once, for all of them."""
    images = [json.dumps(image) for image in source.images]
    annotations = [", ".join(json.dumps(a) for a in of_image) for of_image in source.annotations]
    other = {key: json.dumps(value) for key, value in source.content.items() if key not in ("images", "annotations")}
    order = dict.fromkeys([*source.content, "images", "annotations"])
    texts = []
    for fold in range(k):
        for name, chosen in (("train", folds != fold), ("valid", (folds == fold) & ~source.train_only)):
            rows = np.flatnonzero(chosen)
            lists = {"images": [images[i] for i in rows], "annotations": [annotations[i] for i in rows]}
            parts = other | {key: f"[{', '.join(filter(None, values))}]" for key, values in lists.items()}
            text = ", ".join(f"{json.dumps(key)}: {parts[key]}" for key in order)
            texts.append((f"{name}_data{fold}.json", f"{{{text}}}"))
    return texts


def _read(file: Path) -> Record:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"there is no annotation file at {file}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise DataError(f"{file} is not a COCO file: it needs lists of images and categories")
    for key, needed in (("images", {"id", "file_name"}), ("categories", {"id", "name"}), ("annotations", set())):
        rows = content.get(key) or []
        if not isinstance(rows, list) or not all(_has(row, needed) for row in rows):
            has = f", each with {' and '.join(sorted(needed))}" if needed else ""
            raise DataError(f"{file} is not a COCO file: its {key!r} must be a list of objects{has}")
        if not all(isinstance(row.get("id"), int | str | None) for row in rows):
            raise DataError(f"{file} is not a COCO file: an id in its {key!r} is neither a number nor a text")
    if not all(isinstance(image["file_name"], str) for image in content["images"] or []):
        raise DataError(f"{file} is not a COCO file: a file_name in its 'images' is no text")
    return content


def _has(row: Any, keys: set[str]) -> bool:
    return isinstance(row, dict) and all(row.get(key) is not None for key in keys)


def _categories(content: Mapping[str, Any]) -> dict[Any, str]:
    rows = ((category["id"], str(category["name"])) for category in content["categories"] or [])
    return dict(sorted(rows, key=lambda row: (isinstance(row[0], str), row[0])))


def _by_image(
    content: Record, file: Path, categories: Mapping[Any, str]
) -> tuple[list[Record], list[list[Record]], int]:
    """The images, the annotations of each, and the number of annotations that belong nowhere."""
    images = list(content["images"] or [])
    of_image: dict[Any, list[Record]] = {image["id"]: [] for image in images}
    if len(of_image) != len(images):
        raise DataError(f"{file} has two images with the same id")
    loose = 0
    for annotation in content.get("annotations") or []:
        image, category = annotation.get("image_id"), annotation.get("category_id")
        known = isinstance(image, int | str) and isinstance(category, int | str)
        if known and image in of_image and category in categories:
            of_image[image].append(annotation)
        else:
            loose += 1
    return images, list(of_image.values()), loose


def _renumber(
    images: list[Record], annotations: list[list[Record]], new_images: list[Record], new_annotations: list[list[Record]]
) -> None:
    """Gives the new records ids behind those that are taken."""
    next_image = _highest_id(images) + 1
    next_annotation = _highest_id(a for of_image in annotations for a in of_image) + 1
    for i, (image, of_image) in enumerate(zip(new_images, new_annotations, strict=True)):
        new_images[i] = image | {"id": next_image + i}
        new_annotations[i] = [
            a | {"id": next_annotation + n, "image_id": next_image + i} for n, a in enumerate(of_image)
        ]
        next_annotation += len(of_image)


def _highest_id(records: Any) -> int:
    return max((r["id"] for r in records if isinstance(r.get("id"), int)), default=0)
