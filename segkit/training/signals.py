"""Ctrl-C and SIGTERM let the current step finish, so that it can be saved; SIGUSR1 has it saved, and goes on."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The process was asked to stop by the signal `number`, at a moment when all can be saved.

    Attributes:
        number: Of the signal.
        error: Why it could not be saved, if so.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.error: OSError | None = None


@contextmanager
def save_signal_ignored() -> Iterator[None]:
    """Around a whole command: SIGUSR1, which would end it, does nothing where there is nothing new to save."""
    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


class StopSignals:
    """While it is open, the first Ctrl-C or SIGTERM only makes `check` raise Interrupted; a second stops at once.

    SIGUSR1, by which schedulers such as Slurm tell that time is short, makes `save_asked` true once. Outside the
    main thread, where Python allows no handlers, it does nothing.

    Args:
        patient: A second signal is ignored. Under torchrun one request to stop comes twice, from the system and
            from torchrun itself, which kills what has not ended after half a minute.
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
            if hasattr(signal, "SIGUSR1"):  # not on Windows
                self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def save_asked(self) -> bool:
        """Whether SIGUSR1 has come since the last call."""
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
