"""LabelMe: a JSON file for each image, with shapes of which the later ones lie on top.

The points count from the upper left corner of the image as it is displayed (its EXIF orientation applied). Shapes are
filled by their outline; LabelMe's own exporter also paints each pixel that the outline touches, up to a pixel more.
Points and lines have no area and are skipped. `__ignore__` is neither trained on nor scored, `_background_` is label 0.
An image without a JSON file is unlabelled and not used; an image with a file without shapes is background.

Source: https://github.com/wkentaro/labelme (version 6.3.1, read in 2026).
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from segkit.console import counted
from segkit.data.findings import Finding
from segkit.data.formats import shapes
from segkit.data.formats.records import WHOLE, LabelFiles, LabelledImage, LabelRecords, LabelSource, Region
from segkit.data.images import IMAGE_SUFFIXES, list_images, list_other_files, read_image_header
from segkit.data.rasterize import encode
from segkit.errors import DataError
from segkit.files import is_file, parse_json, write_whole
from segkit.labels import BACKGROUND, is_background
from segkit.names import nearest

IGNORED = "__ignore__"
WITHOUT_AREA = ("point", "points", "line", "linestrip")
FIRST = 8  # JSON files of a folder that are looked at to recognise it
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class _Read(NamedTuple):
    """What a JSON file says: the path of its image, as it is written and absolute, and its regions."""

    file: Path
    image: str
    place: str
    size: tuple[int, int] | None
    regions: Sequence[Region]
    is_inside: bool  # whether the image is inside the JSON, too


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is a folder with LabelMe's JSON files; None if it is not."""
    files = _json_files(path)
    seen = next((file for file in files[:FIRST] if _is_labelme(file)), None)
    return f"{seen.name} has shapes" if seen is not None else None


def read(path: Path) -> LabelSource:
    """Return the images of LabelMe's JSON files below a folder, by split if they lie in folders such as train and val.

    Files next to these folders are a split of their own, "other".

    Raises:
        DataError: There are no such files.
    """
    if path.is_file():
        raise DataError(f"{path} is LabelMe's JSON file of one image; give its folder, {path.parent}")
    files = _json_files(path)
    if not files:
        raise DataError(f"{path} has no JSON files, as LabelMe writes one for each image")
    order = _read_order(path)
    folders: dict[str, list[Path]] = {}
    for file in files:
        folders.setdefault(SPLIT_FOLDERS.get(file.relative_to(path).parts[0].lower(), ""), []).append(file)
    if len(folders.keys() - {""}) < 2:
        folders = {WHOLE: files}
    # Files next to such folders are not trained on, because they would make one set of all; most are of something else.
    others = [file for file in folders.pop("", []) if _is_labelme(file) or _has_image(file)]
    folders |= {"other": others} if others else {}
    splits = {
        split: partial(_read_files, path, of_split, order, is_whole=split == WHOLE)
        for split, of_split in folders.items()
    }
    return LabelSource("labelme", path, f"{counted(len(files), 'JSON file')}{'; ' + order[0] if order else ''}", splits)


def unpack_images(folder: str | os.PathLike) -> list[Path]:
    """Write the images that are only inside LabelMe's JSON files (imageData) where the files say that they lie.

    Args:
        folder: The folder of the JSON files.

    Returns:
        The files that were written; a file that exists is not written again.

    Raises:
        DataError: A JSON file or an image in it cannot be read, or names a place outside `folder` or no image.
    """
    written = []
    for file in _json_files(Path(folder)):
        content = parse_json(LabelFiles("").content(file), file, DataError)
        if not isinstance(content, dict) or not isinstance(content.get("imageData"), str):
            continue
        image = file.parent / _posix(str(content.get("imagePath")))
        if is_file(image):
            continue
        is_below = Path(os.path.abspath(image)).is_relative_to(os.path.abspath(folder))
        if not is_below or image.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{file} has an image inside, but its imagePath is no image below {folder}: {image}")
        if image.parent.is_dir():
            write_whole(image, shapes.decode_base64(content["imageData"], f"the imageData of {file}"))
            written.append(image)
    return written


def _json_files(path: Path) -> list[Path]:
    files = list_other_files(path) if path.is_dir() else []
    return [file for file in files if file.suffix.lower() == ".json" and is_file(file)]


