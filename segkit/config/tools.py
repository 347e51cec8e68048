"""Settings of the smaller commands: export, folds, check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from segkit.config.checks import check
from segkit.config.data import SourceConfig
from segkit.config.setting_types import Files, Folder, Modules
from segkit.errors import UsageError


@dataclass(frozen=True)
class ExportConfig:
    """Export a model to ONNX, for any batch and image size; compare it with torch."""

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE|RUN")]
    """Model file or run folder."""
    onnx: Annotated[Path | None, arg(metavar="FILE")] = None
    """ONNX file to write. By default the path of the model, with the suffix .onnx."""
    imports: Modules = ()
    """Python modules to import first, such as the module with your own decoder. Importing runs their code."""
    overwrite: bool = False
    """Replace the ONNX file if it exists."""


@dataclass(frozen=True)
class FoldsConfig:
    """Divide a COCO JSON file into k folds with an even share of every class."""

    data: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """COCO JSON file of all images."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the folds: train_data0.json, valid_data0.json and so on."""
    k: Annotated[int, arg(metavar="N")] = 5
    """Number of folds, at least 2."""
    group_by: Annotated[str | None, arg(metavar="KEY")] = None
    """Key of the image records in the JSON file; images with the same value stay in the same fold."""
    near_duplicates: bool = False
    """Keep images that look alike in the same fold. This reads every image."""
    train_only: Files = ()
    """COCO JSON files, such as pseudo labels, whose images are in every training set and never validate."""
    images: Folder = None
    """Image folder. By default the folder of the JSON file."""
    merge_same_name: bool = False
    """Accept several categories with the same name, and count them as one class."""
    bbox_as_mask: bool = False
    """Count the bounding box of annotations that have no segmentation."""
    overlap: Literal["smallest", "last", "max-id"] = "smallest"
    """Object whose pixels count where objects overlap, as in training: the smallest, the last in the file, or the
    highest category id."""
    crowd: Literal["paint", "ignore"] = "paint"
    """Crowd annotations (iscrowd), as in training: count their pixels like other objects, or ignore them."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the division, 0 or more."""
    overwrite: bool = False
    """Replace the folds that segkit has written to --out."""

    def __post_init__(self) -> None:
        check(self, "k", self.k >= 2, "at least 2")
        check(self, "seed", self.seed >= 0, "0 or more")


@dataclass(frozen=True)
class CheckConfig(SourceConfig):
    """Check data before training: classes, overlaps, errors, warnings, duplicates."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="FILE|DIR ...")] = ()
    """COCO JSON files, such as the training set and the validation set; or folders of images, with --masks."""
    full: bool = False
    """Decode every image, to find damaged images, images of one colour, and images that look alike."""
    out: Folder = None
    """Folder for tables and pictures. By default a new folder in runs/."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("give the COCO JSON files to check, or folders of images with `masks`")
