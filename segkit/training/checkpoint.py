"""What a run saves: last.pt to resume it, best.safetensors with the best weights, and results.csv.

Each file is written whole or not at all, and read without unpickling code.
"""

import errno
import io
import logging
import math
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkit.errors import MissingFileError, NotFiniteError, UsageError, as_segkit_error, is_out_of_memory, os_error_text
from segkit.files import file_named, free_name, remove_leftovers, write_csv, write_whole
from segkit.models import Preprocessing, Segmenter
from segkit.models.model_file import model_bytes, read_header
from segkit.models.transfer import differences
from segkit.runs import RunFolder
from segkit.sliding_window import SlidingWindow
from segkit.training.distributed import ALONE, Ranks
from segkit.training.state import TrainState, random_state
from segkit.training.validation import Validation
from segkit.training_scale import TrainingScale

_log = logging.getLogger(__name__)
FORMAT = 5
PHOTOGRAPHS = " photographs"  # end of the names of two digests: `train photographs`, `val photographs`
PARTS = ("model", "ema", "optimizer", "scheduler", "scaler")
VALUES = (
    *("epoch", "step", "updates", "overflows", "left_out", "loss_sum", "image_count", "seconds"),
    *("best_miou", "best_epoch", "best_weights", "stale_epochs", "finished"),
    *("history", "settings", "data", "steps_per_epoch"),
)
NEW_VALUES = {"finished": False, "training_scale": None, "window": None}  # values that older files of this format lack


def prepare_folder(state: TrainState, out: Path) -> None:
    """Remove what a killed run left half-written, and bring results.csv in line with `state`."""
    run = RunFolder(out)
    remove_leftovers(run.path, *(path.name for path in (run.last, run.previous, run.best, run.results)))
    if state.history:
        write_results(state.history, run.results)


def save_progress(state: TrainState, out: Path, ranks: Ranks = ALONE) -> OSError | None:
    """Write last.pt and results.csv; if last.pt cannot be written, log and return the error.

    last.pt also holds the rows of results.csv, so a failure to write results.csv is only logged. With several
    processes, the first one writes its own buffers and the random states of all.
    """
    # Until the first batch of a resumed run is drawn, its random states are those of the file.
    randoms = ranks.gather(state.random or random_state())

    def write() -> OSError | None:
        results = RunFolder(out).results
        try:
            save_state(state, out, randoms)
        except OSError as error:
            return _log_failure(error)
        try:
            if state.history:
                write_results(state.history, results)
        except OSError as error:
            _log.warning("%s; %s has its rows", os_error_text(error), RunFolder(out).last.name)
        return None

    return ranks.on_first(write)


def save_on_request(state: TrainState, out: Path, ranks: Ranks = ALONE) -> None:
    """Write the files of `save_progress`, and log that they were saved on request."""
    if save_progress(state, out, ranks) is None and ranks.is_first:
        _log.info("saved %s, as asked; training continues", RunFolder(out).last)


def save_if_best(
    state: TrainState, validations: Mapping[str, Validation], out: Path, ranks: Ranks = ALONE
) -> tuple[bool, OSError | None]:
    """Write best.safetensors if the weights have the best mIoU so far.

    Weights that could not be written do not become the best ones. With several processes the first one writes.

    Args:
        state: The state; its `best_...` values are changed.
        validations: The validation of each kind of weights (`raw`, `ema`).
        out: The run folder.
        ranks: The processes that train together.

    Returns:
        Whether the weights are the best so far, and the error if they could not be written.

    Raises:
        UsageError: In the first validation, the images show no class that is scored.
    """
    mious = {name: validation.scores.miou for name, validation in validations.items()}
    weights = max(mious, key=lambda name: -math.inf if math.isnan(mious[name]) else mious[name])
    miou = mious[weights]
    if math.isnan(miou) and state.best_epoch == 0:
        raise UsageError("there is no mIoU: the validation images show no class that is scored")
    if not miou > state.best_miou:
        return False, None

    def write() -> OSError | None:
        check_finite(state)
        model = state.model if weights == "raw" else state.ema.module
        try:
            content = model_bytes(model, epoch=state.epoch, miou=miou, weights=weights)
            write_whole(RunFolder(out).best, content, durable=True)
        except OSError as error:
            return _log_failure(error)
        return None

    error = ranks.on_first(write)
    if error is not None:
        return False, error
    state.best_miou, state.best_epoch, state.best_weights, state.stale_epochs = miou, state.epoch, weights, 0
    return True, None


