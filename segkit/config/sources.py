"""The settings of the data that is learnt from, scored or checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from segkit.config.words import Folders, Sources
from segkit.files import MAX_PIXELS


@dataclass(frozen=True)
class SourceConfig:
    """Images whose labels are known, and where they are; shared by the commands that need both."""

    data: Sources = ()
    """COCO JSON files; or folders of images, with --masks."""
    images: Folders = ()
    """Folder of the images: one for all JSON files, or one for each of them in turn. By default each's own."""
    masks: Folders = ()
    """Folders of masks (index PNGs, or in colours with --palette), one for each folder of images."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Class names of the masks, one in each line, in the order of the pixel values."""
    palette: Annotated[Path | None, arg(metavar="FILE")] = None
    """What the colours of the masks mean: in each line a name and its red, green and blue."""
    allow_outside_root: bool = False
    """Let JSON files name images outside their image folder."""
    exif: Literal["apply", "ignore"] = "apply"
    """Turn images as their EXIF orientation says, where that fits the sizes of JSON or mask; or none."""
    max_pixels: Annotated[int, arg(metavar="N")] = MAX_PIXELS
    """Refuse larger images, before they are decoded."""
    rescale_annotations: bool = False
    """Fit annotations to images of another size than their JSON says."""
    merge_same_name: bool = False
    """Make categories with one name one class."""
    bbox_as_mask: bool = False
    """Paint the box of annotations that have nothing else."""


@dataclass(frozen=True)
class LabelConfig(SourceConfig):
    """What becomes of the labels; shared by the commands that learn from them or score by them."""

    overlap: Literal["smallest", "last", "max-id"] = "smallest"
    """What lies on top where objects overlap: the smallest, the last in the file, or the highest category id."""
    crowd: Literal["paint", "ignore"] = "paint"
    """Whether crowds (iscrowd) are painted like other objects, or ignored."""
    ignore_classes: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Classes that are neither learnt nor scored."""
    mask_cache: Annotated[str, arg(metavar="auto|memory|off|DIR")] = "auto"
    """Where the masks of JSON files are kept once they are drawn. auto: in the user's cache folder."""
