"""export: write a trained model as ONNX."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.console import Console
from segkit.errors import UsageError
from segkit.files import make_folder
from segkit.models import Segmenter, export_onnx, find_model_file, import_modules, load_model


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    Attributes:
        file: The ONNX file.
        difference: Largest difference between the logits of ONNX and torch, as a share of the largest logit.
    """

    file: Path
    difference: float


def export(
    model: str | os.PathLike | Segmenter,
    onnx: str | os.PathLike | None = None,
    *,
    imports: Sequence[str] = (),
    overwrite: bool = False,
    verbose: bool = False,
) -> ExportResult:
    """Write a trained model as ONNX, for any batch and image size, and compare it with torch.

    Args:
        model: A model file, a run folder or a loaded model.
        onnx: The file to write. By default the name of the model file, with the suffix .onnx.
        imports: Modules to import first, such as the module with your own decoder.
        overwrite: Replace the file if it exists.
        verbose: Print what is done.

    Raises:
        UsageError: There is no such model, or the file cannot be written.
        MissingPackageError: A package for ONNX is not installed.
    """
    import_modules([imports] if isinstance(imports, str) else imports)
    console = Console(verbose=verbose)
    if not isinstance(model, str | os.PathLike | Segmenter):
        raise UsageError(f"`model` must be a path or a Segmenter, got {type(model).__name__}")
    if not isinstance(onnx, str | os.PathLike | None):
        raise UsageError(f"`onnx` must be a path, got {type(onnx).__name__}")
    if isinstance(model, Segmenter) and onnx is None:
        raise UsageError("give `onnx`, the file to write")
    source = Path("a loaded model") if isinstance(model, Segmenter) else find_model_file(model)
    target = source.with_suffix(".onnx") if onnx is None else Path(onnx)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; `onnx` takes a file")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already; choose another `onnx`, or replace it by `overwrite`")
    make_folder(target.parent)
    console.print(f"model  {source}")
    loaded = model if isinstance(model, Segmenter) else load_model(source)
    difference = export_onnx(loaded, target)
    console.print(f"onnx   {target}, {target.stat().st_size / 1e6:.1f} MB, any batch, height and width")
    if not loaded.training_scale.is_full_size:
        console.print(f"scale  resize photographs before the model, as in training: {loaded.training_scale}")
    console.print(f"check  differs from torch by at most {difference:.1e} of the largest logit")
    return ExportResult(target, difference)
