"""Run the commands on small data: arguments of a training that takes a second, and the exit code of a failure."""

import signal
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

from segkit.console import Console

SMALL = [
    *("--model", "fpn", "--backbone", "test_resnet", "--pretrained", "false", "--crop", "48"),
    *("--decoder", "pyramid_channels=16", "channels=16", "--augment", "none", "--loss", "ce=0.6", "dice=0.4"),
    *("--batch-size", "4", "--lr", "3e-3", "--workers", "0", "--device", "cpu", "--mask-cache", "off"),
]


def train_arguments(shapes: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    """Return the arguments of a small training.

    Args:
        shapes: The COCO files of the training and the validation images, such as the fixture `shapes`.
        out: The run folder.
        *more: Further arguments; these win.
    """
    return ["--data", str(shapes[0]), "--val", str(shapes[1]), "--out", str(out), *SMALL, *more]


def fails(command: ModuleType, *arguments: object) -> int | str | None:
    """Return the exit code of a command that must end early.

    Args:
        command: A module with a `main`, such as `segkit.cli.train`.
        *arguments: The arguments, such as paths and strings.
    """
    with pytest.raises(SystemExit) as stop:
        command.main([str(argument) for argument in arguments])
    return stop.value.code


def signal_at_batch(monkeypatch: pytest.MonkeyPatch, batch: int, number: int = signal.SIGINT) -> None:
    """Send a signal to this process before a training learns from a batch, counted from 0 over all epochs and runs."""
    progress, batches = Console.progress, count()

    def with_signal(self, items, **options):
        for item in progress(self, items, **options):
            if options.get("unit") == "batch" and next(batches) == batch:
                signal.raise_signal(number)
            yield item

    monkeypatch.setattr(Console, "progress", with_signal)
