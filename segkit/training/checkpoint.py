"""What a run needs to go on: written whole or not at all, read without unpickling code."""

import csv
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkit.errors import MissingFileError, NotFiniteError, UsageError
from segkit.files import write_whole
from segkit.models import Preprocessing, Segmenter
from segkit.models.transfer import differences
from segkit.training.random_state import random_state
from segkit.training.state import TrainState

FORMAT = 5
LAST, PREVIOUS = "last.pt", "last.prev.pt"
PARTS = ("model", "ema", "optimizer", "scheduler", "scaler")
VALUES = (
    *("epoch", "step", "updates", "overflows", "left_out", "loss_sum", "image_count", "seconds"),
    *("best_miou", "best_epoch", "best_weights", "stale_epochs", "finished"),
    *("history", "settings", "data", "steps_per_epoch"),
)
NEW_VALUES = {"finished": False}  # what older files of this format lack


def save_state(state: TrainState, folder: Path, randoms: Sequence[dict[str, Any]] = ()) -> None:
    """Writes all of `state`, and the random states, to `last.pt`; the one before becomes `last.prev.pt`.

    Args:
        state: Of the first process, where there are several.
        folder: The run folder.
        randoms: The random states of all processes; by default that of this one.

    Raises:
        FloatingPointError: see `check_finite`; the files are as they were.
        OSError: the file could not be written; the files are as they were.
    """
    check_finite(state)
    randoms = randoms or [state.random or random_state()]
    parts = {name: part.state_dict() for name in PARTS if (part := getattr(state, name)) is not None}
    content = {
        "format": FORMAT,
        "config": state.model.config,
        "class_names": list(state.model.class_names),
        "preprocessing": asdict(state.model.preprocessing),
        **parts,
        **{name: getattr(state, name) for name in VALUES},
        "random": randoms[0],
        "random_of_others": list(randoms[1:]),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(folder / LAST, buffer.getbuffer(), durable=True, previous=folder / PREVIOUS)


def check_finite(state: TrainState) -> None:
    """Raises FloatingPointError if a weight, its average or the optimizer's state is NaN or infinite."""
    for name, value in _values_that_learn(state):
        if value.is_floating_point() and not value.isfinite().all():
            raise NotFiniteError(
                f"{name} are no longer finite in epoch {state.epoch + 1}, and are not saved; "
                "try a lower --lr, or --amp off"
            )


def _values_that_learn(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    averages = {} if state.ema is None else state.ema.module.state_dict()
    yield from ((f"the weights {name}", value) for name, value in state.model.state_dict().items())
    yield from ((f"the averaged weights {name}", value) for name, value in averages.items())
    for values in state.optimizer.state.values():
        yield from ((f"the optimizer's {key}", value) for key, value in values.items() if isinstance(value, Tensor))


def read_checkpoint(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads a checkpoint, or the newest whole one of a run folder.

    Returns:
        The content for `load_state`, and a sentence about each file that was damaged.

    Raises:
        FileNotFoundError: there is nothing to resume.
        ValueError: no file is whole, or was written by this version of segkit.
    """
    files = [path / LAST, path / PREVIOUS] if not path.is_file() else [path]
    files = [file for file in files if file.is_file()]
    if not files:
        raise MissingFileError(f"nothing to resume: there is no {path / LAST if path.is_dir() else path}")
    refused = []
    for file in files:
        try:
            return _read(file), refused
        except ValueError as error:
            refused.append(str(error))
    raise UsageError("; ".join(refused))


def load_state(
    state: TrainState, content: Mapping[str, Any], *, allow_data_change: bool = False, rank: int = 0
) -> None:
    """Puts `state` where the run stood that `content` is of; all its parts must be built already.

    Process `rank` takes its own random state; one that the run did not have keeps the one it is in. Where the data may
    change, other images that validate begin a new search for the best, and another number of steps an epoch begins
    the current epoch anew.

    Raises:
        ValueError: the run had another architecture, class list, setting, or other data.
    """
    _check_same_model(content, state.model)
    check_settings(content["settings"], state.settings)
    changed = changed_data(content, state)
    if changed and not allow_data_change:
        raise UsageError(
            "cannot resume: the data is not what the run began with (its files differ); "
            "to go on with it nonetheless add --allow-data-change"
        )
    for name in PARTS:
        part = getattr(state, name)
        if part is not None and (content[name] or name != "scaler"):  # empty where the run was without fp16
            part.load_state_dict(content[name])
    for name in VALUES:
        if name not in ("settings", "data", "steps_per_epoch"):
            setattr(state, name, content[name])
    for model in [state.model] if state.ema is None else [state.model, state.ema.module]:
        model.preprocessing = Preprocessing(**content["preprocessing"])  # that of --init-from may be its own
    if "val" in changed:
        state.forget_best()
    if content["steps_per_epoch"] != state.steps_per_epoch:
        state.begin_epoch_anew()
    randoms = random_states(content)
    state.random = randoms[rank] if rank < len(randoms) else None


def changed_data(content: Mapping[str, Any], state: TrainState) -> set[str]:
    """What of the data is not what the run began with."""
    before = content["data"]
    return {name for name in {*before, *state.data} if before.get(name) != state.data.get(name)}


def random_states(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The random states of a checkpoint, one for each process that trained."""
    return [content["random"], *content.get("random_of_others", [])]


def check_settings(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises ValueError with the settings that differ, if there are any."""
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        listed = "; ".join(f"--{key.replace('_', '-')} was {before.get(key)}, is {now[key]}" for key in changed)
        raise UsageError(f"cannot resume with other settings: {listed}")


def write_results(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes one line for each epoch as CSV; a class that does not occur stays empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: "" if value != value else f"{value:.6g}" for key, value in row.items()})
    write_whole(path, text.getvalue(), durable=True)


def _check_same_model(content: Mapping[str, Any], model: Segmenter) -> None:
    before, now = content["class_names"], list(model.class_names)
    if content["config"] != model.config:
        problem = f"the run's architecture is another one: {differences(content['config'], model.config)}"
    elif before != now:
        classes = (dict(enumerate(names)) for names in (before, now))
        problem = f"the run had {len(before)} classes, now there are {len(now)}; class {differences(*classes)}"
    else:
        return
    raise UsageError(f"cannot resume: {problem}; to take over its weights alone, use --init-from")


def _read(path: Path) -> dict[str, Any]:
    problem = f"cannot resume from {path} ({path.stat().st_size} bytes): "
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not compare the checksums
            # torch leaves the tensor of a record that is marked as a folder as it finds it in memory.
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
        raise UsageError(problem + "the file is damaged or was not written by segkit") from error
    if damaged:
        raise UsageError(problem + "the file is damaged")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(problem + "it was not written by this version of segkit")
    return {**NEW_VALUES, **content}
