"""The log of a run: a line of JSON for whatever was measured at a step."""

import json
from pathlib import Path

from tbsn.files import atomic

LOG = "log.jsonl"


def append(run: Path, step: int, values: dict[str, float]) -> None:
    """Write a line. Raises `OSError`."""
    with (run / LOG).open("a") as file:
        file.write(json.dumps({"step": step} | values) + "\n")


def go_on(run: Path, step: int) -> None:
    """Leave out what was measured after this step, which comes again, and half a line of a process that was killed."""
    file = run / LOG
    if not file.exists():
        return
    lines = file.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step(line) <= step]
    if kept != lines:
        with atomic(file) as partial:
            partial.write_text("".join(kept))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except ValueError:
        return float("inf")
