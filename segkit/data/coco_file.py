"""The one reader of COCO JSON files, for training, checks and folds: faults become findings instead of exceptions."""

import hashlib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from segkit.class_map import IGNORED, classes_of, lines_without_class, map_names
from segkit.console import counted
from segkit.data.coco_images import Item, json_size, read_items
from segkit.data.findings import FEW, KINDS, LISTED, Finding, raise_errors
from segkit.data.formats.records import LabelRecords
from segkit.data.images import AS_USUAL, Reading
from segkit.data.rasterize import OVERLAPS, Annotation
from segkit.data.segmentation import box_shape, is_normalised, read_segmentation, rescale, shape_areas
from segkit.errors import DataError, as_segkit_error
from segkit.files import parse_json
from segkit.labels import BACKGROUND, IGNORE_INDEX, is_background

OVERLAP = "segkit_overlap"  # key of a JSON of labels of another format: which region lies on top
Id = int | str
Row = dict[str, Any]  # an object of the JSON
_FLAGS = dict.fromkeys(("", "0", "0.0", "false", "no"), False) | dict.fromkeys(("1", "1.0", "true", "yes"), True)
_WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,18})(\.0+)?")


class Allowed(NamedTuple):
    """What is accepted in a COCO JSON that by default is an error, or paints nothing.

    Attributes:
        allow_outside_root: Images outside their folder, by absolute paths, `..` or links.
        rescale_annotations: Images of another size than the JSON says; the annotations are scaled to it.
        merge_same_name: Several categories with one name; they are one class.
        bbox_as_mask: Annotations without a segmentation; their box is painted.
    """

    allow_outside_root: bool = False
    rescale_annotations: bool = False
    merge_same_name: bool = False
    bbox_as_mask: bool = False


NOTHING = Allowed()


@dataclass
class CocoRecords:
    """The records of a COCO JSON, each annotation with its image; no image file has been read.

    Attributes:
        file: The JSON.
        root: The folder from which the file names of the images start by default.
        content: The whole JSON, unchanged.
        categories: Names by id, in id order.
        class_names: The names of the labels 1, 2 ...; each name once.
        labels: The label of each category id; 0 for a category called background.
        images: The image records by id. If an id occurs twice, the first record.
        annotations: The annotations of each image id, as pairs of the category id and the record.
        findings: All errors, warnings and notes about the file.
        digest: SHA-256 of the file.
        overlap: Which region lies on top by the rule of the format, a key of `segkit.data.rasterize.OVERLAPS`.
    """

    file: Path
    root: Path
    content: Row
    categories: dict[Id, str]
    class_names: tuple[str, ...]
    labels: dict[Id, int]
    images: dict[Id, Row]
    annotations: dict[Id, list[tuple[Id, Row]]]
    findings: list[Finding]
    digest: "hashlib._Hash"
    overlap: str


@dataclass
class CocoFile:
    """A COCO JSON, with the images that can be used.

    Attributes:
        categories: Names by id, in id order.
        class_names: The names of the labels 1, 2 ...; each name once.
        items: The images that can be used.
        annotations: The regions of each of these images.
        findings: All errors, warnings and notes about the file and its images.
        digest: Changes with everything that the masks depend on.
        overlap: Which region lies on top by the rule of the format.
    """

    categories: dict[Id, str]
    class_names: tuple[str, ...]
    items: list[Item]
    annotations: list[list[Annotation]]
    findings: list[Finding]
    digest: str
    overlap: str


