"""Console: what a workflow shows while it works, if it is asked to; tables and percentages as text."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any


class Console:
    """Prints lines and progress bars, or nothing.

    Args:
        verbose: False to print nothing: a workflow that another program calls is silent by default.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose

    def print(self, text: str = "") -> None:
        """Print lines to the standard output at once."""
        if self.verbose:
            print(text, flush=True)

    def progress(
        self, items: Iterable[Any], *, total: int | None = None, unit: str = "image", text: str | None = None
    ) -> Any:
        """Return the items under a tqdm progress bar, which appears only on a terminal.

        Args:
            items: What to iterate over.
            total: Number of items, if `items` has no length.
            unit: What one item is called.
            text: Shown in front of the bar.
        """
        from tqdm import tqdm

        hidden = not (self.verbose and sys.stderr.isatty())
        return tqdm(items, desc=text, total=total, unit=unit, leave=False, dynamic_ncols=True, disable=hidden)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]


def percent(share: float) -> str:
    """Return a share as text in percent with two digits, or "-" for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