def match_best(state: TrainState, out: Path, ranks: Ranks = ALONE, *, may_be_newer: bool = True) -> str | None:
    """Set the best validation of a resumed state to what best.safetensors says, if the two differ.

    If a run is killed after best.safetensors was written and before last.pt, last.pt does not have that epoch. If an
    older checkpoint is resumed, or somebody has replaced best.safetensors, it may be of any epoch. The state follows
    best.safetensors, because that file is the result of the run.

    Args:
        state: The state; its `best_...` values are changed.
        out: The run folder. A best.safetensors that is not of this run, or is damaged, is renamed.
        ranks: The processes that train together.
        may_be_newer: Accept a file of a later epoch than the state, even if the state has no best epoch.

    Returns:
        A sentence that says how the two differ; None if they agree.
    """

    def compare() -> tuple[tuple[int, float, str], str | None]:
        run, nothing = RunFolder(out), (0, -math.inf, "raw")
        known = (state.best_epoch, state.best_miou, state.best_weights)
        again = "the best mIoU is searched again from here on"
        if not run.best.is_file():
            lost = f"there is no {run.best}, the model of epoch {state.best_epoch}; {again}"
            return nothing, lost if state.best_epoch else None
        try:
            found = _read_best(run.best, state.model.config, state.model.class_names)
        except UsageError as error:
            aside = free_name(run.best)
            run.best.rename(aside)
            return nothing, f"{error}; it is renamed to {aside.name}, and {again}"
        is_searching = state.best_epoch == 0  # since the validation images have changed, or nothing was validated yet
        if found == known or (is_searching and not (may_be_newer and found[0] > state.epoch)):
            return known, None
        other = f"of epoch {known[0]} with {known[1]:.4f}" if known[0] else "of no epoch"
        return found, (
            f"{run.best} is of epoch {found[0]} with an mIoU of {found[1]:.4f}, but by the checkpoint it is {other}; "
            "the file is taken as the best, so only a later epoch with a higher mIoU replaces it"
        )

    (state.best_epoch, state.best_miou, state.best_weights), problem = ranks.on_first(compare)
    return problem


def foreign_best(content: Mapping[str, Any], run: RunFolder) -> str | None:
    """Return what is wrong with the best.safetensors of a finished run, as text; None if it is of the best epoch.

    Args:
        content: The checkpoint of the run.
        run: The run folder; it is not changed.
    """
    known = (content["best_epoch"], content["best_miou"], content["best_weights"])
    if not run.best.is_file():
        return f"there is no {run.best}, the model of epoch {known[0]}" if known[0] else None
    try:
        found = _read_best(run.best, content["config"], content["class_names"])
    except UsageError as error:
        return str(error)
    if found == known:
        return None
    return (
        f"{run.best} is of epoch {found[0]} with an mIoU of {found[1]:.4f}, but by the checkpoint the best is epoch "
        f"{known[0]} with {known[1]:.4f}"
    )


def _read_best(path: Path, config: Mapping[str, Any], class_names: Sequence[str]) -> tuple[int, float, str]:
    """Return epoch, mIoU and kind of the weights in best.safetensors.

    Raises:
        UsageError: The file is damaged, or a training of this model did not write it.
    """
    header = read_header(path)
    extra = header.get("extra") or {}
    epoch, miou, weights = (extra.get(name) for name in ("epoch", "miou", "weights"))
    is_of_run = header["model"] == config and header["class_names"] == list(class_names)
    is_best = type(epoch) is int and epoch >= 1 and isinstance(miou, float) and weights in ("raw", "ema")
    if not (is_of_run and is_best):
        raise UsageError(f"{path} was not written by this run")
    return epoch, miou, weights


