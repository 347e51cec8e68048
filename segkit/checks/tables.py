"""The results of a check as text and as CSV files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkit.checks.check import SEVERITIES, CheckedSet
from segkit.console import counted
from segkit.data.findings import KINDS, summarise
from segkit.data.rasterize import OVERLAP_TEXTS
from segkit.files import write_csv

SIDE_BY_SIDE = 3  # sets in one table
PAIRS = 4  # overlapping classes that are named


def describe_set(part: CheckedSet) -> str:
    """Describe a set in a few lines: how much it holds, the sizes of its images, and overlaps of its annotations."""
    data, measures, names = part.data, part.measures, part.data.class_names
    labels = "masks from files" if data.annotations is None else counted(measures.annotations.sum(), "annotation")
    sizes = sorted((item.size for item in data.items), key=lambda size: size[0] * size[1])
    different = len(set(sizes))
    described = "no sizes"
    if sizes:
        smallest, median, largest = (f"{h} x {w}" for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        described = f"{different} sizes, {smallest} to {largest}, median {median} pixels (height x width)"
        if different == 1:
            described = f"all {smallest} pixels (height x width)"
    lines = [f"{counted(len(sizes), 'image')}, {labels}, {counted(len(names), 'class')}; {described}"]
    total = sum(height * width for height, width in sizes)
    ignored = total - measures.pixels.sum()
    if ignored:
        lines.append(f"{_percent(ignored, total)} of the pixels are ignored (255)")
    if measures.contested.any():
        most = sorted(measures.overlaps.items(), key=lambda pair: -pair[1])[:PAIRS]
        pairs = ", ".join(f"{names[a]} / {names[b]} {_percent(area, total)}" for (a, b), area in most)
        others = ", ".join(f"{rule!r} {_percent(n.sum(), total)}" for rule, n in measures.repainted.items())
        lines += [
            f"{_percent(measures.contested.sum(), total)} of the pixels are claimed by several classes: {pairs}",
            f"there {OVERLAP_TEXTS[measures.rule]}; pixels that another rule would label differently: {others}",
        ]
    indent = "\n" + " " * (len(part.name) + 2)
    return f"{part.name}  " + indent.join(lines)


def class_table(checked: Sequence[CheckedSet]) -> str:
    """Return one line per class: images, annotations and share of the pixels in each set."""
    names = checked[0].data.class_names
    width = max(map(len, names))
    blocks = []
    for start in range(0, len(checked), SIDE_BY_SIDE):
        parts = checked[start : start + SIDE_BY_SIDE]
        lines = [
            " " * width + "".join(f"  {part.name[-34:]:>34}" for part in parts),
            " " * width + "".join(f"  {'images':>14} {'annotations':>11} {'pixels':>7}" for _ in parts),
        ]
        for label, name in enumerate(names):
            line = f"{name:<{width}}"
            for part in parts:
                pixels, objects = part.measures.pixels, part.measures.annotations[:, label].sum()
                images = (pixels[:, label] > 0).sum()
                line += f"  {images:>6} {_percent(images, len(pixels)):>7} {objects if objects else '-':>11} "
                line += f"{_percent(pixels[:, label].sum(), pixels.sum()):>7}"
            lines.append(line)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


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
    total = ", ".join(counted(n, severity) for n, severity in named if n or severity == "error")
    return "\n".join([*lines, total + ("; training would stop with these errors" if counts[0] else "")])


def write_tables(checked: Sequence[CheckedSet], out: Path) -> list[str]:
    """Write classes, overlaps and findings as CSV; return the names of the files."""
    classes: list[tuple] = []
    overlaps: list[tuple] = []
    for part in checked:
        pixels, annotations, names = part.measures.pixels, part.measures.annotations, part.data.class_names
        totals = len(pixels), annotations.sum(), pixels.sum()
        for label, name in enumerate(names):
            counts = (pixels[:, label] > 0).sum(), annotations[:, label].sum(), pixels[:, label].sum()
            cells = [cell for n, total in zip(counts, totals, strict=True) for cell in (int(n), _share(n, total))]
            classes.append((part.name, label, name, *cells))
        size = sum(item.size[0] * item.size[1] for item in part.data.items)
        for (a, b), area in sorted(part.measures.overlaps.items(), key=lambda pair: -pair[1]):
            overlaps.append((part.name, names[a], names[b], area, _share(area, size)))
    findings = [(part.name, f.severity, f.kind, f.where, f.sentence) for part in checked for f in part.findings]
    tables = {
        "classes.csv": ("set label class images image_share annotations annotation_share pixels pixel_share", classes),
        "overlaps.csv": ("set class other_class pixels pixel_share", overlaps),
        "findings.csv": ("set severity kind where sentence", findings),
    }
    for file, (header, rows) in tables.items():
        # Names that are not UTF-8 are written as a command prints them, with escapes such as \udcff.
        printed = [
            [c.encode(errors="backslashreplace").decode() if isinstance(c, str) else c for c in row] for row in rows
        ]
        write_csv(out / file, header.split(), printed)
    return list(tables)


def _share(part: float, whole: float) -> float:
    return round(float(np.divide(part, max(whole, 1))), 6)


def _percent(part: float, whole: float) -> str:
    value = 100 * part / max(whole, 1)
    return f"{value:.1f} %" if value >= 0.095 or not part else "<0.1 %"
