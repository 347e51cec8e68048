"""FolderSegmentation: folders of images and of masks, one image file for each."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from segkit.data.dataset import ImageFiles
from segkit.data.findings import Finding, find_oddities, tell
from segkit.data.images import AS_USUAL, Reading, list_images, read_header
from segkit.data.mask_files import BINARY_HINT, MaskReader, WrongValues, read_lines
from segkit.errors import DataError, UsageError
from segkit.files import MAX_PIXELS
from segkit.labels import IGNORE_INDEX

PathLike = str | os.PathLike
Paths = PathLike | Sequence[PathLike]


class MaskedImage(NamedTuple):
    """An image file with its mask file."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W) of the mask
    mask_path: Path


class FolderSegmentation(ImageFiles):
    """Images and label maps from folders: `images/a/1.jpg` belongs to `masks/a/1.png`.

    A mask is an index PNG whose pixel values are the labels, with colours (as in VOC) or gray (as in ADE20K);
    255 is ignored. With a palette file it is a picture whose colours are the classes. Each mask is read
    once at the start, so that a wrong value is told before any training.

    Args:
        images: Folder of the images, or several; subfolders count.
        masks: Folder of the masks, one for each of `images`.
        class_names: In label order: a sequence, or a text file with a name in each line. With a palette they
            may be left out, and are then the palette's.
        palette: File of colours, see `segkit.data.palette.read_palette`; black-and-white masks take one too.
        names: The images to take, where not all are wanted: a sequence, or a text file with one in each
            line (VOC's ImageSets/Segmentation/train.txt); paths below the folder, without suffix.
        ignore_classes: Names of classes that are painted 255 in the target.
        transform: Called as `transform(image=image, mask=mask)`, as in albumentations.
        on_bad: `error` refuses to go on where an image or a mask is missing, unreadable or of another size
            than its partner; `skip` leaves them out.
        max_bad: Largest share of the images that `skip` leaves out; one always may be.
        exif: `apply` turns images as their EXIF orientation says, where the mask has that size; `ignore` none.
        max_pixels: Larger images are refused before they are decoded.

    Attributes:
        items: Path, name, size and mask of each image.
        findings: All that is wrong or remarkable, one by one.
        notes: The same in a line for each kind, with counts.

    Raises:
        DataError: something is wrong with the files, such as a value that is no label; all of it is listed.
    """

    def __init__(
        self,
        images: Paths,
        masks: Paths,
        *,
        class_names: PathLike | Sequence[str] | None = None,
        palette: PathLike | None = None,
        names: PathLike | Sequence[str] | None = None,
        ignore_classes: Sequence[str] = (),
        transform: Callable | None = None,
        on_bad: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        exif: Literal["apply", "ignore"] = "apply",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if on_bad not in ("error", "skip"):
            raise UsageError(f"on_bad must be one of error, skip, got {on_bad!r}")
        if exif not in ("apply", "ignore"):
            raise UsageError(f"exif must be one of apply, ignore, got {exif!r}")
        self.reading = Reading(exif, max_pixels)
        folders, mask_folders = _as_paths(images), _as_paths(masks)
        if len(folders) != len(mask_folders):
            raise DataError(f"{len(folders)} image folders need as many of masks, got {len(mask_folders)}")
        self._reader = MaskReader(class_names, palette, max_pixels)
        self.class_names, self.transform = self._reader.class_names, transform
        self.ignore_classes = tuple(ignore_classes)
        _ = self.ignored_labels  # an unknown name is told here
        wanted = None if names is None else read_lines(names, "list of images")
        self.findings: list[Finding] = []
        self.items = [
            item
            for folder, mask_folder in zip(folders, mask_folders, strict=True)
            for item in read_folder(folder, mask_folder, self._reader, self.findings, wanted, self.reading)
        ]
        self.notes = tell(self.findings, on_bad, max_bad, len(self.items))

    def mask(self, index: int) -> np.ndarray:
        return self._reader.read(self.items[index].mask_path)


def read_folder(
    images: Path,
    masks: Path,
    reader: MaskReader,
    found: list[Finding],
    wanted: Sequence[str] | None = None,
    reading: Reading = AS_USUAL,
) -> list[MaskedImage]:
    """The images whose masks can be used; every mask is read, and of the images the headers.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        reader: Reads the masks.
        found: What is wrong or remarkable is added to it.
        wanted: Paths of the images to take, without suffix; by default all.
        reading: How the images are read.
    """
    pairs = find_pairs(images, masks, wanted, found)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        checked = list(pool.map(lambda pair: _checked(*pair, reader, reading), pairs))
    found += [result for result in checked if isinstance(result, Finding)]
    good = [result for result in checked if not isinstance(result, Finding)]
    found += [oddity for _, _, oddities in good for oddity in oddities]
    labels = set().union(*(labels for _, labels, _ in good))
    if not reader.coloured and len(reader.class_names) > 1 and labels == {0, IGNORE_INDEX}:
        sentence = f"the masks below {masks} have no values but 0 and 255, and 255 is ignored; {BINARY_HINT}"
        found.append(Finding("white-masks", str(masks), sentence))
    return [item for item, _, _ in good]


def _checked(
    path: Path, name: str, mask_path: Path, reader: MaskReader, reading: Reading
) -> tuple[MaskedImage, set[int], list[Finding]] | Finding:
    """The item with the labels of its mask and what is remarkable, or what is wrong with its files."""
    try:
        mask = reader.read(mask_path)
    except WrongValues as error:
        return Finding("mask-values", name, str(error))
    except DataError as error:
        return Finding("unreadable-mask", name, str(error))
    try:
        header = read_header(path, reading)
    except DataError as error:
        return Finding("unreadable-image", name, str(error))
    if mask.shape not in (header.turned, header.stored):
        (h, w), (height, width) = mask.shape, header.turned
        return Finding(
            "mask-size",
            name,
            f"the mask {mask_path} is {h} x {w} pixels (height x width), but its image {path} is {height} x {width}",
        )
    labels = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    oddities = find_oddities(path, name, header, mask.shape, reading)
    return MaskedImage(path, name, mask.shape, mask_path), set(labels.tolist()), oddities


def _as_paths(value: Paths) -> list[Path]:
    return [Path(value)] if isinstance(value, str | os.PathLike) else [Path(v) for v in value]


def find_pairs(
    images: Path, masks: Path, wanted: Sequence[str] | None, found: list[Finding]
) -> list[tuple[Path, str, Path]]:
    """Image, name and mask of all that belong together, by their paths below the two folders without suffix.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        wanted: The paths to take, in order; by default all.
        found: Images without a mask are added to it and, where all are wanted, masks without an image.

    Raises:
        DataError: a folder that is none, two files of one name, or no image for what is wanted.
    """
    image_of, mask_of = _by_stem(images, "images"), _by_stem(masks, "masks")
    stems = sorted(image_of) if wanted is None else [Path(name).as_posix() for name in wanted]
    absent = [stem for stem in stems if stem not in image_of]
    if absent:
        raise DataError(f"{len(absent)} of {len(stems)} names have no image, such as {images / absent[0]}.*")
    names = {stem: image_of[stem].relative_to(images).as_posix() for stem in stems}
    for stem in stems:
        if stem not in mask_of:
            found.append(Finding("no-mask", names[stem], f"{image_of[stem]} has no mask, expected at {masks / stem}.*"))
    if wanted is None:
        for stem in sorted(mask_of.keys() - image_of.keys()):
            where = mask_of[stem].relative_to(masks).as_posix()
            found.append(Finding("no-image", where, f"{mask_of[stem]} has no image, expected at {images / stem}.*"))
    return [(image_of[stem], names[stem], mask_of[stem]) for stem in stems if stem in mask_of]


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    """Image files by their path below the folder, without suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder, expected the folder of the {what}")
    paths: dict[str, Path] = {}
    for path in list_images(folder):
        other = paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise DataError(f"{other} and {path} have one name, so that it is not clear which is meant")
    return paths
