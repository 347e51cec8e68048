"""check: everything worth knowing about data before it is trained on. Nothing is changed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segkit.checks.duplicates import Listed, find_duplicates
from segkit.checks.measure import CheckedSet, Measures, Progress, SourceItem, measure
from segkit.data.findings import KINDS, Finding
from segkit.data.image_groups import difference_hash, group_images, near_pairs
from segkit.data.images import read_image
from segkit.errors import DataError

TINY, NARROW = 32, 4  # pixels of the shorter side; longer side by shorter
READ_AT_ONCE = 4
SEVERITIES = ("error", "warning", "note")  # worst first


@dataclass
class SetReport:
    """What was found in one set.

    Attributes:
        data: The set.
        measures: What its images hold of each class.
        findings: All that is wrong or remarkable, worst first.
        twins: Of images that repeat an earlier one, by index, that one's set and index.
    """

    data: CheckedSet
    measures: Measures
    findings: list[Finding]
    twins: dict[int, tuple[int, int]]

    def count(self, severity: str) -> int:
        """How many findings are of this severity."""
        return sum(finding.severity == severity for finding in self.findings)


def check(
    sets: Sequence[CheckedSet], *, full: bool = False, progress: Callable[..., Progress] | None = None
) -> list[SetReport]:
    """Counts classes, and looks for faults, oddities and duplicates in one or several sets with the same classes.

    Args:
        sets: Such as training and validation set.
        full: Whether every image is decoded, which finds damaged ones, those of one colour, and those that look alike.
        progress: Called with a text, gives what wraps a sequence that is gone through, such as tqdm.

    Raises:
        DataError: the sets differ in their classes.
    """
    for other in sets[1:]:
        _check_same_classes(sets[0], other)
    wrap = progress or (lambda text: iter)
    measures = [measure(data, wrap(f"masks of {data.name}")) for data in sets]
    looks = [_look(data, wrap(f"images of {data.name}")) if full else _Looks([], {}) for data in sets]
    reports = [
        SetReport(data, counts, [*data.findings, *look.findings, *_oddities(data, counts)], {})
        for data, counts, look in zip(sets, measures, looks, strict=True)
    ]
    _add_duplicates(reports, _alike(sets, looks))
    for report in reports:
        report.findings.sort(key=_badness)
    return reports


def _check_same_classes(first: CheckedSet, second: CheckedSet) -> None:
    if tuple(first.class_names) != tuple(second.class_names):
        odd = [
            name
            for name in {**dict.fromkeys(first.class_names), **dict.fromkeys(second.class_names)}
            if (name in first.class_names) != (name in second.class_names)
        ]
        what = f"in their classes: {', '.join(odd)}" if odd else "in the order of their classes"
        raise DataError(f"{first.name} and {second.name} differ {what}")


@dataclass
class _Looks:
    """What decoding the images has shown: findings, and the hashes by position of those that have one."""

    findings: list[Finding]
    hashes: dict[int, np.ndarray]


def _look(data: CheckedSet, progress: Progress) -> _Looks:
    result = _Looks([], {})
    for index, seen in enumerate(_read_all(data, progress)):
        name = data.items[index].file_name
        if isinstance(seen, DataError):
            result.findings.append(Finding("unreadable-image", name, str(seen)))
        elif seen is None:
            result.findings.append(Finding("one-colour", name, f"{name} is of one colour"))
        else:
            result.hashes[index] = seen
    return result


def _read_all(data: CheckedSet, progress: Progress) -> Iterator[np.ndarray | DataError | None]:
    """The hash of each image; None for one of a single colour, which has no looks to compare."""

    def read(item: SourceItem) -> np.ndarray | DataError | None:
        try:
            image = read_image(item.path, item.size, reading=data.reading)
        except DataError as error:
            return error
        return None if (image == image[0, 0]).all() else difference_hash(image)

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for start in progress(range(0, len(data.items), 64)):
            yield from pool.map(read, data.items[start : start + 64])


def _oddities(data: CheckedSet, measures: Measures) -> Iterator[Finding]:
    """What the sizes and the masks alone show."""
    for item in data.items:
        height, width = item.size
        size = f"{item.file_name} is {height} x {width} pixels (height x width)"
        if min(item.size) < TINY:
            yield Finding("tiny", item.file_name, size)
        elif max(item.size) > NARROW * min(item.size):
            yield Finding("narrow", item.file_name, size)
    for index, label in measures.covering:
        name = data.items[index].file_name
        yield Finding("covers-all", name, f"{name}: an annotation of {data.class_names[label]} covers the whole image")
    if data.annotations is None:
        for index in np.flatnonzero(~measures.pixels[:, 1:].any(1)).tolist():
            name = data.items[index].file_name
            yield Finding("no-annotations", name, f"the mask of {name} has nothing but {data.class_names[0]}")
    present = measures.pixels.any(0)
    for label, name in enumerate(data.class_names):
        if not present[label] and len(data.items):
            yield Finding("absent-class", name, f"{data.name} has no pixel of {name}")
    if not len(data.items):
        yield Finding("no-images", data.name, f"{data.name} has no images that can be used")
    elif data.annotations is not None and not any(data.annotations):
        yield Finding("unannotated", data.name, f"{data.name} has no annotations; is it a test set?")
    elif not present[1:].any():
        yield Finding("nothing-painted", data.name, f"{data.name} has nothing but {data.class_names[0]}")


def _add_duplicates(reports: Sequence[SetReport], alike: Sequence[Sequence[int]]) -> None:
    """Adds what comes twice to the findings of the set where it comes again."""
    places = [(number, index) for number, report in enumerate(reports) for index in range(len(report.data.items))]
    datas = [reports[number].data for number, _ in places]
    listed = [
        Listed(data.name, data.items[index].file_name, data.items[index].path)
        for data, (_, index) in zip(datas, places, strict=True)
    ]
    for position, first, finding in find_duplicates(listed, alike):
        number, index = places[position]
        reports[number].findings.append(finding)
        reports[number].twins[index] = places[first]


def _alike(sets: Sequence[CheckedSet], looks: Sequence[_Looks]) -> list[list[int]]:
    """Groups of images, as positions in all sets together, that look the same."""
    starts = np.cumsum([0, *(len(data.items) for data in sets)])
    hashes = {int(start) + i: h for start, look in zip(starts, looks, strict=False) for i, h in look.hashes.items()}
    if not hashes:
        return []
    positions = list(hashes)
    group_of = group_images(list(map(str, positions)), pairs=near_pairs(np.stack(list(hashes.values()))))
    groups: dict[int, list[int]] = {}
    for position, group in zip(positions, group_of.tolist(), strict=True):
        groups.setdefault(group, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def _badness(finding: Finding) -> tuple[int, int]:
    return SEVERITIES.index(finding.severity), list(KINDS).index(finding.kind)
