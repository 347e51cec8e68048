"""The pictures of a check: classes, the rarest of them, and what looks worst."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from segkit.checks.check import SEVERITIES, SetReport
from segkit.checks.duplicates import TWIN_KINDS
from segkit.checks.measure import contested_pixels
from segkit.data import read_image, write_image
from segkit.data.findings import KINDS
from segkit.errors import DataError
from segkit.visualize import create_palette, drawable, grid, legend, overlay

CELL = 200  # pixels
COLUMNS, MOST_CLASSES, RAREST = 6, 30, 4
OF_A_KIND, MOST_CASES = 4, 30
CONTESTED = 0.05  # share of an image's pixels from which its overlaps are shown
_UNREMARKABLE = (
    *("gray", "alpha", "16-bit", "cmyk", "animated", "turned", "size-from-file"),
    *("crowd", "no-segmentation", "same-name-across"),
)


class Place(NamedTuple):
    """An image of one of the sets."""

    report: SetReport
    index: int

    @property
    def caption(self) -> str:
        return Path(self.report.data.items[self.index].file_name).stem

    def image(self) -> np.ndarray:
        data = self.report.data
        return read_image(data.items[self.index].path, data.items[self.index].size, reading=data.reading)

    def mask(self) -> np.ndarray:
        return self.report.data.mask(self.index)


def save_pictures(reports: Sequence[SetReport], out: Path) -> list[str]:
    """Writes the pictures that there is something to show on; gives their names."""
    painted = sum(report.measures.pixels.sum(0) for report in reports)
    labels = [label for label in np.argsort(painted, kind="stable").tolist() if label and painted[label]]
    commonest_first = labels[:MOST_CLASSES][::-1]
    sheets = {
        "class_examples.png": _class_sheet(reports, commonest_first, _close_up),
        "rarest_classes.png": _class_sheet(reports, labels[:RAREST], _in_its_image),
        "worst_cases.png": _case_sheet(reports),
    }
    written = {name: sheet for name, sheet in sheets.items() if sheet is not None}
    for name, sheet in written.items():
        write_image(out / name, sheet)
    return list(written)


def _class_sheet(reports: Sequence[SetReport], labels: Sequence[int], draw: Callable) -> np.ndarray | None:
    """A row for each class: its name and share, and examples from where it is large to where it is small."""
    names = reports[0].data.class_names
    palette = create_palette(len(names))
    pictures, captions = [], []
    for label in labels:
        places = _examples(reports, label, COLUMNS - 1)
        drawn = [(draw(place, label, palette), place.caption) for place in places]
        drawn += [(np.full((CELL, CELL, 3), 255, dtype=np.uint8), "")] * (COLUMNS - 1 - len(drawn))
        pictures += [_class_card(reports, label, palette), *(picture for picture, _ in drawn)]
        captions += ["", *(name for _, name in drawn)]
    return grid(pictures, COLUMNS, cell=CELL, captions=captions) if pictures else None


def _examples(reports: Sequence[SetReport], label: int, count: int) -> list[Place]:
    """Images with the class, evenly spread from the largest share of it to the smallest."""
    shares = [
        (-pixels / np.prod(report.data.items[index].size), number, index)
        for number, report in enumerate(reports)
        for index, pixels in enumerate(report.measures.pixels[:, label].tolist())
        if pixels
    ]
    chosen = np.linspace(0, len(shares) - 1, min(count, len(shares))).round().astype(int)
    return [Place(reports[number], index) for _, number, index in (sorted(shares)[i] for i in chosen)]


def _class_card(reports: Sequence[SetReport], label: int, palette: np.ndarray) -> np.ndarray:
    """The class's name and colour, and how much of it there is in each set."""
    lines = [reports[0].data.class_names[label]]
    for report in reports[:2]:  # there is room for two
        pixels, objects = report.measures.pixels, int(report.measures.annotations[:, label].sum())
        share = 100 * pixels[:, label].sum() / max(pixels.sum(), 1)
        lines += [report.data.name, f"  {share:.2f} % of the pixels", f"  in {(pixels[:, label] > 0).sum()} images"]
        lines += [f"  {objects} annotations"] * (report.data.annotations is not None)
    lines += ["and other sets"] * (len(reports) > 2)
    card = np.full((CELL, CELL, 3), 255, dtype=np.uint8)
    cv2.rectangle(card, (2, 4), (16, 16), palette[label].tolist(), cv2.FILLED)
    for row, line in enumerate(map(drawable, lines)):
        left, colour = (22, (0, 0, 0)) if row == 0 else (4, (70, 70, 70))
        cv2.putText(card, line, (left, 15 + 17 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return card


def _close_up(place: Place, label: int, palette: np.ndarray) -> np.ndarray:
    """The largest piece of the class and a quarter of its size around, with the class tinted."""
    image, mask = _load(place)
    top, left, height, width = _largest_piece(mask == label)
    margin = max(24, max(height, width) // 4)
    window = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
    return overlay(image[window], np.where(mask == label, label, 0)[window], palette, opacity=0.35)


def _in_its_image(place: Place, label: int, palette: np.ndarray) -> np.ndarray:
    """The whole image with the class tinted and its largest piece framed."""
    image, mask = _load(place)
    picture = overlay(image, np.where(mask == label, label, 0), palette)
    top, left, height, width = _largest_piece(mask == label)
    thickness = max(2, max(mask.shape) // 150)
    corners = (left - 2 * thickness, top - 2 * thickness), (left + width + 2 * thickness, top + height + 2 * thickness)
    return cv2.rectangle(np.ascontiguousarray(picture), *corners, (255, 255, 255), thickness)


def _load(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask; gray where the image cannot be read."""
    mask = place.mask()
    try:
        return place.image(), mask
    except DataError:
        return np.full((*mask.shape, 3), 128, dtype=np.uint8), mask


def _largest_piece(region: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest connected part."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    left, top, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
    return top, left, height, width


class Case(NamedTuple):
    """An image to look at: what for, the labels (H, W) to show, and the image that it repeats if it does."""

    rank: float
    place: Place
    reason: str
    labels: np.ndarray | None = None
    twin: Place | None = None


def _case_sheet(reports: Sequence[SetReport]) -> np.ndarray | None:
    """The images of the findings, worst first, and those with the largest overlaps."""
    cases = [case for report in reports for case in (*_found_cases(report, reports), *_contested_cases(report))]
    cases = sorted(cases, key=lambda case: case.rank)[:MOST_CASES]
    if not cases:
        return None
    names = reports[0].data.class_names
    palette = create_palette(len(names))
    pictures = [_case_picture(case, palette) for case in cases]
    captions = [f"{case.reason}\n{case.place.report.data.name}: {case.place.caption}" for case in cases]
    sheet = grid(pictures, min(COLUMNS, len(cases)), cell=CELL, captions=captions)
    return np.concatenate([sheet, legend(names, range(1, len(names)), palette, sheet.shape[1])])


def _found_cases(report: SetReport, reports: Sequence[SetReport]) -> Iterator[Case]:
    """A few images of each kind of finding, each image once with all that is the matter with it."""
    for index, kinds in _kinds_by_image(report).items():
        rank = SEVERITIES.index(KINDS[kinds[0]].severity) + list(KINDS).index(kinds[0]) / len(KINDS)
        twin = report.twins.get(index) if set(kinds) & set(TWIN_KINDS) else None
        first = None if twin is None else Place(reports[twin[0]], twin[1])
        yield Case(rank, Place(report, index), ", ".join(kinds), twin=first)


def _kinds_by_image(report: SetReport) -> dict[int, list[str]]:
    """The kinds of finding of each image that is to be shown, worst first."""
    index_of = {item.file_name: index for index, item in enumerate(report.data.items)}
    kinds: dict[int, list[str]] = {}
    shown: Counter[str] = Counter()
    for finding in report.findings:
        name = finding.where if finding.where in index_of else finding.where.split(" of ", 1)[-1]  # of an annotation
        known = kinds.get(index_of.get(name, -1), [])
        if name not in index_of or finding.kind in (*_UNREMARKABLE, *known):
            continue
        if known or shown[finding.kind] < OF_A_KIND:
            kinds.setdefault(index_of[name], known).append(finding.kind)
            shown[finding.kind] += 1
    return kinds


def _contested_cases(report: SetReport) -> Iterator[Case]:
    """The images with the largest share of contested pixels, and on these what the rule decides."""
    items = report.data.items
    shares = [n / np.prod(item.size) for n, item in zip(report.measures.contested.tolist(), items, strict=True)]
    for index in np.argsort(shares)[::-1][:OF_A_KIND].tolist():
        if shares[index] >= CONTESTED:
            place = Place(report, index)
            contested = contested_pixels(report.data.annotations[index], items[index].size)
            reason = f"{100 * shares[index]:.0f} % of several classes"
            yield Case(len(SEVERITIES), place, reason, labels=np.where(contested, place.mask(), 0))


def _case_picture(case: Case, palette: np.ndarray) -> np.ndarray:
    image, mask = _load(case.place)
    picture = overlay(image, mask if case.labels is None else case.labels, palette, opacity=0.4)
    if case.twin is None:
        return picture
    image, mask = _load(case.twin)
    return grid([overlay(image, mask, palette, opacity=0.4), picture], 2)
