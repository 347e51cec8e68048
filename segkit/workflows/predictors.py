"""The models of a workflow joined to a Predictor by its settings, its device and its number of processes."""

import copy
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from segkit.config import DATA_RULES, InferConfig, PredictConfig, ScoreConfig, Setting, as_declared, default_of
from segkit.console import Console, counted
from segkit.crf import DenseCRF
from segkit.crf.presets import CRFParameters
from segkit.data import SegmentationDataset
from segkit.data.mask_files import read_class_names
from segkit.data.palette import Colour, palette_of_rows, read_palette
from segkit.errors import MissingPackageError, UsageError
from segkit.files import fingerprint
from segkit.inference import Clock, Predictor
from segkit.labels import label_names
from segkit.models import (
    OnnxModel,
    Segmenter,
    export_onnx,
    find_folds,
    find_model_file,
    load_model,
    optimize,
    read_header,
)
from segkit.models.model_file import describe_model
from segkit.models.onnx_cache import cached_onnx
from segkit.models.onnx_file import data_files, is_of_other_program, is_onnx
from segkit.models.onnx_model import engine_name
from segkit.runs import newest_run
from segkit.sliding_window import SlidingWindow
from segkit.tta import TTA
from segkit.workflows.datasets import MASK_COLOURS, MASK_NAMES, OF_MASKS, check_model_classes

LONG = 60  # seconds of the models after which another engine is named

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
        about: What the caller says about an ONNX file of another program: `class_names`, `mean` and `std`. Empty for
            all other models.
    """

    name: str
    model: Path | Segmenter | OnnxModel
    weight: float
    about: Mapping[str, Any] = {}

    @property
    def is_onnx(self) -> bool:
        """Whether the model is an ONNX file."""
        return is_onnx(self.model) if isinstance(self.model, Path) else isinstance(self.model, OnnxModel)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's labels; a file is not loaded for it."""
        if not isinstance(self.model, Path):
            return label_names(self.model.class_names)
        return label_names(read_header(self.model, **self.about)["class_names"])

    def fingerprint(self) -> str:
        """Return a SHA-256 of the file, or of the architecture and the tensors of a loaded model."""
        if isinstance(self.model, Segmenter):
            digest = hashlib.sha256(json.dumps(describe_model(self.model)).encode())
            for tensor in self.model.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            return digest.hexdigest()
        file = self.model if isinstance(self.model, Path) else self.model.path
        about: dict[str, Any] = dict(self.about)
        if isinstance(self.model, OnnxModel):
            about = {"class_names": self.model.class_names, "preprocessing": asdict(self.model.preprocessing)}
            about["training_scale"] = self.model.training_scale.write()
        digests = [fingerprint(part).sha256 for part in (file, *(data_files(file) if self.is_onnx else ()))]
        if len(digests) == 1 and not about:
            return digests[0]
        return hashlib.sha256(json.dumps([digests, about]).encode()).hexdigest()

    @property
    def data_rules(self) -> dict[str, Any]:
        """The settings that made the labels of its training; empty for a model of an earlier segkit."""
        if not isinstance(self.model, Path):
            return self.model.data_rules
        if is_of_other_program(self.model):
            return {}
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
        if not isinstance(self.model, Path):
            return self.model.window
        return SlidingWindow.read(read_header(self.model, **self.about).get("window"))

    @property
    def mask_names(self) -> list[str] | None:
        """The classes of the masks of the training before its class map; None if it had no such masks or no map."""
        names = self.data_rules.get(MASK_NAMES)
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise UsageError(f"the header of {self.name} cannot be used: `{MASK_NAMES}` is {str(names)[:80]}")
        return names

    def load(self, device: torch.device) -> Segmenter | OnnxModel:
        """Return the model on `device`; a loaded model is copied, so that the caller's model does not change."""
        is_file = isinstance(self.model, Path)
        model = load_model(self.model, **self.about) if is_file else copy.deepcopy(self.model)
        return model.to(device)

    def has_own_code(self) -> bool:
        """Return whether modules other than segkit and timm build a model of torch, or nobody knows what builds it."""
        header = read_header(self.model) if isinstance(self.model, Path) else describe_model(self.model)
        return header["model"] is None or bool(header.get("modules"))


def find_members(
    weights: Sequence[Path | Segmenter | OnnxModel],
    shares: Sequence[float] = (),
    about: Mapping[str, Any] | None = None,
) -> list[ModelSource]:
    """Find the model files and loaded models of an ensemble.

    Args:
        weights: Model files, ONNX files, run folders or loaded models. A folder of a cross-validation stands for the
            models of all its folds. By default the newest run.
        shares: Weight of each of them in the average; folds share it equally. By default all models weigh the same.
        about: What is known about ONNX files of other programs, see `ModelSource`.

    Raises:
        MissingFileError: There is no such model.
        UsageError: A weight is neither a path nor a model.
    """
    weights = weights or (newest_run(),)
    members = []
    for number, given in enumerate(weights):
        if isinstance(given, Segmenter | OnnxModel):
            members.append(ModelSource(f"model {number + 1}", given, shares[number] if shares else 1.0))
            continue
        if not isinstance(given, Path):
            raise UsageError(f"a model must be a path, a Segmenter or an OnnxModel, got {type(given).__name__}")
        folds = find_folds(given)
        weight = shares[number] / len(folds) if shares else 1.0
        for fold in folds:
            file = find_model_file(fold)
            members.append(ModelSource(str(fold), file, weight, about if about and is_of_other_program(file) else {}))
    return members


