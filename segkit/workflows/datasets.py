"""The data sets that the settings `data`, `val`, `train_only`, `images` and `masks` name."""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segkit.config import DATA_RULES, CheckConfig, LabelConfig, ScoreConfig, SourceConfig, TrainConfig
from segkit.console import Console, counted
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.dataset import ImageFiles, checked_target
from segkit.data.findings import EXAMPLES, Note
from segkit.data.formats import WHOLE, LabelRecords, LabelSource, MaskFiles, find_source
from segkit.data.mask_cache import default_folder
from segkit.data.mask_files import MaskReader
from segkit.data.mask_names import MaskName
from segkit.data.palette import Colour, read_palette
from segkit.errors import DataError, DataWarning, UsageError
from segkit.files import fingerprint, is_file, write_csv
from segkit.folds.split import RULE, Folds, add_train_only, group_by_source, image_paths
from segkit.labels import BACKGROUND, IGNORE_INDEX
from segkit.training.checkpoint import PHOTOGRAPHS

FIRST_MASKS = 8  # masks of a data set of the caller that are looked at before it is used
OF_MASKS = ("ignore_classes", "exif", "class_map")  # the rules that also hold for images with masks
LABEL_SUFFIXES = (".json", ".txt", ".xml", ".yaml", ".yml", ".csv")  # files of a folder whose content is labels
ALLOWED = ("allow_outside_root", "rescale_annotations", "merge_same_name", "bbox_as_mask")
Palette = Mapping[Colour, str]  # as `read_palette` returns it
MASK_NAMES = "mask_names"  # the classes of masks before the class map, among the `data_rules` of a model
MASK_COLOURS = "mask_colours"  # the palette of the training among the `data_rules` of a model: name, red, green, blue


class Source(NamedTuple):
    """Where the labelled images of a setting are.

    Attributes:
        setting: The name of the setting, such as "data".
        paths: Its value: COCO JSON files, folders of images, or one data set.
        roots: The image folders of the JSON files: none, one for all, or one for each.
        masks: The folders of masks, one for each folder of images.
        splits: The splits to use of what is divided into splits.
    """

    setting: str
    paths: Sequence[Any]
    roots: Sequence[Path]
    masks: Sequence[Path]
    splits: tuple[str, ...] = ("train",)


