"""Memory: what is freed stays with the process, for the next step to take, or goes back; and whether it ran out."""

import ctypes
import gc
import sys
from collections.abc import Callable

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt, see malloc.h
_NEVER = 2**31 - 1  # bytes
_STEP = 2**26  # bytes


def keep_memory() -> bool:
    """Has glibc keep freed memory instead of giving it back to the system; whether that could be done.

    A training step on a CPU frees and asks again for gigabytes. By default each large map comes from the
    system, which clears it page by page: a quarter of the step's time. The setting holds for the whole
    process, which then stays as large as it once was, but for `release_memory`. Elsewhere than on Linux with
    glibc nothing happens.
    """
    mallopt = _of_glibc("mallopt")
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)


def release_memory() -> bool:
    """Gives the system back what is free by now; whether there was any. What is freed later is kept as before."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is None:
        return False
    gc.collect()  # a model and its optimizer may be in a reference cycle
    return bool(malloc_trim(ctypes.c_size_t(0)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine ran out; of the latter torch says so by a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _of_glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # another C library, such as musl
        return None
