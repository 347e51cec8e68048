"""What of a run goes to the disk, and when the disk does not take it."""

import logging
import math
from pathlib import Path

from segkit.errors import UsageError
from segkit.files import remove_leftovers, write_whole
from segkit.models.model_file import model_bytes
from segkit.training.checkpoint import LAST, PREVIOUS, check_finite, save_state, write_results
from segkit.training.distributed import ALONE, Ranks
from segkit.training.evaluation import Evaluation
from segkit.training.random_state import random_state
from segkit.training.state import TrainState

_log = logging.getLogger(__name__)
BEST, RESULTS = "best.safetensors", "results.csv"


def prepare_folder(state: TrainState, out: Path) -> None:
    """Removes what a killed run has left half-written, and brings results.csv to what `state` knows."""
    remove_leftovers(out, LAST, PREVIOUS, BEST, RESULTS)
    if state.history:
        write_results(state.history, out / RESULTS)


def save_progress(state: TrainState, out: Path, ranks: Ranks = ALONE) -> OSError | None:
    """Writes `last.pt` and `results.csv`; if the disk does not take `last.pt`, says so and gives the error.

    It holds the rows of `results.csv`: one that could not be written is no more than a warning. Of several processes
    the first writes, its own buffers and the random states of all.
    """
    # Until the first batch of a resumed run has been drawn, its random states are those of the file.
    randoms = ranks.gather(state.random or random_state())

    def write() -> OSError | None:
        try:
            save_state(state, out, randoms)
        except OSError as error:
            return _tell(error, out)
        try:
            if state.history:
                write_results(state.history, out / RESULTS)
        except OSError as error:
            _log.warning("cannot write %s: %s; %s has its rows", out / RESULTS, error, LAST)
        return None

    return ranks.on_first(write)


def save_as_asked(state: TrainState, out: Path, ranks: Ranks = ALONE) -> None:
    """Writes what `save_progress` writes, and says so."""
    if save_progress(state, out, ranks) is None and ranks.is_first:
        _log.info("saved %s, as asked; training goes on", out / LAST)


def checkpoint_bytes(state: TrainState) -> int:
    """About how large `last.pt` is: the weights, their average, and the two moments of Adam and its kin."""
    weights = sum(value.numel() * value.element_size() for value in state.model.state_dict().values())
    return weights * (3 if state.ema is None else 4)


def save_if_best(
    state: TrainState, scored: dict[str, Evaluation], out: Path, ranks: Ranks = ALONE
) -> tuple[bool, OSError | None]:
    """Writes `best.safetensors` if one of the weights that were scored (raw, ema) is better than all so far.

    What could not be written does not become the best one. Of several processes the first one writes.

    Returns:
        Whether it is, and the error if it could not be written.

    Raises:
        ValueError: no validation image shows a class that counts, in the first epoch; later none is better.
    """
    weights, evaluation = max(scored.items(), key=lambda item: _rank(item[1]))
    miou = evaluation.scores.miou
    if math.isnan(miou) and state.best_epoch == 0:
        raise UsageError("there is no mIoU: the validation images show no class that is scored")
    if not miou > state.best_miou:
        return False, None

    def write() -> OSError | None:
        check_finite(state)
        model = state.model if weights == "raw" else state.ema.module
        try:
            content = model_bytes(model, epoch=state.epoch, miou=miou, weights=weights)
            write_whole(out / BEST, content, durable=True)
        except OSError as error:
            return _tell(error, out)
        return None

    error = ranks.on_first(write)
    if error is not None:
        return False, error
    state.best_miou, state.best_epoch, state.best_weights, state.stale_epochs = miou, state.epoch, weights, 0
    return True, None


def _rank(evaluation: Evaluation) -> float:
    return -math.inf if math.isnan(evaluation.scores.miou) else evaluation.scores.miou


def _tell(error: OSError, out: Path) -> OSError:
    _log.error("cannot save in %s: %s; what was saved before is kept, and training goes on", out, error)
    return error
