"""The settings of the smaller commands: export, folds, check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from segkit.config.checks import check
from segkit.config.sources import SourceConfig
from segkit.config.words import Files, Folder
from segkit.errors import UsageError


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as ONNX, for any batch and image size, and compare it with torch."""

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE|RUN")]
    """Model file or run folder."""
    onnx: Annotated[Path | None, arg(metavar="FILE")] = None
    """The file to write. By default the model's, with the suffix .onnx."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class FoldsConfig:
    """Divide a COCO JSON into k folds with even shares of every class: train_data0.json, valid_data0.json ..."""

    data: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """COCO JSON file of all images."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the files."""
    k: int = 5
    """Number of folds."""
    group_by: Annotated[str | None, arg(metavar="KEY")] = None
    """Key of the image records; images with the same value stay in one fold."""
    near_duplicates: bool = False
    """Keep images that look alike in one fold; reads every image."""
    train_only: Files = ()
    """COCO JSON files, such as pseudo labels, whose images only ever train."""
    images: Folder = None
    """Folder from which the file names start. By default the JSON's own."""
    seed: int = 0
    """Another seed gives another split."""
    overwrite: bool = False
    """Replace the folds that are in --out."""

    def __post_init__(self) -> None:
        check(self, "k", self.k >= 2, "at least 2")
        check(self, "seed", self.seed >= 0, "0 or more")


@dataclass(frozen=True)
class CheckConfig(SourceConfig):
    """Check data before training: classes, overlaps, faults, oddities, duplicates; changes nothing."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="FILE|DIR ...")] = ()
    """COCO JSON files, such as those of training and validation; or folders of images, with --masks."""
    full: bool = False
    """Decode every image, to find damaged ones, those of one colour, and those that look alike."""
    out: Folder = None
    """Folder for tables and pictures. By default a new one below runs/."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("give the COCO JSON files to check, or folders of images with --masks")
