"""train: train a model on photographs with labels."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segkit
from segkit.cli.process import (
    crashes_reported_to_torchrun,
    errors_as_sentences,
    first_process_prints,
    is_first_process,
    program,
    wait_briefly,
)
from segkit.config import Setting, TrainConfig, implied_settings, import_words, parse_args
from segkit.console import Console, printable
from segkit.errors import Interrupted

if TYPE_CHECKING:
    from segkit.data import SegmentationDataset

AFTER_DEMO = """
This was the demo. Run `python infer.py`, or train on your own photographs:
  python train.py --data train.json --images photographs/ --model fpn --backbone tf_efficientnet_b3"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process. Under torchrun, one process of several."""
    wait_briefly()
    with crashes_reported_to_torchrun(), errors_as_sentences("train", TrainConfig), first_process_prints():
        config = parse_args(TrainConfig, argv, prog=program("train"), start_from=_start_from)
        from segkit.workflows.train import train_as_configured

        imports = f" {shlex.join(import_words(config.imports))}" if config.imports else ""
        try:
            result = train_as_configured(config, verbose=True, command=shlex.join(sys.argv), may_keep_memory=True)
        except Interrupted as stop:
            if is_first_process():
                outcome = "saved" if stop.error is None else "not saved, but what was saved before is kept"
                command = f"python train.py --resume {shlex.quote(str(stop.run))}{imports}"
                print(printable(f"\n{stop}; {outcome}. To resume: {command}"), file=sys.stderr)
            sys.exit(128 + stop.number)
        console = Console(verbose=True)
        folder = result.folder
        quoted = shlex.quote(str(folder)) + imports
        if result.was_finished:
            has_all_epochs = folder.is_cross_validation or len(result.history) >= config.epochs
            epochs = f" --epochs {2 * config.epochs}" if has_all_epochs else ""
            patience = f" --early-stopping {2 * config.early_stopping}" if config.early_stopping else ""
            console.print(f"train it longer: python train.py --resume {quoted}{epochs}{patience}")
        if folder.is_cross_validation:
            console.print(f"use the models together: {result.command}{imports}")
            return
        console.print(f"look at it: {folder.report}\nuse it: python infer.py --weights {quoted} --source photographs/")
        if result.is_demo:
            console.print(AFTER_DEMO)


def _start_from(config: TrainConfig) -> Mapping[str, Setting]:
    def architecture_of(path: Path) -> Mapping[str, Setting]:
        from segkit.models import import_modules  # only with `init_from`: both load torch
        from segkit.workflows.parts import architecture_of

        import_modules(config.imports)
        return architecture_of(path)

    return implied_settings(vars(config), architecture_of)


def train(
    config: TrainConfig,
    *,
    load: "Callable[[TrainConfig], tuple[SegmentationDataset, SegmentationDataset]] | None" = None,
) -> Path:
    """Train as `segkit.train` does; for programs that were written before it.

    Args:
        config: The settings.
        load: Returns the training and the validation images; by default those of the settings.

    Returns:
        The run folder.
    """
    settings: dict[str, Any] = dict(vars(config))
    if load is not None:
        own = dict(zip(("data", "val"), load(config), strict=True))
        settings |= {**own, "train_only": (), "folds": None, "fold": None}
    elif not config.data:
        del settings["data"]  # without `data`, `segkit.train` trains on the demo
    return segkit.train(**settings, verbose=True).folder.path
