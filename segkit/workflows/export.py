"""export: write a trained model as ONNX, in float32 or int8."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.config import ExportConfig, from_keywords
from segkit.console import Console
from segkit.errors import UsageError
from segkit.files import make_folder
from segkit.models import OnnxModel, Segmenter, export_onnx, find_model_file, import_modules, load_model
from segkit.models.onnx_file import is_of_other_program, is_onnx
from segkit.workflows.int8 import Int8Result, write_int8

Paths = str | os.PathLike | Sequence[str | os.PathLike]


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    Attributes:
        file: The ONNX file.
        difference: Largest difference between the logits of ONNX in float32 and torch, as a share of the largest logit;
            None if the model is an ONNX file.
        int8: How the file was quantised, and what that costs; None for a file in float32.
    """

    file: Path
    difference: float | None
    int8: Int8Result | None = None


def export(
    model: str | os.PathLike | Segmenter | OnnxModel,
    onnx: str | os.PathLike | None = None,
    *,
    imports: Sequence[str] = (),
    overwrite: bool = False,
    int8: bool = False,
    calibrate: str | os.PathLike | None = None,
    photographs: int = 64,
    seed: int = 0,
    check: Paths = (),
    images: Paths = (),
    masks: Paths = (),
    max_loss: float = 0.3,
    accept_loss: bool = False,
    verbose: bool = False,
) -> ExportResult:
    """Write a trained model as ONNX, for any batch and image size, and compare it with torch.

    With `int8`, static quantisation makes the maps uint8 and the weights int8, with a scale for each channel. Give
    `check` to compare its masks with the ones of float: if int8 loses more than `max_loss`, the layers that cost most
    accuracy stay in float.

        result = segkit.export("runs/x", "m.onnx", int8=True, calibrate="train.json", check="val.json")
        print(result.int8.accuracy.text)

    Args:
        model: A model file, a run folder or a loaded model. With `int8`, also an ONNX file that segkit exported.
        onnx: The file to write. By default the name of the model file, with the suffix .onnx, or .int8.onnx.
        imports: Modules to import first, such as the module with your own decoder.
        overwrite: Replace the file if it exists.
        int8: Quantise to int8.
        calibrate: Photographs that decide the steps of int8, such as the training images: a folder, a glob, a list of
            files, a COCO JSON or a video. They are prepared as in prediction, and their labels are not used.
        photographs: How many to draw from `calibrate`. Photographs of `check` are never drawn.
        seed: Seed of the drawing.
        check: Labelled images to measure what int8 costs: COCO JSON files, or folders of images with `masks`.
        images: Image folder of `calibrate` and `check`, or one for each; by default the folder of the JSON file.
        masks: A folder of masks for each folder of `check`.
        max_loss: Largest loss of mIoU, in percentage points.
        accept_loss: Write the most accurate int8 file even if it loses more.
        verbose: Print what is done.

    Raises:
        UsageError: There is no such model, a setting cannot be used, or the file cannot be written.
        MissingPackageError: A package for ONNX is not installed.
        DataError: An image of `check` cannot be used, or the model has other classes.
        AccuracyError: int8 loses more than `max_loss` even with layers in float; nothing is written.
    """
    import_modules([imports] if isinstance(imports, str) else imports)
    console = Console(verbose=verbose)
    if not isinstance(model, str | os.PathLike | Segmenter | OnnxModel):
        raise UsageError(f"`model` must be a path or a Segmenter, got {type(model).__name__}")
    if not isinstance(onnx, str | os.PathLike | None):
        raise UsageError(f"`onnx` must be a path, got {type(onnx).__name__}")
    is_loaded = isinstance(model, Segmenter | OnnxModel)
    if is_loaded and onnx is None:
        raise UsageError("give `onnx`, the file to write")
    settings = {"int8": int8, "calibrate": calibrate, "photographs": photographs, "seed": seed, "check": check}
    settings |= {"images": images, "masks": masks, "max_loss": max_loss, "accept_loss": accept_loss}
    config = from_keywords(ExportConfig, {"model": "a loaded model", **settings})
    source = Path("a loaded model") if is_loaded else find_model_file(model)
    if not int8 and (isinstance(model, OnnxModel) or is_onnx(source)):
        raise UsageError(f"{model.path if is_loaded else source} is an ONNX file already")
    if not is_loaded and is_of_other_program(source):
        raise UsageError(f"{source} was not exported by segkit, and int8 needs what such a file says in its metadata")
    target = source.with_suffix(".int8.onnx" if int8 else ".onnx") if onnx is None else Path(onnx)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; `onnx` takes a file")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already; choose another `onnx`, or replace it by `overwrite`")
    make_folder(target.parent)
    console.print(f"model  {source}")
    loaded = model if is_loaded else load_model(source)
    result = None
    if int8:
        difference, result = write_int8(loaded, target, config, console)
    else:
        difference = export_onnx(loaded, target)
    console.print(f"onnx   {target}, {target.stat().st_size / 1e6:.1f} MB, any batch, height and width")
    if not loaded.training_scale.is_full_size:
        console.print(f"scale  resize photographs before the model, as in training: {loaded.training_scale}")
    if loaded.window is not None:
        console.print(f"window predict large photographs piece by piece, as in training's validation: {loaded.window}")
    if not int8:
        console.print(f"check  differs from torch by at most {difference:.1e} of the largest logit")
    return ExportResult(target, difference, result)
