"""Output that may end, as by `| head`, a terminal that is closed or a full disk: the work goes on without it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def output_may_close() -> Iterator[None]:
    """While it is open, what nobody reads any more is dropped, instead of ending the process."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that its encoding does not have
    sys.stdout, sys.stderr = (stream and _Patient(stream) for stream in before)  # None where there is no console
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it may fail
        sys.stdout, sys.stderr = before


class _Patient:
    """A text stream that turns to nowhere when it takes nothing any more."""

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
            os.dup2(nowhere, self._stream.fileno())  # for what is still buffered, and other writers, too
            os.close(nowhere)
