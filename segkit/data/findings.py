"""Findings: errors, warnings and notes about a data set, to be raised, reported or put into tables."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from segkit.data.images import ImageHeader, Reading
from segkit.errors import DataError, DataWarning

Severity = Literal["error", "warning", "note"]
LISTED = 20  # findings of a kind that an error lists
EXAMPLES = 3  # findings of a kind that a note names
FEW = 5  # fewer images or annotations than this are too few to conclude anything about all of them


class Finding(NamedTuple):
    """One error, warning or note about an image or an annotation.

    Attributes:
        kind: A key of `KINDS`.
        where: The image or annotation.
        sentence: What is wrong with it.
    """

    kind: str
    where: str
    sentence: str

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity


class Note(NamedTuple):
    """All findings of one kind."""

    kind: str
    severity: Severity
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.examples) + (" ..." if self.count > len(self.examples) else "")
        return f"{KINDS[self.kind].title}: {self.count} ({shown})"


class Kind(NamedTuple):
    """Severity of a finding, a title for several of them, and what to do about them."""

    severity: Severity
    title: str
    remedy: str = ""


_SKIP = '`on_bad="skip"` skips them in training'
KINDS = {
    # images
    "missing-image": Kind("error", "missing images", f"file names start from `images` (`root` of a data set); {_SKIP}"),
    "unreadable-image": Kind("error", "images that cannot be read", _SKIP),
    "other-size": Kind(
        "error",
        "images of another size than the JSON says",
        "correct the JSON or the images; if the annotations were drawn on the same images at that size, "
        f"`rescale_annotations` scales them; {_SKIP}",
    ),
    "swapped-size": Kind(
        "error",
        "images whose height and width look swapped in the JSON",
        f"exchange `height` and `width` in the JSON, because the annotations do not fit as they are; {_SKIP}",
    ),
    "unturned-size": Kind(
        "error",
        "images that have the size in the JSON only after the rotation by their EXIF orientation",
        f'`exif="apply"` rotates them; {_SKIP}',
    ),
    "outside-root": Kind("error", "images outside the image folder", "`allow_outside_root` allows them"),
    "bad-name": Kind("error", "images with names that no file can have"),
    "url": Kind("error", "images that are network addresses", "download them first"),
    "duplicate-image-id": Kind("error", "image ids that occur twice"),
    "respelt": Kind("warning", "images whose names are spelt in another way, or with other folders, than their files"),
    "shared-file": Kind("warning", "files that are listed as several images, which a split may put on both sides"),
    "size-from-file": Kind("note", "images without a size in the JSON, read from the file"),
    "turned": Kind("note", "images rotated by their EXIF orientation, because their annotations have that size"),
    "left-unturned": Kind(
        "note", "images not rotated by their EXIF orientation, because their annotations have the stored size"
    ),
    "turned-without-proof": Kind(
        "warning",
        'images rotated by their EXIF orientation, although no size proves it; `exif="ignore"` rotates none',
    ),
    "exif-ignored": Kind("note", "images not rotated, although they have an EXIF orientation"),
    "rescaled": Kind("note", "images of another size than the JSON says, whose annotations were scaled"),
    "gray": Kind("note", "gray images, converted to RGB"),
    "alpha": Kind("note", "images with transparency, which is dropped"),
    "16-bit": Kind("note", "images of more than 8 bits, whose full range (0 to 65535 of 16 bits) is scaled to 8"),
    "32-bit": Kind("note", "images of float or 32-bit values, where 0 to 1 (float) or 0 to 255 is black to white"),
    "cmyk": Kind("note", "CMYK images, converted to RGB"),
    "animated": Kind("warning", "images with several pages or frames, of which only the first is used"),
    "no-annotations": Kind("note", "images without annotations, only background"),
    # masks that are files
    "no-mask": Kind("error", "images without a mask", _SKIP),
    "no-image": Kind("error", "masks without an image", _SKIP),
    "unreadable-mask": Kind("error", "masks that cannot be read", _SKIP),
    "mask-size": Kind("error", "masks of another size than their image", _SKIP),
    "mask-values": Kind("error", "masks with values or colours that are not a class"),
    "white-masks": Kind("error", "folders of masks that have only the values 0 and 255"),
    "all-ignored": Kind("error", "folders of masks in which every pixel is ignored"),
    "one-label": Kind("warning", "folders of masks that have only one class, from which no other can be learnt"),
    # categories and annotations
    "absent-category": Kind("warning", "classes without a category in a JSON, which has no pixel of them"),
    "unused-line": Kind("warning", "lines of the class map for classes that the labels do not have"),
    "alike-classes": Kind("warning", "classes whose names differ only in capitals or blanks; `class_map` merges them"),
    "background-category": Kind("note", "categories called background, whose annotations are label 0"),
    "unknown-image-id": Kind("error", "annotations of images that are not in the JSON"),
    "unknown-category-id": Kind("error", "annotations of categories that are not in the JSON"),
    "bad-segmentation": Kind("error", "annotations whose segmentation cannot be read"),
    "bad-flag": Kind("error", "annotations whose iscrowd or ignore is neither 0 nor 1"),
    "id-by-value": Kind(
        "note", 'annotations that write the id of their image or category in another way, such as "7" or 7.0 for 7'
    ),
    "duplicate-annotation-id": Kind("warning", "annotation ids that occur twice; all are kept"),
    "odd-coordinates": Kind("warning", "polygons with an odd number of coordinates, skipped"),
    "only-background": Kind(
        "error",
        "files whose annotations paint nothing",
        "a mask needs polygons or RLE in `segmentation`; `bbox_as_mask` paints the boxes of annotations without it",
    ),
    "no-segmentation": Kind(
        "warning", "annotations without a segmentation, which paint nothing; `bbox_as_mask` paints their boxes"
    ),
    "normalised": Kind(
        "error",
        "files whose polygons have coordinates in 0..1, expected pixels",
        "multiply each x by the width of the image, and each y by its height",
    ),
    "unit-coordinates": Kind("warning", "annotations with all coordinates in 0..1, less than a pixel"),
    "box-as-mask": Kind("note", "annotations without a segmentation, painted as their box"),
    "short-polygon": Kind("note", "polygons of fewer than three points, skipped"),
    "outside-polygon": Kind("note", "polygons outside their image, which paint nothing"),
    "cut-polygon": Kind("note", "polygons that reach beyond their image, cut at its border"),
    "other-frame": Kind(
        "warning", "files in which most polygons reach beyond their image, as if they were drawn at another size"
    ),
    "crowd": Kind("note", "crowds (iscrowd)"),
    "ignored-region": Kind("note", 'regions marked `"ignore": 1`, neither trained on nor scored'),
    # label files of other formats
    "bad-label": Kind("error", "labels that cannot be read"),
    "unknown-class": Kind("error", "labels of a class that the data set does not name"),
    "skipped-shape": Kind("note", "shapes that have no area, such as points and lines, skipped"),
    "lone-label": Kind("warning", "label files without an image, which are not used"),
    "unlabelled": Kind("note", "images without a label file, which are not used"),
    "other-annotations": Kind("note", "images with several annotations, of which one is used"),
    # found only by segkit.check
    "no-images": Kind("error", "sets without images that can be used"),
    "unannotated": Kind("warning", "sets without annotations, as test sets are; they can be neither learnt nor scored"),
    "nothing-painted": Kind("warning", "sets that are only background"),
    "absent-class": Kind("warning", "classes without a pixel, which are neither learnt nor scored there"),
    "one-colour": Kind("warning", "images of one colour"),
    "dim": Kind("warning", "images of more than 8 bits that use less than a quarter of the range, so they are dark"),
    "tiny": Kind("warning", "images of less than 32 pixels in height or width"),
    "same-file-across": Kind("warning", "images that are also in another set, which makes scores too good"),
    "same-bytes-across": Kind(
        "warning", "images with the same bytes as an image of another set, which makes scores too good"
    ),
    "alike-across": Kind("warning", "images that look like an image of another set, which makes scores too good"),
    "same-bytes": Kind("warning", "images with the same bytes as another, which a split may put on both sides"),
    "alike": Kind("note", "images that look like another, which a split may put on both sides"),
    "copy-across": Kind(
        "warning", "Roboflow's copies (.rf. names) of an image that another set has too, which makes scores too good"
    ),
    "copies": Kind("note", "sources of which Roboflow has made several images (.rf. names), kept together in splits"),
    "frames": Kind(
        "note", "sets with names like frames of videos, which a split may put on both sides; this keeps them together"
    ),
    "same-name-across": Kind("note", "images with the same name as a different image of another set"),
    "narrow": Kind("note", "images more than four times as long as wide"),
    "covers-all": Kind("note", "annotations that cover their whole image"),
}
UNUSABLE_IMAGES = ("missing-image", "unreadable-image", "other-size", "swapped-size", "unturned-size")
SKIPPABLE = (*UNUSABLE_IMAGES, "no-mask", "no-image", "unreadable-mask", "mask-size")


def raise_or_warn(findings: Sequence[Finding], on_bad: str, max_bad: float, good: int) -> list[Note]:
    """Raise the errors among the findings, warn of the warnings, and return a summary of all.

    Args:
        findings: All findings about a data set.
        on_bad: `error`; or `skip` to skip images that cannot be used.
        max_bad: Largest share of the images that may be skipped; one may always be skipped.
        good: Number of images that can be used.

    Raises:
        DataError: There are errors; the message lists the first 20 of each kind, and their number.
    """
    skipped = [f for f in findings if on_bad == "skip" and f.kind in SKIPPABLE]
    raise_errors([f for f in findings if f.severity == "error" and not (on_bad == "skip" and f.kind in SKIPPABLE)])
    lost = [f for f in skipped if f.kind != "no-image"]  # skipping a mask without an image loses no image
    if len(lost) > may_be_bad(good + len(lost), max_bad):
        listed = "\n".join(_paragraph(kind, group) for kind, group in _by_kind(lost).items())
        raise DataError(
            f"{len(lost)} of {good + len(lost)} images cannot be used, more than `max_bad={max_bad:g}` allows\n{listed}"
        )
    notes = summarise(findings)
    for note in notes:
        if note.severity == "warning":
            warnings.warn(str(note), DataWarning, stacklevel=3)
    return notes


def may_be_bad(total: int, max_bad: float) -> int:
    """Return how many of `total` images may be skipped: a share of them, but always one."""
    return max(1, int(max_bad * total))


def summarise(findings: Sequence[Finding]) -> list[Note]:
    """Return one note for each kind that occurs, in the order of `KINDS`."""
    return [
        Note(kind, KINDS[kind].severity, len(group), tuple(f.where for f in group[:EXAMPLES]))
        for kind, group in _by_kind(findings).items()
    ]


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise one DataError that lists all `findings`, if there are any: the first 20 of each kind, and their number."""
    if findings:
        raise DataError("\n".join(_paragraph(kind, group) for kind, group in _by_kind(findings).items()))


