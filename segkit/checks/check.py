"""Check data before it is trained on: count classes, and look for faults, oddities and duplicates."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from segkit.checks.duplicates import Listed, find_duplicates
from segkit.checks.measure import Measures, measure
from segkit.console import Console
from segkit.data.dataset import ImageFile, ImageFiles
from segkit.data.findings import KINDS, Finding
from segkit.data.image_groups import difference_hash, group_images, near_pairs
from segkit.data.images import read_image
from segkit.errors import DataError

TINY = 32  # pixels of the shorter side
NARROW = 4  # longer side divided by the shorter
READ_AT_ONCE = 4
SEVERITIES = ("error", "warning", "note")  # worst first


@dataclass
class CheckedSet:
    """A data set, and what a check found in it.

    Attributes:
        name: What tables call the set.
        data: The set.
        measures: What its images hold of each class.
        findings: Everything wrong or remarkable, worst first.
        twins: For images that repeat an earlier one, by index: the number of its set and its index there.
    """

    name: str
    data: ImageFiles
    measures: Measures
    findings: list[Finding]
    twins: dict[int, tuple[int, int]] = field(default_factory=dict)

    def count(self, severity: str) -> int:
        """Return how many findings have this severity: `error`, `warning` or `note`."""
        return sum(finding.severity == severity for finding in self.findings)


def check_sets(
    sets: Mapping[str, ImageFiles], *, full: bool = False, console: Console | None = None
) -> list[CheckedSet]:
    """Count classes, and look for faults, oddities and duplicates, in one or several sets with the same classes.

    Nothing is changed.

    Args:
        sets: Data sets by name, such as training and validation; best read by their `inspect`, which keeps what is
            wrong with them as findings instead of raising.
        full: Whether every image is decoded: it finds images that are damaged, of one colour, or look alike.
        console: Shows the progress.

    Raises:
        DataError: The sets differ in their classes.
    """
    console = console or Console()
    names, datas = list(sets), list(sets.values())
    for name in names[1:]:
        _check_same_classes(names[0], datas[0].class_names, name, sets[name].class_names)
    checked, hashes = [], []
    for name, data in sets.items():
        measures = measure(data, console.progress(range(len(data)), text=f"masks of {name}"))
        findings = [*data.findings]
        hashes.append(_look_at_images(name, data, findings, console) if full else {})
        findings += _oddities(name, data, measures)
        checked.append(CheckedSet(name, data, measures, findings))
    _add_duplicates(checked, _alike(datas, hashes))
    for one in checked:
        one.findings.sort(key=_badness)
    return checked


def _check_same_classes(first: str, classes: Sequence[str], second: str, others: Sequence[str]) -> None:
    if tuple(classes) != tuple(others):
        odd = [name for name in dict.fromkeys([*classes, *others]) if (name in classes) != (name in others)]
        what = f"in their classes: {', '.join(odd)}" if odd else "in the order of their classes"
        raise DataError(f"{first} and {second} differ {what}")


def _look_at_images(name: str, data: ImageFiles, findings: list[Finding], console: Console) -> dict[int, np.ndarray]:
    """Decode the images; adds findings, and returns the hash of each image, by index, that has more than one colour."""
    hashes = {}
    for index, seen in enumerate(console.progress(_hashes(data), total=len(data), text=f"images of {name}")):
        file_name = data.items[index].file_name
        if isinstance(seen, DataError):
            findings.append(Finding("unreadable-image", file_name, str(seen)))
        elif seen is None:
            findings.append(Finding("one-colour", file_name, f"{file_name} has only one colour"))
        else:
            hashes[index] = seen
    return hashes


def _hashes(data: ImageFiles) -> Iterator[np.ndarray | DataError | None]:
    """Yield the hash of each image; None for an image of one colour, which looks like any other of one colour."""

    def read(item: ImageFile) -> np.ndarray | DataError | None:
        try:
            image = read_image(item.path, item.size, reading=data.reading)
        except DataError as error:
            return error
        return None if (image == image[0, 0]).all() else difference_hash(image)

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for start in range(0, len(data), 64):
            yield from pool.map(read, [data.items[i] for i in range(start, min(start + 64, len(data)))])


def _oddities(set_name: str, data: ImageFiles, measures: Measures) -> Iterator[Finding]:
    """Yield what the sizes and the masks show."""
    for item in data.items:
        height, width = item.size
        size = f"{item.file_name} is {height} x {width} pixels (height x width)"
        if min(item.size) < TINY:
            yield Finding("tiny", item.file_name, size)
        elif max(item.size) > NARROW * min(item.size):
            yield Finding("narrow", item.file_name, size)
    for index, label in measures.covering:
        name = data.name(index)
        yield Finding("covers-all", name, f"{name}: an annotation of {data.class_names[label]} covers the whole image")
    if data.annotations is None:
        for index in np.flatnonzero(~measures.pixels[:, 1:].any(1)).tolist():
            name = data.name(index)
            yield Finding("no-annotations", name, f"the mask of {name} has only {data.class_names[0]}")
    present = measures.pixels.any(0)
    for label, name in enumerate(data.class_names):
        if not present[label] and len(data):
            yield Finding("absent-class", name, f"{set_name} has no pixel of {name}")
    if not len(data):
        yield Finding("no-images", set_name, f"{set_name} has no images that can be used")
    elif data.annotations is not None and not any(data.annotations):
        yield Finding("unannotated", set_name, f"{set_name} has no annotations; is it a test set?")
    elif not present[1:].any():
        yield Finding("nothing-painted", set_name, f"{set_name} has only {data.class_names[0]}")


def _add_duplicates(checked: Sequence[CheckedSet], alike: Sequence[Sequence[int]]) -> None:
    """Add each duplicate to the findings of the set that has it second."""
    owners = [(number, index) for number, one in enumerate(checked) for index in range(len(one.data))]
    items = [checked[number].data.items[index] for number, index in owners]
    listed = [
        Listed(checked[number].name, item.file_name, item.path) for (number, _), item in zip(owners, items, strict=True)
    ]
    for position, first, finding in find_duplicates(listed, alike):
        number, index = owners[position]
        checked[number].findings.append(finding)
        checked[number].twins[index] = owners[first]


def _alike(datas: Sequence[ImageFiles], hashes: Sequence[Mapping[int, np.ndarray]]) -> list[list[int]]:
    """Return groups of images that look alike, as positions in all sets together."""
    starts = np.cumsum([0, *map(len, datas)]).tolist()
    found = {start + index: h for start, of_set in zip(starts, hashes, strict=False) for index, h in of_set.items()}
    if not found:
        return []
    positions = list(found)
    group_of = group_images(list(map(str, positions)), pairs=near_pairs(np.stack(list(found.values()))))
    groups: dict[int, list[int]] = {}
    for position, group in zip(positions, group_of.tolist(), strict=True):
        groups.setdefault(group, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def _badness(finding: Finding) -> tuple[int, int]:
    return SEVERITIES.index(finding.severity), list(KINDS).index(finding.kind)
