"""Image files and mask files that belong together by their names."""

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from segkit.data.findings import Finding
from segkit.data.images import list_images
from segkit.errors import DataError

Pair = tuple[Path, str, Path]  # the image file, the name of the image, and the mask file


def by_stem(folder: Path, end: str = "", paths: Iterable[Path] | None = None) -> dict[str, Path]:
    """Return image files by their path below a folder, without suffix and without `end`; others are not included.

    Args:
        folder: The folder.
        end: The end of their names, before the suffix.
        paths: The files. By default all below the folder.

    Raises:
        DataError: There is no such folder, or two files have the same name.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    files: dict[str, Path] = {}
    for path in list_images(folder) if paths is None else paths:
        stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if not stem.endswith(end):
            continue
        other = files.setdefault(stem.removesuffix(end), path)
        if other != path:
            raise DataError(f"{other} and {path} have the same name, so it is not clear which one is meant")
    return files


def match(
    images: Mapping[str, Path], masks: Mapping[str, Path], root: Path, found: list[Finding], *, all_labelled: bool
) -> list[Pair]:
    """Return the images with their masks, in the order of the images.

    Args:
        images: Image files by stem, see `by_stem`.
        masks: Mask files by stem.
        root: The folder of the images, from which their names start.
        found: A list to which images without a mask, and masks without an image, are added.
        all_labelled: Whether an image without a mask is an error. If not, it is a note, and the image is not used.
    """
    pairs = []
    for stem, path in images.items():
        name = path.relative_to(root).as_posix()
        if stem in masks:
            pairs.append((path, name, masks[stem]))
        else:
            found.append(Finding("no-mask" if all_labelled else "unlabelled", name, f"{path} has no mask"))
    for stem, path in masks.items():
        if stem not in images:
            found.append(Finding("no-image", path.name, f"the mask {path} has no image"))
    return pairs


def union(names: Iterable[Iterable[str]]) -> list[str]:
    """Return all names once, in the order in which they first occur."""
    return list(dict.fromkeys(name for one in names for name in one))
