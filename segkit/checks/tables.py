"""What a check prints and writes as CSV."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segkit.checks.check import SEVERITIES, SetReport
from segkit.data.findings import KINDS, summarise
from segkit.data.rasterize import OVERLAP_TEXTS

SIDE_BY_SIDE = 3  # sets in one table
PAIRS = 4  # overlapping classes that are named


def describe(report: SetReport) -> str:
    """A set in a few lines: how much there is, in which sizes, and where annotations overlap."""
    data, measures = report.data, report.measures
    counted = "masks in files" if data.annotations is None else _counted(measures.annotations.sum(), "annotation")
    lines = [f"{_counted(len(data.items), 'image')}, {counted}, {len(data.class_names)} classes; {_sizes(report)}"]
    total = sum(item.size[0] * item.size[1] for item in data.items)
    ignored = total - measures.pixels.sum()
    if ignored:
        lines.append(f"{_percent(ignored, total)} of the pixels are ignored (255)")
    if measures.contested.any():
        lines += _overlap_lines(report, total)
    indent = "\n" + " " * (len(data.name) + 2)
    return f"{data.name}  " + indent.join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _sizes(report: SetReport) -> str:
    sizes = sorted((item.size for item in report.data.items), key=lambda size: size[0] * size[1])
    if not sizes:
        return "no sizes"
    smallest, median, largest = (f"{h} x {w}" for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    if len(set(sizes)) == 1:
        return f"all {smallest} pixels (height x width)"
    return f"{len(set(sizes))} sizes, {smallest} to {largest}, median {median} pixels (height x width)"


def _overlap_lines(report: SetReport, total: int) -> Iterator[str]:
    measures, names = report.measures, report.data.class_names
    largest = sorted(measures.overlaps.items(), key=lambda pair: -pair[1])[:PAIRS]
    pairs = ", ".join(f"{names[a]} / {names[b]} {_percent(area, total)}" for (a, b), area in largest)
    yield f"{_percent(measures.contested.sum(), total)} of the pixels are claimed by several classes: {pairs}"
    others = ", ".join(f"{rule!r} {_percent(n.sum(), total)}" for rule, n in measures.repainted.items())
    yield f"there {OVERLAP_TEXTS['smallest']}; pixels that another rule would label otherwise: {others}"


def class_table(reports: Sequence[SetReport]) -> str:
    """A line a class: images, annotations and share of the pixels in each set."""
    blocks = [reports[i : i + SIDE_BY_SIDE] for i in range(0, len(reports), SIDE_BY_SIDE)]
    return "\n\n".join(_class_block(block) for block in blocks)


def _class_block(reports: Sequence[SetReport]) -> str:
    names = reports[0].data.class_names
    width = max(map(len, names))
    lines = [
        " " * width + "".join(f"  {report.data.name[-34:]:>34}" for report in reports),
        " " * width + "".join(f"  {'images':>14} {'annotations':>11} {'pixels':>7}" for _ in reports),
    ]
    for label, name in enumerate(names):
        lines.append(f"{name:<{width}}" + "".join(_class_cells(report, label) for report in reports))
    return "\n".join(lines)


def _class_cells(report: SetReport, label: int) -> str:
    pixels = report.measures.pixels
    images = (pixels[:, label] > 0).sum()
    objects = report.measures.annotations[:, label].sum()
    return (
        f"  {images:>6} {_percent(images, len(pixels)):>7} {objects if objects else '-':>11} "
        f"{_percent(pixels[:, label].sum(), pixels.sum()):>7}"
    )


def finding_lines(reports: Sequence[SetReport]) -> str:
    """One line for each kind of finding in each set, worst first, and the sum of it."""
    lines = []
    for severity in SEVERITIES:
        for report in reports:
            for note in summarise([f for f in report.findings if f.severity == severity]):
                remedy = KINDS[note.kind].remedy if severity == "error" else ""
                lines.append(f"{severity:<8} {report.data.name}: {note}" + (f"; {remedy}" if remedy else ""))
    counts = [sum(report.count(severity) for report in reports) for severity in SEVERITIES]
    named = zip(counts, SEVERITIES, strict=True)
    total = ", ".join(_counted(n, severity) for n, severity in named if n or severity == "error")
    return "\n".join([*lines, total + ("; training would stop at the errors" if counts[0] else "")])


def write_tables(reports: Sequence[SetReport], out: Path) -> list[str]:
    """Writes classes, overlaps and findings as CSV; gives the names of the files."""
    tables = {
        "classes.csv": (
            "set label class images image_share annotations annotation_share pixels pixel_share",
            _class_rows(reports),
        ),
        "overlaps.csv": ("set class other_class pixels pixel_share", _overlap_rows(reports)),
        "findings.csv": (
            "set severity kind where sentence",
            [(r.data.name, f.severity, f.kind, f.where, f.sentence) for r in reports for f in r.findings],
        ),
    }
    for name, (header, rows) in tables.items():
        # Names of files that are not UTF-8 are written as they are printed.
        with (out / name).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([header.split(), *rows])
    return list(tables)


def _class_rows(reports: Sequence[SetReport]) -> Iterator[tuple]:
    for report in reports:
        pixels, annotations = report.measures.pixels, report.measures.annotations
        for label, name in enumerate(report.data.class_names):
            counts = (pixels[:, label] > 0).sum(), annotations[:, label].sum(), pixels[:, label].sum()
            totals = len(pixels), annotations.sum(), pixels.sum()
            cells = [cell for n, total in zip(counts, totals, strict=True) for cell in (int(n), _share(n, total))]
            yield report.data.name, label, name, *cells


def _overlap_rows(reports: Sequence[SetReport]) -> Iterator[tuple]:
    for report in reports:
        names = report.data.class_names
        total = sum(item.size[0] * item.size[1] for item in report.data.items)
        for (a, b), area in sorted(report.measures.overlaps.items(), key=lambda pair: -pair[1]):
            yield report.data.name, names[a], names[b], area, _share(area, total)


def _share(part: float, whole: float) -> float:
    return round(float(np.divide(part, max(whole, 1))), 6)


def _percent(part: float, whole: float) -> str:
    value = 100 * part / max(whole, 1)
    return f"{value:.1f} %" if value >= 0.095 or not part else "<0.1 %"
