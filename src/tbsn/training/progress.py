"""How far a long work has come: a bar on a terminal, a line now and then in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0

Report = Callable[[int, str], None]


@contextmanager
def progress(unit: str, total: int, done: int = 0, visible: bool = True) -> Iterator[Report]:
    """On standard error: gives a function of how many units are done, and a note to show beside that."""
    console = Console(stderr=True)
    if visible and not console.is_terminal:
        yield _lines(console, unit, total, done)
        return
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not visible) as bar:
        task = bar.add_task(unit, total=total, completed=done, note="")
        yield lambda completed, note: bar.update(task, completed=completed, note=note)


def _lines(console: Console, unit: str, total: int, done: int) -> Report:
    start = shown = time.monotonic()

    def report(completed: int, note: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < SECONDS_BETWEEN_LINES and completed < total:
            return
        shown = now
        left = (now - start) / max(1, completed - done) * (total - completed)
        minutes, seconds = divmod(round(left), 60)
        line = "  ".join(filter(None, [f"{unit} {completed}/{total}", note, f"left {minutes}:{seconds:02}"]))
        console.print(line, highlight=False, soft_wrap=True)

    return report
