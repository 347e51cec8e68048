"""COCO JSON files, checked and normalised: what is wrong is found, not raised, so that all of it can be told."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from segkit.data.coco_images import Item, read_items
from segkit.data.findings import KINDS, Finding
from segkit.data.images import AS_USUAL, Reading
from segkit.data.rasterize import Annotation
from segkit.data.segmentation import box_shape, read_segmentation, rescale
from segkit.errors import DataError
from segkit.labels import IGNORE_INDEX


class Allowed(NamedTuple):
    """What a COCO JSON may be, though it is an error or paints nothing by default.

    Attributes:
        allow_outside_root: Images may lie outside their folder, by absolute paths, `..` or links.
        rescale_annotations: Images may have another size than the JSON says; the annotations are fitted to it.
        merge_same_name: Categories with one name are one class.
        bbox_as_mask: Annotations without a segmentation paint their box.
    """

    allow_outside_root: bool = False
    rescale_annotations: bool = False
    merge_same_name: bool = False
    bbox_as_mask: bool = False


NOTHING = Allowed()


@dataclass
class CocoFile:
    """What a COCO JSON says, as far as it can be used.

    Attributes:
        categories: Names by id, in id order.
        class_names: The labels 1, 2 ... in this order: each name once.
        items: The images that can be used.
        annotations: The annotations of each.
        findings: All that is wrong or remarkable.
        digest: Changes with whatever the masks follow from.
    """

    categories: dict[int, str]
    class_names: tuple[str, ...]
    items: list[Item]
    annotations: list[list[Annotation]]
    findings: list[Finding]
    digest: str


def read_coco(
    file: str | os.PathLike,
    root: str | os.PathLike | None = None,
    *,
    reading: Reading = AS_USUAL,
    allowed: Allowed = NOTHING,
    names: Sequence[str] | None = None,
) -> CocoFile:
    """Reads and checks a COCO JSON and the headers of its images.

    Args:
        file: The JSON.
        root: Folder of the images; by default the JSON's own.
        reading: How its images are read.
        allowed: What is no error.
        names: The classes in label order, which must be the file's own; by default in the order of their
            ids. What another file calls 3 may be 7 here: the name says which label it is.

    Raises:
        DataError: the file cannot be read, is no COCO file, or has other categories.
    """
    file = Path(file)
    content, digest = _read_json(file)
    categories = _categories(content, file, allowed.merge_same_name)
    found: list[Finding] = []
    images = _images(content, file, found)
    annotations = _annotations_by_image(content, file, images, categories, found)
    items = read_items(
        list(images.values()),
        file.parent if root is None else Path(root),
        found,
        reading=reading,
        allow_outside_root=allowed.allow_outside_root,
        rescale=allowed.rescale_annotations,
    )
    class_names = tuple(dict.fromkeys(categories.values())) if names is None else tuple(names)
    labels = _labels(categories, file, class_names)
    regions = [_regions(item, annotations[item.id], labels, allowed.bbox_as_mask, found) for item in items]
    sizes = [(item.id, item.size, item.drawn) for item in items]
    digest.update(repr([labels, allowed.bbox_as_mask, sizes]).encode())
    return CocoFile(categories, class_names, items, regions, found, digest.hexdigest())


def _read_json(file: Path) -> tuple[dict[str, Any], "hashlib._Hash"]:
    try:
        text = file.read_bytes()
        content = json.loads(text.decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"there is no annotation file at {file}") from None
    except IsADirectoryError:
        raise DataError(f"{file} is a folder, expected a COCO JSON file") from None
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a number of thousands of digits
        raise DataError(f"{file} is not valid JSON: {error}") from error
    missing = [key for key in ("images", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{file} is not a COCO file: it has no {' and no '.join(map(repr, missing))}")
    for key in ("images", "categories", "annotations"):
        rows = content.get(key) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file} is not a COCO file: its {key!r} must be a list of objects")
    return content, hashlib.sha256(text)


def _categories(content: Mapping[str, Any], file: Path, merge_same_name: bool) -> dict[int, str]:
    """Category names by id, in id order."""
    rows = content["categories"] or []
    if not all("id" in row and "name" in row for row in rows):
        raise DataError(f"{file} is not a COCO file: each of its categories needs an id and a name")
    if not all(type(row["id"]) is int and isinstance(row["name"], str) for row in rows):
        raise DataError(f"{file}: the id of a category must be a whole number, its name a text")
    names = {row["id"]: row["name"] for row in rows}
    if len(names) != len(rows):
        twice = [i for i, n in Counter(row["id"] for row in rows).items() if n > 1]
        raise DataError(f"{file} gives two categories the same id: {', '.join(map(str, twice))}")
    if len(set(names.values())) != len(names) and not merge_same_name:
        twice = [name for name, n in Counter(names.values()).items() if n > 1]
        raise DataError(
            f"{file} gives two categories the same name: {', '.join(twice)}; "
            "merge_same_name=True (--merge-same-name) makes them one class"
        )
    if not 0 < len(set(names.values())) < 255:
        raise DataError(f"{file} has {len(set(names.values()))} categories, expected 1 to 254")
    return dict(sorted(names.items()))


def _labels(categories: Mapping[int, str], file: Path, names: Sequence[str]) -> dict[int, int]:
    """The label of each category."""
    differing = sorted(set(names) ^ set(categories.values()))
    if differing:
        raise DataError(
            f"{file} and the files before it differ in their categories: "
            + ", ".join(f"{name!r} is {'missing' if name in names else 'new'} here" for name in differing[:5])
        )
    return {category: list(names).index(name) + 1 for category, name in categories.items()}


def _images(content: Mapping[str, Any], file: Path, found: list[Finding]) -> dict[Any, dict[str, Any]]:
    """The images by id; of one that is given twice, the first."""
    images: dict[Any, dict[str, Any]] = {}
    for image in content["images"] or []:
        missing = [key for key in ("id", "file_name") if not isinstance(image.get(key), int | str)]
        if missing:
            raise DataError(f"{file} is not a COCO file: an image lacks {missing[0]!r}")
        if image["id"] in images:
            both = f"{images[image['id']]['file_name']} and {image['file_name']}"
            found.append(
                Finding(
                    "duplicate-image-id",
                    str(image["id"]),
                    f"{file} has two images with the same id {image['id']}: {both}",
                )
            )
        images.setdefault(image["id"], image)
    return images


def _annotations_by_image(
    content: Mapping[str, Any],
    file: Path,
    images: Mapping[Any, Any],
    categories: Mapping[int, str],
    found: list[Finding],
) -> dict[Any, list[dict[str, Any]]]:
    """The annotations of each image, without those that belong to no image or to no category."""
    rows = content.get("annotations") or []
    by_image = defaultdict(list)
    for row in rows:
        name = f"annotation {row.get('id')}"
        unknown = False
        for key, known, kind in (
            ("image_id", images, "unknown-image-id"),
            ("category_id", categories, "unknown-category-id"),
        ):
            value = row.get(key)
            if not isinstance(value, int | str) or value not in known:
                unknown = True
                found.append(Finding(kind, name, f"{name} in {file} has {key} {value!r}, which is not there"))
        if not unknown:
            by_image[row["image_id"]].append(row)
    ids = Counter(row["id"] for row in rows if isinstance(row.get("id"), int | str))
    found += [
        Finding("duplicate-annotation-id", f"annotation {i}", f"{file} has {n} annotations with the id {i}")
        for i, n in ids.items()
        if n > 1
    ]
    return by_image


def _regions(
    item: Item,
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[int, int],
    bbox_as_mask: bool,
    found: list[Finding],
) -> list[Annotation]:
    """What is painted on an image."""
    if not rows:
        found.append(Finding("no-annotations", item.file_name, f"{item.file_name} has no annotation"))
    regions = []
    for row in rows:
        name = f"annotation {row.get('id')} of {item.file_name}"
        try:
            shape, kinds = read_segmentation(row.get("segmentation"), item.drawn or item.size)
            if bbox_as_mask and kinds == ["no-segmentation"] and row.get("bbox"):
                shape, kinds = box_shape(row["bbox"]), ["box-as-mask"]
            if item.drawn is not None and shape is not None:
                shape = rescale(shape, item.drawn, item.size)
        except ValueError as error:
            found.append(Finding("bad-segmentation", name, f"{name} has a segmentation that cannot be read: {error}"))
            continue
        crowd, ignored = bool(row.get("iscrowd")), bool(row.get("ignore"))
        kinds += ["ignored-region"] * ignored + ["crowd"] * (crowd and not ignored)
        found += [Finding(kind, name, f"{name}: {KINDS[kind].title}") for kind in kinds]
        label = IGNORE_INDEX if ignored else labels[row["category_id"]]
        regions.append(Annotation(row.get("id"), label, crowd, shape))
    return regions
