"""Processes that refine images beside the caller's: pydensecrf holds the interpreter's lock, so threads do not help."""

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

Engine = Callable[[Tensor, Tensor], Tensor]
Result = TypeVar("Result")

_engine: Engine  # of a worker


class WorkerPool:
    """A pool that starts with the first image, stays for the next ones and ends with its owner.

    Args:
        workers: Number of processes.
        make_engine: Gives a worker its engine; sent to the worker by pickle.
    """

    def __init__(self, workers: int, make_engine: Callable[[], Engine]) -> None:
        self.workers = workers
        self.make_engine = make_engine
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, probs: Tensor, image: Tensor) -> "Future[Tensor]":
        """Refines (C, H, W) by (H, W, 3) in a worker."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _start_worker, (self.make_engine,)
            )
        try:
            done = self._executor.submit(_refine, probs.numpy(), image.numpy())
        except BrokenProcessPool as error:
            raise self._death(error) from error
        return then(done, torch.from_numpy, self._death)

    def close(self) -> None:
        """Ends the workers after the images that they are at; images not begun are cancelled."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def _death(self, error: BaseException) -> BaseException:
        if not isinstance(error, BrokenProcessPool):
            return error
        self._executor = None  # the next image starts new workers
        return RuntimeError(
            "a worker of DenseCRF ended before its image was done: it was killed (out of memory?), or the script that "
            'started it lacks `if __name__ == "__main__":`'
        )


def then(
    future: "Future", function: Callable[..., Result], on_error: Callable[[BaseException], BaseException] | None = None
) -> "Future[Result]":
    """A Future of `function` of another Future's result."""
    result: Future = Future()

    def finish(done: "Future") -> None:
        try:
            result.set_result(function(done.result()))
        except BaseException as error:  # of any kind: it belongs to whoever asks for the result
            result.set_exception(on_error(error) if on_error else error)

    future.add_done_callback(finish)
    return result


def _start_worker(make_engine: Callable[[], Engine]) -> None:
    global _engine
    torch.set_num_threads(1)  # one core a worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _engine = make_engine()


def _end_with_parent() -> None:
    # A parent that is killed closes no pool, and a worker that waits for work would wait for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _refine(probs: np.ndarray, image: np.ndarray) -> np.ndarray:
    return _engine(torch.from_numpy(probs), torch.from_numpy(image)).numpy()
