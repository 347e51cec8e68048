"""CVAT for images 1.1: annotations.xml with the shapes of all images; a higher z_order lies on top.

Coordinates are pixels from the upper left corner. The runs of a mask go row by row over its crop, first those outside.
Boxes and ellipses may be rotated, in degrees clockwise around their middle. Lines, points, cuboids, skeletons and tags
have no area and are skipped. An image that is listed without shapes is background.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/ (read in 2026).
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

import numpy as np

from segkit.console import counted
from segkit.data.findings import Finding
from segkit.data.formats import shapes
from segkit.data.formats.records import WHOLE, LabelFiles, LabelledImage, LabelRecords, LabelSource, Region
from segkit.errors import DataError
from segkit.names import nearest

FILE = "annotations.xml"
WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")  # shapes, and types of labels
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "val" for name in ("val", "valid", "validation")},
    **{name: "test" for name in ("test", "testing")},
}
_START = re.compile(rb"<annotations[\s>]")
_IMAGE = re.compile(rb"<image\s[^>]*>")
_SUBSET = re.compile(rb"\ssubset=(?:\"([^\"]*)\"|'([^']*)')")


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is CVAT's XML, or a folder with its annotations.xml; None if it is neither."""
    file = _file(path)
    if file.suffix.lower() != ".xml":
        return None
    try:
        with file.open("rb") as opened:
            return f"{file.name} is CVAT's" if _START.search(opened.read(4096)) else None
    except OSError:
        return None


def read(path: Path) -> LabelSource:
    """Return the images of CVAT's XML, by split if they belong to subsets such as Train and Validation.

    Raises:
        DataError: The file cannot be used.
    """
    file = _file(path)
    content = LabelFiles("").content(file)
    tags = _IMAGE.findall(content)
    if not tags and b"<track" in content:
        raise DataError(f"{file} is CVAT for video, which has no images; export the task as CVAT for images 1.1")
    found = [_SUBSET.search(tag) for tag in tags]
    subsets = {b"".join(filter(None, one.groups())).decode(errors="replace") if one else "" for one in found}
    split_of = {subset: SPLIT_NAMES.get(subset.lower(), subset or "default") for subset in sorted(subsets)}
    if len(set(split_of.values()).intersection(SPLIT_NAMES.values())) < 2:
        splits = {WHOLE: partial(_read_images, path, file, None)}
    else:
        order = sorted(set(split_of.values()), key=lambda split: (split not in SPLIT_NAMES.values(), split))
        splits = {split: partial(_read_images, path, file, split) for split in order}
    return LabelSource("cvat", path, f"{file.name} lists {counted(len(tags), 'image')}", splits)


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def _read_images(path: Path, file: Path, split: str | None) -> LabelRecords:
    files, found = LabelFiles(f"cvat 1 {split}"), []
    try:
        root = ElementTree.fromstring(files.content(file))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the two others: an encoding that is unknown
        raise DataError(f"{file} is not XML that can be read: {error}") from error
    names = [
        (label.findtext("name") or "").strip()
        for label in root.findall("./meta//labels/label")
        if label.find("parent") is None and label.findtext("type") not in WITHOUT_AREA
    ]
    names = list(dict.fromkeys(names))  # a project lists its labels again in each task
    if not names:
        raise DataError(f"{file} has no labels in its <meta>, which name the classes and their order")
    images: dict[str, LabelledImage] = {}
    for row in root.iter("image"):
        subset = row.get("subset") or ""
        if split is None or SPLIT_NAMES.get(subset.lower(), subset or "default") == split:
            image = _image(row, subset, names, file, found)
            if image.file_name in images:
                sentence = f"{file} lists two images called {image.file_name}; export their tasks one by one"
                found.append(Finding("bad-label", image.file_name, sentence))
            images[image.file_name] = image
    return LabelRecords.of_images(images.values(), names, path=path, root=file.parent, files=files, findings=found)


