"""What --data, --val, --images and --masks name, as data sets."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from segkit.config import LabelConfig, ScoreConfig
from segkit.console import Console
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.mask_cache import default_folder
from segkit.errors import DataError, UsageError
from segkit.files import MAX_PIXELS

Roots = Sequence[Path] | None
SHOWN = Console(verbose=True)
ALLOWED = ("allow_outside_root", "rescale_annotations", "merge_same_name", "bbox_as_mask")


def open_labelled(
    config: LabelConfig,
    flag: str,
    paths: Sequence[Path],
    *,
    roots: Roots,
    masks: Sequence[Path],
    on_bad: str = "error",
    max_bad: float = 0.0,
    may_be_bare: bool = False,
    is_scored: bool = False,
    console: Console = SHOWN,
) -> SegmentationDataset:
    """Opens what a flag names by the settings of a command, and prints what is remarkable about it.

    Args:
        config: The settings.
        flag: The flag, for messages.
        paths: What it names.
        roots: The image folders of JSON files.
        masks: The folders of masks.
        on_bad: `error` or `skip`, for images and masks that cannot be used.
        max_bad: Largest share of them that is skipped.
        may_be_bare: Whether no image need have an annotation.
        is_scored: Whether each image counts in a score, so that none may come twice.
        console: Prints what is remarkable.

    Raises:
        DataError: there are no images, none has an annotation, or one that is scored comes twice.
    """

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
        **{name: getattr(config, name) for name in ALLOWED},
    )
    for note in data.notes:
        if note.severity != "warning":  # which Python has shown
            console.print(f"{flag}: " + "left out: " * (note.severity == "error") + str(note))
    if len(data) == 0:
        raise DataError(f"{flag} has no images")
    if not may_be_bare and not any(getattr(data, "annotations", [True])):
        raise DataError(f"{flag} has no annotations, so that there is nothing to learn or to score; is it a test set?")
    twice = [finding for finding in getattr(data, "findings", ()) if finding.kind == "shared-file"]
    if is_scored and twice:
        raise DataError(f"{flag}: {twice[0].sentence}, and would count as often; list each file once")
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
) -> SegmentationDataset:
    """COCO JSON files with their image folders, or folders of images with those of their masks.

    Args:
        paths: The files, or the folders of images.
        roots: The image folders of the files.
        masks: The folders of the masks.
        class_names: File of the names of the masks' classes.
        palette: File of the colours of the masks.
        ignore_classes: Names of classes that are painted 255.
        on_bad: `error` or `skip`, for images and masks that cannot be used.
        max_bad: Largest share of them that is skipped.
        exif: `apply` or `ignore`, for EXIF orientations.
        max_pixels: Larger images are refused.
        **coco_options: Further ones of `CocoSegmentation`.
    """
    check_kinds(paths, roots, masks, (class_names, palette))
    common = {
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
    """An error where folders and files are given together with what belongs to the others alone."""

    folders = [path for path in paths if path.is_dir()]
    if masks and len(folders) < len(paths):
        file = next(path for path in paths if path not in folders)
        raise DataError(f"{file} is no folder; with --masks the images come from folders alone")
    if masks and roots:
        raise UsageError("--images belongs to JSON files; with --masks the folders of the images stand in their place")
    if not masks and folders:
        raise DataError(f"{folders[0]} is a folder; give the folder of its masks by --masks, or a COCO JSON file")
    if not masks and any(naming):
        raise UsageError("--class-names and --palette belong to --masks; a COCO JSON file names its classes itself")


def share_out(given: Sequence[Path], sources: Sequence[Sequence[Path]], flag: str) -> list[Sequence[Path]]:
    """The folders of one flag: those of the first sources, then those of the next."""
    counts = [len(paths) for paths in sources]
    if given and len(given) != sum(counts):
        raise UsageError(f"{flag} needs one folder for each of the {sum(counts)} sources, got {len(given)}")
    ends = list(accumulate(counts))
    return [given[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _mask_cache(setting: str) -> Path | str | None:
    return {"auto": default_folder(), "off": None}.get(setting, setting)


def open_scored(config: ScoreConfig, console: Console) -> SegmentationDataset:
    """Return the images of `data` to score on; one that cannot be used is an error, because a score skips nothing."""
    if isinstance(config.data[0], SegmentationDataset):
        if len(config.data) > 1:
            raise UsageError("`data` takes files, or a single data set")
        return config.data[0]
    return open_labelled(
        config, "--data", config.data, roots=config.images or None, masks=config.masks, is_scored=True, console=console
    )


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
