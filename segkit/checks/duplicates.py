"""Images that occur more than once, within a set or in several."""

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from segkit.data.findings import Finding

TWIN_KINDS = tuple(sign + across for sign in ("same-file", "same-bytes", "alike") for across in ("", "-across"))


class Listed(NamedTuple):
    """An image as one of the sets lists it."""

    set_name: str
    file_name: str
    path: Path


def find_duplicates(images: Sequence[Listed], alike: Iterable[Sequence[int]] = ()) -> list[tuple[int, int, Finding]]:
    """Find images that repeat an earlier one; each is reported once, by the strongest sign: file, bytes, looks, name.

    Args:
        images: The images of all sets.
        alike: Groups of positions in `images` that look alike.

    Returns:
        Position of the image, position of the earlier image, and the finding. The same file twice in one set is not
        among them: the reader of the set reports it.
    """
    digests: list[str | None] = [None] * len(images)  # only files of the same length can have the same bytes
    for group in _grouped([os.path.getsize(image.path) for image in images]):
        for position in group:
            digests[position] = hashlib.sha256(images[position].path.read_bytes()).hexdigest()
    reported: set[int] = set()
    found = []
    for groups, kind, words in (
        (_grouped([os.path.realpath(image.path) for image in images]), "same-file", "is the file of"),
        (_grouped(digests), "same-bytes", "has the same bytes as"),
        (alike, "alike", "looks like"),
        (_grouped([image.file_name for image in images]), "same-name", "has the name of"),
    ):
        for first, *others in groups:
            for position in others:
                if position in reported:
                    continue
                image, earlier = images[position], images[first]
                across = image.set_name != earlier.set_name
                if across or kind in ("same-bytes", "alike"):
                    of_set = f" of {earlier.set_name}" if across else ""
                    sentence = f"{image.file_name} {words} {earlier.file_name}{of_set}"
                    found.append((position, first, Finding(kind + "-across" * across, image.file_name, sentence)))
                reported.add(position)
    return found


def _grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of each key that occurs more than once."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(position)
    return [group for group in groups.values() if len(group) > 1]
