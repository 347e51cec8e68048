"""Model files: the weights as safetensors; architecture, class names and preprocessing in the header.

An ONNX file that segkit has written has the same header in its metadata.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from segkit.errors import MissingFileError, UsageError, as_segkit_error
from segkit.files import check_readable, parse_json, write_whole
from segkit.models.backbone import check_finite
from segkit.models.factory import check_class_names, check_modules, create_model, modules_of
from segkit.models.onnx_file import is_onnx, read_metadata
from segkit.models.onnx_model import OnnxModel
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import Segmenter
from segkit.runs import RunFolder
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import TrainingScale

FORMAT = 1
SAVED_PRETRAINED = "model.safetensors"  # the file in a folder that `save_pretrained` writes
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FROM_SMP = "`segkit.models.load_smp_checkpoint` reads a model of segmentation_models_pytorch (SMP)"


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
        what = "copy the ONNX file itself" if isinstance(model, OnnxModel) else "save it before `optimize`"
        raise UsageError(f"a model file holds a Segmenter, got a {type(model).__name__}; {what}")
    if model.config is None:
        raise UsageError("cannot save a model that create_model did not build: its architecture has no name")
    header = {**describe_model(model), "extra": extra}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return save(tensors, metadata={"segkit": json.dumps(header)})


def describe_model(model: Segmenter) -> dict[str, Any]:
    """Return the header of a model file: architecture (None if unknown), classes, ids, preprocessing, scale, window.

    `data_rules` are the settings by which images and labels were read in training (`segkit.config.DATA_RULES`: overlap,
    crowd, ignore_classes, exif ...), and `mask_colours` if masks were read by a palette; files of earlier versions lack
    them. A model with custom code also has `modules`, see `modules_of`.
    """
    modules = [] if model.config is None else modules_of(model.config["name"], model.config["backbone"])
    return {
        "format": FORMAT,
        "model": model.config,
        "class_names": list(model.class_names),
        "category_ids": dict(model.category_ids),
        "data_rules": dict(model.data_rules),
        "preprocessing": asdict(model.preprocessing),
        "training_scale": model.training_scale.write(),
        "window": None if model.window is None else model.window.write(),
        **({"modules": modules} if modules else {}),
    }


def load_model(
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Segmenter | OnnxModel:
    """Load a model in eval mode; the file says how to build it, and nothing is downloaded.

        model = segkit.load_model("runs/x")
        model = segkit.load_model("model.onnx")  # written by `segkit export`
        model = segkit.load_model("other.onnx", class_names=["road", "sky"], mean=[0.5] * 3, std=[0.5] * 3)

    Args:
        path: A model file, a run folder with `best.safetensors`, or a folder that `save_pretrained` wrote. A file with
            the suffix .onnx is run by onnxruntime; it must take normalised images and return logits.
        class_names: Only for an ONNX file of another program: the names of the classes, one for each channel of the
            logits.
        mean: Only for such a file: the mean of each channel, with images in 0..1.
        std: Only for such a file: the standard deviation of each channel.

    Returns:
        A Segmenter, or an OnnxModel.

    Raises:
        MissingFileError: There is no such file.
        MissingPackageError: onnxruntime is not installed, or is too old.
        UsageError: The file is damaged, or needs a module that is not imported. Or segkit did not write it, and an
            argument that it needs is missing. Or segkit wrote it, and an argument is set that the file has already.
    """
    file = find_model_file(path)
    header = read_header(file, class_names=class_names, mean=mean, std=std)
    if is_onnx(file):
        return _load_onnx(file, header)
    check_modules(file, header)
    try:
        model = create_model(**header["model"], class_names=header["class_names"], pretrained=False)
        model.preprocessing = _read_preprocessing(header["preprocessing"], len(model.preprocessing.mean))
        model.category_ids = _read_category_ids(header.get("category_ids", {}))  # model files did not have it at first
        model.data_rules = _read_data_rules(header.get("data_rules", {}))  # nor this
        model.training_scale = TrainingScale.read(header.get("training_scale"))
        model.window = SlidingWindow.read(header.get("window"))
    except UsageError as error:
        raise UsageError(f"the header of {file} cannot be used: {error}") from error
    model.load_state_dict(_read_weights(file, model.state_dict()))
    return model.eval()


def _load_onnx(file: Path, header: Mapping[str, Any]) -> OnnxModel:
    try:
        facts = {
            "class_names": check_class_names(header["class_names"]),
            "preprocessing": _read_preprocessing(header["preprocessing"]),
            "config": header["model"],
            "category_ids": _read_category_ids(header.get("category_ids", {})),
            "data_rules": _read_data_rules(header.get("data_rules", {})),
            "training_scale": TrainingScale.read(header.get("training_scale")),
            "window": SlidingWindow.read(header.get("window")),
        }
    except UsageError as error:
        raise UsageError(f"the header of {file} cannot be used: {error}") from error
    model = OnnxModel(file, **facts)
    if header["format"] is None:
        model.check_logits()
    return model


def _read_weights(file: Path, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a model file; they must have the names, shapes and types of the model's tensors, `own`."""
    try:
        weights = load_file(file)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:  # such as a type that torch does not have
        raise as_segkit_error(error) or UsageError(f"cannot read the weights in {file}: {error}") from error
    faults = [f"{key!r} is missing" for key in own if key not in weights]
    for key, tensor in weights.items():
        if key not in own:
            faults.append(f"{key!r} is unexpected")
        elif tensor.shape != own[key].shape:
            faults.append(f"{key!r} has shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}")
        elif (tensor.dtype in _FLOATS) != own[key].is_floating_point():
            faults.append(f"{key!r} has values of {tensor.dtype}, expected {own[key].dtype}")
    if faults:
        raise UsageError(
            f"{file} does not hold the weights of its architecture: {'; '.join(faults[:3])}"
            + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        )
    check_finite(weights, file)
    return weights


