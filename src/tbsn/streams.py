"""Standard input and output in place of files."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tbsn.batch import Result
from tbsn.errors import InputError, unwritable
from tbsn.images import SUFFIXES, open_photo
from tbsn.lines import mute
from tbsn.plan import Output
from tbsn.stopping import ended_by_signal

STREAM = Path("-")


@contextmanager
def files_for_streams(
    inputs: list[Path], output: Output
) -> Iterator[tuple[list[Path], Output, Callable[[Result], Result]]]:
    """Inputs and output with files of their own in the places of ``-``; at the end of the block the result is sent out.

    Standard input goes to standard output, if no other is named, in its own format. The function that is given calls
    these files in results what they are. Raises `InputError`.
    """
    reads = STREAM in inputs
    writes = output.path == STREAM or (reads and output.path is None)
    if not (reads or writes):
        yield inputs, output, lambda result: result
        return
    if reads and len(inputs) > 1:
        raise InputError("-", "is not the only input", "name files, or give one image to standard input")
    if writes and sys.stdout.isatty():
        raise InputError("-", "standard output is a terminal", "name a file with -o, or send it into one")
    with ended_by_signal(), tempfile.TemporaryDirectory(prefix="tbsn-") as folder, _called(names := {}):
        if reads:
            inputs = [Path(folder) / "standard-input"]
            names[inputs[0]] = "standard input"
            try:
                with inputs[0].open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
            except OSError as error:
                raise unwritable(inputs[0], error, "name another folder in TMPDIR", "cannot be kept") from error
        if writes:
            if inputs[0].is_dir():
                raise InputError(inputs[0], "is a folder, and standard output one image", "name a folder with -o")
            suffix = output.format or open_photo(inputs[0]).suffix
            if suffix not in SUFFIXES:
                raise InputError(inputs[0], "its format cannot be written", "name another with --format")
            path = Path(folder) / f"standard-output{suffix}"
            names[path] = "standard output"
            output = replace(output, path=path, exists="replace")
        yield inputs, output, lambda result: result.called(names)
        if writes and output.path and output.path.exists():
            try:
                with output.path.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.flush()
            except OSError as error:
                mute(sys.stdout)
                raise unwritable(output.path, error, "name a file with -o", "cannot be written") from error


@contextmanager
def _called(names: dict[Path, Path | str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        error.called(names)
        raise
