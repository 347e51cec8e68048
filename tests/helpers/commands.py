"""Run the commands on small data: arguments of a training that takes a second, and the exit code of a failure."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from segkit.models import Segmenter

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


@contextmanager
def at_forward(act: Callable[[Segmenter], object]) -> Iterator[None]:
    """Call `act(model)` before each forward pass of a model, in training and in evaluation."""

    def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if isinstance(module, Segmenter):
            act(module)

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def signal_at_batch(batch: int, number: int = signal.SIGINT) -> Iterator[None]:
    """Send a signal to this process before a training learns from a batch, counted from 0 over all epochs and runs."""
    batches = count()

    def send(model: Segmenter) -> None:
        if model.training and next(batches) == batch:
            signal.raise_signal(number)

    with at_forward(send):
        yield
