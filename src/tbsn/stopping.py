"""When a run ends before its last step: a signal, or its time is up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tbsn.errors import Stopped

HANGUP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # none on Windows
SIGNALS = (signal.SIGTERM, signal.SIGINT, *HANGUP)


@contextmanager
def remembered_signal() -> Iterator[Callable[[], int]]:
    """The first of SIGNALS in this block is remembered, and its number given back; a second one interrupts."""
    received = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt(number)
        received = number

    with _handled_by(remember):
        yield lambda: received


@contextmanager
def stopped_by_signal(run: Path) -> Iterator[None]:
    """One of SIGNALS ends this block at once, as `Stopped`."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    try:
        with _handled_by(interrupt):
            yield
    except KeyboardInterrupt as error:
        received = next((signal.Signals(one) for one in error.args if isinstance(one, int)), signal.SIGINT)
        raise Stopped(run, f"by {received.name}", "the same command goes on", received) from None


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """One of SIGNALS ends this block as `SystemExit`, so that what it holds is cleaned up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled_by(end):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Only the main thread can handle signals: nothing changes in another. What `nohup` ignores stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Of the others none: shells have what runs in the background ignore Ctrl-C, and who sends it means it.
    ignored = {number for number in HANGUP if signal.getsignal(number) == signal.SIG_IGN}
    previous = {number: signal.signal(number, handler) for number in SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def ignore_signals(worker: int) -> None:
    """For a loader's worker: a signal to the whole group stops the run, which then ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
