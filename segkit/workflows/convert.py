"""segkit.convert: write labels, or the masks of infer.py, in the format of another tool."""

import csv
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segkit.config import ConvertConfig, from_keywords, takes_settings
from segkit.console import Console, counted
from segkit.data import CocoSegmentation, FolderSegmentation
from segkit.data.coco_file import read_records
from segkit.data.dataset import ImageFiles
from segkit.data.formats import WHOLE, MaskFiles, find_source
from segkit.data.formats.writers import WRITERS, CocoWriter, LabelWriter, MaskWriter, Piece, Written, coco_name
from segkit.data.images import Reading, read_image_header, turn_mask
from segkit.data.mask_files import map_masks
from segkit.data.outlines import bridged, outlines
from segkit.data.rasterize import Annotation, encode, in_paint_order, rasterize
from segkit.errors import DataError, UsageError
from segkit.files import make_folder
from segkit.inference.coco_results import category_ids
from segkit.labels import BACKGROUND, IGNORE_INDEX, foreground_of
from segkit.workflows.datasets import Source, check_kinds, has_masks
from segkit.workflows.results_folder import RECORD

MANIFEST = "manifest.csv"
_COMMON_FIELDS = {"info", "licenses", "images", "annotations", "categories"}


@dataclass(frozen=True)
class ConvertResult:
    """Labels that were written in another format.

    Attributes:
        folder: The folder of the labels.
        images: Number of images of each split; "all" if the labels are not divided.
        class_names: The classes in label order.
        lost: What the format cannot hold, and was lost.
        use: The command or the files to continue with.
    """

    folder: Path
    images: Mapping[str, int]
    class_names: tuple[str, ...]
    lost: tuple[str, ...]
    use: str


@takes_settings(ConvertConfig)
def convert(*, verbose: bool = False, **settings: Any) -> ConvertResult:
    """Write labels in the format of another tool, as `python -m segkit convert` does.

        segkit.convert(data="train.json", images="photos/", to="yolo", out="yolo")
        segkit.convert(data="masks/", images="photos/", to="labelme", out="to_correct")  # masks/ is of infer.py

    The mask of each image is drawn again from what is written, and has exactly the pixels that it had before. Regions
    of which the format would paint another one on top are cut to their visible part.

    Args:
        verbose: Print the progress.
        **settings: The settings of the command, see `python -m segkit convert --help`.

    Raises:
        UsageError: A setting cannot be used, or `out` has files.
        DataError: The labels have a fault, or cannot be written in the format.
    """
    config = from_keywords(ConvertConfig, settings)
    console = Console(verbose=verbose)
    _check_out(config.out)
    splits, lost = _open(config, console)
    first = next(iter(splits.values()))
    images = config.image_files
    if images == "auto":
        images = "none" if config.to == "coco" else "copy"
    placed = _names(splits, keep=config.to == "coco" and images == "none")
    counts: Counter[str] = Counter()
    with _new_folder(config.out) as folder:
        if config.to == "coco":
            ids = category_ids(_region_classes(first.class_names), first.category_ids)
            writer: LabelWriter = CocoWriter(folder, _region_classes(first.class_names), images, ids)
        elif config.to == "masks":
            writer = MaskWriter(folder, first.class_names, images)
        else:
            writer = WRITERS[config.to](folder, _region_classes(first.class_names), images)
        total = sum(map(len, splits.values()))
        for split, index in console.progress(
            ((split, index) for split, data in splits.items() for index in range(len(data))), total=total
        ):
            _write(writer, split, splits[split], index, placed[split][index], counts)
        writer.finish()
    lost += _lost(config.to, splits, counts)
    numbers = {split: len(data) for split, data in splits.items()}
    return ConvertResult(config.out, numbers, tuple(first.class_names), tuple(lost), _use(config, splits, images))