def save_state(state: TrainState, folder: Path, randoms: Sequence[dict[str, Any]] = ()) -> None:
    """Write `state` and the random states to last.pt; the file before it becomes last.prev.pt.

    Args:
        state: The state, in the first of several processes.
        folder: The run folder.
        randoms: The random states of all processes; by default those of this one.

    Raises:
        NotFiniteError: See `check_finite`; the files are unchanged.
        OSError: The file could not be written; the files are unchanged.
    """
    check_finite(state)
    randoms = randoms or [state.random or random_state()]
    parts = {name: part.state_dict() for name in PARTS if (part := getattr(state, name)) is not None}
    content = {
        "format": FORMAT,
        "config": state.model.config,
        "class_names": list(state.model.class_names),
        "preprocessing": asdict(state.model.preprocessing),
        "training_scale": state.model.training_scale.write(),
        "window": None if state.model.window is None else state.model.window.write(),
        **parts,
        **{name: getattr(state, name) for name in VALUES},
        "random": randoms[0],
        "random_of_others": list(randoms[1:]),
    }
    buffer, run = io.BytesIO(), RunFolder(folder)
    with file_named(run.last):
        try:
            torch.save(content, buffer)
        except (RuntimeError, MemoryError) as error:
            # If the buffer raises MemoryError, torch may raise an error about the position in the buffer instead.
            if not is_out_of_memory(error) and "inline_container" not in str(error):
                raise
            raise OSError(errno.ENOMEM, "memory ran out") from error
    write_whole(run.last, buffer.getbuffer(), durable=True, previous=run.previous)


def checkpoint_bytes(state: TrainState) -> int:
    """Return the approximate size of last.pt: the weights, their average, and the two moments of an Adam optimizer."""
    weights = sum(value.numel() * value.element_size() for value in state.model.state_dict().values())
    return weights * (3 if state.ema is None else 4)


def check_finite(state: TrainState) -> None:
    """Raise NotFiniteError if a weight, its average or a value of the optimizer is NaN or infinite."""
    learned = [(f"the weights {name}", value) for name, value in state.model.state_dict().items()]
    if state.ema is not None:
        learned += ((f"the averaged weights {name}", value) for name, value in state.ema.module.state_dict().items())
    for values in state.optimizer.state.values():
        learned += ((f"the optimizer's {key}", value) for key, value in values.items() if isinstance(value, Tensor))
    for name, value in learned:
        if value.is_floating_point() and not value.isfinite().all():
            raise NotFiniteError(
                f"{name} are no longer finite in epoch {state.epoch + 1}, and are not saved; "
                "try a lower `lr`, or `amp=off`"
            )


