"""--nan-policy restart: after numbers that are not finite, once again from the last save, more slowly."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.cli.train_resume import load_run, place, read_run
from segkit.config import TrainConfig

if TYPE_CHECKING:
    from segkit.training import EpochReport, Ranks, TrainState

SLOWER = 0.5


def epochs_with_restart(
    train: Callable[[], Iterator["EpochReport"]], config: TrainConfig, state: "TrainState", out: Path, ranks: "Ranks"
) -> Iterator["EpochReport"]:
    """The epochs of `train`; if they end by FloatingPointError, as `config.nan_policy` says, from the last save again.

    The learning rates are halved then, for the rest of the run; the second time the error is raised, and where nothing
    has been saved yet.
    """
    from segkit.training.checkpoint import LAST, PREVIOUS

    try:
        yield from train()
        return
    except FloatingPointError as error:
        has_save = ranks.on_first(lambda: any((out / name).is_file() for name in (LAST, PREVIOUS)))
        if config.nan_policy == "stop" or state.scheduler.factor != 1 or not has_save:
            raise
        problem = str(error)  # the error itself would keep the failed step in memory
    saved = replace(config, out=out, resume=True, allow_data_change=True)
    content = ranks.on_first(lambda: read_run(saved))
    load_run(saved, state, content, ranks)
    del content
    state.scheduler.factor = SLOWER
    if ranks.is_first:
        print(
            f"warning: {problem}; once again from {out / LAST}, {place(state)}, with half the learning rate", flush=True
        )
    yield from train()
