"""Export of trained models to torch.export programs and ONNX files that take any batch, height and width."""

import copy
import importlib.util
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segkit.compat import free_sizes
from segkit.errors import MissingPackageError, UsageError
from segkit.files import write_whole
from segkit.labels import label_names
from segkit.models.model_file import describe_model
from segkit.models.onnx_model import import_onnxruntime
from segkit.models.segmenter import Segmenter

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

SIZES = ((2, 97, 131), (1, 64, 96))  # (N, H, W) that an export is checked at: with padding and without
TOLERANCE = 1e-3  # largest difference from torch, as a share of the largest logit
INPUT = (
    "images (N, C, H, W) float, normalised outside of this file: with `mean`, `std` and `input_range` = (low, high) of "
    "`preprocessing`, a pixel of 0..255 becomes (pixel / 255 * (high - low) + low - mean) / std, in the order RGB"
)
LARGEST_FILE = 2 * 1024**3 - 1  # bytes: the limit of protobuf, ONNX's container


def export_program(model: Segmenter) -> ExportedProgram:
    """Trace the model by `torch.export`: images (N, C, H, W) -> logits (N, num_classes, H, W) for any N, H and W.

    It does not resize images to `model.training_scale`. The program is compared with the model at two sizes, one of
    them odd. It has the device and dtype of the model, and is in eval mode; the model is not changed. With a ConvNeXt,
    images must be higher and wider than the deepest stride, because of its permuted maps.

    Raises:
        UsageError: The backbone works only at some sizes, such as one with windows of attention, which `export_onnx`
            may still accept; or the program differs from the model.
        MissingPackageError: Torch is older than 2.7.
    """
    model = _prepare(model)
    program = _trace(model)
    traced = program.module()

    def run(images: Tensor) -> Tensor:
        try:
            return traced(images)
        except (AssertionError, RuntimeError) as error:
            raise UsageError(
                f"the program does not take images {tuple(images.shape)}, because {_name(model)} works only at some "
                f"sizes: {_first_line(error)}"
            ) from error

    _compare(model, run, SIZES)
    return program


