"""Divide COCO files into the COCO files of folds: train_data0.json, valid_data0.json, train_data1.json ..."""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segkit.data.coco_file import OVERLAP, Row, as_id, id_value, read_all_regions, read_records
from segkit.data.findings import Note, raise_or_warn
from segkit.data.formats.records import LabelRecords
from segkit.data.rasterize import Annotation, rasterize
from segkit.errors import UsageError, as_segkit_error
from segkit.files import MAX_PIXELS, file_named, make_folder
from segkit.labels import BACKGROUND
from segkit.runs import RunLock

_FOLD_FILE = re.compile(r"(train|valid)_data\d+\.json")
_MARK = "segkit_fold"  # the first key of each file: its fold, and that segkit wrote it, so that it may be replaced


class FoldSource(NamedTuple):
    """The images of a COCO file, followed by images that only train, N in all, each with its annotations."""

    content: Row  # the first file as it was read; with a category for background if only another file has one
    class_names: tuple[str, ...]  # names of the labels 1, 2 ...
    images: list[Row]
    annotations: list[list[Row]]
    regions: list[list[Annotation]]  # the annotations as training reads them
    sizes: list[tuple[int, int] | None]  # (H, W) of each image, None if its file does not say it
    train_only: np.ndarray  # (N,) bool
    notes: list[Note]  # errors, warnings and notes about the files
    overlap: str = "smallest"  # which object lies on top by the rule of the format

    def masks(self, *, overlap: str = "auto", crowd: str = "paint") -> Iterator[np.ndarray | None]:
        """Yield the label map (H, W) of each image, None if no image has such a size; `rasterize` has the arguments."""
        rule = self.overlap if overlap == "auto" else overlap
        for regions, size in zip(self.regions, self.sizes, strict=True):
            is_size = size is not None and min(size) > 0 and size[0] * size[1] <= MAX_PIXELS
            yield rasterize(regions, size, overlap=rule, crowd=crowd) if is_size else None


def read_fold_source(
    file: Path | LabelRecords,
    train_only: Sequence[Path | LabelRecords] = (),
    *,
    merge_same_name: bool = False,
    bbox_as_mask: bool = False,
    class_map: Mapping[str, str] | None = None,
) -> FoldSource:
    """Read the labels to divide, and the labels whose images only train, as training reads them.

    Image files need not exist. Images and annotations of `train_only` get new ids, above the ids of the first file,
    and their categories get the ids of the first file.

    Args:
        file: The JSON file to divide, or what the reader of another format returned.
        train_only: JSON files or other labels whose images only train; their file names start from the same folder.
        merge_same_name: Whether several categories may have one name; they are one class.
        bbox_as_mask: Whether annotations without a segmentation are painted as their box.
        class_map: The class of each category. The content keeps its categories, so that the files of the folds are
            read with the same class map.

    Raises:
        DataError: A file is missing, has a fault, or has a category that the first one lacks.
    """
    rules: dict[str, Any] = {"merge_same_name": merge_same_name, "class_map": class_map}
    first = read_records(file, **rules)
    parts = [first]
    for path in train_only:
        parts.append(read_records(path, names=first.class_names, **rules))
    regions, sizes = [], []
    for part in parts:
        of_part = read_all_regions(part, bbox_as_mask=bbox_as_mask)
        regions += of_part[0]
        sizes += of_part[1]
    images = list(first.images.values())
    annotations = [[row for _, row in pairs] for pairs in first.annotations.values()]
    if any(part.overlap != first.overlap for part in parts):
        raise UsageError(
            f"{first.file} and the labels that only train have different rules of overlaps; give `overlap`"
        )
    content = first.content
    if first.overlap != "smallest":  # training on the files paints as training on the labels does
        content = content | {OVERLAP: first.overlap}
    id_of = {label: category for category, label in reversed(first.labels.items())}
    if 0 not in id_of and any(0 in part.labels.values() for part in parts):
        id_of[0] = _highest_id(content["categories"]) + 1
        content = content | {"categories": [*content["categories"], {"id": id_of[0], "name": BACKGROUND}]}
    any_id = next(iter(id_of.values()))
    for part in parts[1:]:
        next_image = _highest_id(images) + 1
        next_annotation = _highest_id(row for of_image in annotations for row in of_image) + 1
        for i, (image, row) in enumerate(part.images.items(), start=next_image):
            images.append(row | {"id": i})
            annotations.append([])
            for category, a in part.annotations[image]:
                label = part.labels[category]
                ids = {
                    "id": next_annotation,
                    "image_id": i,
                    "category_id": id_of.get(label, any_id),
                }
                if label not in id_of:  # a class that the class map ignores, and the first file lacks
                    ids["ignore"] = 1
                annotations[-1].append(a | ids)
                next_annotation += 1
    findings = [finding for part in parts for finding in part.findings]
    notes = raise_or_warn(findings, "error", 0.0, len(images))
    only = np.arange(len(images)) >= len(first.images)
    return FoldSource(content, first.class_names, images, annotations, regions, sizes, only, notes, first.overlap)


