"""What a command does as a process: exit codes, errors as sentences, signals, and output that nobody reads any more."""

import dataclasses
import logging
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TextIO

from segkit.config import Setting
from segkit.console import printable
from segkit.errors import (
    CheckpointError,
    DataWarning,
    MissingFileError,
    NotFiniteError,
    as_segkit_error,
    is_out_of_memory,
    sentence,
)

SOME_FAILED = 5  # exit code of a command that finished, but had to skip images
INTERRUPTED = 130  # by Ctrl-C
BUG = "This is a bug in segkit, not a mistake of yours. Please report it with the lines above."
# Advice for when memory runs out, by the setting that a command must have for it; without one there is no advice.
SMALLER = {
    "accumulate": "half the `batch_size` with twice the `accumulate`, a smaller `crop` or backbone, or `amp=bf16`",
    "window": "`window=512`, or fewer views",
    "max_pixels": "a lower `max_pixels`, above which images are not decoded",
}
SPINS = "10000"  # A fraction of a millisecond: on an idle machine as fast as libgomp's default of 300 000.
_ARGUMENT = re.compile(r"`([a-z_][a-z_0-9]*)(?:=\"?([^`\"]*)\"?)?`")


def wait_briefly() -> None:
    """Let threads of torch that wait for each other fall asleep soon; the command's first step, before torch is loaded.

    On Linux torch's OpenMP, libgomp, by default spins for milliseconds at the end of each operation. If two programs
    that use all cores run at once, their threads spin while the threads that they wait for cannot run: two trainings on
    two cores took nine times as long as one after the other. OMP_WAIT_POLICY or GOMP_SPINCOUNT of the user is kept.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS


def program(command: str) -> str:
    """Return the name under which a command was started: its script in a checkout, or `segkit COMMAND`."""
    script = f"{command}.py"
    return script if os.path.basename(sys.argv[0]) == script else f"segkit {command}"


@contextmanager
def errors_as_sentences(command: str, settings: type | None = None) -> Iterator[None]:
    """Print a SegkitError as one sentence and exit with its code; any other exception keeps its traceback.

    Exit codes: 1 if the machine fails (memory or disk is full, a worker died), 2 for settings, 3 for data, 4 for a loss
    that is not finite, 6 for a file that would be less accurate than asked for, 130 for Ctrl-C, 143 for SIGTERM. If
    several processes fail for the same reason, one reports it.

    Args:
        command: The name of the command, such as "train".
        settings: The dataclass of its settings. Arguments that messages name in backticks are shown as flags.
    """
    flags = [field.name for field in dataclasses.fields(settings)] if settings else []
    try:
        with ExitStack() as stack:
            stack.enter_context(output_may_close())
            stack.enter_context(_terminal_may_close())
            stack.enter_context(_sigterm_exits())
            stack.enter_context(_warnings_as_sentences(flags))
            yield
    except KeyboardInterrupt:
        print(f"\nsegkit {command}: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        reported = as_segkit_error(error)
        if reported is None:
            if hasattr(error, "add_note"):
                error.add_note(BUG)
            else:  # Python 3.10
                print(BUG, file=sys.stderr)
            raise
        # If the loss is not finite, or the end of a run cannot be saved, all processes fail; the first one reports it.
        is_shared = isinstance(reported, NotFiniteError | CheckpointError)
        if not (reported.is_reported or (is_shared and not is_first_process())):
            text = sentence(reported)
            advice = next((SMALLER[name] for name in SMALLER if name in flags), None)
            if is_out_of_memory(error) and advice is not None:
                text += f"; try {advice}"
            print(printable(f"segkit {command}: error: {with_flags(text, flags)}"), file=sys.stderr)
        sys.exit(reported.exit_code)


def with_flags(text: str, names: Collection[str]) -> str:
    """Replace arguments in backticks by the flags of a command.

    Args:
        text: A message such as "give `val` or `on_bad="skip"`".
        names: The settings of the command; other words in backticks stay as they are.
    """

    def flag(found: re.Match) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        return f"--{name.replace('_', '-')}" + (f" {shlex.quote(value)}" if value else "")

    return _ARGUMENT.sub(flag, text)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that half-written files are removed.

    Not in one of several processes: while they wait for each other in torch, Python handles no signal.
    """
    is_unset = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    is_alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if not (is_unset and is_alone and threading.current_thread() is threading.main_thread()):
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _terminal_may_close() -> Iterator[None]:
    """Ignore SIGHUP, which ends processes when their terminal is closed; processes that are started here ignore it too.

    Under `nohup` it is ignored already.
    """
    number = getattr(signal, "SIGHUP", None)  # Windows has no SIGHUP
    is_main = threading.current_thread() is threading.main_thread()
    if number is None or signal.getsignal(number) is not signal.SIG_DFL or not is_main:
        yield
        return
    signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def _warnings_as_sentences(names: Collection[str]) -> Iterator[None]:
    """Show the library's warnings, of both kinds, as `warning: ...` without file and line, with the command's flags."""
    before = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], *where: Any) -> str:
        if issubclass(category, DataWarning):
            return printable(f"warning: {with_flags(str(message), names)}\n")
        return printable(before(message, category, *where))  # matplotlib's show characters that it cannot draw

    handler = _Sentences(names)
    log = logging.getLogger("segkit")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before
        log.setLevel(level)
        log.removeHandler(handler)


class _Sentences(logging.Handler):
    """Print log records of the library on the current standard error."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(logging.INFO)
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        print(printable(prefix + with_flags(record.getMessage(), self._names)), file=sys.stderr)


@contextmanager
def output_may_close() -> Iterator[None]:
    """Drop output that nobody reads any more (`| head`, closed terminal, full disk) instead of stopping the command."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for characters that its encoding lacks
    sys.stdout, sys.stderr = (stream and _Patient(stream) for stream in before)  # None without a console
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # while a failure is still harmless
        sys.stdout, sys.stderr = before


class _Patient:
    """A text stream that drops its output as soon as its file cannot be written to any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for buffered output and other writers
            os.close(nowhere)


def rules_of_models(config: Any) -> Mapping[str, Setting]:
    """Return the settings that say how images and labels are read, as the models of a command were trained.

    Args:
        config: The settings of the command, with `weights`.
    """
    from segkit.workflows.predictors import rules_of_models  # loads torch, which --help does without

    try:
        return rules_of_models(type(config), config.weights)
    except MissingFileError:  # reported later, after mistakes in the settings
        return {}


def is_first_process() -> bool:
    """Return whether this process is the first one that torchrun starts, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def first_process_prints() -> Iterator[None]:
    """Under torchrun, drop the output and the data warnings of all processes but the first, which has the same."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


@contextmanager
def crashes_reported_to_torchrun() -> Iterator[None]:
    """Let torchrun show the traceback of the first process that crashed, as torch's decorator `record` does.

    A SegkitError is not a crash: its sentence is on the standard error.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()
    handler.initialize()
    try:
        yield
    except Exception as error:
        handler.record_exception(error)
        raise
