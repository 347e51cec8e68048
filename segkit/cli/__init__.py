"""The commands: each parses its settings, calls its workflow and prints what comes out."""

import sys
from collections.abc import Sequence
from importlib import import_module

from segkit._version import __version__

COMMANDS = {
    "train": "train a model on photographs with labels",
    "infer": "segment photographs with trained models",
    "evaluate": "score models on labelled images, or compare two",
    "tune": "find ensemble weights, views and CRF on held-out images",
    "check": "look for faults in data before training on it",
    "folds": "divide labels into folds with even shares of every class",
    "convert": "write labels or predictions as COCO, masks, YOLO or LabelMe",
    "export": "write a trained model as ONNX",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; `argv` defaults to the arguments of the process."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        import_module(f"segkit.cli.{name}").main(rest)
        return
    usage = "\n".join([f"segkit {__version__}: segkit COMMAND ...", *(f"  {c:9}{t}" for c, t in COMMANDS.items())])
    if name in ("-h", "--help"):
        print(usage)
        return
    print(f"segkit: there is no command {name!r}\n{usage}", file=sys.stderr)
    sys.exit(2)
