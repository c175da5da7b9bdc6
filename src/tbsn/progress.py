"""How far a long work has come: a bar on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 30.0

Report = Callable[[float, str], None]


@contextmanager
def progress(
    unit: str, total: int, done: int = 0, visible: bool = True, seconds: float = float("inf")
) -> Iterator[Report]:
    """On standard error: gives a function of how many units are done, and a note to show beside that.

    The work ends after all units, or after so many ``seconds`` if that is sooner.
    """
    console, start = Console(stderr=True, soft_wrap=True), time.monotonic()

    def left(completed: float) -> str:
        passed = time.monotonic() - start
        by_units = passed / max(1e-9, completed - done) * (total - completed)
        minutes, rest = divmod(round(max(0, min(by_units, seconds - passed))), 60)
        return f"left {minutes}:{rest:02}"

    if visible and not console.is_terminal:
        yield _lines(console, unit, total, left)
        return
    columns = (TextColumn(f"{{task.fields[{field}]}}") for field in ("note", "left"))
    shared = sys.stdout.isatty()  # what is printed there must stand above the bar; into a file it goes as it is
    with Progress(
        *(TextColumn(unit), BarColumn(), MofNCompleteColumn(), *columns),
        console=console,
        disable=not visible,
        redirect_stdout=shared,
    ) as bar:
        task = bar.add_task(unit, total=total, completed=done, note="", left="")
        yield lambda completed, note: bar.update(task, completed=completed, note=note, left=left(completed))


def _lines(console: Console, unit: str, total: int, left: Callable[[float], str]) -> Report:
    shown, lines = time.monotonic(), 0

    def report(completed: float, note: str) -> None:
        nonlocal shown, lines
        # The last is always shown, but for work that is over before the first is due.
        if time.monotonic() - shown < SECONDS_BETWEEN_LINES and (completed < total or not lines):
            return
        shown, lines = time.monotonic(), lines + 1
        line = "  ".join(filter(None, [f"{unit} {completed}/{total}", note, left(completed)]))
        console.print(line, highlight=False, soft_wrap=True)

    return report
