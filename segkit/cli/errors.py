"""What the user did wrong ends in one sentence and an exit code, not in a traceback."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from segkit.cli.output import output_may_close

FAILED, USAGE, DATA, NOT_FINITE, INTERRUPTED = 1, 2, 3, 4, 130
REPORTED = (ValueError, OSError, ImportError, FloatingPointError)
_PACKAGE = str(Path(__file__).parents[1])


@contextmanager
def reported_errors(command: str) -> Iterator[None]:
    """Reports the errors that segkit itself raises about its input; anything else is a bug and keeps its traceback.

    Exit codes: 1 for a machine that lets the run down (memory or disk full, a worker that died), 2 for settings,
    3 for data, 4 for a loss that is no longer finite, 130 for Ctrl-C, 143 for SIGTERM. Of several processes that
    fail for the same reason, one reports it.
    """
    try:
        with output_may_close(), _orderly_end(), _reported_once():
            yield
    except KeyboardInterrupt:
        print(f"\nsegkit {command}: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (RuntimeError, MemoryError) as error:
        sentence = _machine_sentence(error, command)
        if sentence is None:
            raise
        print(f"segkit {command}: error: {sentence}", file=sys.stderr)
        sys.exit(FAILED)
    except REPORTED as error:
        if not (_is_full_disk(error) or _raised_by_segkit(error)):
            raise
        print(f"segkit {command}: error: {_sentence(error)}", file=sys.stderr)
        sys.exit(_exit_code(error))


@contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that what is half-written is removed.

    Not one of several processes: those that wait for each other in torch would not see it.
    """
    is_unset = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    is_alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if not (is_unset and is_alone and threading.current_thread() is threading.main_thread()):
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def _reported_once() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _told_elsewhere(error):
            raise
        sys.exit(_exit_code(error) if isinstance(error, REPORTED) else FAILED)


def _told_elsewhere(error: Exception) -> bool:
    """Whether another process reports it: where the loss is not finite, or the end not saved, it is so for all."""
    is_alike = isinstance(error, FloatingPointError) or type(error).__name__ == "CheckpointError"
    return getattr(error, "told_elsewhere", False) or (is_alike and int(os.environ.get("RANK", 0)) > 0)


def _raised_by_segkit(error: BaseException) -> bool:
    """Whether the innermost Python frame is ours, apart from those of pathlib where a file cannot be used."""
    if _of_worker(error):
        frames = [line.strip() for line in str(error).splitlines() if line.startswith('  File "')]
        return frames[-1].startswith(f'File "{_PACKAGE}')
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, OSError) and error.filename is not None:
        frames = [name for name in frames if "pathlib" not in Path(name).parts[-2:] and Path(name).stem != "pathlib"]
    return frames[-1].startswith(_PACKAGE)


def _of_worker(error: BaseException) -> bool:
    """Whether it comes from a loader's worker, which sends its traceback as text."""
    return "\nOriginal Traceback" in str(error)


def _is_full_disk(error: BaseException) -> bool:
    """Whether the machine has no room, which no code is to blame for, whoever was writing."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    if _is_full_disk(error) and error.filename:
        return f"cannot write {error.filename}: {error.strerror}"
    if _of_worker(error):
        return text.splitlines()[-1].split(": ", 1)[1]
    return text


def _exit_code(error: BaseException) -> int:
    if isinstance(error, FloatingPointError):
        return NOT_FINITE
    if _is_full_disk(error):
        return FAILED
    # By name, so that --help and a misspelt flag need not import torch.
    return {"DataError": DATA, "CheckpointError": FAILED, "RanksError": FAILED}.get(type(error).__name__, USAGE)


def _machine_sentence(error: RuntimeError | MemoryError, command: str) -> str | None:
    """What to do when memory ran out or a worker died; None if it is something else."""
    lines = str(error).strip().splitlines() or [""]
    first = lines[-1 if _of_worker(error) else 0].strip()
    if first.startswith("DataLoader worker (pid"):
        return (
            f"{first} A process that loads images has died, most often because memory or /dev/shm ran out; try fewer "
            "--workers. What was saved before is kept."
        )
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not is_memory and "can't allocate memory" not in first:
        return None
    if command == "train":
        remedy = "half the --batch-size with twice the --accumulate, a smaller --crop or backbone, or --amp bf16"
    else:
        remedy = "--window 512, or fewer views"
    return f"memory ran out; try {remedy}." + (f" ({first})" if first else "")
