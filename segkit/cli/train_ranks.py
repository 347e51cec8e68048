"""What train.py does about the processes that torchrun starts: who speaks, and what torchrun is told."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from segkit.training import Ranks


@contextmanager
def told_by_the_first(ranks: "Ranks") -> Iterator[None]:
    """Leaves it to the first process to print, and to warn of what all read in the same files."""
    if ranks.is_first:
        yield
        return
    from segkit.errors import DataWarning

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


def tell_ranks(batch_size: int, device: "torch.device", ranks: "Ranks") -> None:
    """Prints how the processes share a batch; or how to put all GPUs to use."""
    import torch

    if ranks.count > 1:
        print(f"ranks  {ranks.count} processes, each with {batch_size // ranks.count} of a batch's {batch_size} crops")
    elif device.type == "cuda" and torch.cuda.device_count() > 1:
        gpus = torch.cuda.device_count()
        print(f"ranks  1 of {gpus} GPUs; to use all: torchrun --standalone --nproc-per-node {gpus} train.py ...")
