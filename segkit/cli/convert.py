"""segkit convert: write labels, or the masks of infer.py, in the format of another tool."""

from collections.abc import Sequence

from segkit.cli.process import errors_as_sentences, wait_briefly
from segkit.config import ConvertConfig, parse_args
from segkit.console import Console, counted


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("convert", ConvertConfig):
        config = parse_args(ConvertConfig, argv, prog="segkit convert")
        from segkit.workflows.convert import convert

        made = convert(**vars(config), verbose=True)
        console = Console(verbose=True)
        of_splits = ", ".join(f"{split}: {number}" for split, number in made.images.items())
        divided = f" ({of_splits})" if len(made.images) > 1 else ""
        console.print(
            f"{made.folder}: {config.to}, {counted(sum(made.images.values()), 'image')}{divided}, "
            f"{counted(len(made.class_names), 'class')}"
        )
        if made.lost:
            console.print(f"not in this format: {'; '.join(made.lost)}")
        console.print(f"use it: {made.use}")
