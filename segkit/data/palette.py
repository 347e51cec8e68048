"""Palette files: which colour of a mask is which class."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from segkit.errors import DataError, as_segkit_error
from segkit.files import parse_json
from segkit.labels import IGNORE_INDEX

Colour = tuple[int, int, int]
IGNORED = "ignore"


def read_palette(file: str | os.PathLike) -> dict[Colour, str]:
    """Read the class names by colour, in the order of the file.

    A text or CSV file has one class per line: its name, then red, green and blue from 0 to 255, separated by spaces,
    tabs, commas or semicolons. A first line with the names of the columns, empty lines and lines that begin with `#`
    are skipped. A JSON file is one object, `{"name": [red, green, blue], ...}`. The name `ignore` is not a class: its
    pixels become 255. A name may occur several times, with one colour each. A fourth number, alpha, is dropped.
    If the separators are spaces, a name may end in a number (`lane 1 0 0 142`). The last number is then alpha only if
    all lines have four numbers, and no two lines have the same name before them.

    Raises:
        DataError: The file is missing, has another form, or has one colour for two classes.
    """
    file = Path(file)
    text = read_text(file, "palette file")
    return palette_of_rows(_json_rows(text, file) if file.suffix.lower() == ".json" else _text_rows(text), file)


def palette_of_rows(rows: Iterable[tuple[str, Sequence]], file: str | os.PathLike) -> dict[Colour, str]:
    """Return the class names by colour.

    Args:
        rows: The name of a class, and its red, green and blue as numbers or text.
        file: The origin of the rows, for messages.

    Raises:
        DataError: There are no rows, a row has another form, or two classes have the same colour.
    """
    palette: dict[Colour, str] = {}
    for name, numbers in rows:
        try:
            colour = tuple(int(number) for number in numbers)
        except (TypeError, ValueError):
            colour = ()
        if not name or len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
            raise DataError(
                f"{file}: expected a name and its red, green and blue from 0 to 255, got {name!r} "
                f"{' '.join(map(str, numbers))}"
            )
        if palette.setdefault(colour, name) != name:
            raise DataError(f"{file} has the colour {_words(colour)} for both {palette[colour]!r} and {name!r}")
    if not palette:
        raise DataError(f"{file} has no colours; a line is a name and its red, green and blue, such as car 0 0 142")
    return palette


def read_text(file: Path, what: str) -> str:
    """Return the text of a file in UTF-8; messages call the file `what`."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no {what} at {file}") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise DataError(f"{file} is not a text file, expected a {what}") from None
    except OSError as error:
        raise as_segkit_error(error) or DataError(f"cannot read the {what} {file}: {error.strerror}") from error


def _json_rows(text: str, file: Path) -> list[tuple[str, list]]:
    content = parse_json(text, file, DataError)
    if not isinstance(content, dict):
        raise DataError(f'{file} is not a palette: expected {{"name": [red, green, blue], ...}}')
    rows = [(name, numbers if isinstance(numbers, list) else [numbers]) for name, numbers in content.items()]
    return [(name, numbers[:3] if len(numbers) == 4 else numbers) for name, numbers in rows]


def _text_rows(text: str) -> list[tuple[str, list]]:
    rows, spaced = [], True
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            separator = next((s for s in ",;\t" if s in line), None)
            cells = line.split() if separator is None else next(csv.reader([line], delimiter=separator))
            rows.append([cell.strip() for cell in cells])
            spaced = spaced and separator is None
    columns = "".join(cell.lower()[:1] for cell in rows[0][1:]) if rows else ""
    has_header = columns.endswith(("rgb", "rgba"))
    if has_header:
        del rows[0]
    # Without separators, `lane 1 0 0 142` may be the class "lane 1".
    ambiguous = spaced and (len(rows) == 1 or len({tuple(row[:-4]) for row in rows}) < len(rows))
    all_have_four = all(len(row) > 4 and all(map(_is_number, row[-4:])) for row in rows)
    if columns.endswith("rgba") or (all_have_four and not ambiguous):
        rows = [row[:-1] for row in rows]
    return [(" ".join(row[:-3]), row[-3:]) for row in rows]  # a name may be several words


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


class ColourCode:
    """Convert colour-coded masks to labels.

    Args:
        palette: Class names by colour; `ignore` becomes 255.
        class_names: In label order.
    """

    def __init__(self, palette: Mapping[Colour, str], class_names: tuple[str, ...]) -> None:
        labels = {IGNORED: IGNORE_INDEX, **{name: label for label, name in enumerate(class_names)}}
        codes = _codes(np.array(list(palette), dtype=np.uint8))
        order = np.argsort(codes)
        self._codes = codes[order]
        self._labels = np.array([labels[name] for name in palette.values()], dtype=np.uint8)[order]

    def labels(self, picture: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the labels (H, W) uint8 of a mask (H, W, 3) uint8 RGB, and the colours that are not in the palette."""
        codes = _codes(picture)
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = np.unique(codes[self._codes[places] != codes])
        return self._labels[places], [_words((c >> 16, c >> 8 & 255, c & 255)) for c in unknown.tolist()]


def _codes(colours: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _words(colour: Colour) -> str:
    return f"({', '.join(map(str, colour))})"
