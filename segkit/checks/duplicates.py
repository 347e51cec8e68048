"""Images that occur more than once, within a set or in several."""

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from segkit.data.findings import Finding
from segkit.data.image_groups import propose_group_by, roboflow_source

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


def find_sources(images: Sequence[Listed]) -> list[tuple[str, Finding]]:
    """Find images that were made of one photograph or video, by their names.

    Args:
        images: The images of all sets.

    Returns:
        The name of a set, and a finding about it.
    """
    found, seen = [], {}
    for group in _grouped([roboflow_source(image.file_name) for image in images]):
        for set_name in dict.fromkeys(images[position].set_name for position in group):
            own = [images[position].file_name for position in group if images[position].set_name == set_name]
            first = images[group[0]]
            source = roboflow_source(first.file_name)
            if set_name != first.set_name:
                sentence = f"{own[0]} and {first.file_name} of {first.set_name} are copies of {source}"
                found.append((set_name, Finding("copy-across", own[0], sentence)))
            if len(own) > 1:
                found.append((set_name, Finding("copies", source, f"{', '.join(own)} are copies of {source}")))
    for image in images:
        seen.setdefault(image.set_name, []).append(image.file_name)
    for set_name, names in seen.items():
        pattern = propose_group_by(names)
        if pattern is not None:
            sentence = f"the names of {set_name}, such as {names[0]}, look like frames of videos"
            found.append((set_name, Finding("frames", f'`group_by="{pattern}"`', sentence)))
    return found


def _grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of each key that occurs more than once."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(position)
    return [group for group in groups.values() if len(group) > 1]
