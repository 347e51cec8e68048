"""keep_memory: what is freed stays with the process, for the next step to take."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt, see malloc.h
_NEVER = 2**31 - 1  # bytes
_STEP = 2**26  # bytes


def keep_memory() -> bool:
    """Has glibc keep freed memory instead of giving it back to the system; whether that could be done.

    A training step on a CPU frees and asks again for gigabytes. By default each large map comes from the
    system, which clears it page by page: a quarter of the step's time. The setting holds for the whole
    process, which then stays as large as it once was. Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    return all(mallopt(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP)))
