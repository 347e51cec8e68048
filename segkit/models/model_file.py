"""One file holds a model: weights as safetensors; architecture, class names, preprocessing in its header."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from segkit.errors import MissingFileError, UsageError
from segkit.models.factory import create_model
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import Segmenter

FORMAT = 1
MODEL_FILES = ("best.safetensors", "model.safetensors")  # in a run folder, in a save_pretrained folder
SPLITS = "splits.json"  # in the folder of train.py --fold all, with an entry for each of the runs fold0, fold1 ...


def save_model(model: Segmenter, path: str | os.PathLike, **extra: Any) -> None:
    """Writes the model to one safetensors file, whole or not at all.

    Args:
        model: The model, in any memory format and on any device.
        path: The file; an existing one is replaced.
        **extra: Plain data that is kept beside the model, such as `miou=0.71`; see `read_header`.
    """
    path, content = Path(path), model_bytes(model, **extra)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder, path.name)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def model_bytes(model: Segmenter, **extra: Any) -> bytes:
    """What `save_model` writes, for those who write it in their own way."""
    if model.config is None:
        raise UsageError("a model that create_model did not build cannot be saved so: its architecture has no name")
    header = {**describe_model(model), "extra": extra}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return save(tensors, metadata={"segkit": json.dumps(header)})


def describe_model(model: Segmenter) -> dict[str, Any]:
    """The model file's header for `model`: what rebuilds it (`model`, None if unknown), classes and preprocessing."""
    return {
        "format": FORMAT,
        "model": model.config,
        "class_names": list(model.class_names),
        "preprocessing": asdict(model.preprocessing),
    }


def load_model(path: str | os.PathLike) -> Segmenter:
    """Loads a model in eval mode, without network and without naming its architecture again.

    Args:
        path: A model file, or a run folder with `best.safetensors`, or a folder with `model.safetensors`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by segkit, or is damaged.
    """
    file = find_model_file(path)
    header = read_header(file)
    model = create_model(**header["model"], class_names=header["class_names"], pretrained=False)
    model.load_state_dict(load_file(file))
    fields = {key: tuple(value) for key, value in header["preprocessing"].items()}
    model.preprocessing = Preprocessing(**fields)
    return model.eval()


def find_model_file(path: str | os.PathLike) -> Path:
    """The model file that `path` (a file or a folder) stands for."""
    path = Path(path)
    if path.is_file():
        return path
    for name in MODEL_FILES:
        if (path / name).is_file():
            return path / name
    if (path / SPLITS).is_file():
        raise MissingFileError(f"{path} holds a model for each fold; give one of them, such as {path / 'fold0'}")
    if path.is_dir():
        raise MissingFileError(f"the folder {path} holds none of {', '.join(MODEL_FILES)}")
    raise MissingFileError(f"no model file at {path}")


def find_folds(path: str | os.PathLike) -> list[Path]:
    """The run folders of all folds where `path` is a folder of `train.py --fold all`; else `path` alone.

    Raises:
        FileNotFoundError: a fold has no model yet.
    """
    path = Path(path)
    if not (path / SPLITS).is_file():
        return [path]
    folds = [path / f"fold{i}" for i in range(len(json.loads((path / SPLITS).read_text(encoding="utf-8"))))]
    missing = [fold.name for fold in folds if not (fold / MODEL_FILES[0]).is_file()]
    if missing:
        raise MissingFileError(
            f"{path} has no model of {', '.join(missing)} yet; python train.py --resume {path} trains it, "
            "or name the folds that are there"
        )
    return folds


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """What a model file says of itself: `model`, `class_names`, `preprocessing`, `extra`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from error
    if "segkit" not in metadata:
        raise UsageError(f"{path} was not written by segkit: it holds weights, but no architecture")
    header = json.loads(metadata["segkit"])
    if header["format"] > FORMAT:
        raise UsageError(f"{path} has format {header['format']}, this segkit reads up to {FORMAT}: update segkit")
    return header