def _by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        groups[finding.kind].append(finding)
    return {kind: group for kind, group in groups.items() if group}


def _paragraph(kind: str, group: Sequence[Finding]) -> str:
    remedy = f"; {KINDS[kind].remedy}" if KINDS[kind].remedy else ""
    if len(group) == 1:
        return group[0].sentence + remedy
    lines = [f"{KINDS[kind].title}: {len(group)}{remedy}", *(f.sentence for f in group[:LISTED])]
    if len(group) > LISTED:
        lines.append(f"and {len(group) - LISTED} more")
    return "\n  ".join(lines)


def find_oddities(
    path: Path, name: str, header: ImageHeader, size: tuple[int, int] | None, reading: Reading
) -> list[Finding]:
    """Return findings about an image file, from its header.

    Args:
        path: The file.
        name: What the findings call it.
        header: Its header.
        size: (H, W) of the frame that its annotations were drawn in. None if that is unknown.
        reading: How it is read.
    """
    kinds = []
    if header.orientation != 1:
        if reading.exif == "ignore":
            kinds.append("exif-ignored")
        elif header.stored == header.turned or size is None:
            kinds.append("turned-without-proof")
        else:
            kinds.append("turned" if size == header.turned else "left-unturned")
    if header.mode in ("1", "L", "LA"):
        kinds.append("gray")
    if header.transparent:
        kinds.append("alpha")
    if header.bits > 8:
        kinds.append("32-bit" if header.bits == 32 else "16-bit")
    if header.mode == "CMYK":
        kinds.append("cmyk")
    if header.animated:
        kinds.append("animated")
    return [Finding(kind, name, f"{path}: {KINDS[kind].title}") for kind in kinds]


def find_shared_files(paths: Iterable[str | os.PathLike]) -> list[Finding]:
    """Return a finding for each file that occurs as several images of a data set."""
    counts = Counter(map(os.path.realpath, paths))
    return [
        Finding("shared-file", Path(path).name, f"{path} is listed as {count} images")
        for path, count in counts.items()
        if count > 1
    ]
