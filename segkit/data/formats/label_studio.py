"""Label Studio: a JSON list of tasks, each with an image and its annotations; the later regions lie on top.

Coordinates are per cent of the width and the height of the image. Rectangles are rotated in degrees clockwise around
their upper left corner, ellipses around their middle. Of several annotations of a task, the ground truth is used, else
the first that was not skipped; predictions are not used. A task without an annotation is unlabelled and not used; a
task whose annotation has no region is background. A pixel of a brush belongs to the region if its alpha is at least
half of the largest one; Label Studio's own COCO export takes each pixel with any alpha.

Sources: https://labelstud.io/guide/task_format and https://labelstud.io/tags (read in 2026), and for brushes
https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/README.md.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from segkit.data.findings import Finding
from segkit.data.formats import shapes
from segkit.data.formats.records import WHOLE, LabelFiles, LabelledImage, LabelRecords, LabelSource, Region
from segkit.data.images import IMAGE_SUFFIXES
from segkit.errors import DataError
from segkit.files import is_file, parse_json

# Types of results that are regions; of a region of the tag <Labels>, one result has the shape and another the class.
WITH_CLASS = ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels", "bitmasklabels", "labels")
WITHOUT_CLASS = ("polygon", "rectangle", "ellipse", "brush", "bitmask")
WITHOUT_AREA = ("keypoint", "keypointlabels", "vector", "vectorlabels")
_BETWEEN = re.compile(r"\s*,?\s*")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # the name of an uploaded file, after eight digits


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is a JSON list, or a folder with a single one; None if it is neither."""
    file = _file(path)
    return f"{file.name} is a list of tasks" if file is not None else None


def read(path: Path) -> LabelSource:
    """Return the images of a JSON list of tasks.

    Raises:
        DataError: There is no such file.
    """
    file = _file(path)
    if file is None:
        raise DataError(f"{path} is not Label Studio's JSON, which is a list of tasks; export the project as JSON")
    return LabelSource(
        "label-studio", path, f"{file.name} is a list of tasks", {WHOLE: partial(_read_tasks, path, file)}
    )


def _file(path: Path) -> Path | None:
    if path.is_dir():
        # Another list, such as one of class names, is no sign of Label Studio.
        lists = [file for file in sorted(path.iterdir()) if _is_list(file) and b'"data"' in file.read_bytes()]
        return lists[0] if len(lists) == 1 else None
    return path if _is_list(path) else None


def _is_list(file: Path) -> bool:
    if file.suffix.lower() != ".json" or not is_file(file):
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError:  # the reader says it
        return False


def _read_tasks(path: Path, file: Path) -> LabelRecords:
    files, found = LabelFiles("label-studio 1"), []
    images = []
    for number, task in enumerate(_tasks(files.content(file), file), start=1):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise DataError(
                f"{file} is not Label Studio's JSON: expected a list of tasks with 'data' and 'annotations'; export "
                "the project as JSON, not as JSON-MIN"
            )
        where = f"task {task.get('id', number)}"
        try:
            names, source = _names(task)
            annotation = _annotation(task, where, names[0], found)
            if annotation is not None:
                images.append(_image(annotation, where, names, source, found))
        except DataError as error:
            found.append(Finding("bad-label", where, f"{file}: {where} cannot be read: {error}"))
    classes = sorted({str(region.class_name) for image in images for region in image.regions})
    return LabelRecords.of_images(images, classes, path=path, root=file.parent, files=files, findings=found)


def _tasks(content: bytes, file: Path) -> Iterator[Any]:
    """Yield the tasks of a JSON list one by one: brushes are lists of numbers, which need 30 times the memory."""
    try:
        text = content.decode("utf-8-sig")
        decoder, at = json.JSONDecoder(), _BETWEEN.match(text, text.index("[") + 1).end()
        while text[at] != "]":
            task, at = decoder.raw_decode(text, at)
            yield task
            at = _BETWEEN.match(text, at).end()
        if text[at + 1 :].strip():
            raise ValueError("more than one list")
    except (ValueError, IndexError, RecursionError) as error:
        parse_json(content, file, DataError)  # says what is wrong
        raise DataError(f"{file} is not valid JSON") from error


