"""What commands print: the progress bar, and tables."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any


def progress(
    items: Iterable[Any], *, total: int | None = None, unit: str = "image", text: str | None = None, show: bool = True
) -> Iterable[Any]:
    """Return the items under a progress bar, which appears only on a terminal.

    Args:
        items: What to iterate over.
        total: Number of items, if `items` has no length.
        unit: What one item is called.
        text: Shown in front of the bar.
        show: False for no bar, such as in all processes but the first.
    """
    from tqdm import tqdm

    hidden = not (show and sys.stderr.isatty())
    return tqdm(items, desc=text, total=total, unit=unit, leave=False, dynamic_ncols=True, disable=hidden)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