def _read_preprocessing(stored: Any, channels: int | None = None) -> Preprocessing:
    """Return the preprocessing in the header of a file; a missing value has no default, which could be wrong."""
    names = [field.name for field in fields(Preprocessing)]
    if not isinstance(stored, dict) or sorted(stored) != sorted(names):
        raise UsageError(f"`preprocessing` must have {', '.join(names)}, got {stored!r}")
    preprocessing = Preprocessing(**stored)
    if channels is not None and len(preprocessing.mean) != channels:
        raise UsageError(f"`preprocessing` is for {len(preprocessing.mean)} channels, but the model has {channels}")
    return preprocessing


def _read_category_ids(stored: Any) -> dict[str, int | str]:
    if not isinstance(stored, dict) or not all(type(value) in (int, str) for value in stored.values()):
        raise UsageError(f"`category_ids` must be whole numbers or texts by class name, got {stored!r}")
    return stored


def _read_data_rules(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise UsageError(f"`data_rules` must be settings by name, got {stored!r}")
    return stored


def find_model_file(path: str | os.PathLike) -> Path:
    """Return the model file at `path`, which may be the file, a run folder or a folder of `save_pretrained`.

    Raises:
        MissingFileError: There is no model file.
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


def read_header(
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the header of a model file, with these entries; neither weights nor packages of ONNX are loaded:

    - `format`: 1; None for an ONNX file of another program
    - `model`: the arguments of create_model; in an ONNX file None if they are unknown
    - `class_names`: one for each channel of the logits
    - `category_ids`: the id of each class in the COCO JSON, by name; files of older versions lack it
    - `preprocessing`: the fields of `Preprocessing`
    - `training_scale`: the fields of `TrainingScale`, or None for full size; files of older versions lack it
    - `window`: the fields of the `SlidingWindow` of the validation, or None for whole images; files of older versions
      lack it
    - `extra`: the extra data that was passed to `save_model`

    Args:
        path: A model file, or an ONNX file.
        class_names: Only for an ONNX file of another program, see `load_model`.
        mean: Only for such a file.
        std: Only for such a file.

    Raises:
        UsageError: The file does not exist or is damaged. Or segkit did not write it, and an argument that it needs is
            missing. Or segkit wrote it, and an argument is set that the file has already.
    """
    check_readable(path)
    given = {"class_names": class_names, "mean": mean, "std": std}
    given = {name: value for name, value in given.items() if value is not None}
    metadata = read_metadata(path) if is_onnx(path) else _safetensors_metadata(path)
    if is_onnx(path) and "segkit" not in metadata:
        return _header_of_other(path, given)
    if given:
        raise UsageError(f"{path} already has a value for `{'`, `'.join(given)}`; omit the argument")
    if "segkit" not in metadata:
        raise UsageError(f"{path} was not written by segkit: it has weights, but no architecture; {_FROM_SMP}")
    header = parse_json(metadata["segkit"], f"{path} is damaged: its header")
    if not isinstance(header, dict) or not {"format", "model", "class_names", "preprocessing"} <= header.keys():
        raise UsageError(f"{path} is damaged: its header does not say what it holds")
    if _is_count(header["format"]) and header["format"] > FORMAT:
        raise UsageError(f"{path} has format {header['format']}; this segkit reads up to {FORMAT}, update it")
    known = header if not is_onnx(path) or header["model"] is not None else {**header, "model": _NO_MODEL}
    _check_fields(known, _FIELDS, f"{path} is damaged: its header")
    _check_fields(known["model"], _MODEL_FIELDS, f"{path} is damaged: the `model` in its header")
    return header


def _safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        what = _why_unreadable(Path(path)) or f"{path} is not a readable safetensors file: {error}"
        raise UsageError(what) from error


def _header_of_other(path: str | os.PathLike, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of an ONNX file of another program, from what the caller knows about it."""
    missing = [name for name in ("class_names", "mean", "std") if name not in given]
    if missing:
        raise UsageError(
            f"{path} was not written by segkit, so it does not say what it takes and returns; give `class_names`, "
            f"`mean` and `std` (of images in 0..1){'' if len(missing) == 3 else ', also ' + ' and '.join(missing)}"
        )
    names = check_class_names(given["class_names"])
    preprocessing = Preprocessing(given["mean"], given["std"])
    if max(map(abs, (*preprocessing.mean, *preprocessing.std))) > 1:
        raise UsageError(
            f"`mean` and `std` belong to images in 0..1, got {preprocessing.mean} and {preprocessing.std}; divide "
            "those of images in 0..255 by 255"
        )
    return {"format": None, "model": None, "class_names": list(names), "preprocessing": asdict(preprocessing)}


def _why_unreadable(path: Path) -> str | None:
    """Return an explanation if a file was written by torch.save, and how to load it; None for other files."""
    with path.open("rb") as file:
        is_of_torch = file.read(4) == b"PK\x03\x04" or path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".tar")
    best = RunFolder(path.parent).best
    if is_of_torch and best.is_file():
        return f"{path} is not a model file; the model of this run is {best}"
    return f"{path} is not a model file of segkit; {_FROM_SMP}" if is_of_torch else None


def _check_fields(values: Mapping[str, Any], known: Mapping[str, Callable[[Any], bool]], where: str) -> None:
    """Raise UsageError if a field has an invalid value; a field may be missing, as in files of older versions."""
    for name, value in values.items():
        if name in known and not known[name](value):
            raise UsageError(f"{where} has {name}={repr(value)[:80]}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value in (0, 1))  # True is an int


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))


def _is_never(value: Any) -> bool:
    return False


# Checks of the fields of a header. Other values are checked when they are used: class names and options of the decoder
# by `create_model`, preprocessing and category ids by `load_model`.
_FIELDS = {
    "format": _is_count,
    "model": lambda value: _is_object(value) and {"name", "backbone"} <= value.keys(),
    "class_names": lambda value: _is_list_of_text(value) and bool(value),
    "modules": _is_list_of_text,
    "extra": _is_object,
}
_NO_MODEL = {"name": "", "backbone": ""}
_MODEL_FIELDS = {
    **{"name": _is_text, "backbone": _is_text, "in_channels": _is_count, "img_size": _is_size},
    "output_stride": lambda value: value is None or _is_count(value),
    **dict.fromkeys(("aux_head", "image_head", "align_corners"), _is_flag),
    **dict.fromkeys(("num_classes", "class_names", "pretrained"), _is_never),  # never arguments: other fields have them
}
