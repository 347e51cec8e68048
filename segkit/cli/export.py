"""export: a trained model in, an ONNX file out."""

from collections.abc import Sequence
from pathlib import Path

from segkit.cli.process import errors_as_sentences
from segkit.config import ExportConfig, parse_args
from segkit.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with errors_as_sentences("export", ExportConfig):
        export(parse_args(ExportConfig, argv, prog="segkit export"))


def export(config: ExportConfig) -> Path:
    """Writes the model as ONNX and gives the file's path."""
    from segkit.models import export_onnx, find_model_file, load_model

    source = find_model_file(config.model)
    target = config.onnx or source.with_suffix(".onnx")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; --onnx takes a file")
    if target.exists() and not config.overwrite:
        raise UsageError(f"{target} exists already; choose another --onnx, or replace it by --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"model  {source}")
    difference = export_onnx(load_model(source), target)
    print(f"onnx   {target}, {target.stat().st_size / 1e6:.1f} MB, any batch, height and width")
    print(f"check  differs from torch by at most {difference:.1e} of the largest logit")
    return target
