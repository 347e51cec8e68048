"""Loaders whose random choices depend on the seed, the epoch and the position alone, not on the workers."""

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

from segkit.compat import end_workers, loader_workers
from segkit.data.batches import TrainBatches
from segkit.data.dataset import SegmentationDataset
from segkit.data.samples import Augmented, Plain
from segkit.errors import UsageError

# They reach every process of a group, and are for the main one; Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Loader(DataLoader):
    """A DataLoader whose workers end with the program, though they leave the signals that would end them to it.

    Without this, a program that ends with a loader alive would wait for its workers, and they for work.
    """

    _workers: ClassVar[list[tuple[int, BaseProcess]]] = []  # with the process that started them

    def _get_iterator(self) -> Any:
        with _signals_held():
            iterator = super()._get_iterator()
        self._workers.extend((os.getpid(), worker) for worker in loader_workers(iterator))
        return iterator

    def start(self) -> None:
        """Starts the workers ahead of the first pass: each holds a copy of the memory that this process has by then.

        After the first training step that would be gigabytes.
        """
        if self.num_workers and self._iterator is None:
            self._iterator = self._get_iterator()

    def close(self) -> None:
        """Ends the loader's workers; its next pass starts new ones.

        Without it, a loader that an error has left in a reference cycle makes the collector wait up to ten seconds for
        each worker.
        """
        end_workers(self)

    @classmethod
    def end_workers(cls) -> None:
        """Ends the workers that this process has started; for the end of a program."""
        alive = [worker for parent, worker in cls._workers if parent == os.getpid() and worker.is_alive()]
        if alive and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise in what else is to end
        for worker in alive:
            worker.kill()


atexit.register(Loader.end_workers)  # before multiprocessing's own, which was there first


def train_loader(
    data: SegmentationDataset,
    transform: Callable[..., Any],
    *,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    shares: np.ndarray | None = None,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> Loader:
    """Batches of images (N, 3, H, W) and target (N, H, W), both uint8; `loader.batch_sampler.epoch` is the epoch.

    `start()` starts the workers before the first pass does, and `close()` ends them, which otherwise stay from pass to
    pass; also of `val_loader`.

    Args:
        data: Images and masks.
        transform: See `create_transform`.
        batch_size: Images in a batch, over all processes that train.
        workers: Processes that load; they do not change what is loaded.
        seed: Of order and augmentation.
        shares: See `TrainBatches`.
        rank: The number of this process among those that train together.
        ranks: How many they are.
        **options: `mix`, `mix_share`, `donors`, `on_bad`, `max_bad`, `decode_at_least`, see `Augmented`.
    """
    if len(data) == 0:
        raise UsageError("the training set has no images")
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    if shares is not None and (len(shares) != len(data) or not np.min(shares) > 0):
        raise UsageError(f"shares must be {len(data)} positive numbers, one for each image")
    batches = TrainBatches(len(data), batch_size, seed, shares, rank=rank, ranks=ranks)
    return Loader(Augmented(data, transform, **options), batch_sampler=batches, **_worker_options(workers))


def val_loader(data: SegmentationDataset, *, workers: int = 0, rank: int = 0, ranks: int = 1) -> Loader:
    """One image at a time, at full size and in order: (1, 3, H, W) and (1, H, W), both uint8.

    Process `rank` of `ranks` gets every `ranks`-th image; together they have each once, and some may have none.
    """
    return Loader(Plain(data), batch_size=1, sampler=range(rank, len(data), ranks), **_worker_options(workers))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Workers that begin within hold the signals back as well, until they ignore them; this process, to the end."""
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
        # Of its own, so that loading leaves the global random state alone.
        "generator": torch.Generator(),
    }


def _single_threaded(worker: int) -> None:
    cv2.setNumThreads(0)  # a pool of threads in each worker would fight over the cores
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stack(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch whose images are channels last, as models take them fastest; no pixel changes its place."""
    images, masks = zip(*samples, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), torch.stack(masks)