def find_models(config: PredictConfig) -> tuple[list[ModelSource], list[ModelSource]]:
    """Return the models of `weights` and, if the command has them, the models of `compare`.

    Raises:
        MissingFileError: There is no such model.
        UsageError: The settings for ONNX files of other programs are set, but no model is one.
    """
    about: dict[str, Any] = {"mean": config.mean, "std": config.std} if config.mean else {}
    if config.class_names is not None and (config.mean or isinstance(config, InferConfig)):
        about["class_names"] = read_class_names(config.class_names)
    members = find_members(config.weights, config.member_weights, about)
    compared = getattr(config, "compare", ())
    others = find_members(compared, about=about) if compared else []
    if about and not any(member.about for member in (*members, *others)):
        words = " and ".join(f"`{name}`" for name in about)
        raise UsageError(f"{words} are only for ONNX files of other programs, and none of these models is one")
    return members, others


def rules_of_models(cls: type, weights: Sequence[Path | Segmenter | OnnxModel]) -> dict[str, Setting]:
    """Return the settings of a command that say how images and labels are read, as the first model was trained.

    Args:
        cls: The settings class of the command; settings that it lacks are not returned.
        weights: See `find_members`.
    """
    first = find_members(weights)[0]
    names = {field.name for field in fields(cls)}
    rules = {name: value for name, value in first.data_rules.items() if name in names}
    try:
        stored = as_declared(cls, rules)
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
    is_masked = bool(getattr(config, "masks", ()) or getattr(config, "mask_name", None))
    names = OF_MASKS if is_masked else DATA_RULES
    rules = {name: getattr(config, name) for name in names if hasattr(config, name)}
    texts = {name: f"of {len(v)} names" if isinstance(v, Mapping) else _text(v) for name, v in rules.items()}
    special = [f"{name} {texts[name]}" for name, value in rules.items() if value != default_of(config, name)]
    used, is_of_training = None, False
    if is_masked:
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
    for member in members if is_masked else ():
        if member.palette not in (None, used):
            _log.warning("`masks` are not read by the palette of the masks that %s was trained with", member.name)
            break


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {target}" for name, target in value.items()) or "none"
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
        [_load_for(config, member, device, console) for member in members],
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
        name = member.model if isinstance(member.model, Path) else member.name
        console.print(f"model  {name}" + (f", weight {weight:.3f}" if len(members) > 1 else ""))
    by_onnx = [isinstance(model, OnnxModel) for model in predictor.members]
    if any(by_onnx):
        console.print(f"engine {engine_name()}" + ("" if all(by_onnx) else "; torch for models that are no ONNX files"))
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


def _load_for(config: PredictConfig, member: ModelSource, device: torch.device, console: Console) -> torch.nn.Module:
    """Return a model that the engine of the settings runs, ready to predict."""
    if member.is_onnx:
        if config.compile or config.amp != "off":
            raise UsageError(f"{member.name} is run by onnxruntime, so `compile` and `amp` do not go with it")
        return member.load(device)
    if config.engine == "torch":
        dtype = torch.bfloat16 if config.amp == "bf16" else torch.float32
        return optimize(member.load(device), dtype=dtype, compile=config.compile)
    file = export_to_cache(member, console)
    if file is not None:
        return load_model(file).to(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        console.print(f"onnx   exporting {member.name}; its file is not kept")
        try:
            export_onnx(member.load(torch.device("cpu")), file)
        except UsageError as error:
            raise _export_error(member, error) from error
        return load_model(file).to(device)


def export_to_cache(member: ModelSource, console: Console) -> Path | None:
    """Return the ONNX file of a model of torch in the user's cache, see `cached_onnx`.

    Args:
        member: The model.
        console: Says that a model is exported.

    Returns:
        The file; None if there is no such cache, or the model has code of its own, which may change without a trace.

    Raises:
        UsageError: The model cannot be exported.
    """
    if member.has_own_code():
        return None
    cpu = torch.device("cpu")
    say = f"onnx   exporting {member.name}, once for this model"
    try:
        return cached_onnx(lambda: member.load(cpu), member.fingerprint(), lambda: console.print(say))
    except UsageError as error:
        raise _export_error(member, error) from error


def _export_error(member: ModelSource, error: UsageError) -> UsageError:
    if isinstance(error, MissingPackageError):
        return error
    return UsageError(f"{member.name} cannot be run by `engine=onnx`: {error}; `engine=torch` runs it")


def propose_engine(config: PredictConfig, predictor: Predictor, clock: Clock, console: Console) -> None:
    """Name the faster engine after the models of torch have run for long on a CPU.

    Args:
        config: The settings.
        predictor: The models.
        clock: How long they took.
        console: Prints the sentence.
    """
    seconds = clock.seconds["models"]
    is_plain = config.engine == "torch" and not config.compile and config.amp == "off"
    if seconds < LONG or not is_plain or predictor.device.type != "cpu":
        return
    if any(isinstance(model, OnnxModel) for model in predictor.members):
        return
    console.print(
        f"faster the models took {seconds:.0f} s on the CPU; `engine=onnx` takes about two thirds of it (it needs "
        "pip install onnx onnxscript onnxruntime)"
    )


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
