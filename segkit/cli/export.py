"""export: write a trained model as ONNX."""

from collections.abc import Sequence

from segkit.cli.process import errors_as_sentences, wait_briefly
from segkit.config import ExportConfig, parse_args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("export", ExportConfig):
        config = parse_args(ExportConfig, argv, prog="segkit export")
        from segkit.workflows.export import export

        export(**vars(config), verbose=True)
