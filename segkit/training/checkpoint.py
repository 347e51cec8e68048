"""What a run needs to go on: written whole or not at all, read without unpickling code."""

import csv
import io
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from segkit.training.state import TrainState

FORMAT = 1


def save_state(state: TrainState, path: Path) -> None:
    """Writes all of `state`, and the random state of torch, as tensors and plain Python values."""
    content = {
        "format": FORMAT,
        "config": state.model.config,
        "class_names": list(state.model.class_names),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "epoch": state.epoch,
        "best_miou": state.best_miou,
        "history": state.history,
        "torch_rng": torch.get_rng_state(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    _write_atomically(path, buffer.getbuffer())


def load_state(state: TrainState, path: Path) -> None:
    """Puts `state` where the run at `path` stood; model and optimizer must be built already.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or belongs to another architecture or class list.
    """
    content = _read(path)
    for key, mine in (("config", state.model.config), ("class_names", list(state.model.class_names))):
        if content[key] != mine:
            raise ValueError(f"cannot resume from {path}: its {key} is {content[key]}, this run's is {mine}")
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scaler.load_state_dict(content["scaler"])
    state.epoch = content["epoch"]
    state.best_miou = content["best_miou"]
    state.history = content["history"]
    torch.set_rng_state(content["torch_rng"])


def write_results(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes one line for each epoch as CSV; a class that does not occur stays empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: "" if value != value else f"{value:.6g}" for key, value in row.items()})
    _write_atomically(path, text.getvalue().encode())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: there is no {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise ValueError(f"cannot resume from {path}: the file is damaged or was not written by segkit") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"cannot resume from {path}: it was not written by this version of segkit")
    return content


def _write_atomically(path: Path, content: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
