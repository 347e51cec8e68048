"""Settings of labelled images, for training, scoring and checking."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from segkit.config.setting_types import ClassMap, Folders, PathOrWord, Sources
from segkit.files import MAX_PIXELS

# The settings that decide how images and labels are read from the files. A model stores the settings of its training,
# and the commands that use the model take them from it.
DATA_RULES = (
    *("overlap", "crowd", "ignore_classes", "exif", "rescale_annotations", "merge_same_name", "bbox_as_mask"),
    "class_map",
)
# The settings that commands other than train take from the args.yaml of a run.
SHARED_WITH_TRAINING = (*DATA_RULES, "class_names", "palette", "mask_name", "max_pixels", "allow_outside_root")


@dataclass(frozen=True)
class SourceConfig:
    """Labelled images and where they are. The base of all commands that read them."""

    data: Sources = ()
    """COCO JSON files; what another labelling tool exported; or folders of images, with --masks."""
    format: Annotated[str | None, arg(metavar="NAME")] = None
    """Format of the labels in --data, such as yolo or coco. By default it is recognised by the files."""
    images: Folders = ()
    """Image folders: one for all JSON files, or one for each. By default the folder of the JSON file."""
    masks: Folders = ()
    """Mask folders, one for each image folder: PNGs of class indices, or of colours with --palette."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Text file with the class names of the masks, one per line, in the order of the pixel values."""
    palette: Annotated[Path | None, arg(metavar="FILE")] = None
    """Text file with the colours of the masks, one class per line: name red green blue."""
    mask_name: Annotated[str | None, arg(metavar="PATTERN")] = None
    """Masks not called like their image, such as {stem}_mask.png. Without --masks, they lie next to the images."""
    class_map: ClassMap = field(default_factory=dict)
    """Table that merges, renames or drops classes: lines original,target; background and ignore are targets, too."""
    allow_outside_root: bool = False
    """Allow JSON files to name images outside the image folder."""
    exif: Literal["apply", "ignore"] = "apply"
    """apply: rotate images by their EXIF orientation, if the JSON or mask has that size. ignore: never rotate."""
    max_pixels: Annotated[int, arg(metavar="N")] = MAX_PIXELS
    """Refuse images with more pixels than this, before decoding them."""
    rescale_annotations: bool = False
    """Rescale annotations if an image does not have the size that its JSON file says."""
    merge_same_name: bool = False
    """Treat categories with the same name as one class, instead of reporting an error."""
    bbox_as_mask: bool = False
    """Paint the bounding box of annotations that have no segmentation."""


@dataclass(frozen=True)
class LabelConfig(SourceConfig):
    """How annotations become labels. The base of the commands that train or score."""

    overlap: Literal["auto", "smallest", "last", "max-id"] = "auto"
    """Object on top where objects overlap: smallest, last, highest category id, or auto: by format (COCO: smallest)."""
    crowd: Literal["paint", "ignore"] = "paint"
    """Crowd annotations (iscrowd): paint them like other objects, or ignore their pixels."""
    ignore_classes: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Classes to ignore in training and in scores."""
    mask_cache: Annotated[PathOrWord, arg(metavar="auto|memory|off|DIR")] = "auto"
    """Where masks drawn from JSON files are cached. auto: in the user's cache folder, if there is one."""
