"""segkit.make_folds: divide labels into training and validation JSONs of k folds."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import FoldsConfig, from_keywords, takes_settings
from segkit.console import Console
from segkit.data import SegmentationDataset
from segkit.data.coco_file import read_records
from segkit.data.formats import LabelRecords, MaskFiles, find_source
from segkit.data.image_groups import group_images, hash_images, near_pairs, sources_by_name
from segkit.data.image_names import ImageNames, same_files
from segkit.errors import DataError, UsageError
from segkit.files import is_file
from segkit.folds import ClassCounts, FoldSource, assign_folds, count_classes, read_fold_source, write_fold_files
from segkit.folds.files import check_fold_folder
from segkit.folds.tables import describe_source, share_table, unevenness_table
from segkit.names import NO_GROUPS, REGEX
from segkit.runs import check_writable

_NO_FILES = "`data` and `train_only` must be files or folders of labels; `segkit.folds.Folds` divides a data set"


@dataclass(frozen=True)
class FoldsResult:
    """Images divided into k folds.

    Attributes:
        folder: The folder of the files.
        train: The training JSON of each fold.
        valid: The validation JSON of each fold.
        names: The file names that validate in each fold.
        class_names: The C classes.
        counts: How much of each class the N images of `data` have, (N, C) each.
        folds: (N,) the fold in which each of these images validates.
        images: The folder from which the file names of the images start.
    """

    folder: Path
    train: tuple[Path, ...]
    valid: tuple[Path, ...]
    names: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...]
    counts: ClassCounts
    folds: np.ndarray
    images: Path


@takes_settings(FoldsConfig)
def make_folds(*, verbose: bool = False, **settings: Any) -> FoldsResult:
    """Divide labels into k folds with even shares of every class, as `python -m segkit folds` does.

        folds = segkit.make_folds(data="train.json", out="folds", k=5)
        segkit.train(data=folds.train[0], val=folds.valid[0])

    `data` is a COCO JSON or what another labelling tool exported; the folds are COCO JSONs. It is read by the rules of
    training. Copies of one photograph that Roboflow has made stay together, see `group_by`.

    Args:
        verbose: Print how even the folds are.
        **settings: The settings of the command, see `python -m segkit folds --help`.

    Raises:
        UsageError: A setting cannot be used, or fold files exist already.
        DataError: A JSON has a fault.
    """
    if isinstance(settings.get("data"), SegmentationDataset):
        raise UsageError(_NO_FILES)
    config = from_keywords(FoldsConfig, settings)
    files = (config.data, *config.train_only)
    if not all(isinstance(file, Path) for file in files):
        raise UsageError(_NO_FILES)
    console = Console(verbose=verbose)
    replaced = [path.resolve() for path in check_fold_folder(config.out, overwrite=config.overwrite)]
    check_writable(config.out)
    for file in files:
        if file.resolve() in replaced:
            raise UsageError(f"{file} is a fold file in `out` and would be replaced; choose another `out`")
    labels, root = _read_labels(config, console)
    source = read_fold_source(
        labels[0],
        labels[1:],
        merge_same_name=config.merge_same_name,
        bbox_as_mask=config.bbox_as_mask,
        class_map=config.class_map,
    )
    masks = console.progress(source.masks(overlap=config.overlap, crowd=config.crowd), total=len(source.images))
    counts = count_classes(source.regions, len(source.class_names) + 1, masks)
    groups = _group(config, source, root)
    folds = assign_folds(counts, config.k, groups=groups, train_only=source.train_only, seed=config.seed)
    divided = ~source.train_only
    own_counts, own_folds = ClassCounts(*(count[divided] for count in counts)), folds[divided]
    console.print(describe_source(config.data, source, groups))
    console.print("\n" + share_table(own_counts, own_folds, config.k, source.class_names))
    console.print("\n" + unevenness_table(own_counts, own_folds, config.k, groups[divided], config.seed))
    write_fold_files(source, folds, config.k, config.out, overwrite=config.overwrite)
    names = [str(image["file_name"]) for image, own in zip(source.images, divided, strict=True) if own]
    return FoldsResult(
        config.out,
        tuple(config.out / f"train_data{fold}.json" for fold in range(config.k)),
        tuple(config.out / f"valid_data{fold}.json" for fold in range(config.k)),
        tuple(tuple(names[i] for i in np.flatnonzero(own_folds == fold)) for fold in range(config.k)),
        source.class_names,
        own_counts,
        own_folds,
        root,
    )


def _read_labels(config: FoldsConfig, console: Console) -> tuple[list[Path | LabelRecords], Path]:
    """Return the labels to divide and the labels that only train, and the folder that their file names start from.

    Raises:
        DataError: Labels cannot be read.
        UsageError: The labels are masks, or lie in several folders.
    """
    files = (config.data, *config.train_only)
    found = [find_source(config.data, config.format), *map(find_source, config.train_only)]
    if not any(found):
        elsewhere = [file for file in files if file.parent.resolve() != config.data.parent.resolve()]
        if elsewhere and config.images is None:
            raise UsageError(
                f"{elsewhere[0]} and {config.data} lie in two folders; give `images`, the folder from which the file "
                "names of both start"
            )
        return list(files), config.data.parent if config.images is None else config.images
    records = []
    for file, source in zip(files, found, strict=True):
        if source is None:
            content = read_records(file, merge_same_name=config.merge_same_name)
            folder = config.images or file.parent
            records.append(LabelRecords(file, folder, content.content, content.digest.hexdigest(), content.overlap))
            continue
        splits = [split for split in ("train", "val") if split in source.splits]
        parts = source.read(*(splits or [next(iter(source.splits))]))
        if any(isinstance(part, MaskFiles) for part in parts):
            raise UsageError(
                f"{file} is {source.format}, whose labels are masks, and folds are COCO JSON files: divide it in "
                "training by `folds`, or write it as COCO first (segkit convert)"
            )
        of_splits = f", {' and '.join(splits)} of {', '.join(source.splits)}" if len(source.splits) > 1 else ""
        console.print(f"data: {file} is {source.format} ({source.why}){of_splits}")
        records.append(parts[0] if len(parts) == 1 else LabelRecords.joined(parts))
    root = Path(os.path.commonpath([one.root.absolute() for one in records]))
    return [one.below(root) for one in records], root


def _group(config: FoldsConfig, source: FoldSource, root: Path) -> np.ndarray:
    """Number the groups of images that stay in one fold: by file, by `group_by`, and by how they look."""
    names = [str(image["file_name"]) for image in source.images]
    if config.group_by is None or config.group_by == NO_GROUPS or config.group_by.startswith(REGEX):
        labels = sources_by_name(names, config.group_by)
    else:
        labels = []
        for image, only in zip(source.images, source.train_only, strict=True):
            value = image.get(config.group_by)
            if value is None and not only:  # an image that only trains may lack the key
                has = ", ".join(name for name in image if image[name] is not None)
                raise DataError(
                    f"`group_by={config.group_by}`: the image {image['file_name']} has no {config.group_by!r}, "
                    f"it has {has}"
                )
            labels.append(None if value is None else json.dumps(value, sort_keys=True))
    # A file of pseudo labels may spell the names of the same images in another way.
    count = np.count_nonzero(~source.train_only)  # number of images to divide, which come first
    own, extra = names[:count], names[count:]
    pairs = [(i, count + j) for i, j in same_files(own, extra)]
    if config.near_duplicates:
        pairs += near_pairs(hash_images([*_files(own, root), *_files(extra, root)]))
    return group_images(names, labels=labels, pairs=pairs)


def _files(names: Sequence[str], root: Path) -> list[Path]:
    """Return the files that names mean below a folder, as training finds them."""
    lost = [name for name in names if not is_file(root / name)]
    found = dict(zip(lost, ImageNames(root).find(lost, set(names).difference(lost)), strict=True))
    return [root / (found.get(name) or name) for name in names]