def read_coco(
    file: str | os.PathLike | LabelRecords,
    root: str | os.PathLike | None = None,
    *,
    reading: Reading = AS_USUAL,
    allowed: Allowed = NOTHING,
    names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
) -> CocoFile:
    """Read and check a COCO JSON and the headers of its images.

    Args:
        file: The JSON, or what the reader of another format returned.
        root: Folder of the images. By default the folder of the JSON.
        reading: How the images are read.
        allowed: What to accept that by default is an error.
        names: See `read_records`.
        class_map: See `read_records`.

    Raises:
        DataError: The file cannot be read, is not a COCO file, or has a category that is not in `names`.
    """
    records = read_records(file, names=names, merge_same_name=allowed.merge_same_name, class_map=class_map)
    found = records.findings
    items = read_items(
        list(records.images.items()),
        records.root if root is None else Path(root),
        found,
        reading=reading,
        allow_outside_root=allowed.allow_outside_root,
        rescale=allowed.rescale_annotations,
    )
    regions = [
        read_regions(records, item.id, item.drawn or item.size, fit_to=item.size, bbox_as_mask=allowed.bbox_as_mask)
        for item in items
    ]
    find_faults_of_all(records, regions)
    sizes = [(item.id, item.size, item.drawn) for item in items]
    records.digest.update(repr([records.labels, allowed.bbox_as_mask, sizes]).encode())
    categories = {i: name for i, name in records.categories.items() if records.labels[i] != IGNORE_INDEX}
    digest = records.digest.hexdigest()
    return CocoFile(categories, records.class_names, items, regions, found, digest, records.overlap)


def read_records(
    file: str | os.PathLike | LabelRecords,
    *,
    names: Sequence[str] | None = None,
    merge_same_name: bool = False,
    class_map: Mapping[str, str] | None = None,
) -> CocoRecords:
    """Read a COCO JSON and find the image and the category of each annotation; no image file is read.

    Ids are numbers or text. If an annotation writes the id of its image or category in another way, such as "7" or
    7.0 for 7, it is matched by value.

    A category called background, in any case, is label 0, unless `names` has it as another class.

    Args:
        file: The JSON, or what the reader of another format returned.
        names: The classes in label order, with or without `background` as the first; the file may lack some. Ids may
            differ between files: the name decides the label. By default the names in the order of their ids.
        merge_same_name: Whether several categories may have one name.
        class_map: The class of each category, see `segkit.class_map.read_class_map`. The classes are then in the order
            of the map.

    Raises:
        DataError: The file cannot be read, is not a COCO file, or has a category that is not in `names`.
    """
    found: list[Finding] = []
    if isinstance(file, LabelRecords):
        found += file.findings
        content, digest = file.content, hashlib.sha256(file.digest.encode())
        file, root, overlap = file.path, file.root, file.overlap
    else:
        file = Path(file)
        root = file.parent
        content, digest = _read_json(file)
        overlap = content.get(OVERLAP, "smallest")
        if overlap not in OVERLAPS:
            raise DataError(f"{file}: {OVERLAP} is {overlap!r:.40}, expected one of {', '.join(OVERLAPS)}")
    categories = _categories(content, file, merge_same_name)
    own_names = tuple(dict.fromkeys(name for name in categories.values() if not is_background(name)))
    if class_map:
        own = list(categories.values())
        for line in lines_without_class(own, class_map):
            found.append(Finding("unused-line", line, f"{file} has no class {line}, which the class map names"))
        mapped = map_names(own, class_map, file)
        own_names = tuple(classes_of(mapped, class_map))
        categories = {category: mapped[name] for category, name in categories.items()}
    if not names:
        class_names = own_names
        found += _find_alike(class_names, file)
        if not 0 < len(class_names) < IGNORE_INDEX:
            raise_errors([finding for finding in found if finding.severity == "error"])  # why a reader found no class
            raise DataError(
                f"{file} has {len(class_names)} categories besides background, expected 1 to {IGNORE_INDEX - 1}"
            )
    else:
        class_names = tuple(names[1:] if names[0] == BACKGROUND else names)
        if len(class_names) >= IGNORE_INDEX:  # label maps are uint8, and 255 is ignored
            raise DataError(
                f"{file} cannot be read for {len(class_names)} classes besides background, the most are "
                f"{IGNORE_INDEX - 1}"
            )
    labels = _labels(categories, class_names, file, found, may_ignore=bool(class_map))
    images: dict[Id, Row] = {}
    for image in content["images"] or []:
        key = as_id(image.get("id"))
        missing = "id" if key is None else "file_name" if not isinstance(image.get("file_name"), int | str) else None
        if missing:
            raise DataError(f"{file} is not a COCO file: an image lacks {missing!r}")
        if not PurePath(str(image["file_name"])).name:
            raise DataError(f"{file}: the image {key} has the file_name {image['file_name']!r}, which names no file")
        if key in images:
            both = f"{images[key]['file_name']} and {image['file_name']}"
            sentence = f"{file} has two images with the same id {image['id']}: {both}"
            found.append(Finding("duplicate-image-id", str(image["id"]), sentence))
        images.setdefault(key, image)
    annotations = _annotations_by_image(content, file, images, categories, found)
    return CocoRecords(
        file, root, content, categories, class_names, labels, images, annotations, found, digest, overlap
    )


