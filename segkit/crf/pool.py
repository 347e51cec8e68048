"""Refine images in other processes: pydensecrf holds the interpreter lock, so threads would not help."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from segkit.errors import MachineError

Engine = Callable[[Tensor, Tensor], Tensor]
Result = TypeVar("Result")

_engine: Engine  # set in each worker


class WorkerPool:
    """Hold worker processes, which start with the first image and end with `close` or with the pool.

    Args:
        workers: Number of processes.
        make_engine: Function that creates the engine of a worker; it is sent to the worker by pickle.
    """

    def __init__(self, workers: int, make_engine: Callable[[], Engine]) -> None:
        self.workers = workers
        self.make_engine = make_engine
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, probs: Tensor, image: Tensor) -> "Future[Tensor]":
        """Refine probabilities (C, H, W) by the image (H, W, 3) in a worker."""
        try:
            done = self._submit(probs, image)
        except BrokenProcessPool:  # a worker died; the images that waited for it have reported it
            self.close()
            done = self._submit(probs, image)
        # A future must not hold the pool: the thread that ends the workers could not wait for itself.
        return map_future(done, torch.from_numpy, _as_machine_error)

    def close(self) -> None:
        """End the workers when their current images are done, and cancel the waiting images."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def __del__(self) -> None:
        # If an executor is dropped without a shutdown, its thread closes a pipe that Python writes to at exit, which
        # sometimes caused "OSError: Bad file descriptor" after the results. Submitted images are finished first.
        executor = getattr(self, "_executor", None)
        if executor is not None:
            executor.shutdown()

    def _submit(self, probs: Tensor, image: Tensor) -> Future:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _start_worker, (self.make_engine,)
            )
        return self._executor.submit(_refine, probs.numpy(), image.numpy())


def map_future(
    future: "Future", function: Callable[..., Result], on_error: Callable[[BaseException], BaseException] | None = None
) -> "Future[Result]":
    """Apply `function` to a Future's result when it is ready; return the new Future."""
    result: Future = Future()

    def finish(done: "Future") -> None:
        try:
            result.set_result(function(done.result()))
        except BaseException as error:  # store every error; `.result()` raises it again
            result.set_exception(on_error(error) if on_error else error)

    future.add_done_callback(finish)
    return result


def _as_machine_error(error: BaseException) -> BaseException:
    if not isinstance(error, BrokenProcessPool):
        return error
    return MachineError(
        "a worker of DenseCRF ended before its image was done: either it was killed (out of memory?), or the "
        'script needs `if __name__ == "__main__":` around its code'
    )


def _start_worker(make_engine: Callable[[], Engine]) -> None:
    global _engine
    torch.set_num_threads(1)  # one core per worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _engine = make_engine()


def _end_with_parent() -> None:
    # A killed parent cannot close its pool, and its workers would wait for work forever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _refine(probs: np.ndarray, image: np.ndarray) -> np.ndarray:
    return _engine(torch.from_numpy(probs), torch.from_numpy(image)).numpy()
