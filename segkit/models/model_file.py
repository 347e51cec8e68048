"""Model files: the weights as safetensors; architecture, class names and preprocessing in the header."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from segkit.errors import MissingFileError, UsageError
from segkit.files import check_readable, write_whole
from segkit.models.backbone import check_finite
from segkit.models.factory import check_modules, create_model, modules_of
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import Segmenter
from segkit.runs import RunFolder
from segkit.training_scale import TrainingScale

FORMAT = 1
SAVED_PRETRAINED = "model.safetensors"  # the file in a folder that `save_pretrained` writes


def save_model(model: Segmenter, path: str | os.PathLike, **extra: Any) -> None:
    """Write the model to one safetensors file, whole or not at all.

    Args:
        model: The model, in any memory format and on any device.
        path: The file; an existing one is replaced.
        **extra: Plain data that is stored with the model, such as `miou=0.71`; see `read_header`.

    Raises:
        UsageError: The model was not built by `create_model`.
    """
    write_whole(path, model_bytes(model, **extra), durable=True)


def model_bytes(model: Segmenter, **extra: Any) -> bytes:
    """Return the content of the file that `save_model` writes."""
    if not isinstance(model, Segmenter):
        raise UsageError(f"a model file holds a Segmenter, got a {type(model).__name__}; save it before `optimize`")
    if model.config is None:
        raise UsageError("cannot save a model that create_model did not build: its architecture has no name")
    header = {**describe_model(model), "extra": extra}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return save(tensors, metadata={"segkit": json.dumps(header)})


def describe_model(model: Segmenter) -> dict[str, Any]:
    """Return the header of a model file: architecture (None if unknown), classes, ids, preprocessing and scale.

    A model with code of its own also has `modules`, see `modules_of`.
    """
    modules = [] if model.config is None else modules_of(model.config["name"], model.config["backbone"])
    return {
        "format": FORMAT,
        "model": model.config,
        "class_names": list(model.class_names),
        "category_ids": dict(model.category_ids),
        "preprocessing": asdict(model.preprocessing),
        "training_scale": model.training_scale.write(),
        **({"modules": modules} if modules else {}),
    }


def load_model(path: str | os.PathLike) -> Segmenter:
    """Load a model in eval mode; the file says how to build it, and nothing is downloaded.

    Args:
        path: A model file, a run folder with `best.safetensors`, or a folder that `save_pretrained` wrote.

    Raises:
        MissingFileError: There is no such file.
        UsageError: The file was not written by segkit, is damaged, or needs a module that is not imported.
    """
    file = find_model_file(path)
    header = read_header(file)
    check_modules(file, header)
    try:
        model = create_model(**header["model"], class_names=header["class_names"], pretrained=False)
        model.preprocessing = _read_preprocessing(header["preprocessing"], len(model.preprocessing.mean))
        model.category_ids = _read_category_ids(header.get("category_ids", {}))  # model files did not have it at first
        model.training_scale = TrainingScale.read(header.get("training_scale"))
    except UsageError as error:
        raise UsageError(f"the header of {file} cannot be used: {error}") from error
    weights = load_file(file)
    check_finite(weights, file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"{file} does not hold the weights of its architecture: {error}") from error
    return model.eval()


def _read_preprocessing(stored: Any, channels: int) -> Preprocessing:
    """Return the preprocessing in the header of a file; a default in place of a missing value would be a wrong one."""
    names = [field.name for field in fields(Preprocessing)]
    if not isinstance(stored, dict) or sorted(stored) != sorted(names):
        raise UsageError(f"`preprocessing` must have {', '.join(names)}, got {stored!r}")
    preprocessing = Preprocessing(**stored)
    if len(preprocessing.mean) != channels:
        raise UsageError(f"`preprocessing` is for {len(preprocessing.mean)} channels, but the model has {channels}")
    return preprocessing


def _read_category_ids(stored: Any) -> dict[str, int | str]:
    if not isinstance(stored, dict) or not all(type(value) in (int, str) for value in stored.values()):
        raise UsageError(f"`category_ids` must be whole numbers or texts by class name, got {stored!r}")
    return stored


def find_model_file(path: str | os.PathLike) -> Path:
    """Return the model file at `path`, which may be the file, a run folder or a folder of `save_pretrained`.

    Raises:
        MissingFileError: There is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"a model file must be a path, got {type(path).__name__}")
    path, run = Path(path), RunFolder(path)
    files = (run.best, path / SAVED_PRETRAINED)
    for file in (path, *files):
        if file.is_file():
            return file
    if run.is_cross_validation:
        raise MissingFileError(f"{path} holds a model for each fold; choose one, such as {run.fold(0)}")
    if path.is_dir():
        raise MissingFileError(f"the folder {path} has neither {' nor '.join(file.name for file in files)}")
    raise MissingFileError(f"there is no model file {path}")


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """Return the header of a model file, with these entries:

    - `format`: 1
    - `model`: the arguments of create_model
    - `class_names`: one for each channel of the logits
    - `category_ids`: the id of each class in the COCO JSON, by name; files of older versions lack it
    - `preprocessing`: the fields of `Preprocessing`
    - `training_scale`: the fields of `TrainingScale`, or None for full size; files of older versions lack it
    - `extra`: what was passed to `save_model`

    Raises:
        UsageError: The file was not written by segkit, or is damaged.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from error
    if "segkit" not in metadata:
        raise UsageError(f"{path} was not written by segkit: it has weights, but no architecture")
    try:
        header = json.loads(metadata["segkit"])
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is damaged: its header is not JSON: {error}") from error
    if not isinstance(header, dict) or not {"format", "model", "class_names", "preprocessing"} <= header.keys():
        raise UsageError(f"{path} is damaged: its header does not say what it holds")
    if header["format"] > FORMAT:
        raise UsageError(f"{path} has format {header['format']}; this segkit reads up to {FORMAT}, update it")
    return header
