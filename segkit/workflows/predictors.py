"""The models of a workflow joined to a Predictor by its settings, its device and its number of processes."""

import copy
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from segkit.config import DATA_RULES, PredictConfig, ScoreConfig, Setting, as_declared, default_of
from segkit.console import Console, counted
from segkit.crf import DenseCRF
from segkit.crf.presets import CRFParameters
from segkit.data import SegmentationDataset
from segkit.data.palette import Colour, palette_of_rows, read_palette
from segkit.errors import UsageError
from segkit.files import fingerprint
from segkit.inference import Predictor
from segkit.labels import label_names
from segkit.models import Segmenter, find_folds, find_model_file, load_model, optimize, read_header
from segkit.models.model_file import describe_model
from segkit.runs import newest_run
from segkit.sliding_window import SlidingWindow
from segkit.tta import TTA
from segkit.workflows.datasets import MASK_COLOURS, OF_MASKS, check_model_classes

_log = logging.getLogger(__name__)
WHOLE = "whole images"


def pick_device(name: str) -> torch.device:
    """Return the device with this name; `auto` is CUDA if there is a GPU, otherwise the CPU.

    Raises:
        UsageError: The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown `device` {name!r}, expected auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"`device={name}`: torch finds no CUDA GPU on this machine")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"`device={name}`: this machine has {counted(torch.cuda.device_count(), 'GPU')}, counted from cuda:0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"`device={name}`: torch finds no Apple GPU on this machine")
    return device


def count_cores() -> int:
    """Return the number of cores that this process may use; on macOS and Windows, of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int | None, processes: int = 1) -> int:
    """Return `workers`, or by default this process's share of the cores, at most eight."""
    return max(1, min(8, count_cores() // processes)) if workers is None else workers


def pick_threads(device: torch.device, processes: int = 1) -> int:
    """Return the number of threads that read images, and of those that write results.

    Two if the models need the CPU; with a GPU half of this process's share of the cores, at most eight.
    """
    return 2 if device.type == "cpu" else max(2, min(8, count_cores() // processes // 2))


class ModelSource(NamedTuple):
    """Where a model of an ensemble comes from, and its weight.

    Attributes:
        name: The file or run folder as the caller wrote it.
        model: The model file, or a loaded model.
        weight: Weight of the model in the average, before the weights are scaled to sum to 1.
    """

    name: str
    model: Path | Segmenter
    weight: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's labels; of a model file only the header is read."""
        stored = self.model.class_names if isinstance(self.model, Segmenter) else read_header(self.model)["class_names"]
        return label_names(stored)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file; of the architecture and the tensors if the model is loaded."""
        if isinstance(self.model, Path):
            return fingerprint(self.model).sha256
        digest = hashlib.sha256(json.dumps(describe_model(self.model)).encode())
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def data_rules(self) -> dict[str, Any]:
        """The settings that made the labels of its training; empty for a model of an earlier segkit."""
        if isinstance(self.model, Segmenter):
            return self.model.data_rules
        stored = read_header(self.model).get("data_rules", {})
        return stored if isinstance(stored, dict) else {}  # `load` reports it

    @property
    def palette(self) -> dict[Colour, str] | None:
        """The classes by colour in the masks of the training; None if they had no palette."""
        rows = self.data_rules.get(MASK_COLOURS)
        if rows is None:
            return None
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise UsageError(f"the header of {self.name} cannot be used: `{MASK_COLOURS}` is {str(rows)[:80]}")
        return palette_of_rows([(name, colour) for name, *colour in rows], f"the header of {self.name}")

    @property
    def window(self) -> SlidingWindow | None:
        """The window of the model, see `Segmenter`."""
        if isinstance(self.model, Segmenter):
            return self.model.window
        return SlidingWindow.read(read_header(self.model).get("window"))

    def load(self, device: torch.device) -> Segmenter:
        """Return the model on `device`; a loaded model is copied, so that the caller's model does not change."""
        model = copy.deepcopy(self.model) if isinstance(self.model, Segmenter) else load_model(self.model)
        return model.to(device)


def find_members(weights: Sequence[Path | Segmenter], shares: Sequence[float] = ()) -> list[ModelSource]:
    """Find the model files and loaded models of an ensemble.

    Args:
        weights: Model files, run folders or loaded models. A folder of a cross-validation stands for the models of all
            its folds. By default the newest run.
        shares: Weight of each of them in the average; folds share it equally. By default all models weigh the same.

    Raises:
        MissingFileError: There is no such model.
        UsageError: A weight is neither a path nor a `Segmenter`.
    """
    weights = weights or (newest_run(),)
    members = []
    for number, given in enumerate(weights):
        if isinstance(given, Segmenter):
            members.append(ModelSource(f"model {number + 1}", given, shares[number] if shares else 1.0))
            continue
        if not isinstance(given, Path):
            raise UsageError(f"a model must be a path or a Segmenter, got {type(given).__name__}")
        folds = find_folds(given)
        weight = shares[number] / len(folds) if shares else 1.0
        members += [ModelSource(str(fold), find_model_file(fold), weight) for fold in folds]
    return members


def rules_of_models(cls: type, weights: Sequence[Path | Segmenter]) -> dict[str, Setting]:
    """Return the settings of a command that say how images and labels are read, as the first model was trained.

    Args:
        cls: The settings class of the command; settings that it lacks are not returned.
        weights: See `find_members`.
    """
    first = find_members(weights)[0]
    names = {field.name for field in fields(cls)}
    try:
        stored = as_declared(cls, {name: value for name, value in first.data_rules.items() if name in names})
    except UsageError as error:
        raise UsageError(f"the header of {first.name} cannot be used: {error}") from error
    return {name: Setting(value, f"model {first.name}") for name, value in stored.items()}


def with_rules_of_models(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a caller's settings, with the rules of the models as defaults, see `rules_of_models`."""
    settings = as_declared(cls, settings)
    if any(isinstance(one, SegmentationDataset) for one in settings.get("data", ())):  # it makes its labels itself
        return settings
    if all(name in settings for name in DATA_RULES if hasattr(cls, name)):  # they were given, or found before
        return settings
    rules = rules_of_models(cls, settings.get("weights", ()))
    return {**{name: setting.value for name, setting in rules.items()}, **settings}


def tell_rules(config: PredictConfig, members: Sequence[ModelSource], console: Console) -> None:
    """Print the rules for images and labels that are not the default; warn if a model was trained with other rules.

    Args:
        config: The settings.
        members: The models.
        console: Prints the rules.
    """
    data = getattr(config, "data", ())
    if any(isinstance(one, SegmentationDataset) for one in data):  # it makes its labels itself
        return
    names = OF_MASKS if getattr(config, "masks", ()) else DATA_RULES
    rules = {name: getattr(config, name) for name in names if hasattr(config, name)}
    special = [f"{name} {_text(value)}" for name, value in rules.items() if value != default_of(config, name)]
    used, is_of_training = None, False
    if getattr(config, "masks", ()):
        is_of_training = config.palette is None and config.class_names is None and members[0].palette is not None
        used = members[0].palette if is_of_training else config.palette and read_palette(config.palette)
    if special or is_of_training:
        console.print(f"rules  {', '.join([*special, *['palette of the training'] * is_of_training])}")
    for name, value in rules.items():
        for member in members:
            stored = member.data_rules.get(name, value)
            if _text(stored) != _text(value):
                _log.warning("`%s` is %s, but %s was trained with %s", name, _text(value), member.name, _text(stored))
                break
    for member in members if getattr(config, "masks", ()) else ():
        if member.palette not in (None, used):
            _log.warning("`masks` are not read by the palette of the masks that %s was trained with", member.name)
            break


def _text(value: Any) -> str:
    return " ".join(sorted(value)) or "none" if isinstance(value, list | tuple) else str(value).lower()


def load_predictor(
    config: PredictConfig,
    members: Sequence[ModelSource],
    *,
    device: torch.device,
    crf_workers: int,
    probs: str,
    console: Console,
) -> Predictor:
    """Load the models and join them with test-time augmentation, window and CRF.

    Args:
        config: The settings.
        members: See `find_members`.
        device: The device of the models.
        crf_workers: Number of processes of a CRF on the CPU.
        probs: See `Predictor`.
        console: Prints the models and the options.
    """
    dtype = torch.bfloat16 if config.amp == "bf16" else torch.float32
    if config.tta is not None:
        tta = TTA.preset(config.tta) if isinstance(config.tta, str) else config.tta
    else:
        names = ("scales", "flips", "brightness", "merge", "resize")
        tta = TTA(**{name: getattr(config, name) for name in names})
    crf = build_crf(config.crf, crf_workers) if config.crf is None or isinstance(config.crf, Sequence) else config.crf
    window = config.window
    if window:
        window = SlidingWindow(window, overlap=config.window_overlap)
    predictor = Predictor(
        [optimize(member.load(device), dtype=dtype, compile=config.compile) for member in members],
        member_weights=[member.weight for member in members],
        tta=tta,
        window=window,
        full_size=config.full_size,
        class_bias=config.class_bias,
        crf=crf,
        device=device,
        probs=probs,
    )
    for member, weight in zip(members, predictor.member_weights, strict=True):
        name = member.name if isinstance(member.model, Segmenter) else member.model
        console.print(f"model  {name}" + (f", weight {weight:.3f}" if len(members) > 1 else ""))
    for scale in dict.fromkeys(model.training_scale for model in predictor.members):
        if not scale.is_full_size and not config.full_size:
            console.print(f"scale  photographs are resized as in training: {scale} (not with full_size)")
    console.print("; ".join([f"views  {tta}", *_window_text(window, [model.window for model in predictor.members])]))
    if config.class_bias:
        console.print("bias   " + ", ".join(f"{name} {value:+g}" for name, value in config.class_bias.items()))
    if crf is not None:
        console.print(f"crf    {crf}")
    return predictor


def _window_text(window: SlidingWindow | Literal[0] | None, trained: Sequence[SlidingWindow | None]) -> list[str]:
    """Return in which windows models predict, and in which their training validated them if these are others.

    Args:
        window: See `Predictor`.
        trained: The windows of the models.
    """
    of_training = " and ".join(dict.fromkeys(str(one or WHOLE) for one in trained)) if any(trained) else ""
    if window is None:
        return [f"{of_training}, as in training's validation"] if of_training else []
    given = str(window or WHOLE)
    if of_training and given != of_training:
        return [f"{given} (training's validation: {of_training})"]
    return [given] if window else []


def load_scored_predictor(
    config: ScoreConfig,
    members: Sequence[ModelSource],
    data: SegmentationDataset,
    console: Console,
    *,
    with_crf: bool = True,
) -> Predictor:
    """Load models to score on `data`, whose classes they must have; see `load_predictor`."""
    predictor = load_predictor(
        config if with_crf else replace(config, crf=None),
        members,
        device=pick_device(config.device),
        crf_workers=pick_workers(config.workers) if len(data) > 1 else 0,
        probs="memory",  # calibration needs them
        console=console,
    )
    if config.window or any(model.window is not None and not model.window.above for model in predictor.members):
        predictor.probs = "disk"  # with windows, images are large
    check_model_classes(predictor.class_names, data, members[0].name)
    return predictor


def build_crf(words: Sequence[str] | None, workers: int = 0) -> DenseCRF | None:
    """Return a CRF from the name of a preset and NAME=VALUE words; None if `words` is None.

    Raises:
        UsageError: There is no such preset or parameter, or a value is not a number.
    """
    if words is None:
        return None
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"`crf` takes one preset, got {' and '.join(names)}")
    options: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
    types = {name: type(value) for name, value in vars(CRFParameters()).items()} | {"tolerance": float}
    for name, value in options.items():
        if name not in types:
            raise UsageError(f"`crf` has no parameter {name!r}, it has {', '.join(types)}")
        try:
            options[name] = types[name](value)
        except ValueError:
            raise UsageError(f"`crf`: {name} must be a number, got {value!r}") from None
    return DenseCRF.preset(*(names or ["seed"]), workers=workers, **options)
