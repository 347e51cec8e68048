"""Curves as SVG. Colours come from the styles of the page around them, so that they fit its dark mode."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 8, 26  # margins around the plot
DOTTED = 40  # largest number of points that are marked by dots


def line_chart(
    title: str,
    epochs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    high: float | None = None,
    marked: float | None = None,
) -> str:
    """Return an HTML figure with one line per series over the epochs; NaN values are skipped.

    Args:
        title: The title above the figure.
        epochs: The epochs, increasing.
        series: Name of a line -> its values; at most four.
        high: Upper end of the axis; by default the largest value.
        marked: An epoch to mark by a vertical line, such as the best one.

    Returns:
        The figure as HTML text.
    """
    lines = {
        name: [(x, y) for x, y in zip(epochs, values, strict=True) if math.isfinite(y)]
        for name, values in series.items()
    }
    ys = [y for points in lines.values() for _, y in points] or [0.0]
    top = high if high is not None else max(ys)
    ticks = _ticks(min(0.0, *ys), top if top > 0 else 1.0)
    low, top = ticks[0], ticks[-1]
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (top - y) / (top - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_rule("grid", LEFT, place(first, y)[1], WIDTH - RIGHT, place(first, y)[1]) for y in ticks]
    parts += [_label(LEFT - 6, place(first, y)[1] + 4, f"{y:.4g}", "end") for y in ticks]
    whole = range(int(first), int(epochs[-1]) + 1, max(1, math.ceil((epochs[-1] - first) / 6)))
    parts += [_label(place(x, low)[0], HEIGHT - 8, f"{x:g}", "middle") for x in whole]
    if marked is not None:
        parts.append(_rule("mark", place(marked, low)[0], TOP, place(marked, low)[0], HEIGHT - BOTTOM))
    for number, points in enumerate(lines.values()):
        placed = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in placed] if len(placed) <= DOTTED else []
        parts.append(f'<g class="s{number}"><polyline points="{path}"/>{"".join(dots)}</g>')
    keys = [f' <span class="key s{number}">{escape(name)}</span>' for number, name in enumerate(lines)]
    ends = [f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in lines.items() if points]
    description = escape(f"{title}: {', '.join(ends)}" if ends else title)
    return (
        f"<figure><figcaption>{escape(title)}{''.join(keys) if len(lines) > 1 else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{description}">{"".join(parts)}</svg></figure>'
    )


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Return four to seven round numbers that cover the range from `low` to `high`."""
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    return [number * step for number in range(first, math.ceil(high / step - 1e-9) + 1)]
