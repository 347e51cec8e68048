"""Console: what a workflow shows while it works, if it is verbose; tables and percentages as text."""

import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

# All but tab and new line. The last two groups change the direction in which a terminal writes.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Escape control characters, by which the name of a file or a class could control the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Console:
    """Print lines and progress bars, or nothing.

    Args:
        verbose: False to print nothing: a workflow that another program calls is silent by default.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose

    def print(self, text: str = "") -> None:
        """Print lines to the standard output at once."""
        if self.verbose:
            print(printable(text), flush=True)

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
        return tqdm(
            items,
            desc=text and printable(text),
            total=total,
            unit=unit,
            leave=False,
            dynamic_ncols=True,
            disable=hidden,
        )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its first column aligned to the left and the others to the right."""
    header, *rows = ([printable(cell).replace("\n", "\\n") for cell in row] for row in (header, *rows))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]


def counted(number: int, noun: str) -> str:
    """Return text such as `1 epoch`, `3 epochs`, `0 classes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'x', 'tch', 'sh')) else 's'}"


def percent(share: float) -> str:
    """Return a share as text in percent with two digits, or "-" for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
