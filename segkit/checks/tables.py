"""The results of a check as text and as CSV files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkit.checks.check import SEVERITIES, CheckedSet
from segkit.data.findings import KINDS, summarise
from segkit.data.rasterize import OVERLAP_TEXTS
from segkit.files import write_csv

SIDE_BY_SIDE = 3  # sets in one table
PAIRS = 4  # overlapping classes that are named


def describe_set(part: CheckedSet) -> str:
    """Describe a set in a few lines: how much it holds, the sizes of its images, and overlaps of its annotations."""
    data, measures = part.data, part.measures
    counted = "masks from files" if data.annotations is None else _counted(measures.annotations.sum(), "annotation")
    lines = [f"{_counted(len(data.items), 'image')}, {counted}, {len(data.class_names)} classes; {_sizes(part)}"]
    total = sum(item.size[0] * item.size[1] for item in data.items)
    ignored = total - measures.pixels.sum()
    if ignored:
        lines.append(f"{_percent(ignored, total)} of the pixels are ignored (255)")
    if measures.contested.any():
        lines += _overlap_lines(part, total)
    indent = "\n" + " " * (len(part.name) + 2)
    return f"{part.name}  " + indent.join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _sizes(part: CheckedSet) -> str:
    sizes = sorted((item.size for item in part.data.items), key=lambda size: size[0] * size[1])
    if not sizes:
        return "no sizes"
    smallest, median, largest = (f"{h} x {w}" for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    if len(set(sizes)) == 1:
        return f"all {smallest} pixels (height x width)"
    return f"{len(set(sizes))} sizes, {smallest} to {largest}, median {median} pixels (height x width)"


def _overlap_lines(part: CheckedSet, total: int) -> Iterator[str]:
    measures, names = part.measures, part.data.class_names
    largest = sorted(measures.overlaps.items(), key=lambda pair: -pair[1])[:PAIRS]
    pairs = ", ".join(f"{names[a]} / {names[b]} {_percent(area, total)}" for (a, b), area in largest)
    yield f"{_percent(measures.contested.sum(), total)} of the pixels are claimed by several classes: {pairs}"
    others = ", ".join(f"{rule!r} {_percent(n.sum(), total)}" for rule, n in measures.repainted.items())
    yield f"there {OVERLAP_TEXTS['smallest']}; pixels that another rule would label differently: {others}"


def class_table(checked: Sequence[CheckedSet]) -> str:
    """Return one line per class: images, annotations and share of the pixels in each set."""
    blocks = [checked[i : i + SIDE_BY_SIDE] for i in range(0, len(checked), SIDE_BY_SIDE)]
    return "\n\n".join(_class_block(block) for block in blocks)


def _class_block(checked: Sequence[CheckedSet]) -> str:
    names = checked[0].data.class_names
    width = max(map(len, names))
    lines = [
        " " * width + "".join(f"  {part.name[-34:]:>34}" for part in checked),
        " " * width + "".join(f"  {'images':>14} {'annotations':>11} {'pixels':>7}" for _ in checked),
    ]
    for label, name in enumerate(names):
        lines.append(f"{name:<{width}}" + "".join(_class_cells(part, label) for part in checked))
    return "\n".join(lines)


def _class_cells(part: CheckedSet, label: int) -> str:
    pixels = part.measures.pixels
    images = (pixels[:, label] > 0).sum()
    objects = part.measures.annotations[:, label].sum()
    return (
        f"  {images:>6} {_percent(images, len(pixels)):>7} {objects if objects else '-':>11} "
        f"{_percent(pixels[:, label].sum(), pixels.sum()):>7}"
    )


def finding_lines(checked: Sequence[CheckedSet]) -> str:
    """Return one line per kind of finding in each set, worst first, and a line of totals."""
    lines = []
    for severity in SEVERITIES:
        for part in checked:
            for note in summarise([f for f in part.findings if f.severity == severity]):
                remedy = KINDS[note.kind].remedy if severity == "error" else ""
                lines.append(f"{severity:<8} {part.name}: {note}" + (f"; {remedy}" if remedy else ""))
    counts = [sum(part.count(severity) for part in checked) for severity in SEVERITIES]
    named = zip(counts, SEVERITIES, strict=True)
    total = ", ".join(_counted(n, severity) for n, severity in named if n or severity == "error")
    return "\n".join([*lines, total + ("; training would stop with these errors" if counts[0] else "")])


def write_tables(checked: Sequence[CheckedSet], out: Path) -> list[str]:
    """Write classes, overlaps and findings as CSV; returns the names of the files."""
    tables: dict[str, tuple[str, Iterable[tuple]]] = {
        "classes.csv": (
            "set label class images image_share annotations annotation_share pixels pixel_share",
            _class_rows(checked),
        ),
        "overlaps.csv": ("set class other_class pixels pixel_share", _overlap_rows(checked)),
        "findings.csv": (
            "set severity kind where sentence",
            [(r.name, f.severity, f.kind, f.where, f.sentence) for r in checked for f in r.findings],
        ),
    }
    for name, (header, rows) in tables.items():
        write_csv(out / name, header.split(), [[_as_printed(cell) for cell in row] for row in rows])
    return list(tables)


def _class_rows(checked: Sequence[CheckedSet]) -> Iterator[tuple]:
    for part in checked:
        pixels, annotations = part.measures.pixels, part.measures.annotations
        for label, name in enumerate(part.data.class_names):
            counts = (pixels[:, label] > 0).sum(), annotations[:, label].sum(), pixels[:, label].sum()
            totals = len(pixels), annotations.sum(), pixels.sum()
            cells = [cell for n, total in zip(counts, totals, strict=True) for cell in (int(n), _share(n, total))]
            yield part.name, label, name, *cells


def _overlap_rows(checked: Sequence[CheckedSet]) -> Iterator[tuple]:
    for part in checked:
        names = part.data.class_names
        total = sum(item.size[0] * item.size[1] for item in part.data.items)
        for (a, b), area in sorted(part.measures.overlaps.items(), key=lambda pair: -pair[1]):
            yield part.name, names[a], names[b], area, _share(area, total)


def _as_printed(cell: Any) -> Any:
    """Return text as a command prints it: names that are not UTF-8 with escapes such as \\udcff."""
    return cell.encode(errors="backslashreplace").decode() if isinstance(cell, str) else cell


def _share(part: float, whole: float) -> float:
    return round(float(np.divide(part, max(whole, 1))), 6)


def _percent(part: float, whole: float) -> str:
    value = 100 * part / max(whole, 1)
    return f"{value:.1f} %" if value >= 0.095 or not part else "<0.1 %"
