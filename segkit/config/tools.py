"""Settings of the smaller commands: export, folds, check, convert."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from segkit.config.checks import check, check_finite, default_of
from segkit.config.data import SourceConfig
from segkit.config.setting_types import ClassMap, Files, Folder, Folders, Modules, PathOrWord, Sources
from segkit.errors import UsageError


@dataclass(frozen=True)
class ExportConfig:
    """Export a model to ONNX, in float or int8, and measure how it differs."""

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE|RUN")]
    """Model file or run folder."""
    onnx: Annotated[Path | None, arg(metavar="FILE")] = None
    """ONNX file to write. By default the path of the model, with the suffix .onnx, or .int8.onnx."""
    imports: Modules = ()
    """Python modules to import first, such as the module with your own decoder. Importing runs their code."""
    overwrite: bool = False
    """Replace the ONNX file if it exists."""
    int8: bool = False
    """Quantise to int8: a quarter of the file, and about half the time on a CPU. Needs --calibrate."""
    calibrate: Annotated[PathOrWord | None, arg(metavar="FOLDER|GLOB|LIST.txt|JSON|VIDEO")] = None
    """Photographs whose values decide the steps of int8, such as the training images. Their labels are not used."""
    photographs: Annotated[int, arg(metavar="N")] = 64
    """Number of photographs to draw from --calibrate; 40 to 100 are enough."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the drawing, 0 or more."""
    check: Sources = ()
    """COCO JSON files, or folders with --masks, to measure what int8 costs; their images never calibrate."""
    images: Folders = ()
    """Image folder of --calibrate and --check; or one for each. By default the folder of the JSON file."""
    masks: Folders = ()
    """Mask folders, one for each folder of --check."""
    max_loss: Annotated[float, arg(metavar="POINTS")] = 0.3
    """Largest loss of mIoU, in percentage points of 100. Beyond it, the most sensitive layers stay in float."""
    accept_loss: bool = False
    """Write the most accurate int8 file even if it loses more than --max-loss."""

    def __post_init__(self) -> None:
        check_finite(self)
        if not self.int8:
            needless = [n for n in _OF_INT8 if getattr(self, n) != default_of(self, n)]
            if needless:
                raise UsageError(f"`{needless[0]}` is only for int8; add `int8`")
            return
        if self.calibrate is None:
            raise UsageError("`int8` needs `calibrate`, photographs such as the training images")
        check(self, "photographs", self.photographs >= 1, "at least 1")
        check(self, "seed", self.seed >= 0, "0 or more")
        check(self, "max_loss", self.max_loss >= 0, "0 or more")
        if not self.check:
            needless = [n for n in ("masks", "max_loss", "accept_loss") if getattr(self, n) != default_of(self, n)]
            if needless:
                raise UsageError(f"`{needless[0]}` needs `check`, the labelled images to measure the loss on")
        if len(self.images) > 2:
            raise UsageError(
                f"`images` takes one folder, or one for each of `calibrate` and `check`, got {self.images}"
            )


_OF_INT8 = (
    *("calibrate", "photographs", "seed", "check", "images", "masks", "max_loss", "accept_loss"),
)  # settings of ExportConfig without effect on an export in float


@dataclass(frozen=True)
class FoldsConfig:
    """Divide images into k folds with an even share of every class."""

    data: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE|DIR")]
    """COCO JSON file of all images, or what another labelling tool exported; of its splits, train and val."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the folds: train_data0.json, valid_data0.json and so on."""
    k: Annotated[int, arg(metavar="N")] = 5
    """Number of folds, at least 2."""
    group_by: Annotated[str | None, arg(metavar="regex:PATTERN|KEY|none")] = None
    """Keep images together by a PATTERN in their name, or a KEY of the JSON's images. By default Roboflow's copies."""
    near_duplicates: bool = False
    """Keep images that look alike in the same fold. This reads every image."""
    train_only: Files = ()
    """COCO JSON files, such as pseudo labels, whose images are in every training set and never validate."""
    images: Folder = None
    """Image folder of the JSON files. By default the folder of the JSON file."""
    format: Annotated[str | None, arg(metavar="NAME")] = None
    """Format of the labels in --data, such as yolo or coco. By default it is recognised by the files."""
    class_map: ClassMap = field(default_factory=dict)
    """Table of the classes to count, as in training: lines original,target. The files keep their categories."""
    merge_same_name: bool = False
    """Accept several categories with the same name, and count them as one class."""
    bbox_as_mask: bool = False
    """Count the bounding box of annotations that have no segmentation."""
    overlap: Literal["auto", "smallest", "last", "max-id"] = "auto"
    """Object on top where objects overlap, as in training. auto: by the format of the labels; COCO: the smallest."""
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


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(SourceConfig):
    """Write labels or predictions in another format, with the same pixels."""

    data: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE|DIR")] = field()
    """Labels of any format that --data of train.py takes; or a folder of infer.py, with the photographs as --images."""
    to: Literal["coco", "masks", "yolo", "labelme"]
    """Format to write: COCO JSON, index PNGs (also for CVAT), YOLO segmentation, or LabelMe."""
    out: Annotated[Path, arg(metavar="DIR")]
    """New folder for the labels."""
    image_files: Literal["auto", "copy", "link", "none"] = "auto"
    """Images: copy them to --out, link them there (hard links), or none. auto: none for COCO, copy for the others."""
    overlap: Literal["auto", "smallest", "last", "max-id"] = "auto"
    """Object on top where objects overlap, as in training. auto: by the format of the labels; COCO: the smallest."""

    def __post_init__(self) -> None:
        if len(self.images) > 1 or len(self.masks) > 1:
            raise UsageError("`images` and `masks` take one folder here")