def read_regions(
    records: CocoRecords,
    image: Id,
    size: tuple[int, int] | None,
    *,
    fit_to: tuple[int, int] | None = None,
    bbox_as_mask: bool = False,
) -> list[Annotation]:
    """Return the regions of an image; add the faults of its annotations to `records.findings`.

    Args:
        records: The JSON.
        image: The id of the image.
        size: (H, W) of the frame that the annotations were drawn in. None if it is unknown.
        fit_to: (H, W) of the image, if the regions are to be scaled to it.
        bbox_as_mask: Whether annotations without a segmentation are painted as their box.
    """
    found, file_name = records.findings, str(records.images[image]["file_name"])
    if not records.annotations[image]:
        found.append(Finding("no-annotations", file_name, f"{file_name} has no annotation"))
    regions = []
    for category, row in records.annotations[image]:
        name = f"annotation {row.get('id')} of {file_name}"
        area = row.get("area")
        is_area = type(area) in (int, float) and 0 < area <= sys.float_info.max  # False for true and NaN, too
        area = float(area) if is_area else None
        try:
            shape, kinds = read_segmentation(row.get("segmentation"), size)
            if bbox_as_mask and kinds == ["no-segmentation"] and row.get("bbox"):
                shape, kinds, area = box_shape(row["bbox"]), ["box-as-mask"], area or 0.0
            if is_normalised(shape, size):
                kinds.append("unit-coordinates")
            if fit_to is not None and fit_to != size and shape is not None:
                area = shape_areas([shape]).item() if area is None else area
                shape = rescale(shape, size, fit_to)
        except DataError as error:
            found.append(Finding("bad-segmentation", name, f"{name} has a segmentation that cannot be read: {error}"))
            continue
        try:
            crowd, ignored = read_flag(row, "iscrowd"), read_flag(row, "ignore")
        except DataError as error:
            found.append(Finding("bad-flag", name, f"{name} {error}"))
            continue
        if ignored or crowd:
            kinds.append("ignored-region" if ignored else "crowd")
        found += [Finding(kind, name, f"{name}: {KINDS[kind].title}") for kind in kinds]
        label = IGNORE_INDEX if ignored else records.labels[category]
        regions.append(Annotation(row.get("id"), label, crowd, shape, area, in_order=not ignored))
    return regions


def read_all_regions(
    records: CocoRecords, *, bbox_as_mask: bool = False
) -> tuple[list[list[Annotation]], list[tuple[int, int] | None]]:
    """Return the regions of all images, and the (H, W) of each in the JSON or None; the image files are not read.

    Args:
        records: The JSON.
        bbox_as_mask: Whether annotations without a segmentation are painted as their box.
    """
    regions, sizes = [], []
    for image, row in records.images.items():
        try:
            size = json_size(row)
        except DataError as error:
            records.findings.append(Finding("unreadable-image", str(row["file_name"]), str(error)))
            size = None
        sizes.append(size)
        regions.append(read_regions(records, image, size, bbox_as_mask=bbox_as_mask))
    find_faults_of_all(records, regions)
    return regions, sizes


