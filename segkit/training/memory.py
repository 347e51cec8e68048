"""Memory of the process: keep what is freed for the next step, or return it to the system."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt, see malloc.h
_NEVER = 2**31 - 1  # bytes
_STEP = 2**26  # bytes


def keep_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system; return whether that is possible.

    This setting holds for the whole process, so only a workflow calls it. A training step on a CPU frees and requests
    gigabytes. By default the system provides each large block and clears it page by page: a quarter of the step's time.
    Afterwards the process stays as large as it once was, unless `release_memory` is called. Nothing happens on systems
    other than Linux with glibc.
    """
    mallopt = _glibc_function("mallopt")
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)


def release_memory() -> bool:
    """Give free memory back to the system; return whether there was any.

    Memory that is freed later is kept as before. Only a workflow calls this.
    """
    malloc_trim = _glibc_function("malloc_trim")
    if malloc_trim is None:
        return False
    gc.collect()  # a model and its optimizer may be in a reference cycle
    return bool(malloc_trim(ctypes.c_size_t(0)))


def machine_memory() -> int | None:
    """Return the memory of this machine in bytes; None on systems that do not report it, such as Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _glibc_function(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # another C library, such as musl
        return None
