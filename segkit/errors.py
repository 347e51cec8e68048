"""Errors that the user can act on; every other exception, except Interrupted, is a bug.

The command line prints the message of a `SegkitError` as one sentence and exits with its `exit_code`. Any other
exception keeps its traceback.

A message about an argument names it in backticks, such as `batch_size` or `on_bad="skip"`. The command line
shows such a name as its flag: --batch-size, --on-bad skip.
"""

import errno
import signal
import sys
from pathlib import Path
from typing import Any


class SegkitError(ValueError):
    """Base of all errors that are not bugs: settings, files or data that cannot be used, a machine that is too small.

    Attributes:
        exit_code: The exit code of a command that ends with this error.
        is_reported: Whether another process of the same run reports this error, so that this one stays silent.
    """

    exit_code = 2
    is_reported = False


class UsageError(SegkitError):
    """An argument or a setting has a value that cannot be used. Exit code 2."""


class MissingFileError(UsageError, FileNotFoundError):
    """A file or folder that an argument names does not exist. Exit code 2."""


class MissingPackageError(UsageError, ImportError):
    """An optional package is not installed; the message has the command that installs it. Exit code 2."""


class OfflineError(UsageError, ConnectionError):
    """Something must be downloaded, and the server does not answer. Exit code 2."""


class DataError(SegkitError):
    """An image, a mask or an annotation file cannot be used. Exit code 3."""

    exit_code = 3


class DataWarning(UserWarning):
    """The data can be used, but something about it may be a mistake."""


class NotFiniteError(SegkitError, FloatingPointError):
    """The loss, the gradient, the weights or a prediction is NaN or infinite. Exit code 4."""

    exit_code = 4


class AccuracyError(SegkitError):
    """A file would be less accurate than was asked for, and is not written. Exit code 6."""

    exit_code = 6


class MachineError(SegkitError):
    """The machine cannot finish the work: memory or disk is full, or a process died. Exit code 1."""

    exit_code = 1


class UnreadableFileError(MachineError):
    """The disk or the network share cannot read a file (EIO), which says nothing about other files. Exit code 1."""


class CheckpointError(MachineError, OSError):
    """The last state of a run could not be saved. Exit code 1."""


class RanksError(MachineError, OSError):
    """The processes of a distributed run cannot reach each other, or another one failed. Exit code 1."""


class Interrupted(Exception):
    """The process was asked to stop by a signal, and has reached a point at which everything can be saved.

    Attributes:
        number: The number of the signal.
        error: The error if saving failed, else None.
        run: The run folder that can be resumed; None if it is not known.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.error: OSError | None = None
        self.run: Path | None = None


# Codes of an OSError that the machine, the disk or the network share causes, and not the file that it names.
_MACHINE_CODES = {
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
}
_NO_MEMORY = ("can't allocate memory", "Insufficient memory", "Storage size calculation overflowed")
# A limit of the machine in errors without a code, because a worker or a library has put them into a text.
_LIMITS = {
    "Too many open files": "too many files are open; allow more of them (ulimit -n), or try fewer `workers`",
    "can't start new thread": "this user may not start more threads; allow more (ulimit -u), or try fewer `workers`",
    "Resource temporarily unavailable": "this user may not start more processes; allow more (ulimit -u), or try fewer "
    "`workers`",
}


def as_segkit_error(error: BaseException) -> SegkitError | None:
    """Return `error` as a SegkitError, or None if it is a bug.

    Errors that the machine causes become a MachineError, no matter which library raised them: a full or failing disk,
    too many open files or processes, memory that ran out, and a DataLoader worker that was killed. If a file of the
    user cannot be read or written, `raise as_segkit_error(error) or DataError(...)` does not blame the file for these.
    """
    if isinstance(error, SegkitError):
        return error
    if isinstance(error, OSError) and error.errno in _MACHINE_CODES:
        return (UnreadableFileError if error.errno == errno.EIO else MachineError)(_of_machine(error))
    if is_out_of_memory(error):
        return MachineError(f"memory ran out ({sentence(error).splitlines()[0]})" if str(error) else "memory ran out")
    if isinstance(error, OSError | RuntimeError):
        found = next((text for words, text in _LIMITS.items() if words in str(error)), None)
        if found is not None:
            return MachineError(found)
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        first = str(error).splitlines()[0].strip()
        return MachineError(
            f"{first} A process that loads images died, most often because memory is full, or because it may not start "
            "a thread (ulimit -u); try fewer `workers`. Everything that was saved before is kept."
        )
    return None


def _of_machine(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return os_error_text(error)
    what = f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{what}; allow more of them (ulimit -n), or try fewer `workers`"
    if error.errno == errno.EAGAIN:
        return _LIMITS["Resource temporarily unavailable"]
    return f"{what}; this is a fault of the machine or of a network share, not of the file"


def os_error_text(error: OSError) -> str:
    """Return `cannot write FILE: REASON` of an error about a file that is written, see `segkit.files.file_named`."""
    return f"cannot write {error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU or the machine ran out of memory.

    If the memory of the machine runs out, torch and OpenCV raise general errors, recognised by their text.
    """
    torch: Any = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def sentence(error: BaseException) -> str:
    """Return the message of `error` without the traceback that a DataLoader worker puts in front of it."""
    text = str(error).strip()
    if "\nOriginal Traceback" not in text:
        return text
    return text.splitlines()[-1].partition(": ")[2]