def export_onnx(model: Segmenter, path: str | os.PathLike, *, check: bool = True) -> float | None:
    """Write the model to one ONNX file, whole or not at all.

    The input `images` (N, C, H, W) is normalised float32, the output `logits` (N, num_classes, H, W), for any N, H
    and W. `load_model` reads the file. Its metadata has `segkit`, the header of our model files as JSON (architecture,
    class names, preprocessing); `input`, a sentence that says how photographs are normalised, and `preprocessing`, the
    numbers for it as JSON; `class_names`, a JSON list of the names of the channels; `labels`, one of the names of the
    labels; and `category_ids`, the ids of the classes in the COCO JSON of the training by name, as JSON.
    Only a model with one channel has another number of labels: label 1 is where its logit is above 0.
    `training_scale` is the size of photographs in training as JSON, see `TrainingScale`; null is full size. The file
    does not resize: give it images of that size, and resize its logits to the photograph.

    The time depends on the number of layers; windows of attention (Swin) take some ten times as long as convolutions.

    Args:
        model: The model, on any device; it is not changed.
        path: The file; an existing one is replaced.
        check: Run the file in onnxruntime at two sizes, one of them odd, and compare the logits with torch.

    Returns:
        The largest difference from torch as a share of the largest logit; None without `check`.

    Raises:
        MissingPackageError: onnx, onnxscript or (for `check`) onnxruntime is missing, or torch is older than 2.7.
        UsageError: The difference exceeds 1e-3, the backbone works only at one size or has an operator that ONNX
            lacks, or the weights exceed the 2 GB of one file. Then nothing is written.
    """
    needed = ["onnx", "onnxscript", *(["onnxruntime"] if check else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"the export to ONNX needs packages that are not installed: pip install {' '.join(missing)}"
        )
    model = _prepare(model).cpu().float()
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST_FILE:
        raise UsageError(f"the weights have {size / 1e9:.1f} GB, one ONNX file holds 2 GB")
    program = _translate(model)
    program.model.metadata_props["segkit"] = json.dumps(describe_model(model))
    program.model.metadata_props["input"] = INPUT
    program.model.metadata_props["preprocessing"] = json.dumps(asdict(model.preprocessing))
    program.model.metadata_props["class_names"] = json.dumps(model.class_names)
    program.model.metadata_props["category_ids"] = json.dumps(dict(model.category_ids))
    program.model.metadata_props["training_scale"] = json.dumps(model.training_scale.write())
    program.model.metadata_props["labels"] = json.dumps(label_names(model.class_names))
    difference = None

    def write(temporary: Path) -> None:
        nonlocal difference
        program.save(temporary, external_data=False)
        if check:
            difference = _compare(model, _onnx_runner(temporary), SIZES)

    write_whole(path, write)
    return difference


def _prepare(model: Segmenter) -> Segmenter:
    """Return a copy in eval mode whose convolutions all get contiguous maps; raise UsageError for other modules.

    Otherwise torch derives the memory format of a map from its size (a 1x1 map has both formats), and the answer
    becomes a condition of the program.
    """
    if not isinstance(model, Segmenter):
        raise UsageError(
            f"an export takes a Segmenter, got a {type(model).__name__}; export an optimized model before `optimize`"
        )
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model


def _trace(model: Segmenter) -> ExportedProgram:
    # The example is traced and not computed, so it may be large: many windows of attention fit.
    height, width = model.backbone.size_multiple
    images = _images(model, (2, 24 * height + 1, 25 * width + 2))
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with free_sizes(), _without_graphs_on_stderr(), torch.no_grad():
        try:
            return torch.export.export(model, (images,), dynamic_shapes=(free,))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UsageError(f"{_name(model)} cannot be traced for any image size: {_first_line(error)}") from error


@contextmanager
def _without_graphs_on_stderr() -> Iterator[None]:
    """Drop what torch prints when a trace fails: hundreds of lines with the graph. The error has the reason."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _translate(model: Segmenter) -> "ONNXProgram":
    axes = {"images": {0: "batch", 2: "height", 3: "width"}}
    program = _trace(model)
    try:
        with free_sizes():
            return torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=axes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(f"{_name(model)} cannot be written as ONNX: {_first_line(error)}") from error


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@torch.inference_mode()
def _compare(model: Segmenter, run: Callable[[Tensor], Tensor], sizes: tuple[tuple[int, int, int], ...]) -> float:
    """Return the largest difference between `run` and the model, as a share of the largest logit.

    Raises:
        UsageError: The difference exceeds the tolerance, or the shapes differ.
    """
    largest = 0.0
    for size in sizes:
        images = _images(model, size)
        expected, got = model(images), run(images)
        if got.shape != expected.shape:
            raise UsageError(f"the export returns {tuple(got.shape)} for images {size}, torch {tuple(expected.shape)}")
        scale = expected.abs().max().item()
        difference = (got - expected).abs().max().item() / max(scale, torch.finfo(expected.dtype).tiny)
        if not difference <= TOLERANCE:
            raise UsageError(
                f"the export differs from torch by {difference:.2g} of the largest logit ({scale:.3g}) for images "
                f"(N, H, W) = {size}, expected at most {TOLERANCE:g}"
            )
        largest = max(largest, difference)
    return largest


def _images(model: Segmenter, size: tuple[int, int, int]) -> Tensor:
    weight = next(model.parameters())
    batch, height, width = size
    images = torch.randn(batch, model.backbone.channels[0], height, width, generator=torch.Generator().manual_seed(0))
    return images.to(weight)


def _name(model: Segmenter) -> str:
    return "{name} on {backbone}".format(**model.config) if model.config else "this model"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
