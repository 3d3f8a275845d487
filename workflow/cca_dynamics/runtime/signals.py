"""What happens when the process is interrupted: work in progress is told to save its state first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cca_dynamics.errors import Interrupted

_WORK_IN_PROGRESS: list[Callable[[], None]] = []
"""Called when the process is interrupted; each sees to it that its work raises `Interrupted` once it has saved."""


@contextmanager
def stopping_first(stop: Callable[[], None]) -> Iterator[None]:
    """While it lasts, an interruption calls `stop` instead of raising `Interrupted` at once."""
    _WORK_IN_PROGRESS.append(stop)
    try:
        yield
    finally:
        _WORK_IN_PROGRESS.remove(stop)


@contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT raise `Interrupted`, at once or after the next step of the work in progress.

    A second signal does what it did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        restore()
        for stop in _WORK_IN_PROGRESS:
            stop()
        if not _WORK_IN_PROGRESS:
            raise Interrupted

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield
    finally:
        restore()
