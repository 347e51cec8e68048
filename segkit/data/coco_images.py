"""The images of a COCO JSON: where their files are, and whether they have the size in the JSON."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from segkit.data.findings import KINDS, Finding, find_oddities
from segkit.data.formats.records import IF_MISSING, OTHER_NAMES
from segkit.data.image_names import ImageNames, is_absolute
from segkit.data.images import ROTATED, ImageHeader, Reading, read_image_header
from segkit.errors import DataError
from segkit.files import is_file

OPENED_AT_ONCE = 8  # image files; most of the time goes into waiting for the disk


class Item(NamedTuple):
    """One image of a COCO file."""

    path: Path
    file_name: str
    size: tuple[int, int]  # (H, W)
    id: Any = None
    drawn: tuple[int, int] | None = None  # (H, W) at which its annotations were drawn, if it differs


def read_items(
    images: Sequence[tuple[int | str, Mapping[str, Any]]],
    root: Path,
    found: list[Finding],
    *,
    reading: Reading,
    allow_outside_root: bool,
    rescale: bool,
) -> list[Item]:
    """Return the images whose files can be used; only the headers are read.

    Args:
        images: The id and the record of each image of a COCO JSON.
        root: Folder of the images.
        found: A list to which findings are added.
        reading: How the files are read.
        allow_outside_root: Whether they may lie outside `root`.
        rescale: Whether a file may have another size than the JSON says.
    """
    real_root = os.path.realpath(root)
    names = _choose_names(root, [row for _, row in images])
    paths = [root / name for name in names]
    faults = [_path_fault(root, real_root, name, allow_outside_root) for name in names]
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        headers = list(pool.map(lambda path, fault: fault or _header_or_fault(path, reading), paths, faults))
    # A name without a file may come from another system.
    files = ImageNames(root)
    lost = [i for i, header in enumerate(headers) if header is None or _is_elsewhere(header, names[i])]
    taken = {name for name, header in zip(names, headers, strict=True) if isinstance(header, ImageHeader)}
    for i, file in zip(lost, files.find([names[i] for i in lost], taken), strict=True):
        if file is not None:
            found.append(Finding("respelt", names[i], f"the image {names[i]} is taken to be {root / file}"))
            names[i] = file if is_absolute(names[i]) or "\\" in names[i] else names[i]
            paths[i], headers[i] = root / file, _header_or_fault(root / file, reading)
    items = []
    for (image, row), name, path, header in zip(images, names, paths, headers, strict=True):
        if header is None:
            hint = files.hint(name) + row.get(IF_MISSING, "")
            found.append(Finding("missing-image", name, f"there is no image at {path}{hint}"))
            continue
        if isinstance(header, Finding):
            if _is_elsewhere(header, name) and (hint := files.hint(name)):  # `allow_outside_root` would not help
                header = Finding("missing-image", name, f"there is no image at {name}{hint}")
            found.append(header)
            continue
        try:
            if isinstance(header, DataError):
                raise header
            size = json_size(row)
        except DataError as error:
            found.append(Finding("unreadable-image", name, str(error)))
            continue
        if size is None:
            found.append(Finding("size-from-file", name, f"{path}: {KINDS['size-from-file'].title}"))
        drawn = None
        try:
            header.check_size(path, size)
        except DataError as error:
            kind, hint = "rescaled" if rescale else "other-size", ""
            if _looks_swapped(header, size):
                kind, hint = "swapped-size", "; height and width look swapped in the JSON"
                if header.orientation in ROTATED:  # and it is not applied
                    kind, hint = "unturned-size", ", the size after the rotation by its EXIF orientation"
            found.append(Finding(kind, name, f"{error}{hint}"))
            if kind != "rescaled":
                continue
            size, drawn = _annotated_frame(header, size), size
        found += find_oddities(path, name, header, size, reading)
        items.append(Item(path, name, size or header.turned, image, drawn))
    return items


def _choose_names(root: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each image: of its possible names the first that is a file below `root`.

    If two images have different names but would get the same file, neither gets it by another name than its own.
    """
    own = [str(row["file_name"]) for row in rows]
    names = [
        next((one for one in (name, *row[OTHER_NAMES]) if is_file(root / one)), name) if row.get(OTHER_NAMES) else name
        for name, row in zip(own, rows, strict=True)
    ]
    meant_by: dict[str, set[str]] = defaultdict(set)
    for name, chosen in zip(own, names, strict=True):
        meant_by[chosen].add(name)
    return [chosen if len(meant_by[chosen]) == 1 else name for name, chosen in zip(own, names, strict=True)]


def _path_fault(root: Path, real_root: str, name: str, allow_outside_root: bool) -> Finding | None:
    if "://" in name:
        return Finding("url", name, f"{name} is a network address, expected a file below {root}")
    try:
        is_name = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # it has half of a surrogate pair
        is_name = False
    if not is_name:
        return Finding("bad-name", repr(name), f"{name!r} cannot be the name of a file")
    if allow_outside_root:
        return None
    absolute = is_absolute(name)
    real = os.path.realpath(os.path.join(real_root, name))
    if absolute or os.path.commonpath([real_root, real]) != real_root:
        target = "" if absolute else f", at {real}"
        return Finding("outside-root", name, f"{name} lies outside the image folder {root}{target}")
    return None


def _is_elsewhere(fault: object, name: str) -> bool:
    """Return whether a name was refused because it is a path of another machine."""
    return isinstance(fault, Finding) and fault.kind == "outside-root" and is_absolute(name) and not is_file(name)


def _header_or_fault(path: Path, reading: Reading) -> ImageHeader | DataError | None:
    """Return the header, or the error if it cannot be read; None if there is no file."""
    if not is_file(path):
        return None
    try:
        return read_image_header(path, reading)
    except DataError as error:
        return error


def json_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (H, W) of an image record; None if it has none.

    Raises:
        DataError: Height and width are not two numbers.
    """
    values = row.get("height"), row.get("width")
    if not all(values):
        return None
    try:
        return int(values[0]), int(values[1])
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{row['file_name']} has the height and width {values} in the JSON, expected numbers") from None


def _looks_swapped(header: ImageHeader, drawn: tuple[int, int]) -> bool:
    """Return whether the JSON seems to have height and width of the image in the wrong order."""
    height, width = header.turned
    if header.stored != header.turned or height == width:
        return False
    # The annotations may have been drawn on a copy of another size: each side is then rounded by up to half a pixel.
    swapped, upright = abs(drawn[0] * height - drawn[1] * width), abs(drawn[0] * width - drawn[1] * height)
    return swapped <= (height + width) / 2 < upright


def _annotated_frame(header: ImageHeader, drawn: tuple[int, int]) -> tuple[int, int] | None:
    """Return the size of the file, rotated or stored, with the orientation of the annotations; None if square."""
    height, width = drawn
    if height == width:
        return None
    frames = (header.turned, header.stored)
    return next(((h, w) for h, w in frames if (h > w) == (height > width)), None)
