"""A run folder is written to by one training at a time."""

import errno
import os
from pathlib import Path

_handles: set[int] = set()


def _let_go() -> None:
    for handle in _handles:
        os.close(handle)
    _handles.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # or a loader's worker would hold the folder when its parent is killed


class RunLock:
    """While it is open, folders that it has taken are this process's; they are free when the process ends, however.

    Where the system or the file system knows no such locks, it does nothing.
    """

    def __init__(self) -> None:
        self._own: list[int] = []

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._own:
            os.close(handle)
            _handles.discard(handle)
        self._own.clear()

    def take(self, folder: Path) -> None:
        """Raises ValueError if another process has taken it; a folder that does not exist cannot be."""
        try:
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
        except (ImportError, FileNotFoundError):  # ImportError: Windows
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"another training writes to {folder} already; wait for its end, or choose another --out"
                ) from error
            return  # a file system without locks
        self._own.append(handle)
        _handles.add(handle)