def _annotation(task: Mapping[str, Any], where: str, name: str, found: list[Finding]) -> list[Mapping[str, Any]] | None:
    """Return the results of the annotation to use; None if the task is unlabelled."""
    annotations = task.get("annotations") or task.get("completions") or []  # the latter in early versions
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise DataError("its 'annotations' must be a list of objects")
    kept = [one for one in annotations if not (one.get("was_cancelled") or one.get("skipped"))]
    if not kept:
        why = "its annotation was skipped" if annotations else "it has no annotation"
        found.append(Finding("unlabelled", name, f"{where} ({name}) is not used: {why}"))
        return None
    chosen = next((one for one in kept if one.get("ground_truth")), kept[0])
    if len(kept) > 1:
        which = "the ground truth" if chosen.get("ground_truth") else "the first"
        found.append(Finding("other-annotations", name, f"{where} ({name}): of {len(kept)} annotations, {which}"))
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise DataError("the 'result' of its annotation must be a list of objects")
    return results


def _names(task: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the names under which the image of a task may lie, and what the task says."""
    texts = {key: value for key, value in task["data"].items() if isinstance(value, str) and value.strip()}
    images = {key: value for key, value in texts.items() if _path(value).lower().endswith(IMAGE_SUFFIXES)} or texts
    if not images or ("image" not in images and len(images) > 1):
        raise DataError(f"its 'data' must name one image, got {', '.join(images) or 'none'}")
    text = images.get("image") or next(iter(images.values()))
    parts = [
        part for part in PureWindowsPath(_path(text)).parts if part.strip("/\\.") and not part.endswith((":", ":\\"))
    ]
    if not parts:
        raise DataError(f"its 'data' names no image: {text!r:.60}")
    names = ["/".join(parts[start:]) for start in range(len(parts))]
    uploaded = _UPLOADED.fullmatch(parts[-1])
    if uploaded and (task.get("file_upload") or "upload" in parts):
        names.append(uploaded[1])
    return list(dict.fromkeys([*names, f"images/{parts[-1]}", f"images/{names[-1]}"])), text


def _path(text: str) -> str:
    """Return the path in what a task says: a file, an address, or Label Studio's own address of one of these."""
    if "://" not in text and not text.startswith(("/data/", "/tasks/")):
        return text
    address = urlsplit(text)
    values = parse_qs(address.query)
    if "d" in values and "local-files" in address.path:
        return values["d"][0]
    if "fileuri" in values:
        encoded = values["fileuri"][0]
        try:
            return _path(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode())
        except ValueError:
            return text
    return unquote(address.path)


def _image(
    results: Sequence[Mapping[str, Any]], where: str, names: Sequence[str], source: str, found: list[Finding]
) -> LabelledImage:
    sizes = {str(size): size for row in results if (size := (row.get("original_height"), row.get("original_width")))[0]}
    if len(sizes) > 1:
        raise DataError(f"its regions are of images of several sizes: {', '.join(sizes)}")
    size = None
    for height, width in sizes.values():
        if not all(type(one) in (int, float) and 0 < one == int(one) for one in (height, width)):
            raise DataError(f"its original_height and original_width are {height!r:.20} and {width!r:.20}")
        size = int(height), int(width)
    hint = f"; the task says {source}: give the folder of the images as `images`, or put them next to the JSON"
    return LabelledImage(names[0], size, list(_regions(results, where, size, found)), names[1:], hint)


def _regions(
    results: Sequence[Mapping[str, Any]], where: str, size: tuple[int, int] | None, found: list[Finding]
) -> Iterator[Region]:
    with_class = {row.get("id") for row in results if row.get("type") in WITH_CLASS}
    for number, row in enumerate(results, start=1):
        kind, value = row.get("type"), row.get("value")
        place = f"region {row.get('id', number)}"
        if kind in WITHOUT_AREA:
            found.append(Finding("skipped-shape", f"{where} {place}", f"{where}: {place}, a {kind}, has no area"))
        if kind not in (*WITH_CLASS, *WITHOUT_CLASS) or (kind in WITHOUT_CLASS and row.get("id") in with_class):
            continue
        try:
            if not isinstance(value, dict):
                raise DataError("it has no 'value'")
            if kind == "labels" and "start" in value:  # of a text or a sound
                continue
            labels = value.get(kind) if kind in WITH_CLASS else None
            if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
                raise DataError(f"expected one class, got {labels!r:.60}")
            if row.get("image_rotation"):
                raise DataError("the image was rotated in Label Studio; rotate the image file instead")
            if size is None:
                raise DataError("it has no original_width and original_height")
            yield Region(labels[0], _segmentation(value, size), place)
        except DataError as error:
            found.append(Finding("bad-label", f"{where} {place}", f"{where}: {place} cannot be read: {error}"))


def _segmentation(value: Mapping[str, Any], size: tuple[int, int]) -> list[list[float]] | dict[str, Any]:
    scale = np.array([size[1], size[0]]) / 100
    if "points" in value:
        points = _array(value["points"])
        if points.ndim != 2 or points.shape[1] != 2:
            raise DataError("its points are not a list of [x, y]")
        return shapes.polygon(points * scale)
    if "rle" in value:
        return shapes.rle(decode_brush(value["rle"], size), 0, 0, size)
    if "imageDataURL" in value:
        _, _, content = str(value["imageDataURL"]).partition("base64,")
        mask = shapes.read_png(shapes.decode_base64(content, "its imageDataURL"))
        if mask.shape != size:
            raise DataError(f"its mask is of size {mask.shape}, the image is {size} (height, width)")
        return shapes.rle(mask >= max(1, mask.max() / 2), 0, 0, size)
    (degrees,) = _array([value.get("rotation") or 0])
    keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    numbers = _array([value.get(key) for key in keys])
    (x, y), (width, height) = numbers[:2] * scale, numbers[2:] * scale
    # The rotation is one of pixels: per cent of the width and of the height are not equally long.
    form = shapes.ellipse if "radiusX" in value else shapes.rectangle
    return shapes.polygon(shapes.turn(form(x, y, width, height), degrees, x, y))


def _array(values: Any) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.isfinite(array).all():
        raise DataError(f"expected numbers, got {values!r:.60}")
    return array


def decode_brush(content: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return which pixels a brush has painted, (H, W) bool.

    The bytes are a stream of bits: 32 for the number of values, 5 for the bits of a value less one, 4 x 4 for the bits
    of the counts of each of four classes less one. Then come blocks: a bit (1 for a repeated value, 0 for single ones),
    two bits for the class of the count, the count less one, and the value or the values. The values are red, green,
    blue and alpha of each pixel, row by row.

    Args:
        content: The bytes, 0 to 255.
        size: (H, W) of the image.

    Raises:
        DataError: These are not such bytes, or of another size.
    """
    try:
        data = bytes(content)
    except (TypeError, ValueError) as error:
        raise DataError("its rle is not a list of bytes") from error
    bits, at = 8 * len(data), 0

    def take(count: int) -> int:
        nonlocal at
        if at + count > bits:
            raise DataError("its rle ends too early")
        first, last = at // 8, (at + count + 7) // 8
        number = int.from_bytes(data[first:last], "big") >> (8 * last - at - count) & ((1 << count) - 1)
        at += count
        return number

    total, width = take(32), take(5) + 1
    count_bits = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise DataError(f"its rle has {total} values, expected 4 for each of {size[0]} x {size[1]} pixels")
    values, filled = np.zeros(total, dtype=np.uint32), 0
    stream = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    weights = 1 << np.arange(width, dtype=np.uint64)[::-1]
    while filled < total:
        is_repeated, kind = take(1), take(2)
        count = take(count_bits[kind]) + 1
        if is_repeated:
            values[filled : filled + count] = take(width)
        else:
            if at + count * width > bits:
                raise DataError("its rle ends too early")
            block = stream[at : at + count * width].reshape(count, width) @ weights
            at += count * width
            values[filled : filled + count] = block[: total - filled]
        filled += count
    alpha = values.reshape(*size, 4)[..., 3]
    return alpha >= max(1, int(alpha.max()) / 2)
