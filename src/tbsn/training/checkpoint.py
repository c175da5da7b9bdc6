"""Checkpoints that hold all that resuming needs; the newest and the one before are kept."""

import io
from pathlib import Path
from typing import Any

import torch

from tbsn.errors import InputError
from tbsn.files import atomic
from tbsn.lines import warn

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"


def save(run: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; at every moment the newest or the previous one is whole. Raises `OSError` if it cannot be."""
    newest = run / NEWEST
    with atomic(newest) as partial:
        buffer = io.BytesIO()  # written by torch to the file itself, a full disk would not show as OSError
        torch.save(state, buffer)
        partial.write_bytes(buffer.getbuffer())
        if newest.exists():
            newest.replace(run / PREVIOUS)


def exists(run: Path) -> bool:
    """Whether a run has a checkpoint."""
    return any((run / name).exists() for name in (NEWEST, PREVIOUS))


def load(run: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run, on the CPU; None if it has none. Nothing but tensors is unpickled."""
    problems = []
    for path in (run / NEWEST, run / PREVIOUS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except Exception as error:  # torch raises many types for a damaged file
            problems.append(InputError(path, f"cannot be read ({error})", "start a new run"))
            warn(f"warning: {path}: cannot be read, and is left out")
    if problems:
        raise problems[0]
    return None
