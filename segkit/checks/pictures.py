"""The pictures of a check: examples of each class, of the rarest classes, and the worst cases."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from segkit.checks.check import SEVERITIES, CheckedSet
from segkit.checks.duplicates import TWIN_KINDS
from segkit.checks.measure import contested_pixels
from segkit.console import counted
from segkit.data.findings import KINDS
from segkit.data.images import write_image
from segkit.errors import DataError
from segkit.labels import IGNORE_INDEX, background_of, foreground_of
from segkit.text import draw_text, drawable_names, shorten
from segkit.visualize import create_palette, grid, legend, overlay

CELL = 200  # side of a cell in pixels
COLUMNS, MOST_CLASSES, RAREST = 6, 30, 4
OF_A_KIND, MOST_CASES = 4, 30
CONTESTED = 0.05  # least share of contested pixels to show an image
_UNREMARKABLE = (
    *("gray", "alpha", "16-bit", "32-bit", "cmyk", "animated", "turned", "size-from-file"),
    *("crowd", "no-segmentation", "id-by-value", "same-name-across"),
)


class Shown(NamedTuple):
    """An image of one of the sets."""

    part: CheckedSet
    index: int

    @property
    def caption(self) -> str:
        return Path(self.part.data.items[self.index].file_name).stem

    def image(self) -> np.ndarray:
        return self.part.data.image(self.index)

    def mask(self) -> np.ndarray:
        return self.part.data.mask(self.index)


def save_pictures(checked: Sequence[CheckedSet], out: Path) -> list[str]:
    """Write the pictures that have something to show; return their names."""
    painted = sum(part.measures.pixels.sum(0) for part in checked)
    background = background_of(checked[0].data.class_names)
    labels = [label for label in np.argsort(painted, kind="stable").tolist() if label != background and painted[label]]
    commonest_first = labels[:MOST_CLASSES][::-1]
    sheets = {
        "class_examples.png": _class_sheet(checked, commonest_first, _close_up),
        "rarest_classes.png": _class_sheet(checked, labels[:RAREST], _in_its_image),
        "worst_cases.png": _case_sheet(checked),
    }
    written = {name: sheet for name, sheet in sheets.items() if sheet is not None}
    for name, sheet in written.items():
        write_image(out / name, sheet)
    return list(written)


def _class_sheet(checked: Sequence[CheckedSet], labels: Sequence[int], draw: Callable) -> np.ndarray | None:
    """Draw a row per class: its name and share, and examples from large to small."""
    names = checked[0].data.class_names
    palette = create_palette(len(names), background_of(names))
    pictures, captions = [], []
    for label in labels:
        # Examples are evenly spread from the largest share of an image to the smallest.
        shares = [
            (-pixels / np.prod(part.data.items[index].size), number, index)
            for number, part in enumerate(checked)
            for index, pixels in enumerate(part.measures.pixels[:, label].tolist())
            if pixels
        ]
        spread = np.linspace(0, len(shares) - 1, min(COLUMNS - 1, len(shares))).round().astype(int)
        examples = [Shown(checked[number], index) for _, number, index in (sorted(shares)[i] for i in spread)]
        drawn = [(draw(shown, label, palette), shown.caption) for shown in examples]
        drawn += [(np.full((CELL, CELL, 3), 255, dtype=np.uint8), "")] * (COLUMNS - 1 - len(drawn))
        pictures += [_class_card(checked, label, palette), *(picture for picture, _ in drawn)]
        captions += ["", *(name for _, name in drawn)]
    return grid(pictures, COLUMNS, cell=CELL, captions=captions) if pictures else None


def _class_card(checked: Sequence[CheckedSet], label: int, palette: np.ndarray) -> np.ndarray:
    """Draw the name and the colour of a class, and how much of it each set has."""
    lines = [drawable_names(checked[0].data.class_names)[label]]
    for part in checked[:2]:  # the card has room for two
        pixels, objects = part.measures.pixels, int(part.measures.annotations[:, label].sum())
        share = 100 * pixels[:, label].sum() / max(pixels.sum(), 1)
        lines += [part.name, f"  {share:.2f} % of the pixels", f"  in {counted((pixels[:, label] > 0).sum(), 'image')}"]
        lines += [f"  {counted(objects, 'annotation')}"] * (part.data.annotations is not None)
    lines += ["and other sets"] * (len(checked) > 2)
    card = np.full((CELL, CELL, 3), 255, dtype=np.uint8)
    cv2.rectangle(card, (2, 4), (16, 16), palette[label].tolist(), cv2.FILLED)
    for row, line in enumerate(lines):
        left, size, colour = (22, 13, (0, 0, 0)) if row == 0 else (4, 12, (70, 70, 70))
        draw_text(card, shorten(line, CELL - left, size), (left, 15 + 17 * row), size=size, colour=colour)
    return card


def _close_up(shown: Shown, label: int, palette: np.ndarray) -> np.ndarray:
    """Crop the image around the largest piece of the class, with a quarter of its size as margin; tint the class."""
    image, mask = _load(shown)
    only = np.where(mask == label, label, IGNORE_INDEX)
    top, left, height, width = _largest_piece(mask == label)
    margin = max(24, max(height, width) // 4)
    window = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
    return overlay(image[window], only[window], palette, opacity=0.35, background=IGNORE_INDEX)


def _in_its_image(shown: Shown, label: int, palette: np.ndarray) -> np.ndarray:
    """Draw the whole image with the class tinted and its largest piece framed."""
    image, mask = _load(shown)
    picture = overlay(image, np.where(mask == label, label, IGNORE_INDEX), palette, background=IGNORE_INDEX)
    top, left, height, width = _largest_piece(mask == label)
    thickness = max(2, max(mask.shape) // 150)
    corners = (left - 2 * thickness, top - 2 * thickness), (left + width + 2 * thickness, top + height + 2 * thickness)
    return cv2.rectangle(np.ascontiguousarray(picture), *corners, (255, 255, 255), thickness)


def _load(shown: Shown) -> tuple[np.ndarray, np.ndarray]:
    """Return image and mask; a gray image if it cannot be read."""
    mask = shown.mask()
    try:
        return shown.image(), mask
    except DataError:
        return np.full((*mask.shape, 3), 128, dtype=np.uint8), mask


def _largest_piece(region: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the largest connected part."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    left, top, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
    return top, left, height, width


class Case(NamedTuple):
    """An image to look at: the reason, the labels (H, W) to show, and the image that it repeats, if any."""

    rank: float
    shown: Shown
    reason: str
    labels: np.ndarray | None = None
    twin: Shown | None = None


def _case_sheet(checked: Sequence[CheckedSet]) -> np.ndarray | None:
    """Draw the images of the findings, worst first, and the images with the largest overlaps."""
    cases = [case for part in checked for case in (*_found_cases(part, checked), *_contested_cases(part))]
    cases = sorted(cases, key=lambda case: case.rank)[:MOST_CASES]
    if not cases:
        return None
    names = checked[0].data.class_names
    background = background_of(names)
    palette = create_palette(len(names), background)
    pictures = []
    for case in cases:
        image, mask = _load(case.shown)
        labels = mask if case.labels is None else case.labels
        picture = overlay(image, labels, palette, opacity=0.4, background=background)
        if case.twin is not None:
            twin = overlay(*_load(case.twin), palette, opacity=0.4, background=background)
            picture = grid([twin, picture], 2)
        pictures.append(picture)
    captions = [f"{case.reason}\n{case.shown.part.name}: {case.shown.caption}" for case in cases]
    sheet = grid(pictures, min(COLUMNS, len(cases)), cell=CELL, captions=captions)
    return np.concatenate([sheet, legend(names, foreground_of(names), palette, sheet.shape[1])])


def _found_cases(part: CheckedSet, checked: Sequence[CheckedSet]) -> Iterator[Case]:
    """Yield a few images of each kind of finding, each image once with all its findings, worst first."""
    index_of = {item.file_name: index for index, item in enumerate(part.data.items)}
    kinds_of: dict[int, list[str]] = {}
    drawn: Counter[str] = Counter()
    for finding in part.findings:
        # A finding about an annotation says "annotation 7 of photograph.jpg".
        name = finding.where if finding.where in index_of else finding.where.split(" of ", 1)[-1]
        known = kinds_of.get(index_of.get(name, -1), [])
        if name not in index_of or finding.kind in (*_UNREMARKABLE, *known):
            continue
        if known or drawn[finding.kind] < OF_A_KIND:
            kinds_of.setdefault(index_of[name], known).append(finding.kind)
            drawn[finding.kind] += 1
    for index, kinds in kinds_of.items():
        rank = SEVERITIES.index(KINDS[kinds[0]].severity) + list(KINDS).index(kinds[0]) / len(KINDS)
        twin = part.twins.get(index) if set(kinds) & set(TWIN_KINDS) else None
        first = None if twin is None else Shown(checked[twin[0]], twin[1])
        yield Case(rank, Shown(part, index), ", ".join(kinds), twin=first)


def _contested_cases(part: CheckedSet) -> Iterator[Case]:
    """Yield the images with the largest share of contested pixels, with the labels that the overlap rule chose."""
    items = part.data.items
    shares = [n / np.prod(item.size) for n, item in zip(part.measures.contested.tolist(), items, strict=True)]
    for index in np.argsort(shares)[::-1][:OF_A_KIND].tolist():
        if shares[index] >= CONTESTED:
            shown = Shown(part, index)
            contested = contested_pixels(part.data.annotations[index], items[index].size)
            reason = f"{100 * shares[index]:.0f} % of several classes"
            yield Case(len(SEVERITIES), shown, reason, labels=np.where(contested, shown.mask(), 0))
