"""FolderSegmentation: folders of images and of masks, one image file for each."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from segkit.class_map import as_class_map
from segkit.data.dataset import ImageFiles, Paths, as_paths
from segkit.data.findings import FEW, Finding, find_oddities, find_shared_files, raise_or_warn, summarise
from segkit.data.formats.records import MaskFiles
from segkit.data.images import (
    AS_USUAL,
    IMAGE_SUFFIXES,
    Reading,
    create_reading,
    list_images,
    list_other_files,
    read_image_header,
)
from segkit.data.mask_files import BINARY_HINT, MaskReader, WrongValues, map_masks, read_lines
from segkit.data.mask_names import MaskName
from segkit.data.palette import Colour, read_palette
from segkit.errors import DataError, UsageError
from segkit.files import MAX_PIXELS
from segkit.labels import IGNORE_INDEX
from segkit.names import check_known

PathLike = str | os.PathLike


class MaskedImage(NamedTuple):
    """An image file with its mask file."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W) of the mask
    mask_path: Path
    reader: MaskReader


class FolderSegmentation(ImageFiles):
    """Images and label maps from folders: `images/a/1.jpg` belongs to `masks/a/1.png`.

    A mask is an index PNG whose pixel values are the labels, with colours (as in VOC) or gray (as in ADE20K); 255 is
    ignored. With a palette file it is a picture whose colours are the classes. TIFF, BMP, PPM, TGA, lossless WebP and
    GIF (gray, or with a palette file) are read, too, but no lossy format. Each mask is read once at the start, so that
    a wrong value is found before the training begins.

    Args:
        images: Folder of the images, or several; subfolders are included. Also what the reader of a format of masks
            returns, see `segkit.data.find_source`, or several.
        masks: Folder of the masks, one for each folder in `images`.
        class_names: In label order: a sequence, or a text file with one name per line; lines that begin with `#` are
            skipped. By default the palette's.
        palette: File of colours, see `segkit.data.palette.read_palette`, or its content as that function returns it;
            black-and-white masks can have one, too.
        mask_name: Path of the mask of an image if it is not called like the image, see `segkit.data.mask_names`, such
            as `{stem}_mask.png`. Without `masks`, it starts from the folder of the images.
        class_map: Merges, renames and drops classes: a file, or a mapping of names to classes, see
            `segkit.class_map.read_class_map`. `class_names` and `palette` have the names before it.
        names: The images to use if not all: a sequence, or a text file with one per line (VOC's
            ImageSets/Segmentation/train.txt); paths below the folder, best without suffix.
        ignore_classes: Names of classes that are 255 in the target.
        transform: Called as `transform(image=image, mask=mask)`, as in albumentations.
        on_bad: `error` raises if an image or a mask is missing, unreadable or of another size than its partner; `skip`
            drops both.
        max_bad: Largest share of the images that `skip` drops; it may always drop one.
        exif: `apply` rotates images by their EXIF orientation, if the mask has that size; `ignore` rotates none.
        max_pixels: Larger images are refused before they are decoded.

    Attributes:
        items: Path, name, size and mask of each image.
        findings: All errors, warnings and notes about the files, one by one.
        notes: The findings, summed up in one line per kind.

    Raises:
        DataError: The files have errors, such as a value that is not a label; the message lists all of them.
    """

    def __init__(
        self,
        images: Paths | MaskFiles | Sequence[MaskFiles],
        masks: Paths | None = None,
        *,
        class_names: PathLike | Sequence[str] | None = None,
        palette: PathLike | Mapping[Colour, str] | None = None,
        mask_name: str | None = None,
        class_map: PathLike | Mapping[str, str] | None = None,
        names: PathLike | Sequence[str] | None = None,
        ignore_classes: Sequence[str] = (),
        transform: Callable | None = None,
        on_bad: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        exif: Literal["apply", "ignore"] = "apply",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_known("`on_bad`", on_bad, ("error", "skip"))
        self.ignore_classes, self.transform = tuple(ignore_classes), transform
        self._open(images, masks, class_names, palette, names, create_reading(exif, max_pixels), mask_name, class_map)
        self.notes = raise_or_warn(self.findings, on_bad, max_bad, len(self.items))

    @classmethod
    def inspect(
        cls,
        images: Paths | MaskFiles | Sequence[MaskFiles],
        masks: Paths | None = None,
        *,
        class_names: PathLike | Sequence[str] | None = None,
        palette: PathLike | Mapping[Colour, str] | None = None,
        mask_name: str | None = None,
        class_map: PathLike | Mapping[str, str] | None = None,
        names: PathLike | Sequence[str] | None = None,
        exif: Literal["apply", "ignore"] = "apply",
        max_pixels: int = MAX_PIXELS,
    ) -> "FolderSegmentation":
        """Read folders as the constructor does, but add faults to `findings` instead of raising or warning.

        The data set has the images and masks that can be used.

        Args:
            images: See the class, as for all other arguments.
            masks: Folder of the masks, one for each of `images`.
            class_names: In label order.
            palette: File of colours.
            mask_name: Path of the mask of an image.
            class_map: Merges, renames and drops classes.
            names: The images to use if not all.
            exif: `apply` or `ignore`.
            max_pixels: Larger images are a finding.

        Raises:
            DataError: A folder, the palette or the class names cannot be used.
        """
        data = cls.__new__(cls)
        data.transform = None
        data._open(images, masks, class_names, palette, names, create_reading(exif, max_pixels), mask_name, class_map)
        data.notes = summarise(data.findings)
        return data

    def _open(
        self,
        images: Paths | MaskFiles | Sequence[MaskFiles],
        masks: Paths | None,
        class_names: PathLike | Sequence[str] | None,
        palette: PathLike | None,
        names: PathLike | Sequence[str] | None,
        reading: Reading,
        mask_name: str | None = None,
        class_map: PathLike | Mapping[str, str] | None = None,
    ) -> None:
        self.reading, self.findings = reading, []
        mapping = as_class_map(class_map)
        several = [images] if isinstance(images, str | os.PathLike | MaskFiles) else images
        of_format = [one for one in several if isinstance(one, MaskFiles)]
        if of_format:
            if mapping:
                of_format = [map_masks(one, mapping) for one in of_format]
            self.items = self._read_formats(of_format, class_names)
        else:
            if masks is None and mask_name is None:
                raise UsageError("give `masks`, the folder of the masks, or `mask_name` if they lie next to the images")
            folders = as_paths(images)
            mask_folders = folders if masks is None else as_paths(masks)
            reader = self._create_reader(mask_folders[0], class_names, palette, mapping)
            self.items = self._read_folders(folders, mask_folders, reader, names, mask_name)
        _ = self.ignored_labels  # raises if a name is unknown
        self.findings += find_shared_files(item.path for item in self.items)

    def _read_folders(
        self,
        folders: Sequence[Path],
        mask_folders: Sequence[Path],
        reader: MaskReader,
        names: PathLike | Sequence[str] | None,
        mask_name: str | None,
    ) -> list[MaskedImage]:
        if len(folders) != len(mask_folders):
            raise UsageError(f"{len(folders)} folders of images need as many of masks, got {len(mask_folders)}")
        self.class_names = reader.class_names
        wanted = None if names is None else read_lines(names, "list of images")
        return [
            item
            for folder, mask_folder in zip(folders, mask_folders, strict=True)
            for item in read_folder(folder, mask_folder, reader, self.findings, wanted, self.reading, mask_name)
        ]

    def _create_reader(
        self,
        masks: Path,
        class_names: PathLike | Sequence[str] | None,
        palette: PathLike | Mapping[Colour, str] | None,
        class_map: Mapping[str, str],
    ) -> MaskReader:
        reader = MaskReader(class_names, palette, self.reading.max_pixels)
        if not class_map:
            return reader
        colours = palette if palette is None or isinstance(palette, Mapping) else read_palette(palette)
        source = map_masks(MaskFiles(masks, (), reader.class_names, colours=colours), class_map)
        self.findings += source.findings
        return MaskReader.of_format(source, source.class_names, self.reading.max_pixels)

    def _read_formats(
        self, sources: Sequence[MaskFiles], class_names: PathLike | Sequence[str] | None
    ) -> list[MaskedImage]:
        """Read the masks of formats; each class has the label that it has in the first source, or in `class_names`."""
        names = read_lines(sources[0].class_names if class_names is None else class_names, "file of class names")
        self.class_names = tuple(names)
        items = []
        for source in sources:
            self.findings += source.findings
            reader = MaskReader.of_format(source, names, self.reading.max_pixels)
            items += _checked_pairs(source.pairs, source.path, reader, self.findings, self.reading)
        return items

    def mask(self, index: int) -> np.ndarray:
        item = self.items[index]
        return item.reader.read(item.mask_path)


def read_folder(
    images: Path,
    masks: Path,
    reader: MaskReader,
    found: list[Finding],
    wanted: Sequence[str] | None = None,
    reading: Reading = AS_USUAL,
    mask_name: str | None = None,
) -> list[MaskedImage]:
    """Return the images whose masks can be used; every mask and the headers of the images are read.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        reader: Reads the masks.
        found: A list to which findings are added.
        wanted: Paths of the images to use, without suffix. By default all.
        reading: How the images are read.
        mask_name: Path of the mask of an image. By default that of the image, with any suffix.
    """
    return _checked_pairs(find_pairs(images, masks, wanted, found, mask_name), masks, reader, found, reading)


def _checked_pairs(
    pairs: Sequence[tuple[Path, str, Path]], masks: Path, reader: MaskReader, found: list[Finding], reading: Reading
) -> list[MaskedImage]:
    """Return the images whose masks can be used; messages name `masks`, the folder or file that they come from."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        checked = list(pool.map(lambda pair: _check_pair(*pair, reader, reading), pairs))
    found += [result for result in checked if isinstance(result, Finding)]
    good = [result for result in checked if not isinstance(result, Finding)]
    found += [oddity for _, _, oddities in good for oddity in oddities]
    labels = set().union(*(labels for _, labels, _ in good))
    if not (reader.coloured or reader.has_table) and IGNORE_INDEX in labels and labels <= {0, IGNORE_INDEX}:
        sentence = f"the masks below {masks} have no values except 0 and 255, and 255 is ignored; {BINARY_HINT}"
        found.append(Finding("white-masks", str(masks), sentence))
    elif labels == {IGNORE_INDEX}:
        sentence = f"all pixels of the masks below {masks} are ignored; are these the masks of another data set?"
        found.append(Finding("all-ignored", str(masks), sentence))
    elif len(labels - {IGNORE_INDEX}) == 1 and len(good) >= FEW:
        name = reader.class_names[min(labels)]
        found.append(Finding("one-label", str(masks), f"the masks below {masks} have no class except {name}"))
    return [item for item, _, _ in good]


def _check_pair(
    path: Path, name: str, mask_path: Path, reader: MaskReader, reading: Reading
) -> tuple[MaskedImage, set[int], list[Finding]] | Finding:
    """Return the item, the labels in its mask and its notes; or the finding if its files cannot be used."""
    try:
        mask = reader.read(mask_path)
    except WrongValues as error:
        return Finding("mask-values", name, str(error))
    except DataError as error:
        return Finding("unreadable-mask", name, str(error))
    try:
        header = read_image_header(path, reading)
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
    return MaskedImage(path, name, mask.shape, mask_path, reader), set(labels.tolist()), oddities


def find_pairs(
    images: Path, masks: Path, wanted: Sequence[str] | None, found: list[Finding], mask_name: str | None = None
) -> list[tuple[Path, str, Path]]:
    """Return image, name and mask of each pair with the same path below the two folders, except for the suffix.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        wanted: The paths to use, in order. By default all.
        found: A list to which images without a mask are added and, if `wanted` is None, masks without an image.

    Raises:
        DataError: A folder does not exist, two files have the same name, or a wanted image does not exist.
    """
    if mask_name is None:
        image_of, mask_of = _by_stem(images, "images"), _by_stem(masks, "masks")
    else:
        image_of, mask_of = _by_pattern(images, masks, MaskName(mask_name))
    stems = sorted(image_of) if wanted is None else [_wanted_stem(name, image_of) for name in wanted]
    absent = [stem for stem in stems if stem not in image_of]
    if absent:
        hint = _unread_hints(images).get(absent[0], "")
        raise DataError(f"{len(absent)} of {len(stems)} names have no image, such as {images / absent[0]}.*{hint}")
    names = {stem: image_of[stem].relative_to(images).as_posix() for stem in stems}
    hints = _unread_hints(masks) if mask_name is None and any(stem not in mask_of for stem in stems) else {}
    for stem in stems:
        if stem not in mask_of:
            expected = f"{masks / stem}.*"
            if mask_name is not None:
                expected = MaskName(mask_name).expected(names[stem], masks)
            sentence = f"{image_of[stem]} has no mask, expected at {expected}{hints.get(stem, '')}"
            found.append(Finding("no-mask", names[stem], sentence))
    if wanted is None:
        for stem in sorted(mask_of.keys() - image_of.keys()):
            where = mask_of[stem].relative_to(masks).as_posix()
            expected = f", expected at {images / stem}.*" if mask_name is None else ""
            found.append(Finding("no-image", where, f"{mask_of[stem]} has no image{expected}"))
    return [(image_of[stem], names[stem], mask_of[stem]) for stem in stems if stem in mask_of]


def _by_pattern(images: Path, masks: Path, pattern: MaskName) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the images by stem, and their masks by the same stem; a mask without an image by its own path."""
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder, expected the folder of the {what}")
    all_masks = {path for path in list_images(masks) if pattern.fits(path.relative_to(masks).as_posix())}
    real = {os.path.realpath(path) for path in all_masks}
    image_of = _by_stem(images, "images", [path for path in list_images(images) if os.path.realpath(path) not in real])
    mask_of = {stem: pattern.find(path.relative_to(images).as_posix(), masks) for stem, path in image_of.items()}
    used = {stem: path for stem, path in mask_of.items() if path is not None}
    paths = {os.path.realpath(path) for path in used.values()}
    lone = [path for path in sorted(all_masks) if os.path.realpath(path) not in paths]
    return image_of, used | {f"mask {path}": path for path in lone}


def _by_stem(folder: Path, what: str, files: Iterable[Path] | None = None) -> dict[str, Path]:
    """Return the image files by their path below the folder, without suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder, expected the folder of the {what}")
    paths: dict[str, Path] = {}
    for path in list_images(folder) if files is None else files:
        other = paths.setdefault(_stem(path, folder), path)
        if other != path:
            raise DataError(f"{other} and {path} have the same name, so it is not clear which one is meant")
    return paths


def _stem(path: Path, folder: Path) -> str:
    """Return the path below the folder without its suffix; accents are one character, as most systems write them."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _wanted_stem(name: str, known: Mapping[str, Path]) -> str:
    """Return the stem that a name in a list means: the name itself, or with slashes, or without an image suffix."""
    stem = unicodedata.normalize("NFC", Path(name).as_posix())
    slashed = stem.replace("\\", "/")
    shortened = slashed[: -len(Path(slashed).suffix)] if slashed.lower().endswith(IMAGE_SUFFIXES) else slashed
    return next((one for one in (stem, slashed, shortened) if one in known), stem)


def _unread_hints(folder: Path) -> dict[str, str]:
    """Return a hint for the name of each file whose format is not read."""
    return {_stem(path, folder): f"; the format of {path} is not read" for path in list_other_files(folder)}
