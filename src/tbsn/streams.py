"""Standard input and output in place of files."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tbsn.errors import InputError
from tbsn.images import SUFFIXES, open_photo
from tbsn.plan import Output

STREAM = Path("-")


@contextmanager
def files_for_streams(inputs: list[Path], output: Output) -> Iterator[tuple[list[Path], Output]]:
    """Inputs and output with files of their own in the places of ``-``; at the end of the block the result is sent out.

    Standard input goes to standard output, if no other is named, in its own format. Raises `InputError`.
    """
    reads = STREAM in inputs
    writes = output.path == STREAM or (reads and output.path is None)
    if not (reads or writes):
        yield inputs, output
        return
    if reads and len(inputs) > 1:
        raise InputError("-", "is not the only input", "name files, or give one image to standard input")
    if writes and sys.stdout.isatty():
        raise InputError("-", "standard output is a terminal", "name a file with -o, or send it into one")
    with tempfile.TemporaryDirectory(prefix="tbsn-") as folder:
        if reads:
            inputs = [Path(folder) / "standard-input"]
            with inputs[0].open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        if writes:
            suffix = output.format or open_photo(inputs[0]).suffix
            if suffix not in SUFFIXES:
                raise InputError(inputs[0], "its format cannot be written", "name another with --format")
            output = replace(output, path=Path(folder) / f"standard-output{suffix}", exists="replace")
        yield inputs, output
        if writes and output.path and output.path.exists():
            with output.path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