def _is_labelme(file: Path) -> bool:
    try:
        content = file.read_bytes()
    except OSError:  # the reader says it
        return False
    return b'"shapes"' in content and b'"imagePath"' in content


def _read_order(path: Path) -> tuple[str, list[str]] | None:
    """Return why the classes have their order, and the names in labels.txt without `__ignore__` and background.

    The file is in the folder; or next to the folder, as in LabelMe's examples: it then begins with one of the two.
    """
    for file in (path / "labels.txt", path.absolute().parent / "labels.txt"):
        if is_file(file):
            names = [line.strip() for line in LabelFiles("").text(file).splitlines() if line.strip()]
            if file.parent == path or (names and (names[0] == IGNORED or is_background(names[0]))):
                if len(set(names)) < len(names):
                    raise DataError(f"{file} has two classes of the same name: {', '.join(names)}")
                classes = [name for name in names if name != IGNORED and not is_background(name)]
                return f"{file} orders the classes", classes
    return None


def _read_files(
    path: Path, json_files: Sequence[Path], order: tuple[str, list[str]] | None, *, is_whole: bool
) -> LabelRecords:
    names = order[1] if order else None
    files, found = LabelFiles("labelme 1\n" + "\n".join(names or [])), []
    read: list[_Read] = []
    for file in json_files:
        try:
            content = parse_json(files.content(file), file, DataError)
            if not (isinstance(content, dict) and "shapes" in content) and not _has_image(file):
                continue  # a file of something else, such as a list of classes
            _check(content, file)
        except DataError as error:
            found.append(Finding("bad-label", _name(file, path), str(error)))
            continue
        image = _posix(content["imagePath"])
        place = os.path.normpath(os.path.join(file.parent.absolute(), image))
        size = _size(content, (place, file.with_suffix(PurePosixPath(image).suffix)))
        regions = tuple(_regions(content["shapes"], _name(file, path), size, names, found))
        read.append(_Read(file, image, place, size, regions, bool(content.get("imageData"))))
    # An image may lie in another folder than its JSON, also outside of `path`.
    folders = {os.path.dirname(one.place) for one in read}
    root = Path(os.path.commonpath([os.path.abspath(path), *(folder for folder in folders if os.path.isdir(folder))]))
    used: set[str] = set()
    images = [_image(one, root, found, used) for one in read]
    tops = [path] if is_whole else sorted({path / file.relative_to(path).parts[0] for file in json_files})
    for image in (image for top in tops if top.is_dir() for image in list_images(top)):
        name = _name(image.absolute(), root)
        if name.casefold() not in used:
            found.append(Finding("unlabelled", name, f"{image} has no JSON file, so it is not used"))
    painted = {region.class_name for image in images for region in image.regions} - {None}
    if names is None:
        names = sorted(painted - {BACKGROUND})
    names = [*names, *painted.intersection([BACKGROUND])]
    return LabelRecords.of_images(images, names, path=path, root=root, files=files, findings=found)


def _has_image(file: Path) -> bool:
    return any(is_file(file.with_suffix(suffix)) for suffix in IMAGE_SUFFIXES)


def _check(content: Any, file: Path) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f"{file} is not LabelMe's JSON: it has no list of 'shapes'")
    if not isinstance(content.get("imagePath"), str) or not _posix(content["imagePath"]).strip("./"):
        raise DataError(f"{file} does not name its image: its 'imagePath' is {content.get('imagePath')!r:.40}")


def _image(read: _Read, root: Path, found: list[Finding], used: set[str]) -> LabelledImage:
    base = PurePosixPath(read.image)
    folder = os.path.relpath(read.file.parent.absolute(), root)
    # The image may have been moved next to the JSON, or been renamed with it; or all lie in the folder of the images.
    beside = [os.path.join(folder, name) for name in (read.image, base.name, read.file.stem + base.suffix)]
    own, *others = dict.fromkeys(os.path.normpath(name).replace(os.sep, "/") for name in (*beside, base.name))
    there = next((name for name in (own, *others) if is_file(root / name)), None)
    if there not in (own, None):
        found.append(Finding("respelt", own, f"the image {own} is taken to be {root / there}"))
    used.update(name.casefold() for name in ([own, *others] if there is None else [there]))
    hint = f"; it is inside {read.file.name} (imageData), and segkit.data.formats.labelme.unpack_images writes it"
    return LabelledImage(own, read.size, read.regions, others, hint if read.is_inside else "")


