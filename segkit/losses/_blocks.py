"""Work on tensors in blocks of pixels that stay in the caches of a CPU, several blocks at a time.

Torch divides each operation among the threads of OpenMP and waits for the last of them. If another process is busy,
one of the threads is often not running, and a loss of many short operations waits for it in each of them. Here every
thread works on blocks of its own, with operations that use only this thread, and the loss waits once, at the end.

A result does not depend on the number of threads: the blocks are the same, and their sums are added in their order.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

Result = TypeVar("Result")
ONE_THREAD = 1 << 15  # Torch does not divide operations on fewer values among threads.
SMALL_BLOCK = 1 << 16  # Smaller ones take longer to call operations than to compute.
MOST_THREADS = 1 << 10  # Threads start when they are needed.


class Buffers:
    """Memory that a thread allocates once and uses again for each of its blocks."""

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}

    def like(self, x: Tensor, name: str) -> Tensor:
        """Return an uninitialised tensor of the shape and layout of `x`; it overwrites the last one of this name."""
        memory = self.memory.get(name)
        if memory is None or memory.numel() < x.numel():
            memory = self.memory[name] = x.new_empty(x.numel())
        return torch.as_strided(memory, x.shape, torch.empty_like(x, device="meta").stride())


def blocks(values: int, *tensors: Tensor | None) -> list[tuple[Tensor | None, ...]]:
    """Divide tensors (N, C, P) and (N, P) alike into blocks of one image, and of `values` values of the first or fewer.

    All images have equally many blocks. In the place of a tensor may be None.
    """
    n, classes, pixels = tensors[0].shape
    if not n or not pixels:
        return []
    values = min(values, max(SMALL_BLOCK, tensors[0].numel() // 8))  # so that several threads have something to do
    step = max(1024, values // max(classes, 1))
    none = [None] * (n * -(-pixels // step))
    parts = (none if x is None else [part for image in x.split(1) for part in image.split(step, -1)] for x in tensors)
    return list(zip(*parts, strict=True))


def in_blocks(work: Callable[..., Result], values: int, *tensors: Tensor | None) -> list[Result]:
    """Call `work(buffers, image, *parts)` for each of the `blocks` of `tensors`; return the results in their order.

    Several blocks are worked on at the same time, one for each thread that torch may use in this thread. `work` is
    called without gradients and without autocast. `image` is the index of the image of the block as a slice, and
    `parts` are views: writing to them writes to `tensors`.

    Raises:
        Exception: What `work` raises for one of the blocks.
    """
    pieces = blocks(values, *tensors)
    # Even a single block goes to another thread, because sums of torch depend on its number of threads.
    threads = torch.get_num_threads() if tensors[0].numel() >= ONE_THREAD else 1
    blocks_of_image = max(1, len(pieces) // max(1, len(tensors[0])))
    waiting, results, errors = deque(enumerate(pieces)), {}, []
    finished, is_inference = threading.Event(), torch.is_inference_mode_enabled()

    def work_through() -> None:
        buffers = Buffers()
        # In this order: inference_mode(False) switches gradients on.
        with torch.inference_mode(is_inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
            while True:
                try:
                    index, piece = waiting.popleft()
                except IndexError:  # Other threads have taken the rest.
                    return
                image = index // blocks_of_image
                results[index] = work(buffers, slice(image, image + 1), *piece)
                if len(results) == len(pieces):
                    finished.set()

    def thread() -> None:
        try:
            work_through()
        except BaseException as error:
            errors.append(error)
            finished.set()

    if threads == 1:
        work_through()
    else:
        try:
            if not _start(thread, min(threads, len(pieces))):
                work_through()
            finished.wait()
        finally:
            waiting.clear()  # After an error, or Ctrl-C, no thread begins another block.
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(pieces))]


def sum_all(x: Tensor) -> Tensor:
    """Return the sum of all values: on a CPU the same with any number of threads, of sums of blocks in float64."""
    if x.device.type != "cpu" or x.numel() < ONE_THREAD or torch.compiler.is_compiling():
        return x.sum()
    return _Sum.apply(x)


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape

        def work(buffers: Buffers, image: slice, part: Tensor) -> Tensor:
            return part.sum().double()  # A sum in float64 within the block would convert all of its values.

        return torch.stack(in_blocks(work, 1 << 18, x.reshape(1, 1, -1))).sum().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.expand(ctx.shape)


class _Threads:
    """Threads in which torch uses one thread each; a process has its own, because a fork does not copy threads."""

    of_process: ClassVar[dict[int, "_Threads"]] = {}

    def __init__(self) -> None:
        self.starting = threading.Lock()
        self.pool = ThreadPoolExecutor(MOST_THREADS, "segkit-blocks", self._use_one_thread)

    def _use_one_thread(self) -> None:
        """Make torch use one thread here, and in threads that are yet to start as many as before.

        `torch.set_num_threads` sets both, and there is no way to set only the first.
        """
        with self.starting:
            as_before, may_set = torch.get_num_threads(), threading.Event()

            def set_as_before() -> None:
                may_set.wait()
                torch.set_num_threads(as_before)

            other = threading.Thread(target=set_as_before)
            try:
                other.start()
            except RuntimeError:  # No more threads can start. The work is then slower, but the same.
                return
            torch.set_num_threads(1)
            may_set.set()
            other.join()


def _start(function: Callable[[], None], count: int) -> bool:
    """Call `function` in `count` threads; return False if that many cannot start, where some or none have started."""
    process = os.getpid()
    threads = _Threads.of_process.get(process) or _Threads.of_process.setdefault(process, _Threads())
    try:
        for _ in range(count):
            threads.pool.submit(function)
    except RuntimeError:  # The user may not start more threads, or the program is about to end.
        return False
    return True
