"""The data sets that the settings `data`, `val`, `train_only`, `images` and `masks` name."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from segkit.config import LabelConfig, ScoreConfig, TrainConfig
from segkit.console import Console
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.mask_cache import default_folder
from segkit.errors import DataError, UsageError
from segkit.files import MAX_PIXELS
from segkit.folds.split import Folds, add_train_only

Roots = Sequence[Path] | None
ALLOWED = ("allow_outside_root", "rescale_annotations", "merge_same_name", "bbox_as_mask")


def load_data(config: TrainConfig, console: Console | None = None) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Return the training and the validation images that the settings ask for.

    `data`, `val` and `train_only` name files, or hold one data set of the caller's each.

    Args:
        config: The settings; of the folds, if there are any, `fold` says which one validates.
        console: Prints what is remarkable about the files.

    Raises:
        DataError: An image or an annotation cannot be used, or the sets have different classes.
        UsageError: Settings do not fit together.
    """
    if config.folds is not None:
        return open_folds(config, console)[config.fold]
    train_set, extra = _open_training(config, console)
    if config.val:
        val_set = _open(config, "val", console)
        _check_same_classes(config, train_set, val_set)
    else:
        train_set, val_set = train_set.split(config.val_fraction, config.seed)
    return add_train_only(train_set, val_set, extra), val_set


def open_folds(config: TrainConfig, console: Console | None = None) -> Folds:
    """Return the images of `data`, divided into `folds`, together with those of `train_only`; see `load_data`."""
    data, extra = _open_training(config, console)
    return Folds(data, extra, k=config.folds, seed=config.seed)


def open_scored(config: ScoreConfig, console: Console) -> SegmentationDataset:
    """Return the images of `data` to score on; one that cannot be used is an error, because a score skips nothing."""
    return open_labelled(
        config, "data", config.data, roots=config.images or None, masks=config.masks, is_scored=True, console=console
    )


def open_labelled(
    config: LabelConfig,
    name: str,
    paths: Sequence[Any],
    *,
    roots: Roots,
    masks: Sequence[Path],
    on_bad: str = "error",
    max_bad: float = 0.0,
    may_be_bare: bool = False,
    is_scored: bool = False,
    console: Console | None = None,
) -> SegmentationDataset:
    """Return the images and masks that a setting names, and print what is remarkable about them.

    Args:
        config: The settings that say how labels are read.
        name: The name of the setting, such as "data".
        paths: Its value: files, folders of images, or one data set.
        roots: The image folders of JSON files.
        masks: The folders of masks.
        on_bad: `error` or `skip`, for images and masks that cannot be used.
        max_bad: Largest share of the images that `skip` drops.
        may_be_bare: Whether it is fine if no image has an annotation.
        is_scored: Whether each image counts in a score, so that no file may occur twice.
        console: Prints what is remarkable.

    Raises:
        DataError: There are no images, none has an annotation, or a scored file occurs twice.
    """
    for value in paths:
        if not isinstance(value, Path | SegmentationDataset):
            raise UsageError(f"`{name}` takes paths and objects of SegmentationDataset, got {type(value).__name__}")
    if _is_own(paths):
        data = _own(config, name, paths)
    else:
        data = open_data(
            paths,
            roots=roots,
            masks=masks,
            class_names=config.class_names,
            palette=config.palette,
            ignore_classes=config.ignore_classes,
            on_bad=on_bad,
            max_bad=max_bad,
            exif=config.exif,
            max_pixels=config.max_pixels,
            overlap=config.overlap,
            crowd=config.crowd,
            mask_cache=_mask_cache(config.mask_cache),
            **{option: getattr(config, option) for option in ALLOWED},
        )
    console = console or Console()
    for note in data.notes:
        if note.severity != "warning":  # Python has shown the warnings
            console.print(f"{name}: " + "skipped: " * (note.severity == "error") + str(note))
    if len(data) == 0:
        raise DataError(f"`{name}` has no images")
    annotations = getattr(data, "annotations", None)
    if annotations is not None and not may_be_bare and not any(annotations):
        raise DataError(f"`{name}` has no annotations, so there is nothing to learn or to score; is it a test set?")
    twice = [finding for finding in getattr(data, "findings", ()) if finding.kind == "shared-file"]
    if is_scored and twice:
        raise DataError(f"`{name}`: {twice[0].sentence}, and would count as often; list each file once")
    return data


