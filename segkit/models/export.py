"""Trained models for other runtimes: torch.export programs and ONNX files of free batch, height and width."""

import copy
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segkit.compat import free_sizes
from segkit.errors import MissingPackageError, UsageError
from segkit.models.model_file import describe_model
from segkit.models.segmenter import Segmenter

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

SIZES = ((2, 97, 131), (1, 64, 96))  # (N, H, W) that an export is tried on: one that is padded, one that is not
TOLERANCE = 1e-3  # of the largest logit
LARGEST_FILE = 2 * 1024**3 - 1  # bytes: the limit of protobuf, ONNX's container


def export_program(model: Segmenter) -> ExportedProgram:
    """Traces the model by `torch.export`: images (N, C, H, W) -> logits (N, num_classes, H, W), any N, H and W.

    The model is copied and stays as it is; the program has the copy's device and dtype, and eval mode. It is
    run at two sizes, an odd one among them, and compared with the model. ConvNeXt's permuted maps set a lower
    bound: images must be higher and wider than the deepest stride.

    Raises:
        ValueError: the backbone ties the program to certain sizes, as windows of attention do
            (`export_onnx` can still take those), or the program differs from the model.
        ImportError: torch is older than 2.7.
    """
    model = _prepare(model)
    program = _trace(model)
    traced = program.module()

    def run(images: Tensor) -> Tensor:
        try:
            return traced(images)
        except (AssertionError, RuntimeError) as error:
            raise UsageError(
                f"the program does not take images {tuple(images.shape)}, since the backbone "
                f"{_name(model)} ties it to certain sizes: {_first_line(error)}"
            ) from error

    _compare(model, run, SIZES)
    return program


def export_onnx(model: Segmenter, path: str | os.PathLike, *, check: bool = True) -> float | None:
    """Writes the model to one ONNX file, whole or not at all.

    The input `images` (N, C, H, W) is normalised float32, the output `logits` (N, num_classes, H, W); N, H and
    W are free. The file's metadata holds `segkit`, the header of our model files as JSON (architecture, class
    names, preprocessing), and `class_names`, a JSON list. The time goes by the number of layers and is much the
    same for the convolutional backbones; one that attends in windows (Swin) takes some ten times as long.

    Args:
        model: The model, on any device; it is copied and stays as it is.
        path: The file; an existing one is replaced.
        check: Runs the file in onnxruntime at two sizes, an odd one among them, and compares with torch.

    Returns:
        The largest difference from torch as a share of the largest logit; None without `check`.

    Raises:
        ImportError: onnx, onnxscript or (for `check`) onnxruntime is missing, or torch is older than 2.7.
        ValueError: the difference exceeds 1e-3, the backbone takes images of one size alone or has an
            operator that ONNX lacks, or the weights exceed the 2 GB of one file. Nothing is written then.
    """
    _require(["onnx", "onnxscript", *(["onnxruntime"] if check else [])])
    path = Path(path)
    model = _prepare(model).cpu().float()
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST_FILE:
        raise UsageError(f"the weights take {size / 1e9:.1f} GB, one ONNX file holds 2 GB")
    program = _translate(model)
    program.model.metadata_props.update(_metadata(model))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder, path.name)
        program.save(temporary, external_data=False)
        difference = _compare(model, _onnx_runner(temporary), SIZES) if check else None
        os.replace(temporary, path)
    return difference


def _prepare(model: Segmenter) -> Segmenter:
    """A copy in eval mode whose convolutions are all given contiguous maps.

    Without that, torch asks a map's size which memory format it has (both, where height and width are 1),
    and the answer becomes a condition of the program.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model


def _trace(model: Segmenter) -> ExportedProgram:
    # The example is only traced, not computed, so it may be large: many windows of attention fit in.
    height, width = model.backbone.size_multiple
    images = _images(model, (2, 24 * height + 1, 25 * width + 2))
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with free_sizes(), torch.no_grad():
        try:
            return torch.export.export(model, (images,), dynamic_shapes=(free,))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UsageError(
                f"the backbone {_name(model)} cannot be traced for any image size: {_first_line(error)}"
            ) from error


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
        raise UsageError(f"the backbone {_name(model)} cannot be written as ONNX: {_first_line(error)}") from error


def _metadata(model: Segmenter) -> dict[str, str]:
    return {"segkit": json.dumps(describe_model(model)), "class_names": json.dumps(model.class_names)}


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@torch.inference_mode()
def _compare(model: Segmenter, run: Callable[[Tensor], Tensor], sizes: tuple[tuple[int, int, int], ...]) -> float:
    """The largest difference of `run` from the model, as a share of the largest logit.

    Raises:
        ValueError: it exceeds the tolerance, or the shapes differ.
    """
    largest = 0.0
    for size in sizes:
        images = _images(model, size)
        expected, got = model(images), run(images)
        if got.shape != expected.shape:
            raise UsageError(f"the export gives {tuple(got.shape)} for images {size}, torch {tuple(expected.shape)}")
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


def _require(packages: list[str]) -> None:
    missing = " ".join(name for name in packages if importlib.util.find_spec(name) is None)
    if missing:
        raise MissingPackageError(f"the export to ONNX needs more packages: pip install {missing}")


def _name(model: Segmenter) -> str:
    return repr(model.config["backbone"]) if model.config else "of this model"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
