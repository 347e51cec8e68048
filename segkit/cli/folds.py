"""segkit folds: divide labels into training and validation JSONs of k folds."""

import shlex
from collections.abc import Sequence
from itertools import chain

from segkit.cli.process import errors_as_sentences, wait_briefly
from segkit.config import FoldsConfig, parse_args
from segkit.console import Console
from segkit.files import is_file


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("folds", FoldsConfig):
        config = parse_args(FoldsConfig, argv, prog="segkit folds")
        from segkit.workflows.folds import make_folds

        made = make_folds(**vars(config), verbose=True)
        console = Console(verbose=True)
        console.print(f"\n{made.folder}: {made.train[0].name}, {made.valid[0].name} ... {made.valid[-1].name}")
        first = next(chain.from_iterable(made.names), "")
        is_there = is_file(made.images / first)  # images are not read, so `images` need not be set
        images = shlex.quote(str(made.images)) if is_there else "FOLDER_OF_THE_IMAGES"
        files = (shlex.quote(str(file)) for file in (made.train[0], made.valid[0]))
        more = " --class-map FILE" if config.class_map else ""  # the files keep their categories
        console.print("use it: python train.py --data {} --val {} --images {}".format(*files, images) + more)
