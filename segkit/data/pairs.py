"""Which mask file belongs to which image file."""

from collections.abc import Sequence
from pathlib import Path

from segkit.data.findings import Finding
from segkit.data.images import list_images
from segkit.errors import DataError


def find_pairs(
    images: Path, masks: Path, wanted: Sequence[str] | None, found: list[Finding]
) -> list[tuple[Path, str, Path]]:
    """Image, name and mask of all that belong together, by their paths below the two folders without suffix.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        wanted: The paths to take, in order; by default all.
        found: Images without a mask are added to it and, where all are wanted, masks without an image.

    Raises:
        DataError: a folder that is none, two files of one name, or no image for what is wanted.
    """
    image_of, mask_of = _by_stem(images, "images"), _by_stem(masks, "masks")
    stems = sorted(image_of) if wanted is None else [Path(name).as_posix() for name in wanted]
    absent = [stem for stem in stems if stem not in image_of]
    if absent:
        raise DataError(f"{len(absent)} of {len(stems)} names have no image, such as {images / absent[0]}.*")
    names = {stem: image_of[stem].relative_to(images).as_posix() for stem in stems}
    for stem in stems:
        if stem not in mask_of:
            found.append(Finding("no-mask", names[stem], f"{image_of[stem]} has no mask, expected at {masks / stem}.*"))
    if wanted is None:
        for stem in sorted(mask_of.keys() - image_of.keys()):
            where = mask_of[stem].relative_to(masks).as_posix()
            found.append(Finding("no-image", where, f"{mask_of[stem]} has no image, expected at {images / stem}.*"))
    return [(image_of[stem], names[stem], mask_of[stem]) for stem in stems if stem in mask_of]


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    """Image files by their path below the folder, without suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder, expected the folder of the {what}")
    paths: dict[str, Path] = {}
    for path in list_images(folder):
        other = paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise DataError(f"{other} and {path} have one name, so that it is not clear which is meant")
    return paths
