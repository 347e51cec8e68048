"""YOLO segmentation: data.yaml, and for each image a text file with a polygon in each line.

A line is the number of the class and x and y of each point, as shares of the width and the height of the image as it
is displayed (its EXIF orientation applied); five numbers are a class and a box. Several parts and holes of an object
are joined by bridges without width, which come out right when a polygon is filled by the even-odd rule, as here. An
image without a file is background.

Source: https://docs.ultralytics.com/datasets/segment, and the parser of ultralytics 8.4 (`verify_image_label` and
`check_det_dataset` in ultralytics/data/utils.py; read in 2026).
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from segkit.data.findings import Finding
from segkit.data.formats.records import WHOLE, LabelFiles, LabelledImage, LabelRecords, LabelSource, Region
from segkit.data.images import is_image, list_images, read_image_header
from segkit.errors import DataError

NAMES = ("data.yaml", "data.yml", "dataset.yaml")
BEYOND = 0.1  # share of the image
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def recognise(path: Path) -> str | None:
    """Return what shows that `path` is a data.yaml, or a folder with one; None if it is neither."""
    file = _find_yaml(path)
    if file is None:
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return f"{file.name} is there" if path.is_dir() else None
    is_ours = isinstance(content, dict) and ("names" in content or "nc" in content)
    return f"{file.name} names the classes" if is_ours else None


def read(path: Path) -> LabelSource:
    """Return the images of a data.yaml by split.

    Raises:
        DataError: The file cannot be used.
    """
    file = _find_yaml(path)
    if file is None:
        raise DataError(f"{path} has no data.yaml, which names the classes and the folders of a YOLO data set")
    content = _load(file)
    names = _class_names(content, file)
    splits = {}
    for split, keys in SPLIT_KEYS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is not None:
            splits[split] = partial(_read_split, file, content, value, names)
    if not splits:
        folder = file.parent / "images"
        splits[WHOLE] = partial(
            _read_split, file, content, str((folder if folder.is_dir() else file.parent).absolute()), names
        )
    return LabelSource("yolo", path, f"{file.name} names {len(names)} classes", splits)


def _find_yaml(path: Path) -> Path | None:
    if path.is_dir():
        return next((path / name for name in NAMES if (path / name).is_file()), None)
    return path if path.suffix.lower() in (".yaml", ".yml") and path.is_file() else None


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(LabelFiles("yolo").text(file))
    except yaml.YAMLError as error:
        raise DataError(f"{file} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is not a data.yaml: expected lines such as 'names: [car, road]'")
    if "kpt_shape" in content:  # a line of key points can have as many numbers as one of a polygon
        raise DataError(f"{file} is of YOLO pose (it has `kpt_shape`), which has boxes and points, but no masks")
    return content


def _class_names(content: Mapping[str, Any], file: Path) -> list[str]:
    names, count = content.get("names"), content.get("nc")
    if names is None and type(count) is int:
        return [f"class_{number}" for number in range(count)]  # as the tool calls them
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(type(name) in (str, int, float) for name in names):
        raise DataError(
            f"{file}: `names` must be a list of class names, or a mapping from 0, 1 ... to them; put a name such as "
            "yes or no in quotes"
        )
    names = [str(name) for name in names]
    if len(set(names)) < len(names):
        raise DataError(f"{file} has two classes of the same name: {', '.join(names)}")
    if count not in (None, len(names)):
        raise DataError(f"{file} has {len(names)} `names`, but `nc` is {count}")
    return names


def _read_split(file: Path, content: Mapping[str, Any], value: Any, names: list[str]) -> LabelRecords:
    base = Path(os.path.normpath(file.absolute().parent / str(content.get("path") or "")))
    if not base.is_dir():  # a path of the machine that wrote the file
        base = file.absolute().parent
    folders, paths = set(), []
    for one in value if isinstance(value, list) else [value]:
        place = _place(str(one), base, file)
        if place.is_dir():
            folders.add(place)
            paths += list_images(place)
        elif is_image(place):
            paths.append(place)
        else:
            paths += _listed(place, base)
    if not paths:
        raise DataError(f"{file}: there are no images at {value}")
    root = Path(os.path.commonpath([base, *(path.parent for path in paths)]))
    files, found = LabelFiles("yolo 2\n" + "\n".join(names)), []
    label_of = _label_files(dict.fromkeys(paths))
    images = [_image(path, label, root, names, files, found) for path, label in label_of.items()]
    known: dict[Path, Path] = {}
    for path, label in label_of.items():
        other = known.setdefault(label, path)
        if other != path and label.is_file():
            sentence = f"{other} and {path} have the same name, so it is not clear which one {label} is of"
            found.append(Finding("bad-label", path.name, sentence))
    for folder in folders:
        texts = _label_file(folder / "x").parent.rglob("*.[tT][xX][tT]")
        lone = sorted(label for label in texts if label not in known)
        for label in lone:
            if label.name != "classes.txt" and label.parent != file.absolute().parent:
                found.append(Finding("lone-label", label.name, f"there is no image of the label file {label}"))
    return LabelRecords.of_images(images, names, path=file, root=root, files=files, overlap="smallest", findings=found)


def _place(value: str, base: Path, file: Path) -> Path:
    """Return the folder, list or image that an entry of data.yaml names."""
    value = value.replace("\\", "/")
    # Roboflow writes ../train/images for the folder train/images next to the file.
    places = [base / value, base / value.removeprefix("../"), file.absolute().parent / value.removeprefix("../")]
    place = next((one for one in places if one.exists()), None)
    if place is None:
        raise DataError(f"{file} names {value}, but there is no {os.path.normpath(places[0])}")
    return Path(os.path.normpath(place))


def _listed(file: Path, base: Path) -> list[Path]:
    """Return the images that a text file lists, one path in each line, below the list or the folder of the data."""
    paths = []
    for line in LabelFiles("list").text(file).splitlines():
        if not (name := line.strip().replace("\\", "/")):
            continue
        # The line may begin with folders of another machine, or of the archive (CVAT: data/images/train/1.jpg).
        parts = PurePosixPath(name.removeprefix("./")).parts
        ends = [Path(name), *(Path(*parts[start:]) for start in range(len(parts)))]
        places = [folder / end for end in ends for folder in (base, file.parent)]
        here = base / Path(*(part for part in parts if part not in ("/", "..")))  # the reader of images reports it
        paths.append(Path(os.path.normpath(next((one for one in places if one.is_file()), here))))
    return paths


def _image(
    path: Path, label_file: Path, root: Path, names: list[str], files: LabelFiles, found: list[Finding]
) -> LabelledImage:
    name = path.relative_to(root).as_posix()
    try:
        size = read_image_header(path).turned if is_image(path) else None
    except DataError:  # the reader of the images reports it
        size = None
    if size is None or not label_file.is_file():
        return LabelledImage(name, size, [])
    return LabelledImage(name, size, list(_regions(label_file, size, names, files, found)))


def _label_files(paths: Iterable[Path]) -> dict[Path, Path]:
    """Return where the text file of each image is; its accents may be spelt in another way, or its suffix .TXT."""
    listed: dict[Path, dict[str, Path]] = {}
    label_of = {}
    for path in paths:
        file = _label_file(path)
        if not file.is_file():
            if file.parent not in listed:
                there = file.parent.iterdir() if file.parent.is_dir() else ()
                listed[file.parent] = {_spelt(one): one for one in there}
            file = listed[file.parent].get(_spelt(file), file)
        label_of[path] = file
    return label_of


def _spelt(file: Path) -> str:
    return unicodedata.normalize("NFC", file.stem) + file.suffix.lower()


def _label_file(path: Path) -> Path:
    """Return the text file of an image: the last folder called images becomes labels, the suffix becomes .txt."""
    parts = list(path.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def _regions(
    file: Path, size: tuple[int, int], names: list[str], files: LabelFiles, found: list[Finding]
) -> Iterator[Region]:
    height, width = size
    for number, line in enumerate(files.text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{file.name} line {number}"
        try:
            values = np.array(words, dtype=np.float64)
        except ValueError:
            found.append(Finding("bad-label", where, f"{file}, line {number}: expected numbers, got {line[:40]!r}"))
            continue
        label, points = values[0], values[1:]
        if not np.isfinite(values).all():
            found.append(Finding("bad-label", where, f"{file}, line {number}: expected numbers, got {line[:40]!r}"))
            continue
        if label not in range(len(names)):
            sentence = f"{file}, line {number}: there is no class {words[0]}, they are 0 to {len(names) - 1}"
            found.append(Finding("unknown-class", where, sentence))
            continue
        name = names[int(label)]
        if len(points) == 4:
            (x, y), (w, h) = points[:2] * (width, height), points[2:] * (width, height)
            yield Region(name, None, where, [float(x - w / 2), float(y - h / 2), float(w), float(h)])
            continue
        if len(points) < 6 or len(points) % 2:
            sentence = (
                f"{file}, line {number}: expected a class and x y of three points or more, got {len(words)} numbers"
            )
            found.append(Finding("bad-label", where, sentence))
            continue
        # A polygon at the border may reach a little beyond it, and is cut there.
        if points.max() > 1 + BEYOND or points.min() < -BEYOND:
            wrong = points.max() if points.max() > 1 + BEYOND else points.min()
            sentence = f"{file}, line {number}: expected shares of the image in 0..1, got {wrong:g}"
            found.append(Finding("bad-label", where, sentence))
            continue
        yield Region(name, [(points.reshape(-1, 2) * (width, height)).ravel().tolist()], where)
