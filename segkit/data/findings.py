"""Findings: what is wrong or remarkable in a data set, to be raised, told or tabled."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from segkit.data.images import ImageHeader, Reading
from segkit.errors import DataError, DataWarning

Severity = Literal["error", "warning", "note"]
LISTED, EXAMPLES = 20, 3  # how many of a kind an error names, and a note


class Finding(NamedTuple):
    """One fault or oddity.

    Attributes:
        kind: A key of `KINDS`.
        where: The image or annotation.
        sentence: What is the matter with it.
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
    """How bad it is, what to call several of them, and what may be done."""

    severity: Severity
    title: str
    remedy: str = ""


_SKIP = 'on_bad="skip" (--on-bad skip) leaves them out'
KINDS = {
    # images
    "missing-image": Kind(
        "error", "images that are not there", f"root= (--images) is the folder that their names start from; {_SKIP}"
    ),
    "unreadable-image": Kind("error", "images that cannot be read", _SKIP),
    "other-size": Kind(
        "error",
        "images of another size than the JSON says",
        "correct the JSON or the images; where the annotations were drawn on the same images at that size, "
        f"rescale_annotations=True (--rescale-annotations) fits them; {_SKIP}",
    ),
    "outside-root": Kind(
        "error", "images outside the image folder", "allow_outside_root=True (--allow-outside-root) allows them"
    ),
    "bad-name": Kind("error", "images with names that no file can have"),
    "url": Kind("error", "images that are addresses on the network", "download them first"),
    "duplicate-image-id": Kind("error", "image ids that are given twice"),
    "shared-file": Kind("warning", "files that are several images, which a split may put on both sides"),
    "size-from-file": Kind("note", "images without a size in the JSON, taken from the file"),
    "turned": Kind("note", "images turned as their EXIF orientation says, since the sizes of their annotations are"),
    "left-unturned": Kind(
        "note", "images not turned by their EXIF orientation, since the sizes of their annotations are not"
    ),
    "turned-without-proof": Kind(
        "warning",
        'images turned as their EXIF orientation says, though no size proves it; exif="ignore" (--exif ignore) '
        "leaves them as they are stored",
    ),
    "exif-ignored": Kind("note", "images left as they are stored, whatever their EXIF orientation says"),
    "rescaled": Kind("note", "images of another size than the JSON says, to which the annotations were fitted"),
    "gray": Kind("note", "gray images, made RGB"),
    "alpha": Kind("note", "images with transparency, which is dropped"),
    "16-bit": Kind("note", "images of 16 bits, scaled to 8"),
    "cmyk": Kind("note", "CMYK images, made RGB"),
    "animated": Kind("note", "images of several frames, of which the first is taken"),
    "no-annotations": Kind("note", "images without annotations, background throughout"),
    # masks that are files
    "no-mask": Kind("error", "images without a mask", _SKIP),
    "no-image": Kind("error", "masks without an image", _SKIP),
    "unreadable-mask": Kind("error", "masks that cannot be read", _SKIP),
    "mask-size": Kind("error", "masks of another size than their image", _SKIP),
    "mask-values": Kind("error", "masks with values or colours that are no class"),
    "white-masks": Kind("error", "folders of masks that have no values but 0 and 255"),
    # annotations
    "unknown-image-id": Kind("error", "annotations of images that are not in the JSON"),
    "unknown-category-id": Kind("error", "annotations of categories that are not in the JSON"),
    "bad-segmentation": Kind("error", "annotations whose segmentation cannot be read"),
    "duplicate-annotation-id": Kind("warning", "annotation ids that are given twice, all of them kept"),
    "odd-coordinates": Kind("warning", "polygons with an odd number of coordinates, skipped"),
    "no-segmentation": Kind("note", "annotations without a segmentation, which paint nothing"),
    "box-as-mask": Kind("note", "annotations without a segmentation, whose box is painted"),
    "short-polygon": Kind("note", "polygons of fewer than three points, skipped"),
    "outside-polygon": Kind("note", "polygons outside their image, which paint nothing"),
    "cut-polygon": Kind("note", "polygons that reach beyond their image, cut there"),
    "crowd": Kind("note", "crowds (iscrowd)"),
    "ignored-region": Kind("note", 'regions marked `"ignore": 1`, which count for nothing'),
    # what only `check` looks for
    "no-images": Kind("error", "sets without images that can be used"),
    "unannotated": Kind("error", "sets without an annotation, so that there is nothing to learn or to score"),
    "nothing-painted": Kind("warning", "sets that are background throughout"),
    "absent-class": Kind("warning", "classes without a pixel, which are neither learnt nor scored there"),
    "one-colour": Kind("warning", "images of one colour"),
    "tiny": Kind("warning", "images of less than 32 pixels in height or width"),
    "same-file-across": Kind("warning", "images that are in another set too, which makes scores too good"),
    "same-bytes-across": Kind("warning", "images with the bytes of one of another set, which makes scores too good"),
    "alike-across": Kind("warning", "images that look like one of another set, which makes scores too good"),
    "same-bytes": Kind("warning", "images with the same bytes as another, which a split may put on both sides"),
    "alike": Kind("note", "images that look like another, which a split may put on both sides"),
    "same-name-across": Kind("note", "images with the name of another image of another set"),
    "narrow": Kind("note", "images more than four times as long as wide"),
    "covers-all": Kind("note", "annotations that cover their whole image"),
}
SKIPPABLE = (
    *("missing-image", "unreadable-image", "other-size"),
    *("no-mask", "no-image", "unreadable-mask", "mask-size"),
)