def find_faults_of_all(records: CocoRecords, regions: Sequence[Sequence[Annotation]]) -> None:
    """Add faults that all or most annotations share to `records.findings`, because their masks would be wrong.

    For example, no annotation paints a class, or the coordinates are not in pixels, or in pixels of another size.
    """
    annotations = list(chain.from_iterable(regions))
    where, found = records.file.name, records.findings
    polygons = sum(isinstance(annotation.shape, list) for annotation in annotations)
    shares = sum(finding.kind == "unit-coordinates" for finding in found)
    beyond = {finding.where for finding in found if finding.kind in ("cut-polygon", "outside-polygon")}
    if annotations and all(annotation.shape is None or annotation.label == 0 for annotation in annotations):
        sentence = f"none of {counted(len(annotations), 'annotation')} in {records.file} paints a class"
        found.append(Finding("only-background", where, sentence))
    if 0 < polygons == shares:
        sentence = f"all polygons in {records.file} have coordinates in 0..1, expected pixels"
        found.append(Finding("normalised", where, sentence))
    if len(beyond) > max(FEW, len(annotations) / 2):
        sentence = f"{len(beyond)} of {len(annotations)} annotations in {records.file} reach beyond their image"
        found.append(Finding("other-frame", where, sentence))


def _read_json(file: Path) -> tuple[Row, "hashlib._Hash"]:
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"there is no annotation file at {file}") from None
    except IsADirectoryError:
        raise DataError(f"{file} is a folder, expected a COCO JSON file") from None
    except OSError as error:
        raise as_segkit_error(error) or DataError(f"cannot read {file}: {error.strerror}") from error
    content = parse_json(text, file, DataError)
    if isinstance(content, list) and content and isinstance(content[0], dict) and "data" in content[0]:
        raise DataError(f"{file} is not a COCO file but a list, as Label Studio exports it: give `format=label-studio`")
    if isinstance(content, dict) and "shapes" in content and "imagePath" in content:
        raise DataError(f"{file} is not a COCO file but LabelMe's JSON of one image: give its folder, {file.parent}")
    missing = [key for key in ("images", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{file} is not a COCO file: it has no {' and no '.join(map(repr, missing))}")
    for key in ("images", "categories", "annotations"):
        rows = content.get(key) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file} is not a COCO file: its {key!r} must be a list of objects")
    return content, hashlib.sha256(text)


def _categories(content: Row, file: Path, merge_same_name: bool) -> dict[Id, str]:
    """Return the category names by id, in id order."""
    rows = content["categories"] or []
    if not all("id" in row and "name" in row for row in rows):
        raise DataError(f"{file} is not a COCO file: each of its categories needs an id and a name")
    ids = [as_id(row["id"]) for row in rows]
    if None in ids or not all(isinstance(row["name"], str) for row in rows):
        raise DataError(f"{file}: the id of a category must be a whole number or a text, its name a text")
    names = {i: row["name"] for i, row in zip(ids, rows, strict=True)}
    if len(names) != len(rows):
        twice = [i for i, n in Counter(ids).items() if n > 1]
        raise DataError(f"{file}: two categories have the same id: {', '.join(map(str, twice))}")
    if len(set(names.values())) != len(names) and not merge_same_name:
        twice = [name for name, n in Counter(names.values()).items() if n > 1]
        raise DataError(
            f"{file}: two categories have the same name: {', '.join(twice)}; `merge_same_name` makes them one class"
        )

    def order(key: Id) -> tuple[bool, Id, str]:  # numbers come first, also if they are written as text
        value = id_value(key)
        return isinstance(value, str), value, str(key)

    return {key: names[key] for key in sorted(names, key=order)}


def _find_alike(class_names: Sequence[str], file: Path) -> list[Finding]:
    """Return a finding for each class whose name differs from an earlier one only in capitals or blanks."""
    first: dict[str, str] = {}
    found = []
    for name in class_names:
        other = first.setdefault("".join(name.casefold().split()), name)
        if other != name:
            sentence = f"{file}: {other!r} and {name!r} are two classes that differ only in capitals or blanks"
            found.append(Finding("alike-classes", name, sentence))
    return found


def _labels(
    categories: Mapping[Id, str], class_names: Sequence[str], file: Path, found: list[Finding], may_ignore: bool
) -> dict[Id, int]:
    """Return the label of each category; a background category and missing classes become findings."""
    if may_ignore:  # a class map has ignored them
        ignored = {category: IGNORE_INDEX for category, name in categories.items() if name == IGNORED}
        others = {category: name for category, name in categories.items() if category not in ignored}
        return _labels(others, class_names, file, found, may_ignore=False) | ignored
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    background = {category: name for category, name in categories.items() if is_background(name)}
    background = {category: name for category, name in background.items() if name not in label_of}
    named = set(categories.values())
    new = sorted(named - label_of.keys() - set(background.values()))
    missing = [name for name in class_names if name not in named]
    if new:
        differing = [f"{name!r} is new here" for name in new] + [f"{name!r} is missing here" for name in missing]
        classes = ", ".join(class_names[:LISTED]) + (" ..." if len(class_names) > LISTED else "")
        raise DataError(f"the categories of {file} do not match the classes {classes}: {', '.join(differing[:LISTED])}")
    for name in missing:
        found.append(Finding("absent-category", name, f"{file} has no category {name!r}, so no pixel of this class"))
    for category, name in background.items():
        found.append(Finding("background-category", name, f"{file}: the category {name!r} (id {category}) is label 0"))
    return {category: label_of.get(name, 0) for category, name in categories.items()}


def _annotations_by_image(
    content: Row, file: Path, images: Mapping[Id, Row], categories: Mapping[Id, str], found: list[Finding]
) -> dict[Id, list[tuple[Id, Row]]]:
    """Return the category and the record of each image's annotations; drop annotations of no image or no category."""
    rows = content.get("annotations") or []
    by_image: dict[Id, list[tuple[Id, Row]]] = {image: [] for image in images}
    image_ids, category_ids = _Ids(images), _Ids(categories)
    for row in rows:
        name = f"annotation {row.get('id')}"
        image, category = image_ids.find(row.get("image_id")), category_ids.find(row.get("category_id"))
        meant = {"image_id": image, "category_id": category}
        for key, kind in (("image_id", "unknown-image-id"), ("category_id", "unknown-category-id")):
            if meant[key] is None:
                found.append(
                    Finding(kind, name, f"{name} in {file} has {key} {row.get(key)!r:.40}, which is not there")
                )
        if image is None or category is None:
            continue
        by_image[image].append((category, row))
        other = [f"{key} {row[key]!r} means {i!r}" for key, i in meant.items() if type(row[key]) is not type(i)]
        if other:
            found.append(Finding("id-by-value", name, f"{name} in {file}: {', '.join(other)}"))
    ids = Counter(row["id"] for row in rows if isinstance(row.get("id"), int | str))
    found += [
        Finding("duplicate-annotation-id", f"annotation {i}", f"{file} has {n} annotations with the id {i}")
        for i, n in ids.items()
        if n > 1
    ]
    return by_image


def ids_by_name(categories: Sequence[Mapping[Id, str]]) -> dict[str, Id]:
    """Return the first id of each name, from the names by id of several files; no id is used for two names."""
    ids: dict[str, Id] = {}
    for of_file in categories:
        for category, name in of_file.items():
            if name not in ids and category not in ids.values():
                ids[name] = category
    return ids


class _Ids:
    """Find the id that a reference means: the same id, or the only one with the same value ("7", 7.0 and 7)."""

    def __init__(self, known: Iterable[Id]) -> None:
        self._known = set(known)
        counts = Counter(map(id_value, self._known))
        self._by_value = {id_value(i): i for i in self._known if counts[id_value(i)] == 1}

    def find(self, reference: Any) -> Id | None:
        key = as_id(reference)
        return key if key is None or key in self._known else self._by_value.get(id_value(key))


def read_flag(row: Mapping[str, Any], key: str) -> bool:
    """Return whether a field such as `iscrowd` is set: by a number, a truth value, or a text such as "1" or "true".

    Raises:
        DataError: The field has another value.
    """
    value = row.get(key)
    if value is None or isinstance(value, int | float):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in _FLAGS:
        return _FLAGS[value.strip().casefold()]
    raise DataError(f"has {key} {value!r:.40}, expected 0 or 1")


def as_id(value: Any) -> Id | None:
    """Return an id of a JSON as a whole number or a text; None if it is neither."""
    if type(value) is float and math.isfinite(value) and value.is_integer():
        return int(value)
    return value if type(value) in (int, str) else None


def id_value(key: Id) -> Id:
    """Return the whole number in a text such as "7" or "7.0"; otherwise the id itself."""
    number = _WHOLE_NUMBER.fullmatch(key.strip()) if isinstance(key, str) else None
    return int(number[1]) if number else key
