"""`python -m segkit COMMAND ...`, and the `segkit` command."""

import sys
from importlib import import_module

from segkit._version import __version__

COMMANDS = {
    "train": "train a model on photographs with COCO annotations",
    "infer": "segment photographs with trained models",
    "evaluate": "score models on images whose truth is known, or compare two",
    "tune": "find weights, views and more that help on images held out",
    "check": "look for what is wrong with data before training on it",
    "folds": "divide a COCO JSON into folds with even shares of every class",
    "export": "write a trained model as ONNX",
}


def main() -> None:
    """Runs the command that the first argument names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        import_module(f"segkit.cli.{name}").main(rest)
        return
    usage = "\n".join([f"segkit {__version__}: segkit COMMAND ...", *(f"  {c:9}{t}" for c, t in COMMANDS.items())])
    if name in ("-h", "--help"):
        print(usage)
        return
    print(f"segkit: there is no command {name!r}\n{usage}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