def _image(row: ElementTree.Element, subset: str, names: list[str], file: Path, found: list[Finding]) -> LabelledImage:
    name = PureWindowsPath(row.get("name") or "").as_posix()
    if not PureWindowsPath(name).name:
        raise DataError(f"{file} has an image without a name (id {row.get('id')})")
    size = None
    try:
        if "height" in row.attrib and "width" in row.attrib:
            size = int(row.attrib["height"]), int(row.attrib["width"])
    except ValueError:
        found.append(Finding("bad-label", name, f"{file}: the image {name} has no height and width in whole numbers"))
    drawn: list[tuple[int, Region]] = []
    for number, shape in enumerate(row, start=1):
        where = f"{shape.tag} {number}"
        try:
            if shape.tag in WITHOUT_AREA or shape.get("outside") == "1":
                why = "is outside" if shape.get("outside") == "1" else "has no area"
                sentence = f"{file}: {where} of {name}, a {shape.get('label')}, {why}"
                found.append(Finding("skipped-shape", f"{name} {where}", sentence))
                continue
            if shape.tag not in READERS:
                raise DataError(f"it is unknown, expected one of {', '.join((*READERS, *WITHOUT_AREA))}")
            label = (shape.get("label") or "").strip()
            if label not in names:
                close = nearest(label, names)
                hint = f"; did you mean {close!r}?" if close else ""
                sentence = f"{file}: {where} of {name} has the label {label!r}, which is not in <meta>{hint}"
                found.append(Finding("unknown-class", f"{name} {where}", sentence))
                continue
            segmentation = READERS[shape.tag](shape.attrib, size)
            drawn.append((int(shape.get("z_order") or 0), Region(label, segmentation, where)))
        except (DataError, ValueError, KeyError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            sentence = f"{file}: {where} of {name} cannot be read: {why}"
            found.append(Finding("bad-label", f"{name} {where}", sentence))
    regions = [region for _, region in sorted(drawn, key=lambda pair: pair[0])]
    # An export with images has them in images/, or of a project in images/SUBSET/. Images of two subsets may have the
    # same name, so the subset is a part of it.
    if subset:
        others = f"images/{subset}/{name}", f"images/{name}", name
        return LabelledImage(f"{subset}/{name}", size, regions, others)
    return LabelledImage(name, size, regions, (f"images/{name}",))


def _numbers(attributes: Mapping[str, str], *keys: str) -> list[float]:
    values = [float(attributes[key]) for key in keys]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{', '.join(keys)} are {values}")
    return values


def _turned(points: np.ndarray, attributes: Mapping[str, str], x: float, y: float) -> list[list[float]]:
    (degrees,) = _numbers({"rotation": "0", **attributes}, "rotation")
    return shapes.polygon(shapes.turn(points, degrees, x, y) if degrees else points)


def _polygon(attributes: Mapping[str, str], size: tuple[int, int] | None) -> list[list[float]]:
    try:
        pairs = [pair.split(",") for pair in attributes["points"].split(";") if pair.strip()]
        points = np.array(pairs, dtype=np.float64)
    except ValueError:
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise DataError('its points are not "x,y;x,y"')
    return shapes.polygon(points)


def _box(attributes: Mapping[str, str], size: tuple[int, int] | None) -> list[list[float]]:
    left, top, right, bottom = _numbers(attributes, "xtl", "ytl", "xbr", "ybr")
    points = shapes.rectangle(left, top, right - left, bottom - top)
    return _turned(points, attributes, (left + right) / 2, (top + bottom) / 2)


def _ellipse(attributes: Mapping[str, str], size: tuple[int, int] | None) -> list[list[float]]:
    x, y, radius_x, radius_y = _numbers(attributes, "cx", "cy", "rx", "ry")
    return _turned(shapes.ellipse(x, y, radius_x, radius_y), attributes, x, y)


def _mask(attributes: Mapping[str, str], size: tuple[int, int] | None) -> dict[str, object]:
    if size is None:
        raise DataError("a mask needs the height and width of its image")
    left, top, width, height = (int(attributes[key]) for key in ("left", "top", "width", "height"))
    try:
        runs = np.array(attributes["rle"].split(","), dtype=np.int64)
    except ValueError as error:
        raise DataError("its rle is not a list of whole numbers") from error
    if runs.min() < 0 or runs.sum() != width * height or width < 1:
        raise DataError(f"its runs come to {runs.sum()} pixels, expected {width} x {height}")
    crop = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(height, width)
    return shapes.rle(crop, left, top, size)


READERS: Mapping[str, Callable[[Mapping[str, str], tuple[int, int] | None], list[list[float]] | dict[str, object]]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
