"""Views of an image: the eight symmetries of the square, with scales and brightness."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from segkit.errors import UsageError
from segkit.names import check_known


class Turn(NamedTuple):
    """A symmetry of the square: an optional transposition, then flips.

    Attributes:
        transposed: Whether height and width are swapped.
        flipped: Axes of (N, C, H, W) to flip after the transposition.
    """

    transposed: bool
    flipped: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Turn (N, C, H, W); the result is (N, C, W, H) if the turn transposes."""
        x = x.transpose(2, 3) if self.transposed else x
        return x.flip(self.flipped) if self.flipped else x

    def undo(self, x: Tensor) -> Tensor:
        """Invert `apply` exactly."""
        x = x.flip(self.flipped) if self.flipped else x
        return x.transpose(2, 3) if self.transposed else x


class View(NamedTuple):
    """One view of an image: a scale, a brightness factor and a turn.

    Attributes:
        scale: Factor for height and width.
        brightness: Factor for the RGB values.
        turn: A name from `TURNS`.
    """

    scale: float
    brightness: float
    turn: str


TURNS: dict[str, Turn] = {
    "identity": Turn(False, ()),
    "h": Turn(False, (3,)),
    "v": Turn(False, (2,)),
    "rot180": Turn(False, (2, 3)),
    "transpose": Turn(True, ()),
    "rot90": Turn(True, (2,)),  # counterclockwise, as in torch.rot90
    "rot270": Turn(True, (3,)),
    "antitranspose": Turn(True, (2, 3)),
}

FLIPS: dict[str, tuple[str, ...]] = {
    "none": ("identity",),
    "h": ("identity", "h"),
    "v": ("identity", "v"),
    "hv": ("identity", "h", "v", "rot180"),
    "d4": tuple(TURNS),
}


def turns_of(flips: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the turns, without repetition and with `identity` first.

    Raises:
        UsageError: A name is unknown.
    """
    if isinstance(flips, str):
        check_known("flips", flips, FLIPS)
        return FLIPS[flips]
    if not isinstance(flips, Sequence):
        raise UsageError(f"`flips` must be one of {', '.join(FLIPS)}, or a list of turns, got {flips!r}")
    for name in flips:
        check_known("turn", name, TURNS)
    return tuple(dict.fromkeys(("identity", *flips)))
