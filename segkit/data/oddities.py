"""find_oddities: what is remarkable about an image file, from its header."""

from collections.abc import Iterator
from pathlib import Path

from segkit.data.findings import KINDS, Finding
from segkit.data.images import ImageHeader, Reading


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
