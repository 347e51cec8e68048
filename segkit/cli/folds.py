"""segkit folds: divide a COCO JSON into training and validation JSONs of k folds."""

from collections.abc import Sequence

from segkit.cli.process import errors_as_sentences
from segkit.config import FoldsConfig, parse_args
from segkit.console import Console


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    with errors_as_sentences("folds", FoldsConfig):
        config = parse_args(FoldsConfig, argv, prog="segkit folds")
        from segkit.workflows.folds import make_folds

        made = make_folds(**vars(config), verbose=True)
        console = Console(verbose=True)
        console.print(f"\n{made.folder}: {made.train[0].name}, {made.valid[0].name} ... {made.valid[-1].name}")
        files = f"--data {made.train[0]} --val {made.valid[0]} --images {made.images}"
        console.print(f"use it: python train.py {files}")
