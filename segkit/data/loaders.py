"""Loaders whose random choices depend only on the seed, the epoch and the position, not on the workers."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from segkit.compat import abandon_unfinished_iterator, end_workers, has_workers, loader_workers
from segkit.data.batches import TrainBatches
from segkit.data.dataset import SegmentationDataset
from segkit.data.samples import Augmented, Plain
from segkit.errors import MachineError, UsageError, as_segkit_error

# Signals that reach every process of a group, but that only the main process handles. Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


# Seconds between two calls of `while_waiting` while a loader waits for a batch.
PATIENCE = 1
_ROOM = 12  # files that a process opens in addition to its loader's: images, checkpoints, modules
_ROOM_OF_THREADS = 4  # threads that a process starts in addition to the workers and to the threads of torch
_SHARED_MEMORY = Path("/dev/shm")
_log = logging.getLogger(__name__)


class Loader(DataLoader):
    """A DataLoader that can be interrupted while it waits; its workers fit the machine and end with the program.

    The workers are killed when the program ends, because they ignore the signals that end programs. Otherwise a
    program that ends before its loader would wait for the workers, and the workers for work.

    If the limits of open files or processes, or /dev/shm, do not allow all workers, fewer start, with a warning. If
    the limit of open files or /dev/shm is too small for the batches, they are sent through pipes, which is slower. The
    batches are the same.

    Attributes:
        while_waiting: Called each second while a batch is waited for; it may raise, to stop waiting.

    Raises:
        MachineError: The workers cannot start.
    """

    _workers: ClassVar[list[tuple[int, BaseProcess]]] = []  # together with the process that started them
    _is_registered: ClassVar[bool] = False
    while_waiting: Callable[[], None] | None = None
    _is_slow = False  # whether the warning about pipes was shown

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(self._start())

    def _batches(self, iterator: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            try:
                images, masks = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if self.while_waiting is not None:
                    self.while_waiting()
                continue
            if isinstance(images, np.ndarray):
                self._warn_of_pipes(images.nbytes + masks.nbytes)
                images, masks = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)
            yield images, masks

    def _start(self) -> Iterator[Any]:
        """Return torch's iterator; start the workers if there are none."""
        if not self.num_workers or has_workers(self):
            return super().__iter__()
        self._fit_machine()
        if not self.num_workers:
            return super().__iter__()
        before = set(active_children())
        try:
            with _signals_blocked():
                iterator = super().__iter__()
        except (OSError, RuntimeError) as error:
            fault = as_segkit_error(error)
            for worker in set(active_children()) - before:
                worker.kill()
            if fault is None:
                raise
            abandon_unfinished_iterator(error)
            raise MachineError(f"cannot start {self.num_workers} processes that load images: {fault}") from error
        self._workers.extend((os.getpid(), worker) for worker in loader_workers(iterator))
        if not Loader._is_registered:
            # Runs before the exit handlers of multiprocessing and torch, which were registered earlier and wait for
            # the workers.
            atexit.register(Loader.end_workers)
            Loader._is_registered = True
        return iterator

    def _fit_machine(self) -> None:
        """Lower the number of workers to what the machine allows, and decide how they send their batches."""
        wanted, files, page = self.num_workers, _free_files(), os.sysconf("SC_PAGE_SIZE")
        # Each worker has two pipes, and three semaphores in its queue; all have one more queue and an event.
        by_files = (files - _ROOM) // 4
        by_memory = (_free_shared_memory() // page - 8) // 3
        # Each worker is a process with a thread for its queue. Their limit also counts the user's other programs.
        room = torch.get_num_threads() + _ROOM_OF_THREADS
        threads = _free_threads(2 * wanted + room)
        by_threads = (threads - room) // 2
        self.collate_fn.may_share = files >= 8 * wanted + _ROOM  # each tensor on its way is an open file
        allowed = min(by_files, by_memory, by_threads)
        if allowed >= wanted:
            return
        self.num_workers = max(0, allowed)
        if not self.num_workers:
            self.timeout = 0
        if allowed == by_files:
            reason = f"this process may open only {files} more files; allow more of them (ulimit -n)"
        elif allowed == by_memory:
            free = f"{_free_shared_memory() / 1e3:.0f} kB"
            reason = f"{_SHARED_MEMORY} has only {free} left; enlarge it (in Docker: --shm-size)"
        else:
            reason = f"this user may start only {threads} more processes and threads; allow more of them (ulimit -u)"
        _log.warning("images are loaded by %d processes instead of %d: %s", self.num_workers, wanted, reason)

    def _warn_of_pipes(self, size: int) -> None:
        if self._is_slow:
            return
        self._is_slow = True
        if self.collate_fn.may_share:
            free = f"{_SHARED_MEMORY} has {_free_shared_memory() / 1e6:.3g} MB left, too little for"
            remedy = "enlarge it (in Docker: --shm-size=2g), or try fewer `workers`"
        else:
            free, remedy = "the limit of open files is too low for", "raise it (ulimit -n), or try fewer `workers`"
        _log.warning(
            "%s batches of %.3g MB, which are sent through pipes instead, more slowly; %s", free, size / 1e6, remedy
        )

    def start(self) -> None:
        """Start the workers now instead of at the first pass.

        Each worker is a copy of this process, and the process grows by gigabytes in the first training step.
        """
        if self.num_workers and not has_workers(self):
            self._start()

    def close(self) -> None:
        """End the workers, including stuck ones; the next pass starts new ones.

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


class TrainLoader(Loader):
    """A Loader of training batches; each pass is the next epoch, the first one is epoch 0.

    Attributes:
        batch_sampler: Decides the images of each batch.
    """

    batch_sampler: TrainBatches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.batch_sampler.begin_pass()
        return super().__iter__()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make this epoch the next pass, without its first `start` batches, to resume a training.

        Passes after it continue with the next epochs.
        """
        self.batch_sampler.set_epoch(epoch, start)


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
) -> TrainLoader:
    """Return a loader of augmented training batches.

    Each pass over the loader is a new epoch, with a new order and new augmentations; pass i is the same in each run.
    `loader.set_epoch(i)` continues a training with epoch i. The workers stay between passes: `loader.start()` starts
    them early, and `loader.close()` ends them.

    Args:
        data: Images and masks.
        transform: A pipeline of albumentations, see `create_transform`. With Normalize and ToTensorV2 at its end, the
            images are float32, for a model that is called on them directly.
        batch_size: Images in a batch, over all processes that train together.
        workers: Number of processes that load. It does not change what is loaded.
        seed: Seed of the order and the augmentations.
        shares: See `TrainBatches`.
        rank: Number of this process among the processes that train together.
        num_ranks: Number of these processes.
        **options: `mix`, `mix_share`, `donors`, `on_bad`, `max_bad`, `decode_at_least`, see `Augmented`.

    Returns:
        A loader of (images (N, 3, H, W), target (N, H, W)), both uint8; images are float32 if `transform` normalises.
        In your own loop, set `model.training_scale = loader.dataset.training_scale`, so that the model is used at
        the scale of the crops.

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
    augmented = Augmented(data, transform, **options)
    return TrainLoader(augmented, batch_sampler=batches, **_worker_options(workers, num_ranks))


def val_loader(data: SegmentationDataset, *, workers: int = 0, rank: int = 0, num_ranks: int = 1) -> Loader:
    """Return a loader of validation images, one at a time, at full size and in order.

    Args:
        data: Images and masks.
        workers: Number of processes that load.
        rank: Number of this process among the processes that share the images.
        num_ranks: Number of these processes. Each gets every `num_ranks`-th image; a process may get none.

    Returns:
        A loader of (image (1, 3, H, W), target (1, H, W)), both uint8.
    """
    indices = range(rank, len(data), num_ranks)
    return Loader(Plain(data), batch_size=1, sampler=indices, **_worker_options(workers, num_ranks))


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


def _worker_options(workers: int, num_ranks: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "timeout": PATIENCE if workers else 0,
        "collate_fn": Stack(workers * num_ranks),
        "worker_init_fn": _begin_worker,
        "pin_memory": torch.cuda.is_available(),
        # Without a generator, each pass would draw from the global random state.
        "generator": torch.Generator(),
    }


def _begin_worker(worker: int) -> None:
    try:  # the queue of the worker needs a thread; if it cannot start one, it dies with a traceback
        threading.Thread(target=int).start()
    except RuntimeError:
        os._exit(1)
    cv2.setNumThreads(0)  # the threads of all workers together would be more than the cores
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Stack:
    """Stack samples into a batch whose images are channels last, the fastest layout for models, without moving pixels.

    If /dev/shm has no room for the tensors of a worker, it returns arrays, which are sent through a pipe: a full
    /dev/shm would end the worker.

    Args:
        workers: Number of all processes that may write to /dev/shm at the same time.

    Attributes:
        may_share: Whether workers may use /dev/shm at all.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.may_share = True

    def __call__(
        self, samples: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
        images, masks = zip(*samples, strict=True)
        images, masks = torch.stack([image.permute(1, 2, 0) for image in images]), torch.stack(masks)
        if get_worker_info() is not None:
            # Each worker may be about to write two more batches.
            needed = (2 * self.workers + 1) * (images.nbytes + masks.nbytes)
            if not self.may_share or _free_shared_memory() < needed:
                return images.numpy(), masks.numpy()
        return images.permute(0, 3, 1, 2), masks


def _free_shared_memory() -> int:
    """Return the free bytes of /dev/shm; on systems without it shared memory has no such limit."""
    if not sys.platform.startswith("linux"):
        return sys.maxsize
    try:
        room = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize


def _free_files() -> int:
    """Return how many more files this process may open."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return sys.maxsize if limit == resource.RLIM_INFINITY else limit - len(os.listdir("/dev/fd"))
    except (ImportError, OSError):  # Windows, or a system that does not list open files
        return sys.maxsize


def _free_threads(wanted: int) -> int:
    """Return how many more threads or processes can be started, at most `wanted`; found by starting threads.

    Several limits apply, of the user and of the container, and the system does not say how much of them is used.
    """
    may_end, threads = threading.Event(), []
    with suppress(RuntimeError):  # can't start new thread
        for _ in range(wanted):
            thread = threading.Thread(target=may_end.wait)
            thread.start()
            threads.append(thread)
    may_end.set()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 1  # the system counts a thread for a moment after its end
    while time.monotonic() < deadline and any(map(_is_running, threads)):
        time.sleep(0.001)
    return len(threads)


def _is_running(thread: threading.Thread) -> bool:
    return os.path.exists(f"/proc/self/task/{thread.native_id}")
