"""Check data before it is trained on: count classes, and look for errors, warnings and duplicates."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from segkit.checks.duplicates import Listed, find_duplicates, find_sources
from segkit.checks.measure import Measures, measure
from segkit.console import Console
from segkit.data.dataset import ImageFile, ImageFiles
from segkit.data.findings import KINDS, Finding
from segkit.data.image_groups import difference_hash, group_images, near_pairs
from segkit.data.images import read_image, read_image_header
from segkit.errors import DataError
from segkit.labels import foreground_of

TINY = 32  # pixels of the shorter side
DIM = 64  # an image of more than 8 bits is dim if no value is above this, of 255
NARROW = 4  # longer side divided by the shorter
READ_AT_ONCE = 4
SEVERITIES = ("error", "warning", "note")  # worst first


@dataclass
class CheckedSet:
    """A data set, and what a check found in it.

    Attributes:
        name: What tables call the set.
        data: The set.
        measures: How much of each class its images have.
        findings: All errors, warnings and notes, worst first.
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
    """Count classes, and look for errors, warnings and duplicates, in one or several sets with the same classes.

    Nothing is changed.

    Args:
        sets: Data sets by name, such as training and validation; best read by their `inspect`, which keeps faults as
            findings instead of raising.
        full: Decode every image, to find images that are damaged, have one colour, or look alike.
        console: Shows the progress.

    Raises:
        DataError: The sets differ in their classes.
    """
    console = console or Console()
    names = list(sets)
    for name in names[1:]:
        classes, others = sets[names[0]].class_names, sets[name].class_names
        if tuple(classes) != tuple(others):
            odd = [one for one in dict.fromkeys([*classes, *others]) if (one in classes) != (one in others)]
            what = f"in their classes: {', '.join(odd)}" if odd else "in the order of their classes"
            raise DataError(f"{names[0]} and {name} differ {what}")
    checked, hashes = [], []
    for name, data in sets.items():
        measures = measure(data, console.progress(range(len(data)), text=f"masks of {name}"))
        findings = [*data.findings]
        hashes.append(_look_at_images(name, data, findings, console) if full else {})
        findings += _look_at_sizes_and_masks(name, data, measures)
        checked.append(CheckedSet(name, data, measures, findings))
    _add_duplicates(checked, hashes)
    kinds = list(KINDS)
    for one in checked:
        one.findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), kinds.index(finding.kind)))
    return checked


def _look_at_images(name: str, data: ImageFiles, findings: list[Finding], console: Console) -> dict[int, np.ndarray]:
    """Decode the images and add findings; return the hash, by index, of each image with more than one colour."""

    def look(item: ImageFile) -> np.ndarray | Finding:
        try:
            image = read_image(item.path, item.size, reading=data.reading)
        except DataError as error:
            return Finding("unreadable-image", item.file_name, str(error))
        if (image == image[0, 0]).all():  # its hash would be like the hash of any other image of one colour
            return Finding("one-colour", item.file_name, f"{item.file_name} has only one colour")
        if image.max() <= DIM:
            bits = read_image_header(item.path, data.reading).bits
            if bits > 8:
                sentence = f"{item.file_name} has {bits} bits, but no value is above {image.max()} of 255"
                dim.append(Finding("dim", item.file_name, sentence))
        return difference_hash(image)

    hashes, dim = {}, []
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        # In parts, so that at most 64 images are decoded ahead of the progress bar.
        parts = (range(len(data))[start : start + 64] for start in range(0, len(data), 64))
        seen = (one for part in parts for one in pool.map(look, [data.items[index] for index in part]))
        for index, one in enumerate(console.progress(seen, total=len(data), text=f"images of {name}")):
            if isinstance(one, Finding):
                findings.append(one)
            else:
                hashes[index] = one
    findings += dim
    return hashes


def _look_at_sizes_and_masks(set_name: str, data: ImageFiles, measures: Measures) -> Iterator[Finding]:
    """Yield findings about the sizes of the images and about the masks."""
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
    foreground = foreground_of(data.class_names)
    if data.annotations is None:
        for index in np.flatnonzero(~measures.pixels[:, foreground].any(1)).tolist():
            name = data.name(index)
            yield Finding("no-annotations", name, f"the mask of {name} has only {data.class_names[0]}")
    if not len(data):
        yield Finding("no-images", set_name, f"{set_name} has no images that can be used")
        return
    if data.annotations is not None and not any(data.annotations):
        yield Finding("unannotated", set_name, f"{set_name} has no annotations; is it a test set?")
        return
    present = measures.pixels.any(0)
    for label, name in enumerate(data.class_names):
        if not present[label]:
            yield Finding("absent-class", name, f"{set_name} has no pixel of {name}")
    if not present[foreground].any():
        yield Finding("nothing-painted", set_name, f"{set_name} has only {data.class_names[0]}")


def _add_duplicates(checked: Sequence[CheckedSet], hashes: Sequence[Mapping[int, np.ndarray]]) -> None:
    """Add each duplicate to the findings of the set that has it second.

    Args:
        checked: The sets.
        hashes: Hashes of the images of each set, by index; images with similar hashes look alike.
    """
    owners = [(number, index) for number, one in enumerate(checked) for index in range(len(one.data))]
    items = [checked[number].data.items[index] for number, index in owners]
    listed = [
        Listed(checked[number].name, item.file_name, item.path) for (number, _), item in zip(owners, items, strict=True)
    ]
    # Images that look alike, as positions in all sets together.
    hash_of = {at: hashes[number][index] for at, (number, index) in enumerate(owners) if index in hashes[number]}
    alike: dict[int, list[int]] = {}
    if hash_of:
        groups = group_images(list(map(str, hash_of)), pairs=near_pairs(np.stack(list(hash_of.values()))))
        for position, group in zip(hash_of, groups.tolist(), strict=True):
            alike.setdefault(group, []).append(position)
    set_of = {one.name: one for one in checked}
    for name, finding in find_sources(listed):
        set_of[name].findings.append(finding)
    for position, first, finding in find_duplicates(listed, alike.values()):
        number, index = owners[position]
        checked[number].findings.append(finding)
        checked[number].twins[index] = owners[first]
