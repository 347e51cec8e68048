"""Which mask file belongs to which image file."""

from collections.abc import Sequence
from pathlib import Path

from segkit.data.images import DataError, list_images


def find_pairs(images: Path, masks: Path, wanted: Sequence[str] | None = None) -> list[tuple[Path, str, Path]]:
    """Image, name and mask of all that belong together, by their paths below the two folders without suffix.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        wanted: The paths to take, in order; by default all.

    Raises:
        DataError: an image without a mask or, where all are wanted, the reverse.
    """
    image_of, mask_of = _by_stem(images), _by_stem(masks)
    stems = sorted(image_of) if wanted is None else wanted
    for missing, folder, kind in (
        ([stem for stem in stems if stem not in image_of], images, "image"),
        ([stem for stem in stems if stem not in mask_of], masks, "mask"),
    ):
        if missing:
            raise DataError(f"{len(missing)} of {len(stems)} images have no {kind}, such as {folder / missing[0]}.*")
    lonely = sorted(mask_of.keys() - image_of.keys())
    if lonely and wanted is None:
        raise DataError(f"{len(lonely)} of {len(mask_of)} masks have no image, such as {mask_of[lonely[0]]}")
    return [(image_of[stem], image_of[stem].relative_to(images).as_posix(), mask_of[stem]) for stem in stems]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files by their path below the folder, without suffix."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        other = found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise DataError(f"{other} and {path} have one name, so that it is not clear which is meant")
    return found