def _region_classes(class_names: Sequence[str]) -> list[str]:
    """Return the classes of a format with regions: background, which is what no region covers, and the others."""
    return [BACKGROUND, *(class_names[label] for label in foreground_of(class_names))]


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"`out` {out} exists already and is not an empty folder; choose a new one")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder next to `out`, which gets the name `out` at the end and is removed if an error occurs."""
    make_folder(out.absolute().parent)
    folder = out.absolute().with_name(
        f".{out.absolute().name}.{os.getpid()}.{int.from_bytes(os.urandom(4), 'big')}.tmp"
    )
    make_folder(folder)
    try:
        yield folder
        _check_out(out)  # another process may have been faster
        if out.is_dir():
            out.rmdir()
        os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open(config: ConvertConfig, console: Console) -> tuple[dict[str, ImageFiles], list[str]]:
    """Return the labelled images by split, and what is lost when they are read."""
    reading: dict[str, Any] = {name: getattr(config, name) for name in ("exif", "max_pixels", "class_map")}
    if not has_masks(config) and (config.data / RECORD).is_file():
        found = _predictions(config)
        console.print(f"data: {config.data} has the masks of infer.py: {counted(len(found.pairs), 'image')}")
        return {WHOLE: FolderSegmentation(found, **reading)}, []
    check_kinds(config, Source("data", [config.data], config.images, config.masks))
    if has_masks(config):
        named = {"class_names": config.class_names, "palette": config.palette, "mask_name": config.mask_name}
        return {WHOLE: FolderSegmentation(config.data, config.masks or None, **named, **reading)}, []
    found = find_source(config.data, config.format)
    if found is None:
        parts: dict[str, Any] = {WHOLE: config.data}
    else:
        parts = {split: read() for split, read in found.splits.items()}
        console.print(f"data: {config.data} is {found.format} ({found.why})")
    if any(isinstance(part, MaskFiles) for part in parts.values()):
        if config.class_map:
            parts = {split: map_masks(part, reading["class_map"]) for split, part in parts.items()}
            del reading["class_map"]
        names = list(dict.fromkeys(name for part in parts.values() for name in part.class_names))
        return {s: FolderSegmentation(part, class_names=names, **reading) for s, part in parts.items()}, []
    records = [
        read_records(part, merge_same_name=config.merge_same_name, class_map=config.class_map)
        for part in parts.values()
    ]
    names = list(dict.fromkeys(name for one in records for name in one.class_names))
    options = {
        name: getattr(config, name)
        for name in ("overlap", "allow_outside_root", "rescale_annotations", "merge_same_name", "bbox_as_mask")
    }
    root = config.images[0] if config.images else None
    splits: dict[str, ImageFiles] = {}
    for split, part in parts.items():
        splits[split] = CocoSegmentation(part, root, class_names=names, **options, **reading)
        for note in splits[split].notes:
            if note.severity == "note":  # Python has shown the warnings
                console.print(f"data: {note}")
    lost = []
    if found is None:
        rows = [row for row in records[0].content.get("annotations") or []]
        known = {"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd", "ignore"}
        more = sorted({key for row in rows for key in row} - known)
        if more:
            lost.append(f"other fields of the annotations ({', '.join(more)})")
    return splits, lost


def _predictions(config: ConvertConfig) -> MaskFiles:
    """Return the masks in a folder of infer.py with their photographs."""
    file = config.data / MANIFEST
    if len(config.images) != 1:
        raise UsageError(f"{config.data} has the masks of infer.py; give `images`, the folder of the photographs")
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise DataError(f"{file}, which names the masks, cannot be read: {error.strerror}") from error
    if not rows or "mask" not in rows[0]:
        raise DataError(f"{file} names no masks; if infer.py wrote predictions.json, convert that file")
    names = [name.removeprefix("share/") for name in rows[0] if name.startswith("share/")]
    pairs = [(config.images[0] / row["image"], row["image"], config.data / row["mask"]) for row in rows]
    return MaskFiles(config.data, pairs, names)


def _names(splits: Mapping[str, ImageFiles], *, keep: bool) -> dict[str, list[Written]]:
    """Return the images to write, with their names.

    Args:
        splits: The images by split.
        keep: Name them by their path below the one folder that all their names start from, see `_root`. Otherwise the
            folders that all images of a split have in common are dropped, because the split has a folder of its own.
    """
    placed = {}
    root = _root(splits) if keep else None
    for split, data in splits.items():
        names = [item.file_name for item in data.items]
        if root is not None:
            names = [Path(os.path.relpath(item.path.absolute(), root)).as_posix() for item in data.items]
        else:
            outside = [name for name in names if ".." in PurePosixPath(name).parts or os.path.isabs(name)]
            if outside:
                raise DataError(f"{outside[0]} lies outside the image folder, so it cannot be copied under its name")
            folders = [PurePosixPath(name).parts[:-1] for name in names]
            same = zip(*folders, strict=False)  # up to the shortest
            common = tuple(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, same))
            if split == WHOLE:  # the folders are part of the names, except for the folder of all images
                common = common[:1] if common[:1] == ("images",) else ()
            names = ["/".join(PurePosixPath(name).parts[len(common) :]) for name in names]
        placed[split] = [
            Written(name, Path(item.path), item.size, getattr(item, "id", None))
            for name, item in zip(names, data.items, strict=True)
        ]
    return placed


def _root(splits: Mapping[str, ImageFiles]) -> Path | None:
    """Return the folder from which the names of all images start; None if they lie in no common folder."""
    roots = set()
    for data in splits.values():
        for item in data.items:
            path = item.path.absolute()
            depth = len(PurePosixPath(os.path.normpath(item.file_name)).parts)
            roots.add(path.parents[depth - 1] if not os.path.isabs(item.file_name) else path.parent)
    return Path(os.path.commonpath(roots)) if roots else None


def _write(writer: LabelWriter, split: str, data: ImageFiles, index: int, image: Written, counts: Counter[str]) -> None:
    """Write an image, and count what is lost."""
    mask, size = data.mask(index), image.size
    regions = []
    if data.annotations is not None:
        regions = in_paint_order(data.annotations[index], size, data.overlap)
    orientation = _orientation(image, data.reading, writer)
    if orientation != 1:  # the tool turns the image before it shows it
        mask = turn_mask(mask, orientation)
        regions = [_turned(region, size, orientation) for region in regions]
        image, size = image._replace(size=mask.shape), mask.shape
    counts["crowds"] += sum(region.crowd for region in regions)
    if not writer.holds_regions:
        writer.add(split, image, [], mask)
        return
    label_of = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    foreground = foreground_of(data.class_names)
    label_of[: len(data.class_names)] = 0
    label_of[foreground] = np.arange(1, len(foreground) + 1)
    mask = label_of[mask]
    if data.annotations is None:
        regions = _regions_of(mask)
    else:
        regions = [region._replace(label=int(label_of[region.label])) for region in regions]
    if not writer.holds_ignored:
        kept = [region for region in regions if region.label != IGNORE_INDEX]
        if len(kept) < len(regions):
            counts["ignored"] += len(regions) - len(kept)
            regions, mask = kept, rasterize(kept, size, overlap="last")
    drawn = _pieces(writer, regions, size)
    if not _same(writer, drawn, mask):
        counts["cut"] += 1
        drawn = _pieces(writer, _visible(regions, mask), size)
        if not _same(writer, drawn, mask):
            raise AssertionError(f"{image.name}: the pixels of the labels would change")
    counts["parts"] += sum(len(pieces) > 1 for _, pieces in drawn)
    writer.add(split, image, drawn, mask)


def _orientation(image: Written, reading: Reading, writer: LabelWriter) -> int:
    """Return the EXIF orientation that a tool applies to an image whose labels were drawn without it; otherwise 1."""
    header = read_image_header(image.path, reading._replace(exif="apply"))
    if header.orientation == 1 or (reading.exif == "apply" and image.size == header.turned):
        return 1
    # COCO and masks have a size, which says whether the image is to be turned, unless both are equal.
    is_known = isinstance(writer, CocoWriter) or not writer.holds_regions
    return 1 if is_known and header.turned != header.stored else header.orientation


def _turned(region: Annotation, size: tuple[int, int], orientation: int) -> Annotation:
    mask = coco_mask.decode({"size": list(size), "counts": encode(region.shape, size)})
    return region._replace(shape=coco_mask.encode(np.asfortranarray(turn_mask(mask, orientation)))["counts"])


def _regions_of(mask: np.ndarray) -> list[Annotation]:
    """Return each connected part of a label map as a region: a polygon, or RLE if it has holes."""
    regions = []
    for label in np.unique(mask[mask > 0]).tolist():
        of_label = mask == label
        regions += [Annotation(None, label, False, _shape(rings, of_label)) for rings in outlines(of_label)]
    return regions


def _shape(rings: list[np.ndarray], region: np.ndarray) -> bytes | list[np.ndarray]:
    polygon = [bridged(rings, region).ravel()]
    return polygon if len(rings) == 1 else encode(polygon, region.shape)


def _visible(regions: Sequence[Annotation], mask: np.ndarray) -> list[Annotation]:
    """Return the visible part of each region; `regions` are in paint order."""
    top = np.full(mask.shape, -1, dtype=np.int32)
    for number, region in enumerate(regions):
        top[coco_mask.decode({"size": list(mask.shape), "counts": encode(region.shape, mask.shape)}) > 0] = number
    visible = []
    for number in np.unique(top[top >= 0]).tolist():
        region = regions[number]
        parts = coco_mask.encode(np.asfortranarray(top == number, dtype=np.uint8))["counts"]
        visible.append(region._replace(shape=parts))
    return visible


def _pieces(
    writer: LabelWriter, regions: Sequence[Annotation], size: tuple[int, int]
) -> list[tuple[Annotation, list[Piece]]]:
    """Return the regions with their pieces, without background, which is what no region covers."""
    return [(region, writer.pieces(region, size)) for region in regions if region.label != 0]


def _same(writer: LabelWriter, drawn: Sequence[tuple[Annotation, list[Piece]]], mask: np.ndarray) -> bool:
    """Return whether a reader of the format draws the mask."""
    shapes = [Annotation(None, region.label, False, piece.shape) for region, pieces in drawn for piece in pieces]
    return np.array_equal(rasterize(shapes, mask.shape, overlap=writer.overlap), mask)


def _lost(to: str, splits: Mapping[str, ImageFiles], counts: Mapping[str, int]) -> list[str]:
    """Return what a format does not hold of these labels."""
    lost = []
    of_regions = all(data.annotations is not None for data in splits.values())
    if of_regions and to == "masks":
        lost.append("single objects and what they hide of each other")
    elif of_regions and to != "coco":
        lost.append("ids of images, objects and classes")
    if counts["crowds"] and to != "coco":
        lost.append(f"the mark of {counted(counts['crowds'], 'crowd')} (iscrowd), which are objects now")
    if counts["ignored"]:
        lost.append(f"{counted(counts['ignored'], 'ignored region')}, whose pixels are now what lies below them")
    if counts["cut"]:
        lost.append(
            f"hidden parts of objects in {counted(counts['cut'], 'image')}, where another order would show them"
        )
    if counts["parts"] and to == "yolo":
        lost.append(f"which parts belong together of {counted(counts['parts'], 'object')}")
    if to == "labelme" and len(splits) > 1:
        lost.append("splits, which are folders now")
    return lost


def _use(config: ConvertConfig, splits: Mapping[str, ImageFiles], images: str) -> str:
    """Return the command that uses the labels."""
    out = config.out
    if config.to == "labelme":
        there = "" if images != "none" else " (put the images next to the JSON files)"
        return f"labelme {shlex.quote(str(out))} --labels {shlex.quote(str(out / 'labels.txt'))}{there}"
    words: list[Any] = ["python", "train.py", "--data", out]
    note = ""
    if config.to == "coco":
        split = "train" if "train" in splits else next(iter(splits))
        is_divided = split == "train" and "val" in splits
        words[-1] = out / coco_name(split)
        words += ["--val", out / coco_name("val")] if is_divided else []
        if images == "none":
            words += ["--images", _root(splits) or "FOLDER_OF_THE_IMAGES"]
        else:
            words += ["--images", out / "images" / ("" if split == WHOLE else split)]
            words += [out / "images" / "val"] if is_divided else []
    elif images == "none":
        note = f" (put the images into {out / ('images' if config.to == 'yolo' else 'JPEGImages')} first)"
    elif config.to == "yolo" and WHOLE in splits:
        note = " (Ultralytics also wants train and val in data.yaml)"
    return shlex.join(map(str, words)) + note
