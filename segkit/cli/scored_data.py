"""The images that a command scores on, and whether the classes of a model are theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.config import ScoreConfig

if TYPE_CHECKING:
    from segkit.data import SegmentationDataset


def open_scored(config: ScoreConfig) -> "SegmentationDataset":
    """Opens --data; whatever is wrong with it is an error, since a score leaves nothing out."""
    from segkit.cli.sources import open_data
    from segkit.data import DataError

    data = open_data(
        config.data,
        roots=config.images or None,
        masks=config.masks,
        class_names=config.class_names,
        palette=config.palette,
        ignore_classes=config.ignore_classes,
        overlap=config.overlap,
        crowd=config.crowd,
        mask_cache=_mask_cache(config.mask_cache),
        allow_outside_root=config.allow_outside_root,
    )
    for note in data.notes:
        if note.severity != "warning":  # which Python has shown
            print(f"--data: {note}")
    if len(data) == 0:
        raise DataError("--data has no images")
    if not any(getattr(data, "annotations", [True])):
        raise DataError("--data has no annotations, so that there is nothing to score; is it a test set?")
    return data


def check_model_classes(class_names: Sequence[str], data: "SegmentationDataset", weights: Path) -> None:
    """An error where a model was trained for other classes than those of the data."""
    from segkit.data import DataError

    if tuple(class_names) != tuple(data.class_names):
        raise DataError(
            f"the classes of {weights} are {', '.join(class_names)}, but those of --data "
            f"{', '.join(data.class_names)}; they must be the same in the same order"
        )


def _mask_cache(setting: str) -> Path | str | None:
    from segkit.data.mask_cache import default_folder

    return {"auto": default_folder(), "off": None}.get(setting, setting)