def _size(content: dict[str, Any], images: Sequence[str | Path]) -> tuple[int, int] | None:
    """Return the (H, W) in a JSON, or else of the first image; None if there is neither."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if type(height) is int and type(width) is int and height > 0 and width > 0:
        return height, width
    try:
        return next((read_image_header(image).turned for image in images if is_file(image)), None)
    except DataError:  # the reader of the images reports it
        return None


def _regions(
    rows: Sequence[Any], file: str, size: tuple[int, int] | None, names: list[str] | None, found: list[Finding]
) -> Iterator[Region]:
    drawn: list[Region] = []
    for number, row in enumerate(rows, start=1):
        where = f"{file} shape {number}"
        try:
            if not isinstance(row, dict) or not isinstance(row.get("label"), str):
                raise DataError("it has no label")
            name = None if row["label"] == IGNORED else row["label"]
            if names is not None and name is not None and name not in names and not is_background(name):
                close = nearest(name, names)
                hint = f"; did you mean {close!r}?" if close else ""
                sentence = f"{where}: labels.txt has no class {name!r}{hint}"
                found.append(Finding("unknown-class", where, sentence))
                continue
            kind = row.get("shape_type") or "polygon"
            if kind in WITHOUT_AREA:
                found.append(Finding("skipped-shape", where, f"{where}: a {kind} of {name or IGNORED} has no area"))
                continue
            name = BACKGROUND if name is not None and is_background(name) else name
            drawn.append(Region(name, _segmentation(kind, row, size), f"shape {number}"))
        except DataError as error:
            found.append(Finding("bad-label", where, f"{where} cannot be read: {error}"))
    for number, region in enumerate(drawn):
        yield region if region.class_name is not None else _below(region, drawn[number + 1 :], size)


def _segmentation(kind: str, row: dict[str, Any], size: tuple[int, int] | None) -> list[list[float]] | dict[str, Any]:
    try:
        points = np.array(row.get("points"), dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise DataError("its points are not a list of [x, y]")
    if kind == "polygon" or (kind in ("rectangle", "oriented_rectangle", "rotation") and len(points) == 4):
        return shapes.polygon(points)
    if kind == "rectangle" and len(points) == 2:
        return shapes.polygon(shapes.rectangle(*points.min(0), *np.ptp(points, axis=0)))
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*(points[1] - points[0])))
        return shapes.polygon(shapes.ellipse(*points[0], radius, radius))
    if kind == "mask" and len(points) == 2:
        if size is None:
            raise DataError("a mask needs the imageHeight and imageWidth of the file")
        # The box may have been moved by a part of a pixel: like LabelMe, drop it and take the size of the mask.
        left, top = points[0].astype(int).tolist()
        return shapes.rle(shapes.read_png(shapes.decode_base64(row.get("mask"), "its mask")), left, top, size)
    known = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")
    if kind in known:
        raise DataError(f"a {kind} of {counted(len(points), 'point')}")
    raise DataError(f"its shape_type is {kind!r:.40}, expected one of {', '.join((*known, *WITHOUT_AREA))}")


def _below(region: Region, later: Sequence[Region], size: tuple[int, int] | None) -> Region:
    """Return an ignored region without the pixels of the later ones, because 255 is painted on top of all labels."""
    above = [one.segmentation for one in later if one.class_name is not None]
    if size is None or not above:
        return region
    covered = np.bitwise_or.reduce([_draw(segmentation, size) for segmentation in above])
    return region._replace(segmentation=shapes.rle(_draw(region.segmentation, size) & ~covered, 0, 0, size))


def _draw(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a segmentation, (H, W) of 0 and 1."""
    is_rle = isinstance(segmentation, dict)
    counts = segmentation["counts"] if is_rle else encode([np.array(part) for part in segmentation], size)
    return coco_mask.decode({"size": list(size), "counts": counts})


def _posix(name: str) -> str:
    """Return a path that may be of Windows with slashes; of an absolute one, only the name of the file."""
    windows = PureWindowsPath(name)
    return windows.name if windows.is_absolute() or name.startswith(("/", "\\")) else windows.as_posix()


def _name(file: Path, root: Path) -> str:
    return os.path.relpath(file, root).replace(os.sep, "/")
