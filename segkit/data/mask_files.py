"""MaskReader: label maps that are image files."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from segkit.class_map import classes_of, lines_without_class, map_names
from segkit.data.findings import Finding
from segkit.data.formats.records import MaskFiles
from segkit.data.images import has_pages, largest_value, open_image, raw_mode, to_rgb
from segkit.data.palette import IGNORED, Colour, ColourCode, read_palette, read_text
from segkit.errors import DataError
from segkit.files import MAX_PIXELS
from segkit.labels import BACKGROUND, IGNORE_INDEX

PathLike = str | os.PathLike
_SPREAD = {"L;2": 85, "L;4": 17}  # factor by which Pillow spreads gray of 2 and 4 bits to 8
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")  # formats of masks that are refused
_NUMBERED = re.compile(r"([0-9]+)(?: *([:;,\t])| )")  # a line such as "1: wall" or "1 wall"
LISTED = 8  # most values that a message lists
BINARY_HINT = (
    "if 255 is white and means a class, give a palette file with the lines 'background 0 0 0' and 'NAME 255 255 255'"
)


class WrongValues(DataError):
    """A mask has values or colours that are not a class."""


def map_masks(source: MaskFiles, class_map: Mapping[str, str]) -> MaskFiles:
    """Return masks with the classes that a class map makes of theirs; background is label 0 if there is one.

    Raises:
        DataError: A class has no line in the map.
    """
    mapped = map_names(source.class_names, class_map, source.path)
    names = [BACKGROUND] * (BACKGROUND in mapped.values()) + classes_of(mapped, class_map)
    found = [
        Finding("unused-line", line, f"{source.path} has no class {line}, which the class map names")
        for line in lines_without_class(source.class_names, class_map)
    ]
    colours = values = None
    if source.colours is not None:
        colours = {colour: mapped.get(name, IGNORED) for colour, name in source.colours.items()}
    else:
        targets = [mapped[name] for name in source.class_names]
        label_of = {i: IGNORE_INDEX if name == IGNORED else names.index(name) for i, name in enumerate(targets)}
        values = source.values or {IGNORE_INDEX: IGNORE_INDEX, **{label: label for label in label_of}}
        values = {value: label_of.get(label, IGNORE_INDEX) for value, label in values.items()}
    findings = [*source.findings, *found]
    return replace(source, class_names=names, colours=colours, values=values, findings=findings)


class MaskReader:
    """Read masks whose pixel values are labels or, with a palette, whose colours are classes.

    Args:
        class_names: In label order: a sequence, or a text file with one name per line; lines that begin with `#` are
            skipped. By default the palette's.
        palette: File of colours, see `segkit.data.palette.read_palette`; or its content as that function returns it.
        max_pixels: Larger masks are refused before they are decoded.

    Attributes:
        class_names: In label order.
        coloured: Whether there is a palette.
        has_table: Whether a format says what each pixel value is.

    Raises:
        DataError: A file is missing or wrong, there are neither names nor a palette, the palette has other names, or
            there are not 2 to 255 different names.
    """

    def __init__(
        self,
        class_names: PathLike | Sequence[str] | None = None,
        palette: PathLike | Mapping[Colour, str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        colours = palette if palette is None or isinstance(palette, Mapping) else read_palette(palette)
        known = [name for name in dict.fromkeys((colours or {}).values()) if name != IGNORED]
        if class_names is None and colours is None:
            raise DataError("masks do not name their classes; give `class_names` or a `palette`")
        names = known if class_names is None else read_class_names(class_names)
        if len(names) == 1:
            raise DataError(
                f"{names[0]!r} is the only class, so there is nothing to learn; name the class of each pixel value, "
                f"such as background for 0 and {names[0]} for 1; {BINARY_HINT}"
            )
        if len(set(names)) != len(names) or not 0 < len(names) < 256:
            raise DataError(f"expected 2 to 255 class names, all different, got {len(names)}: {_listed(names)}")
        odd = sorted(set(known) - set(names))
        if odd:
            file = "the palette" if isinstance(palette, Mapping) else palette
            raise DataError(f"{file} has colours for {_listed(odd)}, which are not class names")
        self.class_names = tuple(names)
        self.coloured = colours is not None
        self.max_pixels, self.has_table = max_pixels, False
        self._code = None if colours is None else ColourCode(colours, self.class_names)
        self._label_of: Mapping[int, int] | None = None

    @classmethod
    def of_format(cls, source: MaskFiles, class_names: Sequence[str], max_pixels: int = MAX_PIXELS) -> "MaskReader":
        """Return the reader of a format's masks, with the labels that its classes have in `class_names`.

        Args:
            source: The masks; it may lack some of the classes.
            class_names: In label order.
            max_pixels: Larger masks are refused before they are decoded.

        Raises:
            DataError: The masks have a class that is not in `class_names`.
        """
        new = [name for name in source.class_names if name not in class_names]
        if new:
            raise DataError(f"{source.path} has the classes {_listed(new)}, which are not in {_listed(class_names)}")
        reader = cls(class_names, max_pixels=max_pixels)
        if source.colours is not None:
            reader.coloured, reader._code = True, ColourCode(source.colours, reader.class_names)
            return reader
        label_of = {label: reader.class_names.index(name) for label, name in enumerate(source.class_names)}
        values = source.values or {label: label for label in label_of}
        reader.has_table = source.values is not None
        reader._label_of = {value: label_of.get(label, IGNORE_INDEX) for value, label in values.items()}
        if source.values is None:
            reader._label_of[IGNORE_INDEX] = IGNORE_INDEX
        return reader

    def read(self, path: Path) -> np.ndarray:
        """Return the labels (H, W) uint8 of a mask file.

        Raises:
            WrongValues: The mask has values or colours that are not a class.
            DataError: The file is damaged, lossy or not an image.
        """
        if self._code is None:
            values = _open(path, self.max_pixels)
            if values.ndim > 2:  # gray may be stored as RGB
                if values.shape[2] > 2 and (values[..., 1:3] != values[..., :1]).any():
                    raise WrongValues(
                        f"{path} is a mask in colours; give a `palette` that says which class each colour is"
                    )
                values = values[..., 0]
            classes = len(self.class_names)
            known = [*range(classes), IGNORE_INDEX] if self._label_of is None else list(self._label_of)
            wrong = np.unique(values[~np.isin(values, known)])
            if len(wrong) and self._label_of is not None:
                raise WrongValues(
                    f"{path} has the values {_listed(wrong)}, but its format has the values {_listed(sorted(known))}"
                )
            if len(wrong):
                hint = f"; {BINARY_HINT}" if classes == 2 and (values == 255).any() else ""
                raise WrongValues(
                    f"{path} has the values {_listed(wrong)}, but the {classes} classes are 0 to {classes - 1}, and "
                    f"{IGNORE_INDEX} is ignored{hint}"
                )
            if self._label_of is not None:
                table = np.full(max(known) + 1, IGNORE_INDEX, dtype=np.uint8)
                table[list(self._label_of)] = list(self._label_of.values())
                return table[values]
            return values.astype(np.uint8)
        labels, unknown = self._code.labels(_open(path, self.max_pixels, rgb=True))
        if unknown:
            raise WrongValues(f"{path} has colours that are not in the palette: {_listed(unknown)}")
        return labels


def read_class_names(source: PathLike | Sequence[str]) -> list[str]:
    """Return a sequence unchanged, or the lines of a text file that are neither empty nor begin with `#`.

    Raises:
        DataError: The lines are numbered, but the numbers are not the pixel values.
    """
    names = read_lines(source, "file of class names")
    if not isinstance(source, str | os.PathLike):
        return names
    names = [name for name in names if not name.startswith("#")]
    found = [_NUMBERED.match(name) for name in names]
    if not all(found):
        return names
    numbers = [int(one[1]) for one in found]
    # "1 euro" and "2 euro" may be names; a separator, or a count of three or more from 1, makes it a number.
    is_count = all(one[2] for one in found) or (len(names) > 2 and numbers == [*range(1, len(names) + 1)])
    if is_count and numbers != [*range(len(names))]:
        raise DataError(
            f"{source} numbers the classes {_listed(numbers)}, but its lines name the pixel values from 0 on, one line "
            "for each; add the missing lines, such as one for 0, or remove the numbers"
        )
    return names


def read_lines(source: PathLike | Sequence[str], what: str) -> list[str]:
    """Return a sequence unchanged, or the lines of a text file that are not empty."""
    if not isinstance(source, str | os.PathLike):
        return list(source)
    return [line.strip() for line in read_text(Path(source), what).splitlines() if line.strip()]


def _open(path: Path, max_pixels: int, *, rgb: bool = False) -> np.ndarray:
    with open_image(path, max_pixels, "mask") as image:
        if _is_lossy(image, path):
            name = "JPEG" if image.format == "MPO" else image.format
            raise DataError(f"the mask {path} is a {name}, and its compression changes labels; give PNG files")
        if has_pages(image):
            raise DataError(f"the mask {path} has several pages or frames; give one label map in each file")
        white = largest_value(image)
        raw, is_deep = raw_mode(image), image.mode.startswith("I") or image.mode == "F"
        if ";16" in raw and not is_deep:
            raise DataError(f"the mask {path} has colours of 16 bits, of which only 8 are read; give gray PNG files")
        if rgb and is_deep:
            raise DataError(f"the mask {path} has gray values of 16 or 32 bits, but the palette has colours of 8 bits")
        image.load()
    # Programs that write GIF renumber the colours, so the indices in the file are not labels.
    if rgb or image.format == "GIF":
        return np.array(to_rgb(image))
    values = np.array(image)
    if white is not None:  # labels may be the only values: a PPM of 3 classes may state that 2 is white
        return (values * (white / (65535 if is_deep else 255))).round().astype(np.int64)
    return values // _SPREAD[raw] if raw in _SPREAD else values


def _is_lossy(image: Image.Image, path: Path) -> bool:
    if image.format == "WEBP":
        with path.open("rb") as file:
            return b"VP8L" not in file.read(1 << 16)  # the chunk of pixels without loss
    return image.format in _LOSSY or (image.format == "TIFF" and "jpeg" in image.info.get("compression", ""))


def _listed(values: Iterable) -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:LISTED]) + (f" and {len(words) - LISTED} more" if len(words) > LISTED else "")
