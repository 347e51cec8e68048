"""Pascal VOC: `JPEGImages`, `SegmentationClass`, and `ImageSets/Segmentation` with the names of each split.

A mask has the class as value and 255 at the borders, which are ignored; or it has the colours of VOC. The classes are
in `class_names.txt`, which labelme's exporter writes; the 20 classes of the challenge if the images have its names.

Source: Mark Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge" (IJCV 2010) and its development kit.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from segkit.data.findings import Finding
from segkit.data.formats.pairs import by_stem, match
from segkit.data.formats.records import WHOLE, LabelFiles, LabelRecords, LabelSource, MaskFiles
from segkit.data.images import open_image
from segkit.data.palette import IGNORED, Colour
from segkit.errors import DataError
from segkit.files import MAX_PIXELS
from segkit.labels import BACKGROUND, is_background

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
MASKS = ("SegmentationClass", "SegmentationClassPNG")
IMAGES, CLASS_NAMES = "JPEGImages", "class_names.txt"
_NAME = re.compile(r"20(0[7-9]|1[0-2])_\d{6}")  # an image of the challenge, such as 2007_000032


def recognise(path: Path) -> str | None:
    """Return what shows that `path` has the layout of Pascal VOC; None if it has not."""
    root = find_root(path)
    is_there = root is not None and (root / IMAGES).is_dir()
    return f"folders {IMAGES} and {mask_folder(root).name}" if is_there else None


def read(path: Path) -> LabelSource:
    """Return the images of a folder like VOC2012 by split.

    Raises:
        DataError: The folders or the names of the classes are missing.
    """
    root = find_root(path)
    if root is None:
        raise DataError(f"{path} has no folder {MASKS[0]} of masks")
    return LabelSource(
        "voc", path, f"folders {IMAGES} and {mask_folder(root).name}", splits_of(root, partial(_read_images, root))
    )


def find_root(path: Path) -> Path | None:
    """Return the folder with the masks: `path`, or the only one such as VOCdevkit/VOC2012 in it."""
    if not path.is_dir() or mask_folder(path) is not None:
        return path if path.is_dir() else None
    inside = [one for pattern in ("VOC2*", "VOCdevkit/VOC2*") for one in path.glob(pattern) if mask_folder(one)]
    return inside[0] if len(inside) == 1 else None


def mask_folder(root: Path) -> Path | None:
    """Return the folder of the masks as PNG; None if there is none."""
    folders = [root / name for name in MASKS if (root / name).is_dir()]
    return next((folder for folder in folders if next(folder.rglob("*.png"), None)), None)


def splits_of(
    root: Path, read_images: Callable[[Sequence[str] | None], MaskFiles]
) -> dict[str, Callable[[], LabelRecords | MaskFiles]]:
    """Return the readers of the splits that `ImageSets/Segmentation` has; of all masks if it has none.

    Args:
        root: The folder with `ImageSets`.
        read_images: Reads the images of a list of names, or all if it is None.
    """
    folder = root / "ImageSets" / "Segmentation"
    lists = {file.stem.lower(): file for file in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    splits = {split: next((lists[n] for n in names if n in lists), None) for split, names in SPLIT_NAMES.items()}
    files = {split: [file] for split, file in splits.items() if file is not None}
    if not files:
        files = {WHOLE: list(lists.values())}
    return {split: partial(_read_listed, of_split, read_images) for split, of_split in files.items()}


def _read_listed(files: Sequence[Path], read_images: Callable[[Sequence[str] | None], MaskFiles]) -> MaskFiles:
    lines = [
        unicodedata.normalize("NFC", line.strip().replace("\\", "/"))
        for file in files
        for line in LabelFiles("list").text(file).splitlines()
    ]
    return read_images(list(dict.fromkeys(filter(None, lines))) or None)


def pairs_of(
    root: Path, names: Sequence[str] | None, found: list[Finding], *, all_labelled: bool
) -> list[tuple[Path, str, Path]]:
    """Return images and masks.

    Args:
        root: The folder with the folders of the images and of the masks.
        names: Paths of the images without suffix. None for all that have a mask.
        found: A list to which files without their partner are added.
        all_labelled: Whether a named image without a mask is an error. If not, it is a note, and the image is not used.

    Raises:
        DataError: A folder is missing.
    """
    folder = mask_folder(root)
    if folder is None or not (root / IMAGES).is_dir():
        raise DataError(f"{root} has no {IMAGES if folder else MASKS[0]}; export the images together with the masks")
    images, masks = by_stem(root / IMAGES), by_stem(folder)
    if names is None:
        return match(images, masks, root / IMAGES, found, all_labelled=False)
    for name in names:
        if name not in images:
            found.append(Finding("missing-image", name, f"there is no image {root / IMAGES / name}.*"))
    images = {name: images[name] for name in names if name in images}
    masks = {name: masks[name] for name in names if name in images and name in masks}
    return match(images, masks, root / IMAGES, found, all_labelled=all_labelled)


def _read_images(root: Path, names: Sequence[str] | None) -> MaskFiles:
    found: list[Finding] = []
    pairs = pairs_of(root, names, found, all_labelled=True)
    class_names = _class_names(root, pairs)
    if not pairs or not _is_coloured(pairs[0][2]):
        return MaskFiles(root, pairs, class_names, findings=found)
    colours = {voc_colour(label): name for label, name in enumerate(class_names)}
    colours[voc_colour(255)] = IGNORED
    return MaskFiles(root, pairs, class_names, colours=colours, findings=found)


def _class_names(root: Path, pairs: Sequence[tuple[Path, str, Path]]) -> list[str]:
    file = root / CLASS_NAMES
    if file.is_file():
        names = [line.strip() for line in LabelFiles("").text(file).splitlines() if line.strip()]
        return [BACKGROUND if is_background(name) else name for name in names if name != "__ignore__"]
    if pairs and all(_NAME.fullmatch(image.stem) for image, _, _ in pairs):
        return list(CLASSES)
    raise DataError(
        f"{root} has the folders of Pascal VOC, but not the images of its challenge, and no file says what its classes "
        f"are; write {file} with a class in each line, from pixel value 0 on"
    )


def _is_coloured(mask: Path) -> bool:
    with open_image(mask, MAX_PIXELS, "mask") as image:
        return image.mode in ("RGB", "RGBA")


def voc_colour(label: int) -> Colour:
    """Return the colour of a label in VOC: the bits of the label, spread over red, green and blue from the top."""
    colour = [0, 0, 0]
    for bit in range(8):
        colour[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    return tuple(colour)
