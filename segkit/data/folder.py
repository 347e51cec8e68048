"""Folders of images and of masks, one image file for each."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segkit.data.dataset import IGNORE_INDEX, SegmentationDataset
from segkit.data.images import DataError, read_header, read_image
from segkit.data.mask_files import read_colours, read_values
from segkit.data.pairs import find_pairs
from segkit.data.palette import IGNORED, ColourCode, read_palette, read_text

PathLike = str | os.PathLike
Paths = PathLike | Sequence[PathLike]
_LISTED = 8  # values that a message lists


class MaskedImage(NamedTuple):
    """An image file with its mask file."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W) of the mask
    mask_path: Path


class FolderSegmentation(SegmentationDataset):
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

    Attributes:
        items: Path, name, size and mask of each image.

    Raises:
        DataError: an image without a mask or the reverse, a mask of another size than its image, a value
            that is no label, a colour that is not in the palette.
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
    ) -> None:
        image_folders, mask_folders = _folders(images, "images"), _folders(masks, "masks")
        if len(image_folders) != len(mask_folders):
            raise DataError(f"{len(image_folders)} image folders need as many of masks, got {len(mask_folders)}")
        colours = None if palette is None else read_palette(palette)
        self.class_names = _class_names(class_names, colours, palette)
        self.ignore_classes = tuple(ignore_classes)
        self.transform = transform
        self._code = None if colours is None else ColourCode(colours, self.class_names)
        wanted = None if names is None else [Path(name).as_posix() for name in _lines(names, "list of images")]
        pairs = [
            pair for folders in zip(image_folders, mask_folders, strict=True) for pair in find_pairs(*folders, wanted)
        ]
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
            checked = list(pool.map(lambda pair: self._checked(*pair), pairs))
        self.items = [item for item, _ in checked]
        self._check_not_binary([labels for _, labels in checked])

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].file_name

    def image(self, index: int) -> np.ndarray:
        item = self.items[index]
        return read_image(item.path, item.size)

    def mask(self, index: int) -> np.ndarray:
        return self._read(self.items[index].mask_path)

    def _read(self, path: Path) -> np.ndarray:
        """The labels (H, W) uint8 of a mask file."""
        if self._code is None:
            values = read_values(path)
            self._check_values(values, path)
            return values.astype(np.uint8)
        try:
            return self._code.labels(read_colours(path))
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} has colours that are not in the palette: {_listed(error.args[0])}") from None

    def _check_values(self, values: np.ndarray, path: Path) -> None:
        classes = len(self.class_names)
        found = np.unique(values[~np.isin(values, [*range(classes), IGNORE_INDEX])])
        if len(found):
            hint = f"; {_BINARY_HINT}" if classes == 2 and (values == 255).any() else ""
            raise DataError(
                f"{path} has the values {_listed(found)}, but the {classes} classes are 0 to {classes - 1}, and "
                f"{IGNORE_INDEX} is ignored{hint}"
            )

    def _checked(self, path: Path, file_name: str, mask_path: Path) -> tuple[MaskedImage, set[int]]:
        """The item, once its files are seen to fit, and the labels of its mask."""
        mask = self._read(mask_path)
        header = read_header(path)
        if mask.shape not in (header.turned, header.stored):
            raise DataError(
                f"the mask {mask_path} is {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but its image "
                f"{path} is {header.turned[0]} x {header.turned[1]}"
            )
        labels = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        return MaskedImage(path, file_name, mask.shape, mask_path), set(labels.tolist())

    def _check_not_binary(self, labels: Sequence[set[int]]) -> None:
        if self._code is None and len(self.class_names) > 1 and set().union(*labels) == {0, IGNORE_INDEX}:
            raise DataError(
                f"the masks such as {self.items[0].mask_path} have no values but 0 and 255, and 255 is ignored; "
                f"{_BINARY_HINT}"
            )


_BINARY_HINT = (
    "if 255 is white and means a class, give a palette file with the lines 'background 0 0 0' and 'NAME 255 255 255'"
)


def _folders(value: Paths, what: str) -> list[Path]:
    folders = [Path(value)] if isinstance(value, str | os.PathLike) else [Path(v) for v in value]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder, expected the folder of the {what}")
    return folders


def _class_names(
    given: PathLike | Sequence[str] | None, colours: dict | None, palette: PathLike | None
) -> tuple[str, ...]:
    """The classes in label order, from the names, the palette, or both when they agree."""
    known = [name for name in dict.fromkeys((colours or {}).values()) if name != IGNORED]
    if given is None and colours is None:
        raise DataError("masks do not name their classes: class_names (--class-names) or a palette must do so")
    names = known if given is None else _lines(given, "file of class names")
    if len(set(names)) != len(names) or not 0 < len(names) < 256:
        raise DataError(f"expected 1 to 255 class names, all different, got {len(names)}: {_listed(names)}")
    odd = set(known) - set(names) if colours else set()
    if odd:
        raise DataError(f"{palette} has colours for {_listed(sorted(odd))}, which are no class names")
    return tuple(names)


def _lines(given: PathLike | Sequence[str], what: str) -> list[str]:
    """A sequence as it is; of a text file the lines that are not empty."""
    if not isinstance(given, str | os.PathLike):
        return list(given)
    return [line.strip() for line in read_text(Path(given), what).splitlines() if line.strip()]


def _listed(values: Iterable) -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:_LISTED]) + (f" and {len(words) - _LISTED} more" if len(words) > _LISTED else "")
