"""When a run ends before its last step: a signal, or its time is up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def remembered_signal() -> Iterator[Callable[[], int]]:
    """The first SIGTERM or Ctrl-C in this block is remembered, and its number given back; a second one interrupts."""
    received = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    previous = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For a loader's worker: a signal to the whole group stops the run, which then ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
