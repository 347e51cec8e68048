"""The training and validation images of train.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.config import TrainConfig
from segkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from segkit.cli.train_folds import Folds
    from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset


def load_data(config: TrainConfig) -> tuple["SegmentationDataset", "SegmentationDataset"]:
    """Training and validation images, as --data, --val, --folds and --train-only say."""
    from segkit.cli.train_folds import add_train_only
    from segkit.workflows.datasets import share_out

    if config.folds is not None:
        return open_folds(config)[config.fold]
    train_roots, val_roots, extra_roots = _split_roots(config)
    train_masks, val_masks, extra_masks = share_out(config.masks, _sources(config), "--masks")
    train_set = _open(config, "--data", config.data, train_roots, train_masks)
    extra = _open(config, "--train-only", config.train_only, extra_roots, extra_masks) if config.train_only else None
    if config.val:
        val_set = _open(config, "--val", config.val, val_roots, val_masks)
        _check_classes(train_set, val_set, config.data[0], config.val[0])
    else:
        train_set, val_set = train_set.split(config.val_fraction, config.seed)
    return add_train_only(train_set, val_set, extra), val_set


def open_folds(config: TrainConfig) -> "Folds":
    """The images of --data as --folds divides them, and with them those of --train-only."""
    from segkit.cli.train_folds import Folds, count_sources
    from segkit.workflows.datasets import share_out

    roots, _, extra_roots = _split_roots(config)
    masks, _, extra_masks = share_out(config.masks, _sources(config), "--masks")
    data = _open(config, "--data", config.data, roots, masks)
    extra = _open(config, "--train-only", config.train_only, extra_roots, extra_masks) if config.train_only else None
    counts = count_sources(data, config.data, roots)
    return Folds(data, extra, counts, k=config.folds, seed=config.seed)


def _open(
    config: TrainConfig, flag: str, paths: Sequence[Path], roots: Sequence[Path] | None, masks: Sequence[Path]
) -> "CocoSegmentation | FolderSegmentation":
    from segkit.workflows.datasets import open_labelled

    return open_labelled(
        config,
        flag,
        paths,
        roots=roots,
        masks=masks,
        on_bad="error" if flag == "--val" else config.on_bad,
        max_bad=config.max_bad,
        may_be_bare=flag == "--train-only",
        is_scored=flag == "--val",
    )


def _check_classes(
    first: "SegmentationDataset", second: "SegmentationDataset", first_file: Path, second_file: Path
) -> None:

    if first.class_names != second.class_names:
        raise DataError(
            f"{first_file} and {second_file} differ in their classes: "
            f"{', '.join(first.class_names)} / {', '.join(second.class_names)}"
        )


def _sources(config: TrainConfig) -> tuple[Sequence[Path], ...]:
    return config.data, config.val, config.train_only


def _split_roots(config: TrainConfig) -> list[Sequence[Path] | None]:
    """The image folders of --data, --val and --train-only."""
    from segkit.workflows.datasets import share_out

    sources = _sources(config)
    if len(config.images) <= 1:
        return [config.images or None] * 3
    files = sum(map(len, sources))
    if len(config.images) != files:
        raise UsageError(
            f"--images needs one folder, or one for each of the {files} JSON files, got {len(config.images)}"
        )
    return [paths or None for paths in share_out(config.images, sources, "--images")]