def _highest_id(records: Iterable[Row]) -> int:
    ids = [as_id(row.get("id")) for row in records]
    return max((value for i in ids if i is not None and isinstance(value := id_value(i), int)), default=0)


def write_fold_files(source: FoldSource, folds: np.ndarray, k: int, out: Path, *, overwrite: bool = False) -> None:
    """Write the 2 k files; everything else in the first COCO file, such as categories and info, goes into each.

    The first key of each file, `segkit_fold`, has the number of the fold and k, and says that segkit wrote the file.

    All files are complete before the first gets its name, and older fold files are removed before that: the folder
    never has half a file, or the folds of two splits.

    Args:
        source: The images.
        folds: (N,) the fold that each image validates in, -1 for none, see `assign_folds`.
        k: Number of folds.
        out: Folder of the files.
        overwrite: Replace the fold files in the folder.

    Raises:
        UsageError: The folder has fold files already, or files of such names that segkit did not write; another process
            writes to it, or `out` is a file.
    """
    check_fold_folder(out, overwrite=overwrite)
    make_folder(out)
    with RunLock() as lock:
        lock.take(out)
        old = check_fold_folder(out, overwrite=overwrite)  # another process may have been faster
        _write_fold_files(source, folds, k, out, old)


def _write_fold_files(source: FoldSource, folds: np.ndarray, k: int, out: Path, old: Sequence[Path]) -> None:
    # Every record is encoded once for all files.
    images = [json.dumps(image) for image in source.images]
    annotations = [", ".join(json.dumps(a, default=bytes.decode) for a in of_image) for of_image in source.annotations]
    other = {key: json.dumps(value) for key, value in source.content.items() if key not in ("images", "annotations")}
    order = dict.fromkeys([_MARK, *source.content, "images", "annotations"])
    with tempfile.TemporaryDirectory(dir=out, prefix=".folds-") as scratch:
        for fold in range(k):
            for name, chosen in (("train", folds != fold), ("valid", (folds == fold) & ~source.train_only)):
                rows = np.flatnonzero(chosen)
                lists = {"images": [images[i] for i in rows], "annotations": [annotations[i] for i in rows]}
                parts = other | {_MARK: json.dumps({"number": fold, "k": k})}
                parts |= {key: f"[{', '.join(filter(None, values))}]" for key, values in lists.items()}
                text = ", ".join(f"{json.dumps(key)}: {parts[key]}" for key in order)
                file = f"{name}_data{fold}.json"
                with file_named(out / file):
                    Path(scratch, file).write_text(f"{{{text}}}", encoding="utf-8")
        for path in old:
            path.unlink()
        for path in Path(scratch).iterdir():
            os.replace(path, out / path.name)


def check_fold_folder(out: Path, *, overwrite: bool) -> list[Path]:
    """Return the fold files in the folder; raise UsageError if there are some and they may not be replaced.

    Only files with the mark of segkit may be replaced.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"`out` {out} is a file, expected a folder")
    old = sorted(path for path in out.glob("*.json") if _FOLD_FILE.fullmatch(path.name))
    if old and not overwrite:
        raise UsageError(f"{old[0]} exists already; choose another `out`, or replace all folds in it by `overwrite`")
    begin = f'{{"{_MARK}"'.encode()
    for path in old:
        try:
            with path.open("rb") as file:
                is_own = file.read(len(begin)) == begin
        except OSError as error:
            raise as_segkit_error(error) or UsageError(f"cannot read {path}: {error.strerror}") from error
        if not is_own:
            raise UsageError(
                f"{path} has no mark that segkit wrote it, so that `overwrite` does not replace it; choose another "
                "`out`, or remove it yourself (earlier versions of segkit did not mark their folds)"
            )
    return old
