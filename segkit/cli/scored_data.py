"""The images that a command scores on, and whether the classes of a model are theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.config import ScoreConfig
from segkit.errors import DataError

if TYPE_CHECKING:
    from segkit.data import SegmentationDataset


def open_scored(config: ScoreConfig) -> "SegmentationDataset":
    """Opens --data; whatever is wrong with it is an error, since a score leaves nothing out."""
    from segkit.cli.sources import open_labelled

    roots = config.images or None
    return open_labelled(config, "--data", config.data, roots=roots, masks=config.masks, is_scored=True)


def check_model_classes(class_names: Sequence[str], data: "SegmentationDataset", weights: Path) -> None:
    """An error where a model was trained for other classes than those of the data."""

    if tuple(class_names) != tuple(data.class_names):
        raise DataError(
            f"the classes of {weights} are {', '.join(class_names)}, but those of --data "
            f"{', '.join(data.class_names)}; they must be the same in the same order"
        )
