"""What becomes of a step whose loss or gradient is not finite.

In fp16 the scaler leaves it out and lowers its scale; that is borne until it has happened many times in a row, see
`segkit.training.loop`.
"""

import logging
from collections.abc import Callable

from torch.utils.data import DataLoader

from segkit.errors import NotFiniteError
from segkit.training.distributed import ALONE, Ranks
from segkit.training.state import TrainState

_log = logging.getLogger(__name__)
BORNE, SHARE_BORNE = 2, 0.01  # steps of an epoch, whichever is more
NAMES_SHOWN = 8

# Told of such a step, before its batches are counted: what is wrong with it, and how many they are.
NotFinite = Callable[[TrainState, str, int], None]


def stop(state: TrainState, problem: str, batches: int) -> None:
    """Raises FloatingPointError, except in fp16."""
    if not state.scaler.is_enabled():
        raise NotFiniteError(f"{problem} in {place(state)}; try a lower --lr, or --amp off")


def leave_out(train: DataLoader, ranks: Ranks = ALONE, *, accumulate: int = 1) -> NotFinite:
    """Logs such steps with their images; except in fp16, raises at the third in an epoch, or beyond 1 % of them.

    Args:
        train: The loader that the steps come from, see `fit`.
        ranks: The processes that train together; the first one logs.
        accumulate: Batches of a step.
    """

    def call(state: TrainState, problem: str, batches: int) -> None:
        if state.left_out >= max(BORNE, int(SHARE_BORNE * len(train) / accumulate)):
            stop(state, f"{problem}, as in {state.left_out} steps before it,", batches)
        state.left_out += 1
        if ranks.is_first:
            numbers = range(state.step, state.step + batches)
            images = [train.dataset.data.name(i) for number in numbers for i in train.batch_sampler.images(number)]
            more = f" and {len(images) - NAMES_SHOWN} more" if len(images) > NAMES_SHOWN else ""
            shown = ", ".join(images[:NAMES_SHOWN])
            _log.warning("%s in %s, which is left out (images: %s%s)", problem, place(state), shown, more)

    return call


def place(state: TrainState) -> str:
    """Which step it is, in words."""
    return f"epoch {state.epoch + 1}, step {state.step + 1}"
