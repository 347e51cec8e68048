"""Loaders whose random choices depend only on the seed, the epoch and the position, not on the workers."""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segkit.compat import end_workers, has_workers, loader_workers
from segkit.data.batches import TrainBatches
from segkit.data.dataset import SegmentationDataset
from segkit.data.samples import Augmented, Plain
from segkit.errors import UsageError

# They are sent to every process of a group, but only the main one handles them. Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Loader(DataLoader):
    """A DataLoader whose workers are killed when the program ends, because they ignore the signals that end programs.

    Otherwise a program that ends before its loader would wait for the workers, and the workers for work.
    """

    _workers: ClassVar[list[tuple[int, BaseProcess]]] = []  # together with the process that started them
    _is_registered: ClassVar[bool] = False

    def __iter__(self) -> Any:
        if not self.num_workers or has_workers(self):
            return super().__iter__()
        if not Loader._is_registered:
            # Runs before the exit handler of multiprocessing, which was registered earlier and waits for the workers.
            atexit.register(Loader.end_workers)
            Loader._is_registered = True
        with _signals_blocked():
            iterator = super().__iter__()
        self._workers.extend((os.getpid(), worker) for worker in loader_workers(iterator))
        return iterator

    def start(self) -> None:
        """Start the workers now instead of at the first pass.

        Each worker is a copy of this process, which after the first training step has gigabytes more.
        """
        if self.num_workers and not has_workers(self):
            iter(self)

    def close(self) -> None:
        """End the workers; the next pass starts new ones.

        If an error leaves the loader in a reference cycle and nobody closes it, the garbage collector waits up to ten
        seconds for each worker.
        """
        end_workers(self)

    @classmethod
    def end_workers(cls) -> None:
        """Kill all workers that this process has started, for the end of a program."""
        alive = [worker for parent, worker in cls._workers if parent == os.getpid() and worker.is_alive()]
        if alive and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise in the other exit handlers
        for worker in alive:
            worker.kill()


def train_loader(
    data: SegmentationDataset,
    transform: Callable[..., Any],
    *,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    shares: np.ndarray | None = None,
    rank: int = 0,
    num_ranks: int = 1,
    **options: Any,
) -> Loader:
    """Return a loader of augmented training batches.

    Set `loader.batch_sampler.epoch` before each pass. The workers stay between passes: `loader.start()` starts them
    early, and `loader.close()` ends them.

    Args:
        data: Images and masks.
        transform: See `create_transform`.
        batch_size: Images in a batch, over all processes that train together.
        workers: Number of processes that load. It does not change what is loaded.
        seed: Seed of the order and the augmentations.
        shares: See `TrainBatches`.
        rank: Number of this process among the processes that train together.
        num_ranks: Number of these processes.
        **options: `mix`, `mix_share`, `donors`, `on_bad`, `max_bad`, `decode_at_least`, see `Augmented`.

    Returns:
        A loader of (images (N, 3, H, W), target (N, H, W)), both uint8.

    Raises:
        UsageError: The set has no images, or an argument cannot be used.
    """
    if len(data) == 0:
        raise UsageError("the training set has no images")
    if batch_size < 1:
        raise UsageError(f"`batch_size` must be at least 1, got {batch_size}")
    if shares is not None and (len(shares) != len(data) or not np.min(shares) > 0):
        raise UsageError(f"`shares` must be {len(data)} positive numbers, one for each image")
    batches = TrainBatches(len(data), batch_size, seed, shares, rank=rank, num_ranks=num_ranks)
    return Loader(Augmented(data, transform, **options), batch_sampler=batches, **_worker_options(workers))


def val_loader(data: SegmentationDataset, *, workers: int = 0, rank: int = 0, num_ranks: int = 1) -> Loader:
    """Return a loader of one image at a time, at full size and in order: (1, 3, H, W) and (1, H, W), both uint8.

    Process `rank` of `num_ranks` gets every `num_ranks`-th image: each image goes to one process, and a process may
    get none.
    """
    return Loader(Plain(data), batch_size=1, sampler=range(rank, len(data), num_ranks), **_worker_options(workers))


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals while workers start: they inherit the mask, until they ignore the signals themselves."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker_options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "collate_fn": _stack,
        "worker_init_fn": _single_threaded,
        "pin_memory": torch.cuda.is_available(),
        # Without a generator, each pass would draw from the global random state.
        "generator": torch.Generator(),
    }


def _single_threaded(worker: int) -> None:
    cv2.setNumThreads(0)  # the threads of all workers together would be more than the cores
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stack(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack samples to a batch whose images are channels last, the fastest layout for models, without moving pixels."""
    images, masks = zip(*samples, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), torch.stack(masks)
