"""Which file goes where, decided before any work begins."""

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tbsn.errors import InputError, unwritable
from tbsn.images import RAW_SUFFIXES, SUFFIXES, find


@dataclass(frozen=True)
class Output:
    """Where results go: into the file or folder ``path``; without one beside the inputs, ``suffix`` after their names.

    ``format`` is the suffix of all results, by default that of the inputs (of RAW files ``.tif``). ``exists`` says what
    to do with results that are there already.
    """

    path: Path | None = None
    suffix: str = "_denoised"
    format: str | None = None
    exists: Literal["refuse", "replace", "skip"] = "refuse"

    @property
    def is_file(self) -> bool:
        """Whether ``path`` names the one result, rather than a folder."""
        return self.path is not None and self.path.suffix.lower() in SUFFIXES and not os.path.isdir(self.path)


@dataclass(frozen=True)
class Job:
    """One input and its result, or why there will be none: it is ``refused``, or there already.

    Source and target are paths, or URLs as text. ``replaces`` says that another result is there, which is to go.
    """

    source: Path | str
    target: Path | str
    refused: InputError | None = None
    skipped: bool = False
    replaces: bool = False


def plan(inputs: list[Path], output: Output, recursive: bool = True, share: tuple[int, int] = (1, 1)) -> list[Job]:
    """The jobs of all inputs: folders are searched, and mirrored in an output folder; or of one share (k, n) of them.

    Raises `InputError` if there is no input, or several for one output file.
    """
    sources, failures = list[tuple[Path, Path]](), list[InputError]()
    for given in inputs:
        root, before = given if os.path.isdir(given) else given.parent, len(failures)
        found = [(path, root) for path in find([given], recursive, failures.append)]
        sources += (kept := [source for source in found if not _is_result(*source, inputs, output)])
        if not kept and len(failures) == before and given != output.path:
            failures.append(_no_images(given))
    if not sources:
        raise failures[0] if failures else _no_images(inputs[0])
    if output.is_file and len(sources) > 1:
        raise InputError(output.path, f"is one file for {len(sources)} inputs", "name a folder with -o")
    pairs = [(path, _target(path, root, output)) for path, root in sources]
    jobs = decide(pairs, output, os.path.lexists, _same, share)
    return [*(Job(place := error.args[0], place, error) for error in failures[share[0] - 1 :: share[1]]), *jobs]


def decide(
    pairs: Iterable[tuple[Any, Any]],
    output: Output,
    exists: Callable[[Any], bool],
    same: Callable[[Any, Any], bool],
    share: tuple[int, int],
) -> list[Job]:
    """The jobs of one share (k, n) of the ``pairs`` of source and target; ``output`` says what if a target exists."""
    jobs, taken = [], {}
    for source, target in pairs:
        jobs.append(_job(source, target, output, taken.get(target), exists(target), same(source, target)))
        taken.setdefault(target, source)
    part, parts = share
    return jobs[part - 1 :: parts]


def check_writable(output: Output) -> None:
    """Raises `InputError` if nothing can be written where the results go; makes that folder."""
    if output.path is None:
        return
    folder = output.path.parent if output.is_file else output.path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error, "choose a writable folder with -o") from error


def _no_images(folder: Path) -> InputError:
    return InputError(folder, "no images in this folder", f"name files or folders with {' '.join(SUFFIXES)}")


def _is_result(path: Path, root: Path, inputs: list[Path], output: Output) -> bool:
    """Whether a file that was found in a folder is a result of an earlier time."""
    if path in inputs:
        return False
    if output.path is None:
        return path.stem.endswith(output.suffix)
    return not output.is_file and output.path != root and output.path in path.parents


def _target(path: Path, root: Path, output: Output) -> Path:
    suffix = output.format or (".tif" if path.suffix.lower() in RAW_SUFFIXES else path.suffix)
    if output.path is None:
        return path.with_name(f"{path.stem}{output.suffix}{suffix}")
    return output.path if output.is_file else (output.path / path.relative_to(root)).with_suffix(suffix)


def _same(source: Path, target: Path) -> bool:
    return os.path.exists(target) and os.path.exists(source) and target.samefile(source)


def _job(source: Path | str, target: Path | str, output: Output, other: object, exists: bool, same: bool) -> Job:
    refused = None
    if other is not None:
        reason = f"would be written to {target}, as {other} is"
        refused = InputError(source, reason, "denoise them into different folders")
    elif same:
        refused = InputError(source, "output and input are the same file", "choose another output with -o")
    elif exists and output.exists == "skip":
        return Job(source, target, skipped=True)
    elif exists and output.exists == "refuse":
        refused = InputError(target, "exists already", "add --overwrite or --skip-existing, or choose another -o")
    return Job(source, target, refused, replaces=exists)