def open_data(
    paths: Sequence[Path],
    *,
    roots: Roots = None,
    masks: Sequence[Path] = (),
    class_names: Path | None = None,
    palette: Path | None = None,
    ignore_classes: Sequence[str] = (),
    on_bad: str = "error",
    max_bad: float = 0.01,
    exif: str = "apply",
    max_pixels: int = MAX_PIXELS,
    **coco_options: Any,
) -> CocoSegmentation | FolderSegmentation:
    """Open COCO JSON files with their image folders, or folders of images with their folders of masks.

    Args:
        paths: The files, or the folders of images.
        roots: The image folders of the files.
        masks: The folders of masks.
        class_names: File with the class names of the masks.
        palette: File with the colours of the masks.
        ignore_classes: Names of classes that are 255 in the target.
        on_bad: `error` or `skip`, for images and masks that cannot be used.
        max_bad: Largest share of the images that `skip` drops.
        exif: `apply` or `ignore` EXIF orientations.
        max_pixels: Larger images are refused.
        **coco_options: More options of `CocoSegmentation`; ignored for masks.
    """
    check_kinds(paths, roots, masks, (class_names, palette))
    common: dict[str, Any] = {
        "ignore_classes": ignore_classes,
        "on_bad": on_bad,
        "max_bad": max_bad,
        "exif": exif,
        "max_pixels": max_pixels,
    }
    if masks:
        return FolderSegmentation(paths, masks, class_names=class_names, palette=palette, **common)
    return CocoSegmentation(paths, root=roots, **common, **coco_options)


def check_kinds(
    paths: Sequence[Path], roots: Roots, masks: Sequence[Path], naming: tuple[Path | None, Path | None]
) -> None:
    """Raise if folders or files are given together with settings that belong to the other kind."""
    folders = [path for path in paths if path.is_dir()]
    if masks and len(folders) < len(paths):
        file = next(path for path in paths if path not in folders)
        raise DataError(f"{file} is not a folder; with `masks`, images come from folders only")
    if masks and roots:
        raise UsageError("`images` belongs to JSON files; with `masks`, give the folders of images as `data`")
    if not masks and folders:
        raise DataError(f"{folders[0]} is a folder; give the folder of its masks as `masks`, or a COCO JSON file")
    if not masks and any(naming):
        raise UsageError("`class_names` and `palette` belong to `masks`; a COCO JSON file names its classes itself")


def share_out(given: Sequence[Path], sources: Sequence[Sequence[Path]], name: str) -> list[Sequence[Path]]:
    """Divide the folders of a setting among several sources: first those of the first source, and so on.

    Args:
        given: The folders, one for each file of the sources, or none.
        sources: The files of each source.
        name: The name of the setting.
    """
    counts = [len(paths) for paths in sources]
    if given and len(given) != sum(counts):
        raise UsageError(f"`{name}` needs one folder for each of the {sum(counts)} sources, got {len(given)}")
    ends = list(accumulate(counts))
    return [given[end - count : end] for end, count in zip(ends, counts, strict=True)]


def check_model_classes(class_names: Sequence[str], data: SegmentationDataset, model: str) -> None:
    """Raise DataError if a model was trained for other classes than those of the data.

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


_TRAINING_SOURCES = ("data", "val", "train_only")


def _open_training(
    config: TrainConfig, console: Console | None
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Return the images of `data` and of `train_only`."""
    data = _open(config, "data", console)
    return data, _open(config, "train_only", console) if config.train_only else None


def _open(config: TrainConfig, name: str, console: Console | None) -> SegmentationDataset:
    sources = [() if _is_own(getattr(config, source)) else getattr(config, source) for source in _TRAINING_SOURCES]
    number = _TRAINING_SOURCES.index(name)
    roots = config.images or None
    if len(config.images) > 1:
        files = sum(map(len, sources))
        if len(config.images) != files:
            raise UsageError(
                f"`images` needs one folder, or one for each of the {files} JSON files, got {len(config.images)}"
            )
        roots = share_out(config.images, sources, "images")[number] or None
    return open_labelled(
        config,
        name,
        getattr(config, name),
        roots=roots,
        masks=share_out(config.masks, sources, "masks")[number],
        on_bad="error" if name == "val" else config.on_bad,
        max_bad=config.max_bad,
        may_be_bare=name == "train_only",
        is_scored=name == "val",
        console=console,
    )


def _is_own(paths: Sequence[Any]) -> bool:
    """Return whether a setting holds a data set instead of paths."""
    return any(isinstance(value, SegmentationDataset) for value in paths)


def _own(config: LabelConfig, name: str, values: Sequence[Any]) -> SegmentationDataset:
    if len(values) > 1:
        raise UsageError(f"`{name}` takes files, or a single data set")
    if config.ignore_classes:
        raise UsageError(f"the data set in `{name}` sets its `ignore_classes` itself")
    return values[0]


def _check_same_classes(config: TrainConfig, train: SegmentationDataset, val: SegmentationDataset) -> None:
    if tuple(train.class_names) != tuple(val.class_names):
        first, second = (
            f"`{name}`" if _is_own(paths) else str(paths[0])
            for name, paths in (("data", config.data), ("val", config.val))
        )
        raise DataError(
            f"{first} and {second} differ in their classes: {', '.join(train.class_names)} / "
            f"{', '.join(val.class_names)}"
        )


def _mask_cache(setting: str) -> Path | str | None:
    return {"auto": default_folder(), "off": None}.get(setting, setting)