def load_data(
    config: TrainConfig, console: Console | None = None, *, fold_rule: int = RULE
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Return the training and the validation images that the settings ask for.

    `data`, `val` and `train_only` name files, or hold one data set of the caller's each.

    Args:
        config: The settings; with folds, `fold` is the one that validates.
        console: Prints remarks about the files.
        fold_rule: How images are divided into folds, see `Folds`.

    Raises:
        DataError: An image or an annotation cannot be used, or the sets have different classes.
        UsageError: Settings do not fit together.
    """
    if config.folds is not None:
        return open_folds(config, console, fold_rule)[config.fold]
    train_set, extra = _open_training(config, console)
    if not config.val and have_split(config, "val"):
        config = replace(config, val=config.data)
    if config.val:
        val_set = _open(config, "val", console, _json_classes(config, train_set))
        if tuple(train_set.class_names) != tuple(val_set.class_names):
            first, second = (
                f"`{name}`" if _is_own(paths) else str(paths[0])
                for name, paths in (("data", config.data), ("val", config.val))
            )
            raise DataError(
                f"{first} and {second} differ in their classes: {', '.join(train_set.class_names)} / "
                f"{', '.join(val_set.class_names)}"
            )
        _warn_of_shared_images(train_set, val_set)
    else:
        groups = None
        if fold_rule > 2:
            is_files = all(isinstance(source, ImageFiles) for source in sources_of(train_set))
            groups = group_by_source(train_set, config.group_by, by_file=is_files)
            _print_groups(groups, console)
        train_set, val_set = train_set.split(config.val_fraction, config.seed, groups)
    return add_train_only(train_set, val_set, extra), val_set


def open_folds(config: TrainConfig, console: Console | None = None, rule: int = RULE) -> Folds:
    """Return the images of `data`, divided into `folds`, and the images of `train_only`; see `load_data`."""
    data, extra = _open_training(config, console)
    folds = Folds(data, extra, k=config.folds, seed=config.seed, rule=rule, group_by=config.group_by)
    _print_groups(folds.groups, console)
    return folds


def _print_groups(groups: np.ndarray, console: Console | None) -> None:
    sizes = np.bincount(groups)
    if console is not None and sizes.max(initial=1) > 1:
        number = int((sizes > 1).sum())
        console.print(f"data: {counted(number, 'group')} of images that stay together, the largest of {sizes.max()}")


def has_masks(config: SourceConfig) -> bool:
    """Return whether the labels are mask files that settings say how to find."""
    return bool(config.masks or config.mask_name)


def open_scored(
    config: ScoreConfig,
    console: Console,
    class_names: Sequence[str],
    palette: Palette | None = None,
    mask_names: Sequence[str] | None = None,
) -> SegmentationDataset:
    """Return the images of `data` to score on; an image that cannot be used is an error, because scores skip nothing.

    Args:
        config: The settings.
        console: Prints remarks about the files.
        class_names: The classes of the model. The categories of JSON files are matched with them by name; masks have
            them in this order, unless `class_names` or `palette` say otherwise.
        palette: The palette of the masks that the model was trained on; used unless `palette` or `class_names` is set.
        mask_names: The classes of these masks before the class map of the model, if it has one.
    """
    if not has_masks(config) and config.mean:  # `class_names` belongs to an ONNX file of another program
        config = replace(config, class_names=None)
    if has_masks(config) and config.class_names is None and config.palette is None:
        names = tuple(mask_names or class_names) if palette is None or not config.class_map else None
        config = replace(config, class_names=names, palette=palette)
    source = Source("data", config.data, config.images, config.masks, (config.split,))
    return open_labelled(config, source, json_classes=class_names, is_scored=True, console=console)


def data_rules(config: TrainConfig, data: SegmentationDataset) -> dict[str, Any]:
    """Return the settings by which the labels of a training were made, as plain values for the model file.

    Settings without effect are not included: `overlap`, for example, is only for JSON files, and a data set of the
    caller has only its ignored classes. A palette is included as its colours, because the file may be moved.
    """
    if _is_own(config.data) or not config.data:
        return {"ignore_classes": list(data.ignore_classes)}
    values = {name: getattr(config, name) for name in (OF_MASKS if has_masks(config) else DATA_RULES)}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    if not values["class_map"]:
        del values["class_map"]
    elif has_masks(config) and config.palette is None:
        values[MASK_NAMES] = list(MaskReader(config.class_names).class_names)
    if config.palette is not None:
        values[MASK_COLOURS] = [[name, *colour] for colour, name in read_palette(config.palette).items()]
    return values


def open_checked(config: CheckConfig) -> dict[str, ImageFiles]:
    """Return the data sets of `data` by name, to be checked: faults of images and annotations become findings.

    Raises:
        DataError: A file is not a COCO JSON, or the sets have different classes.
        UsageError: Settings do not fit together.
    """
    if _is_own(config.data):
        if not all(isinstance(one, ImageFiles) for one in config.data):
            raise UsageError("`data` must be files, or data sets whose images are files, not both")
        return {f"set {i}" if len(config.data) > 1 else "data": one for i, one in enumerate(config.data, start=1)}
    check_kinds(config, Source("data", config.data, config.images, config.masks))
    names = _short_names(config.data)
    if has_masks(config):
        (masks,) = share_out(config.masks, (config.data,), "masks")
        masks = masks or [None] * len(config.data)
        return {
            name: FolderSegmentation.inspect(
                folder,
                mask_folder,
                class_names=config.class_names,
                palette=config.palette,
                mask_name=config.mask_name,
                class_map=config.class_map,
                exif=config.exif,
                max_pixels=config.max_pixels,
            )
            for name, folder, mask_folder in zip(names, config.data, masks, strict=True)
        }
    if len(config.images) not in (0, 1, len(config.data)):
        raise UsageError(
            f"`images` needs one folder, or one for each of the {len(config.data)} JSON files, got {len(config.images)}"
        )
    roots = config.images if len(config.images) > 1 else [*(config.images or [None])] * len(config.data)
    allowed = {name: getattr(config, name) for name in ALLOWED}
    read: dict[str, tuple[Any, Path | None]] = {}
    for name, path, root in zip(names, config.data, roots, strict=True):
        found = find_source(path, config.format)
        if found is None:
            read[name] = path, root
        else:
            one = len(found.splits) == 1
            read |= {name if one else f"{name}/{split}": (of_split(), root) for split, of_split in found.splits.items()}
    sets: dict[str, ImageFiles] = {}
    class_names = None
    for name, (labels, root) in read.items():
        options: dict[str, Any] = {name: getattr(config, name) for name in ("exif", "max_pixels", "class_map")}
        if isinstance(labels, MaskFiles):
            sets[name] = FolderSegmentation.inspect(labels, class_names=class_names, **options)
            class_names = sets[name].class_names
            continue
        sets[name] = CocoSegmentation.inspect(labels, root, class_names=class_names, **options, **allowed)
        class_names = sets[name].class_names[1:]  # without background
    return sets


def open_labelled(
    config: LabelConfig,
    source: Source,
    *,
    json_classes: Sequence[str] | None = None,
    on_bad: str = "error",
    max_bad: float = 0.0,
    allow_unlabelled: bool = False,
    is_scored: bool = False,
    console: Console | None = None,
) -> SegmentationDataset:
    """Return the images and masks of a source, and print remarks about them.

    Args:
        config: The settings that say how labels are read.
        source: Where the images are.
        json_classes: The classes that the categories of JSON files are matched with, by name. By default the categories
            of the first file.
        on_bad: `error` or `skip`, for images and masks that cannot be used.
        max_bad: Largest share of the images that `skip` drops.
        allow_unlabelled: Accept a source in which no image has an annotation.
        is_scored: Whether each image counts in a score, so that no file may occur twice.
        console: Prints remarks about the files.

    Raises:
        DataError: There are no images, none has an annotation, or a scored file occurs twice.
    """
    name, paths = source.setting, source.paths
    for value in paths:
        if not isinstance(value, Path | SegmentationDataset):
            raise UsageError(f"`{name}` takes paths and objects of SegmentationDataset, got {type(value).__name__}")
    if _is_own(paths):
        if len(paths) > 1:
            raise UsageError(f"`{name}` takes files, or a single data set")
        if config.ignore_classes:
            raise UsageError(f"the data set in `{name}` sets its `ignore_classes` itself")
        data = paths[0]
    else:
        data = open_files(config, source, on_bad, max_bad, json_classes, console or Console())
    console = console or Console()
    for note in data.notes:
        if note.severity != "warning":  # Python has shown the warnings
            console.print(f"{name}: " + "skipped: " * (note.severity == "error") + str(note))
    shown = f"`{name}`" if _is_own(paths) else f"`{name}` {', '.join(map(str, paths))}"
    if len(data) == 0:
        raise DataError(f"{shown} has no images")
    if _is_own(paths):
        _check_first_sample(data, name)
    annotations = getattr(data, "annotations", None)
    if annotations is not None and not allow_unlabelled and not any(annotations):
        raise DataError(f"{shown} has no annotations, so there is nothing to learn or to score; is it a test set?")
    twice = [finding for finding in getattr(data, "findings", ()) if finding.kind == "shared-file"]
    if is_scored and twice:
        raise DataError(f"`{name}`: {twice[0].sentence}, which a score would count several times; list each file once")
    return data


def open_files(
    config: LabelConfig,
    source: Source,
    on_bad: str,
    max_bad: float,
    json_classes: Sequence[str] | None,
    console: Console,
) -> CocoSegmentation | FolderSegmentation:
    """Open COCO JSON files, what another tool exported, or folders of images with their folders of masks."""
    check_kinds(config, source)
    common: dict[str, Any] = {
        "ignore_classes": config.ignore_classes,
        "on_bad": on_bad,
        "max_bad": max_bad,
        "exif": config.exif,
        "max_pixels": config.max_pixels,
        "class_map": config.class_map,
    }
    if has_masks(config):
        names = {"class_names": config.class_names, "palette": config.palette, "mask_name": config.mask_name}
        return FolderSegmentation(source.paths, source.masks or None, **names, **common)
    labels = []
    for path in source.paths:
        found = find_source(path, config.format)
        parts = [path] if found is None else found.read(*_splits_of(found, source))
        labels += parts
        if found is not None:
            _describe(found, source, parts, console)
    with_masks = [one for one in labels if isinstance(one, MaskFiles)]
    if with_masks:
        if len(with_masks) < len(labels):
            raise UsageError(f"`{source.setting}` has labels of regions and masks that are files; give one kind")
        return FolderSegmentation(with_masks, class_names=json_classes, **common)
    if json_classes is not None and json_classes[0] != BACKGROUND:  # a model of masks without a background
        json_classes = None
    return CocoSegmentation(
        labels,
        root=source.roots or None,
        overlap=config.overlap,
        class_names=json_classes,
        crowd=config.crowd,
        mask_cache=_mask_folder(config.mask_cache),
        **{option: getattr(config, option) for option in ALLOWED},
        **common,
    )


def _splits_of(found: LabelSource, source: Source) -> tuple[str, ...]:
    """Return which of the wanted splits to read: all that are there, but at least one."""
    return tuple(split for split in source.splits if split in found.splits) or source.splits[:1]


def _describe(found: LabelSource, source: Source, parts: Sequence[LabelRecords | MaskFiles], console: Console) -> None:
    """Print what was recognised, how much of it is used, and why."""
    images = sum(len(part.pairs) if isinstance(part, MaskFiles) else len(part.content["images"]) for part in parts)
    names = dict.fromkeys(
        name
        for part in parts
        for name in (
            part.class_names if isinstance(part, MaskFiles) else [row["name"] for row in part.content["categories"]]
        )
    )
    splits = (
        "" if len(found.splits) == 1 else f", {' and '.join(_splits_of(found, source))} of {', '.join(found.splits)}"
    )
    if WHOLE in found.splits and "train" not in source.splits:  # it may have been trained on
        splits = f", not divided, so all images count as {source.splits[0]}"
    console.print(
        f"{source.setting}: {found.path} is {found.format} ({found.why}){splits}: {counted(images, 'image')}, "
        f"{counted(len(names), 'class')}"
    )


def have_split(config: TrainConfig, split: str) -> bool:
    """Return whether everything in `data` is divided into splits and has this one."""
    if has_masks(config) or not config.data or _is_own(config.data):
        return False
    found = [find_source(path, config.format) for path in config.data]
    return all(one is not None and split in one.splits for one in found)


def _mask_folder(mask_cache: str | Path) -> str | Path | None:
    if mask_cache == "auto":
        return default_folder()
    return None if mask_cache == "off" else mask_cache


def check_kinds(config: SourceConfig, source: Source) -> None:
    """Raise if there are folders or files together with settings that belong to the other kind."""
    paths, roots = source.paths, source.roots
    folders = [path for path in paths if path.is_dir()]
    if has_masks(config) and len(folders) < len(paths):
        file = next(path for path in paths if path not in folders)
        raise DataError(f"{file} is not a folder; with `masks` or `mask_name`, images come from folders only")
    if has_masks(config) and roots:
        raise UsageError(
            "`images` belongs to JSON files; with `masks` or `mask_name`, give the folders of images as `data`"
        )
    if not has_masks(config) and (config.class_names or config.palette):
        raise UsageError(
            "`class_names` and `palette` belong to `masks` or `mask_name`; a COCO JSON file names its classes itself"
        )


def share_out(folders: Sequence[Path], sources: Sequence[Sequence[Path]], name: str) -> list[Sequence[Path]]:
    """Divide the folders of a setting among several sources: first the folders of the first source, and so on.

    Args:
        folders: One for each file of the sources, or none.
        sources: The files of each source.
        name: The name of the setting.
    """
    counts = [len(paths) for paths in sources]
    if folders and len(folders) != sum(counts):
        raise UsageError(f"`{name}` needs one folder for each of the {sum(counts)} sources, got {len(folders)}")
    ends = list(accumulate(counts))
    return [folders[end - count : end] for end, count in zip(ends, counts, strict=True)]


def check_model_classes(class_names: Sequence[str], data: SegmentationDataset, model: str) -> None:
    """Raise DataError if a model was trained for other classes than the data has.

    Args:
        class_names: The classes of the model.
        data: The data.
        model: What the message calls the model.
    """
    if tuple(class_names) != tuple(data.class_names):
        raise DataError(
            f"the classes of {model} are {', '.join(class_names)}, but the classes of `data` are "
            f"{', '.join(data.class_names)}; they must be the same in the same order"
        )


def write_data_report(sets: Mapping[str, SegmentationDataset], file: Path) -> None:
    """Write all findings about the data as CSV; without findings no file is written.

    Args:
        sets: The data sets by the name that the first column shows.
        file: The CSV file.
    """
    rows = {
        (name, finding.severity, finding.kind, finding.where, finding.sentence): None
        for name, data in sets.items()
        for part in sources_of(data)
        for finding in getattr(part, "findings", ())
    }
    if rows:
        write_csv(file, ("set", "severity", "kind", "where", "sentence"), rows)


def distinct_names(data: SegmentationDataset) -> list[str]:
    """Return the name of each image; of images in several folders that have the same name, the path."""
    names = [data.name(i) for i in range(len(data))]
    counts = Counter(names)
    return [path if counts[name] > 1 else name for name, path in zip(names, image_paths(data), strict=True)]


def sources_of(data: SegmentationDataset) -> list[SegmentationDataset]:
    """Return the data sets that a subset or a joined set is made of."""
    if hasattr(data, "whole"):
        return sources_of(data.whole)
    return [source for part in getattr(data, "parts", ()) for source in sources_of(part)] or [data]


def rule_of_folds(checkpoint: Mapping[str, Any] | None) -> int:
    """Return how a run divides its images: as when it began, if it is resumed from a checkpoint."""
    if checkpoint is None:
        return RULE
    rule = re.search(r" (?:folds|split) (\d+)$", checkpoint["data"]["train"])
    return int(rule[1]) if rule else 1


def data_digests(
    config: TrainConfig, sets: Sequence[SegmentationDataset] = (), *, fold_rule: int = RULE
) -> dict[str, str]:
    """Return digests of the training and the validation data, which a resumed run must share with its start.

    They cover the content of annotation files and of masks, and the names and sizes of photographs in folders; see also
    `photograph_digests`. For data sets of the caller, in `sets`, they cover only the names of classes and images,
    because reading all pixels could take long.
    Checkpoints of earlier versions lack the digests of the content of masks, `train masks` and `val masks`, and of
    labels of other formats than COCO, `train labels` and `val labels`; the latter need `sets`.
    """
    if not config.data:
        digests = {}
        for part, data in zip(("train", "val"), sets, strict=True):
            names = [*data.class_names, *data.ignore_classes, *(data.name(i) for i in range(len(data)))]
            digests[part] = hashlib.sha256("\0".join(names).encode(errors="surrogatepass")).hexdigest()
        return _with_rule(digests, config, fold_rule)
    labels = (config.class_names, config.palette)
    first = len(config.data) if config.val else 0
    scored = config.val or config.data
    digests = {
        "train": _digest(config.data, config.train_only, config.masks, labels),
        "val": _digest(scored, config.masks[first : first + len(scored)], labels),
    }
    if config.masks:
        of_val = slice(first, first + len(scored)) if config.val else slice(0)
        digests["train masks"] = _digest_of_content([m for m in config.masks if m not in config.masks[of_val]])
        digests["val masks"] = _digest_of_content(config.masks[of_val])
    elif config.mask_name:  # the masks lie in the folders of the images
        digests["train masks"] = _digest_of_content([*config.data, *config.train_only], config.mask_name)
        digests["val masks"] = _digest_of_content(config.val, config.mask_name)
    else:
        for part, data in zip(("train", "val"), sets, strict=False):
            found = _digest_of_formats(data)
            digests |= {f"{part} labels": found} if found else {}
    if config.class_map:
        text = repr([*config.class_map.items()])
        digests = {part: hashlib.sha256(f"{one} {text}".encode()).hexdigest() for part, one in digests.items()}
    return _with_rule(digests, config, fold_rule)


def _with_rule(digests: dict[str, str], config: TrainConfig, rule: int) -> dict[str, str]:
    """Return the digests together with the rule by which `data` is divided; the digests of earlier runs lack it."""
    first, word = (2, "folds") if config.folds is not None else (3, "split")
    if config.val or rule < first:
        return digests
    return {part: f"{digest} {word} {rule}" for part, digest in digests.items()}


def photograph_digests(sets: Sequence[SegmentationDataset]) -> dict[str, str]:
    """Return digests of the names, sizes and times of the image files that train and that validate.

    They detect photographs that were replaced under the same name, which `data_digests` does not see. The content of
    the photographs is not read, because that could take long. An image that is not a file has only its name.
    """
    digests = {}
    for part, data in zip(("train", "val"), sets, strict=True):
        digest = hashlib.sha256()
        for i, path in enumerate(image_paths(data)):
            digest.update(f"\0{data.name(i)}".encode(errors="surrogatepass"))
            if is_file(path):
                found = os.stat(path)
                digest.update(f"\0{found.st_size} {int(found.st_mtime)}".encode())  # archives keep whole seconds
        digests[part + PHOTOGRAPHS] = digest.hexdigest()
    return digests


def _digest(*groups: Iterable[Path | None]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        digest.update(b"\0group")
        for path in filter(None, group):
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                listed = "\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files)
                digest.update(listed.encode(errors="surrogateescape"))
                for file in files:  # labels may change while their size does not
                    if file.suffix.lower() in LABEL_SUFFIXES:
                        digest.update(fingerprint(file).sha256.encode())
            else:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest_of_formats(data: SegmentationDataset) -> str:
    """Return a digest of the labels of other formats than COCO, whose files lie anywhere; "" if there are none."""
    parts: list[str] = []
    for source in sources_of(data):
        if isinstance(source, CocoSegmentation):
            parts += source.label_digests
        elif isinstance(source, FolderSegmentation):
            parts += [f"{item.file_name} {fingerprint(item.mask_path).sha256}" for item in source.items]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest() if parts else ""


def _digest_of_content(folders: Iterable[Path], mask_name: str | None = None) -> str:
    """Return a digest of the content of the masks in folders, because a mask may change while its size does not."""
    pattern = None if mask_name is None else MaskName(mask_name)
    # Reading 1,000 masks of 1024 x 1024 takes 0.06 s, so the digests are not stored for later.
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            if pattern is not None and not pattern.fits(file.relative_to(folder).as_posix()):
                continue
            digest.update(f"\0{file.relative_to(folder)} ".encode(errors="surrogateescape"))
            digest.update(fingerprint(file).sha256.encode())
    return digest.hexdigest()


_TRAINING_SOURCES = ("data", "val", "train_only")


def _open_training(
    config: TrainConfig, console: Console | None
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Return the images of `data` and of `train_only`."""
    data = _open(config, "data", console)
    if not config.train_only:
        return data, None
    return data, _open(config, "train_only", console, _json_classes(config, data))


def _json_classes(config: TrainConfig, train_set: SegmentationDataset) -> Sequence[str] | None:
    """Return the classes that other JSON files than `data` are matched with; None if `data` is not JSON files."""
    return None if has_masks(config) or _is_own(config.data) else train_set.class_names


def _open(
    config: TrainConfig, name: str, console: Console | None, json_classes: Sequence[str] | None = None
) -> SegmentationDataset:
    """Open the images of one of the settings `data`, `val` and `train_only`, with its share of `images` and `masks`."""
    sources = [() if _is_own(getattr(config, source)) else getattr(config, source) for source in _TRAINING_SOURCES]
    number = _TRAINING_SOURCES.index(name)
    roots = config.images
    if len(config.images) > 1:
        files = sum(map(len, sources))
        if len(config.images) != files:
            raise UsageError(
                f"`images` needs one folder, or one for each of the {files} JSON files, got {len(config.images)}"
            )
        roots = share_out(config.images, sources, "images")[number]
    splits: tuple[str, ...] = ("val",) if name == "val" else ("train",)
    if name == "data" and config.folds is not None:
        splits = ("train", "val")
    return open_labelled(
        config,
        Source(name, getattr(config, name), roots, share_out(config.masks, sources, "masks")[number], splits),
        json_classes=json_classes,
        on_bad="error" if name == "val" else config.on_bad,
        max_bad=config.max_bad,
        allow_unlabelled=name == "train_only",
        is_scored=name == "val",
        console=console,
    )


def _warn_of_shared_images(train_set: SegmentationDataset, val_set: SegmentationDataset) -> None:
    """Warn of images that train and validate, by one file or by two that name the same image."""
    shared = list(map(val_set.name, range(len(val_set))))
    if train_set is not val_set:
        sources = [*sources_of(train_set), *sources_of(val_set)]
        if not all(isinstance(source, ImageFiles) for source in sources):
            return  # the images are not files, so they cannot be compared
        trained = set(map(os.path.realpath, image_paths(train_set)))
        shared = [
            name for name, path in zip(shared, image_paths(val_set), strict=True) if os.path.realpath(path) in trained
        ]
    if shared:
        note = Note("same-file-across", "warning", len(shared), tuple(shared[:EXAMPLES]))
        warnings.warn(f"`val`: {note}", DataWarning, stacklevel=2)


def _check_first_sample(data: SegmentationDataset, name: str) -> None:
    """Raise DataError if the classes, the first image or its labels are not as `SegmentationDataset` says.

    Warns if the first masks look like black-and-white pictures, whose white would be ignored.
    """
    if not all(isinstance(one, str) for one in data.class_names):
        raise DataError(f"the class names of `{name}` must be text, got {list(data.class_names)}")
    if len(set(data.class_names)) < len(data.class_names):
        raise DataError(f"`{name}` has two classes of the same name: {', '.join(data.class_names)}")
    if len(data.class_names) < 2:
        raise DataError(f"`{name}` has only the classes {list(data.class_names)}, so there is nothing to learn")
    if len(data.class_names) > IGNORE_INDEX:
        raise DataError(f"`{name}` has {len(data.class_names)} classes; a mask of uint8 holds {IGNORE_INDEX}, 0 to 254")
    image = data.image(0)
    is_rgb = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    if not is_rgb or not image.size:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"the images of `{name}` must be arrays (H, W, 3) uint8 RGB, got {got}")
    checked_target(data, 0, image.shape[:2])
    first = range(min(FIRST_MASKS, len(data)))
    labels = {int(label) for index in first for label in np.unique(data.mask(index))}
    if IGNORE_INDEX in labels and labels <= {0, IGNORE_INDEX}:
        warnings.warn(
            f"the first {len(first)} masks of `{name}` have no values except 0 and {IGNORE_INDEX}, and {IGNORE_INDEX} "
            "is ignored; if it means a class, the mask must have the number of the class there, such as 1",
            DataWarning,
            stacklevel=2,
        )


def _is_own(paths: Sequence[Any]) -> bool:
    """Return whether a setting holds a data set instead of paths."""
    return any(isinstance(value, SegmentationDataset) for value in paths)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as few as make them different."""
    if len(set(paths)) < len(paths):
        raise UsageError("`data` names the same file twice")
    whole = [(path.with_suffix("") if path.suffix.lower() == ".json" else path).absolute().parts for path in paths]
    for length in range(1, max(map(len, whole))):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
