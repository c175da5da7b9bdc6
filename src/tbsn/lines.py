"""Lines for the user."""

import os
import sys
from typing import TextIO


def say(line: object) -> None:
    """Print a line on standard output at once; where nobody can read it, the work goes on."""
    _print(line, sys.stdout)


def warn(line: object) -> None:
    """The same on standard error."""
    _print(line, sys.stderr)


def mute(stream: TextIO) -> None:
    """Let all that a stream still holds, and all that follows, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print(line: object, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except OSError:
        mute(stream)