def write_results(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write one row for each epoch as CSV; values that are NaN, such as the IoU of an absent class, stay empty."""
    rows = [["" if math.isnan(value) else f"{value:.6g}" for value in row.values()] for row in history]
    write_csv(path, list(history[0]), rows, durable=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a checkpoint file, or the newest whole one of a run folder.

    Returns:
        The content for `load_state`, and a sentence about each damaged file.

    Raises:
        MissingFileError: There is nothing to resume.
        UsageError: No file is whole, or another version of segkit wrote it.
    """
    run = RunFolder(path)
    files = [path] if path.is_file() else [file for file in (run.last, run.previous) if file.is_file()]
    if not files:
        raise MissingFileError(f"nothing to resume: there is no {run.last if path.is_dir() else path}")
    refused = []
    for file in files:
        try:
            return _read(file), refused
        except UsageError as error:
            refused.append(str(error))
    raise UsageError("; ".join(refused))


def _read(path: Path) -> dict[str, Any]:
    problem = f"cannot resume from {path} ({path.stat().st_size} bytes): "
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not compare the checksums
            # torch does not read the tensor of a record that is marked as a folder, and leaves it uninitialised.
            damaged = damaged or any(file.external_attr & 0x10 for file in archive.filelist)
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        fault = UsageError(problem + "the file is damaged or was not written by segkit")
        raise as_segkit_error(error) or fault from error
    if damaged:
        raise UsageError(problem + "the file is damaged")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(problem + "it was not written by this version of segkit")
    return {**NEW_VALUES, **content}


def load_state(
    state: TrainState, content: Mapping[str, Any], *, allow_data_change: bool = False, rank: int = 0
) -> None:
    """Set `state` to a checkpoint. All parts of the state must exist already.

    If the data may change, other validation images start a new search for the best weights, and another number of
    steps per epoch restarts the current epoch.

    Args:
        state: The state; changed in place.
        content: Content of a checkpoint, see `read_checkpoint`.
        allow_data_change: Accept other data than the run began with.
        rank: Number of this process. It takes its own random state; a process that the run did not have keeps the
            current one.

    Raises:
        UsageError: The run had another architecture, class list or setting, or other data.
    """
    _check_same_model(content, state.model)
    check_settings(content["settings"], state.settings)
    changed = changed_data(content, state)
    if changed and not allow_data_change:
        raise UsageError(
            "cannot resume: the data files have changed since the run began; "
            "to resume nevertheless, add `allow_data_change`"
        )
    for name in PARTS:
        part = getattr(state, name)
        if part is not None and (content[name] or name != "scaler"):  # the scaler of a run without fp16 is empty
            part.load_state_dict(content[name])
    for name in VALUES:
        if name not in ("settings", "data", "steps_per_epoch"):
            setattr(state, name, content[name])
    for model in [state.model] if state.ema is None else [state.model, state.ema.module]:
        model.preprocessing = Preprocessing(**content["preprocessing"])  # `init_from` may have set another backbone's
        model.training_scale = TrainingScale.read(content["training_scale"])  # older runs validated at full size
        model.window = SlidingWindow.read(content["window"])
    if "val" in changed:
        state.forget_best()
    if content["steps_per_epoch"] != state.steps_per_epoch:
        state.restart_epoch()
    randoms = random_states(content)
    state.random = randoms[rank] if rank < len(randoms) else None


def changed_data(content: Mapping[str, Any], state: TrainState) -> set[str]:
    """Return which parts of the data (`train`, `val`) have changed since the run began.

    A digest that the checkpoint lacks is not compared: earlier versions of segkit did not compute all of them. The
    photographs are not compared either, see `photographs_warning`.
    """
    return {name.split()[0] for name in _differing(content["data"], state.data) if not name.endswith(PHOTOGRAPHS)}


def photographs_warning(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> str | None:
    """Return a warning if the photographs of a run have other names, sizes or times than before; None if not.

    Only a warning, because a copy of the same photographs has other times.

    Args:
        before: The digests of the data in the checkpoint; older ones lack the photographs.
        now: The digests of the current data.
        folder: The run folder.
    """
    changed = sorted(name for name in _differing(before, now) if name.endswith(PHOTOGRAPHS))
    if not changed:
        return None
    return (
        f"{' and '.join(changed)} have other names, sizes or times than when {folder} was trained on them; if they "
        "were replaced by other photographs, start a new run; if they were only copied, nothing is wrong"
    )


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    return {name for name, digest in now.items() if before.get(name, digest) != digest}


def random_states(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the random states of a checkpoint, one for each process that trained."""
    return [content["random"], *content.get("random_of_others", [])]


def check_settings(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise UsageError with the settings that differ, if there are any."""
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        listed = "; ".join(f"`{key}` was {before.get(key)}, is {now[key]}" for key in changed)
        raise UsageError(f"cannot resume with other settings: {listed}")


def _check_same_model(content: Mapping[str, Any], model: Segmenter) -> None:
    before, now = content["class_names"], list(model.class_names)
    if content["config"] != model.config:
        problem = f"the run has another architecture: {differences(content['config'], model.config)}"
    elif before != now:
        classes = (dict(enumerate(names)) for names in (before, now))
        problem = f"the run had {len(before)} classes, now there are {len(now)}; class {differences(*classes)}"
    else:
        return
    raise UsageError(f"cannot resume: {problem}; to take only the weights of the run, use `init_from`")


def _log_failure(error: OSError) -> OSError:
    _log.error("%s; files saved before are kept, and training continues", os_error_text(error))
    return error
