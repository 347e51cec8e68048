"""Signals during a training: Ctrl-C and SIGTERM stop it after the current step, SIGUSR1 saves it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from segkit.errors import Interrupted


@contextmanager
def save_signal_ignored() -> Iterator[None]:
    """Ignore SIGUSR1, which would otherwise end the process, while a command has nothing to save yet."""
    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


class StopSignals:
    """Turn Ctrl-C and SIGTERM into a request to stop that `check` reports; a second signal stops at once.

    SIGUSR1, which schedulers such as Slurm send when the time is almost over, makes `save_asked` return True once.
    The handlers of the process are replaced only while the object is open as a context manager, and only in the main
    thread, since Python allows handlers nowhere else. An object that was not opened reports nothing.

    Args:
        patient: Ignore a second signal. Under torchrun one request to stop arrives twice, from the system and from
            torchrun itself, which kills processes that have not ended after half a minute.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.patient = patient
        self.received: int | None = None
        self._is_save_asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
            if hasattr(signal, "SIGUSR1"):  # Windows has no SIGUSR1
                self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if Ctrl-C or SIGTERM has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def save_asked(self) -> bool:
        """Return whether SIGUSR1 has come since the last call."""
        asked, self._is_save_asked = self._is_save_asked, False
        return asked

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._is_save_asked = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and not self.patient:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        self.received = number
