"""segkit check: count the classes of data sets and find faults, as tables, CSV files and pictures."""

import sys
from collections.abc import Sequence
from dataclasses import fields

from segkit.cli.process import errors_as_sentences, wait_briefly, with_flags
from segkit.config import CheckConfig, TrainConfig, parse_args
from segkit.console import Console
from segkit.errors import DataError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("check", CheckConfig):
        config = parse_args(CheckConfig, argv, prog="segkit check")
        from segkit.workflows.check import run_check

        console = Console(verbose=True)
        result = run_check(config, console)
        console.print(with_flags(str(result), [field.name for field in fields(TrainConfig)]))  # they are for training
        if not config.full:
            more = "--full decodes them, and finds damaged and similar ones"
            console.print(f"only the headers of the images were read; {more}")
        console.print(f"\n{result.folder}: {', '.join(result.files)}")
    if result.errors:
        sys.exit(DataError.exit_code)
