"""OnnxModel: an ONNX file as a model, run by onnxruntime."""

from __future__ import annotations

import copy
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.errors import MachineError, MissingPackageError, UsageError
from segkit.labels import label_names
from segkit.models.onnx_file import data_files, operator_of
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import Segmenter
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import TrainingScale

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TELEMETRY = "ORT_DISABLE_TELEMETRY"  # environment variable of onnxruntime
OLDEST = (1, 18)  # version of onnxruntime: the first that reads what torch writes (version 10 of the format)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
_OUTPUTS = ("logits", "out")  # names of the logits among several outputs
_TRIAL = (2, 64, 96)  # (N, H, W) of the images that a file of another program is tried with


class OnnxModel(nn.Module):
    """Run an ONNX file: normalised images (N, C, H, W) -> logits (N, num_classes, H, W), like a Segmenter.

    Create it by `segkit.load_model("model.onnx")`. It can replace a Segmenter for prediction: in `Predictor`, in `TTA`,
    and in ensembles with Segmenters. It has no parameters, so it can neither be trained nor saved by `save_model`.

    onnxruntime gets as many threads as torch has when the file is loaded, see `torch.set_num_threads`. A copy shares
    the loaded file; a pickled model is its path, and is loaded again.

    Args:
        path: The file.
        class_names: See `Segmenter`.
        preprocessing: See `Segmenter`. The file does not normalise: the model takes normalised images.
        config: The arguments of `create_model` for this architecture; None if unknown.
        category_ids: See `Segmenter`.
        data_rules: See `Segmenter`.
        training_scale: See `Segmenter`.
        window: See `Segmenter`.

    Attributes:
        path: The file.

    Raises:
        MissingPackageError: onnxruntime is not installed, or is too old.
        UsageError: onnxruntime cannot run the file, or the file takes or returns something else than such a model.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        config: dict[str, Any] | None = None,
        category_ids: Mapping[str, int | str] | None = None,
        data_rules: Mapping[str, Any] | None = None,
        training_scale: TrainingScale | None = None,
        window: SlidingWindow | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.class_names = tuple(class_names)
        self.preprocessing = preprocessing
        self.config = config
        self.category_ids = dict(category_ids or {})
        self.data_rules = dict(data_rules or {})
        self.training_scale = training_scale or TrainingScale()
        self.window = window
        self.register_buffer("_place", torch.empty(0, dtype=torch.uint8), persistent=False)  # follows `to`
        self._open()
        self.eval()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """The device on which the file runs. Images may be on any device; the logits are returned on the same one."""
        return self._place.device

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes, H, W) float32 of normalised images (N, C, H, W).

        Raises:
            UsageError: `images` is not such a tensor, has a size that the file does not take, or the file returns
                something else than logits.
        """
        channels = len(self.preprocessing.mean)
        is_image = isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()
        if not is_image or images.shape[1] != channels:
            got = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"a model takes normalised images (N, {channels}, H, W) float, got {got}; "
                "`model.preprocessing(images)` makes them from uint8 images, and `model.predict` takes a photograph"
            )
        if self._size not in (None, tuple(images.shape[2:])):
            raise UsageError(
                f"{self.path} takes images of {_in_words(self._size)} pixels (height x width) only, got "
                f"{_in_words(images.shape[2:])}; export it again with free sizes"
            )
        if not len(images):
            return images.new_zeros((0, self.num_classes, *images.shape[2:]), dtype=torch.float32)
        values = images.detach().to("cpu", self._dtype).contiguous()
        parts = [self._run(part) for part in values.split(self._batch or len(values))]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        if logits.shape[2:] != images.shape[2:]:  # many programs return logits at the stride of the decoder
            logits = F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return logits.to(images.device)

    predict = Segmenter.predict

    def check_logits(self) -> None:
        """Check that a file of another program returns logits, by running it on noise.

        Raises:
            UsageError: It returns something else.
        """
        batch, *size = _TRIAL
        shape = (batch, len(self.preprocessing.mean), *(self._size or size))
        logits = self(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        if self.num_classes == 1:
            are_probs = logits.min() >= 0 and logits.max() <= 1
        else:
            are_probs = logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-3
        if are_probs:
            raise self._probabilities_error()

    def _probabilities_error(self) -> UsageError:
        return UsageError(
            f"{self.path} returns probabilities, expected logits; export it without its softmax or sigmoid"
        )

    def train(self, mode: bool = True) -> OnnxModel:
        if mode:
            raise UsageError(f"{self.path} is only for inference; train the model that it was made from")
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> OnnxModel:
        before = self.device
        super()._apply(fn, *args, **kwargs)
        if self.device != before:
            self._open()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModel:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        memo[id(self._session)] = self._session  # it has no state that a copy could change
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open()

    def extra_repr(self) -> str:
        return f"{str(self.path)!r}, {self.num_classes} classes, {self.device}"

    def _open(self) -> None:
        """Load the file for the device, and find out which images it takes and which output has the logits."""
        self._session = _open_session(self.path, self.device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        channels = len(self.preprocessing.mean)
        taken = [f"{tensor.name} {_shape(tensor.shape)} {tensor.type}" for tensor in inputs]
        shape = inputs[0].shape if len(inputs) == 1 else []
        takes_images = len(shape) == 4 and inputs[0].type in _TYPES and shape[3] != channels  # not (N, H, W, C)
        if not takes_images or (_is_size(shape[1]) and shape[1] != channels):
            raise UsageError(
                f"{self.path} takes {', '.join(taken) or 'no input'}; expected normalised images "
                f"(N, {channels}, H, W) float"
            )
        named = [tensor for tensor in outputs if tensor.name in _OUTPUTS] or outputs
        kinds = [f"{tensor.name} {_shape(tensor.shape)} {tensor.type}" for tensor in outputs]
        if len(named) != 1:
            raise UsageError(f"{self.path} has several outputs ({', '.join(kinds)}), and none is called logits")
        if named[0].type not in _TYPES or (named[0].shape and len(named[0].shape) != 4):
            raise UsageError(
                f"{self.path} returns {', '.join(kinds)}; expected logits (N, {self.num_classes}, H, W) float, such as "
                "a model returns before its softmax or argmax"
            )
        if named[0].shape and _is_size(named[0].shape[1]):
            self._check_classes(named[0].shape[1])
        self._input, self._output = inputs[0].name, named[0].name
        if operator_of(self.path, self._output) in ("Softmax", "Sigmoid"):  # a tool may add it and keep our metadata
            raise self._probabilities_error()
        self._dtype = _TYPES[inputs[0].type]
        self._batch = shape[0] if _is_size(shape[0]) else None
        sides = tuple(shape[2:])
        self._size = sides if all(map(_is_size, sides)) else None

    def _run(self, images: Tensor) -> Tensor:
        """Return the logits of images that fit into a batch; for a file with a fixed batch, add black images."""
        count = len(images)
        if self._batch is not None and count < self._batch:
            images = torch.cat([images, images.new_zeros((self._batch - count, *images.shape[1:]))])
        try:
            (logits,) = self._session.run([self._output], {self._input: images.numpy()})
        except Exception as error:  # errors of onnxruntime have no common class
            raise _run_error(error, self.path, images) from error
        if logits.ndim != 4 or logits.shape[0] != len(images):
            raise UsageError(
                f"{self.path} returns {_shape(logits.shape)} for images {_shape(images.shape)}, expected logits "
                f"({len(images)}, {self.num_classes}, H, W)"
            )
        self._check_classes(logits.shape[1])
        return torch.from_numpy(logits)[:count].float()

    def _check_classes(self, channels: int) -> None:
        if channels != self.num_classes:
            raise UsageError(
                f"{self.path} returns {channels} channels, but `class_names` has {self.num_classes} names: "
                f"{', '.join(label_names(self.class_names)[:8])}"
            )


def engine_name() -> str:
    """Return the version of onnxruntime and its number of threads in words."""
    threads = torch.get_num_threads()
    return f"onnxruntime {import_onnxruntime().__version__}, {threads} thread{'s' * (threads > 1)}"


def import_onnxruntime() -> Any:
    """Return the module onnxruntime; the only way by which segkit imports it.

    From 1.32 on, its wheels for Linux and macOS report each process, with an id that they store in the user's cache, to
    their maker. That is switched off, unless the user has set the variable that decides it.

    Raises:
        MissingPackageError: onnxruntime is not installed, or is too old.
    """
    os.environ.setdefault(TELEMETRY, "1")  # It is read when onnxruntime is imported first.
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            raise MissingPackageError("an ONNX file needs onnxruntime to run: pip install onnxruntime") from error
        raise MissingPackageError(
            f"onnxruntime is installed, but cannot be imported ({error}): pip install --force-reinstall onnxruntime"
        ) from error
    version = tuple(int(number) for number in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if version < OLDEST:
        raise MissingPackageError(
            f"onnxruntime {onnxruntime.__version__} is too old, an ONNX file needs {OLDEST[0]}.{OLDEST[1]} or newer: "
            "pip install -U onnxruntime"
        )
    return onnxruntime


def _open_session(path: Path, device: torch.device) -> InferenceSession:
    onnxruntime = import_onnxruntime()
    known = onnxruntime.get_available_providers()
    provider = _PROVIDERS.get(device.type)
    if provider is None:
        raise UsageError(f"an ONNX file runs on cpu or cuda, not on `device={device}`")
    if provider not in known:
        raise UsageError(
            f"`device={device}`: the installed onnxruntime has no CUDA; pip install onnxruntime-gpu in its place, or "
            "choose `device=cpu`"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised, and printing them to stderr too would double them
    settings = [{"device_id": device.index or 0}] if device.type == "cuda" else [{}]
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=[provider], provider_options=settings)
    except Exception as error:  # errors of onnxruntime have no common class
        raise _open_error(error, path, onnxruntime.__version__) from error


def _open_error(error: Exception, path: Path, version: str) -> Exception:
    """Return the error of a file that onnxruntime does not open, in one sentence."""
    text = str(error)
    missing = [file for file in data_files(path) if not file.is_file()]
    if missing:
        return UsageError(
            f"{path} keeps its weights in {missing[0].name}, which is not in the same folder; copy it there"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
        )
    if re.search(r"GetExtData|out of bounds or can not be read", text) and (files := data_files(path)):
        return UsageError(
            f"{path} keeps its weights in {files[0].name}, which is cut off or belongs to another file; copy both again"
        )
    if re.search(r"opset|IR version", text, re.IGNORECASE):
        return UsageError(
            f"{path} needs a newer onnxruntime than {version}: pip install -U onnxruntime, or export it with an older "
            f"opset ({_reason(text)})"
        )
    if _is_memory(text):
        return MachineError(f"memory ran out while {path} was loaded")
    return UsageError(f"onnxruntime {version} cannot load {path}: {_reason(text)}")


def _run_error(error: Exception, path: Path, images: Tensor) -> Exception:
    if _is_memory(str(error)) or isinstance(error, MemoryError):
        return MachineError(f"memory ran out ({path}, images {_shape(images.shape)})")
    return UsageError(f"{path} cannot run images {_shape(images.shape)}: {_reason(str(error))}")


def _is_memory(text: str) -> bool:
    return "allocate memory" in text or "bad_alloc" in text or "out of memory" in text


def _reason(text: str) -> str:
    """Return the reason in a message of onnxruntime, without the place in its source."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(text.split()))
    reason = re.sub(r"^Load model from .*? failed:", "", reason)
    reason = re.sub(r"^\S*/onnxruntime/\S+ .*?\) ", "", reason)
    return reason if len(reason) <= 300 else f"{reason[:300]} ..."


def _is_size(side: Any) -> bool:
    return isinstance(side, int)


def _in_words(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _shape(shape: Sequence[Any]) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"
