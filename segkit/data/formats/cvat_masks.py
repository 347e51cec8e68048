"""CVAT's "segmentation mask 1.1": the folders of Pascal VOC, with the classes and their colours in `labelmap.txt`.

An image without annotations is listed, but has no mask: nobody knows whether it is background or not labelled yet, so
it is not used.

A line is `name:red,green,blue:parts:actions`; the last two may be empty. The order of the lines may change from export
to export, so that only the name says which class is meant.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-smask (read in 2026).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from segkit.data.findings import Finding
from segkit.data.formats import voc
from segkit.data.formats.records import LabelFiles, LabelSource, MaskFiles
from segkit.data.palette import IGNORED, Colour
from segkit.errors import DataError
from segkit.labels import BACKGROUND, is_background

FILE = "labelmap.txt"


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is such an export; None if it is none."""
    return f"{FILE} and masks" if (path / FILE).is_file() and voc.mask_folder(path) else None


def read(path: Path) -> LabelSource:
    """Return the images of an export by split; CVAT calls the only one default.

    Raises:
        DataError: The file or a folder is missing, or the file cannot be used.
    """
    colours = read_labelmap(path / FILE)
    return LabelSource("cvat-masks", path, f"{FILE} and masks", voc.splits_of(path, partial(_read, path, colours)))


def _read(root: Path, colours: dict[Colour, str], names: Sequence[str] | None) -> MaskFiles:
    found: list[Finding] = []
    pairs = voc.pairs_of(root, names, found, all_labelled=False)
    classes = list(dict.fromkeys(name for name in colours.values() if name != IGNORED))
    classes.sort(key=lambda name: name != BACKGROUND)  # background is label 0; the others keep their order
    return MaskFiles(root / FILE, pairs, classes, colours=colours, findings=found)


def read_labelmap(file: Path) -> dict[Colour, str]:
    """Return the class of each colour; `ignore` in any case means ignored pixels.

    Raises:
        DataError: A line has another form, or two classes have the same colour.
    """
    colours: dict[Colour, str] = {}
    for number, line in enumerate(LabelFiles("").text(file).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        numbers = rest.split(":")[0].split(",")
        if not name.strip() or len(numbers) != 3 or not all(n.strip().isdecimal() and int(n) < 256 for n in numbers):
            raise DataError(f"{file}, line {number}: expected a line such as car:0,0,142::, got {line[:60]!r}")
        name = name.strip()
        name = IGNORED if name.lower() == IGNORED else BACKGROUND if is_background(name) else name
        colour = tuple(int(n) for n in numbers)
        other = colours.setdefault(colour, name)
        if other != name:
            raise DataError(
                f"{file} has the colour {colour} for both {other!r} and {name!r}, so that masks do not say which one "
                "is meant; give each label a colour of its own in CVAT, and export again"
            )
    if not colours:
        raise DataError(f"{file} names no class, expected lines such as car:0,0,142::")
    return colours