def raise_bad(findings: Sequence[Finding], good: int, *, skip: bool, max_bad: float) -> None:
    """Raises what is an error in a data set; images that cannot be used may be left out, up to a share of all.

    Args:
        findings: All that is wrong or remarkable.
        good: Number of images that can be used.
        skip: Whether the others are left out.
        max_bad: Up to which share; one image always is.

    Raises:
        DataError: names the first 20 of each kind, and their count.
    """
    # A mask without an image is no image less.
    left_out = [f for f in findings if skip and f.kind in SKIPPABLE and f.kind != "no-image"]
    raise_errors([f for f in findings if f.severity == "error" and not (skip and f.kind in SKIPPABLE)])
    if len(left_out) > may_be_bad(good + len(left_out), max_bad):
        listed = "\n".join(_paragraph(kind, group) for kind, group in _by_kind(left_out).items())
        raise DataError(
            f"{len(left_out)} of {good + len(left_out)} images cannot be used, more than max_bad={max_bad:g} "
            f"(--max-bad) leaves out\n{listed}"
        )


def tell(findings: Sequence[Finding], on_bad: str, max_bad: float, good: int) -> list[Note]:
    """Raises what is an error, warns of what is doubtful; gives the summary.

    Args:
        findings: All that is wrong or remarkable.
        on_bad: `error` or `skip`, for images that cannot be used.
        max_bad: Up to which share they are left out; one image always is.
        good: Number of images that can be used.

    Raises:
        DataError: names the first 20 of each kind, and their count.
    """
    raise_bad(findings, good, skip=on_bad == "skip", max_bad=max_bad)
    notes = summarise(findings)
    for note in notes:
        if note.severity == "warning":
            warnings.warn(str(note), DataWarning, stacklevel=3)
    return notes


def may_be_bad(total: int, max_bad: float) -> int:
    """How many of `total` images may be left out: a share of them, and one always."""
    return max(1, int(max_bad * total))


def summarise(findings: Sequence[Finding]) -> list[Note]:
    """One note for each kind that occurs, in the order of `KINDS`."""
    return [
        Note(kind, KINDS[kind].severity, len(group), tuple(f.where for f in group[:EXAMPLES]))
        for kind, group in _by_kind(findings).items()
    ]


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raises one error that lists the findings given, if there are any.

    Raises:
        DataError: names the first 20 of each kind, and their count.
    """
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
    """What is done to an image as it is read.

    Args:
        path: The file.
        name: What the findings call it.
        header: Its header.
        size: (H, W) of the frame that it was annotated in; None where nothing shows it.
        reading: How it is read.
    """
    return [Finding(kind, name, f"{path}: {KINDS[kind].title}") for kind in _kinds(header, size, reading)]


def _kinds(header: ImageHeader, size: tuple[int, int] | None, reading: Reading) -> Iterator[str]:
    if header.orientation != 1:
        yield "exif-ignored" if reading.exif == "ignore" else _turning(header, size)
    if header.mode in ("1", "L", "LA"):
        yield "gray"
    if header.transparent:
        yield "alpha"
    if header.mode.startswith("I;16") or header.mode == "I":
        yield "16-bit"
    if header.mode == "CMYK":
        yield "cmyk"
    if header.animated:
        yield "animated"


def _turning(header: ImageHeader, size: tuple[int, int] | None) -> str:
    if header.stored == header.turned or size is None:
        return "turned-without-proof"
    return "turned" if size == header.turned else "left-unturned"
