"""Which file goes where, decided before any work begins."""

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tbsn import formats
from tbsn.errors import InputError, unwritable
from tbsn.files import CHOOSE, make_folder
from tbsn.images import RAW_SUFFIXES, SUFFIXES, find


@dataclass(frozen=True)
class Output:
    """Where results go: into the file or folder ``path``; without one beside the inputs, ``suffix`` after their names.

    ``format`` is the suffix of all results, by default that of the inputs, by their content (of RAW files ``.tif``).
    ``exists`` says what to do with results that are there already. Raises `InputError` for a suffix that is no part of
    a name, and a path that is a file of another format, or of one that cannot be written.
    """

    path: Path | None = None
    suffix: str = "_denoised"
    format: str | None = None
    exists: Literal["refuse", "replace", "skip"] = "refuse"

    def __post_init__(self) -> None:
        if Path(f"name{self.suffix}").name != f"name{self.suffix}":
            raise InputError(f"--suffix {self.suffix}", "is no part of a name", "name a folder with -o")
        own = self.path.suffix.lower() if self.path and not os.path.isdir(self.path) else ""
        if own in formats.FOREIGN + RAW_SUFFIXES:
            raise InputError(self.path, f"{own} cannot be written", f"use one of {' '.join(SUFFIXES)}")
        alike = next((known for known in formats.SUFFIXES.values() if own in known), ())
        if self.format and self.is_file and self.format not in alike:
            raise InputError(self.path, f"is not {self.format}, as --format says", "leave out one of them")

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

    An input that is named twice is one. What is a result of an earlier time is none, if it was found in a folder, or is
    that of another input and such are skipped. Raises `InputError` if there is no input, or several for one output
    file.
    """
    failures: list[InputError] = []
    sources = _sources(inputs, output, recursive, failures)
    if not sources:
        raise failures[0] if failures else _no_images(inputs[0])
    if output.is_file and len(sources) > 1:
        raise InputError(output.path, f"is one file for {len(sources)} inputs", "name a folder with -o")
    pairs = [(path, target_of(path, root, output)) for path, root in sources]
    if output.exists == "skip":
        results = {_file(target) for path, target in pairs if _file(target) != _file(path)} - {None}
        pairs = [(path, target) for path, target in pairs if _file(path) not in results]
    inside = {_file(path) for path, _ in pairs} - {None}
    jobs = decide(pairs, output, os.path.lexists, lambda target: _file(target) in inside, share)
    failed = [Job(place := error.args[0], place, error) for error in failures[share[0] - 1 :: share[1]]]
    return failed + sorted(jobs, key=lambda job: not job.refused)  # what cannot be done is told before work begins


def decide(
    pairs: Iterable[tuple[Any, Any]],
    output: Output,
    exists: Callable[[Any], bool],
    is_input: Callable[[Any], bool],
    share: tuple[int, int],
) -> list[Job]:
    """The jobs of one share (k, n) of the ``pairs`` of source and target; ``output`` says what if a target exists."""
    jobs, taken = [], {}
    for source, target in pairs:
        jobs.append(_job(source, target, output, taken.get(target), exists(target), is_input(target)))
        taken.setdefault(target, source)
    part, parts = share
    return jobs[part - 1 :: parts]


def check_writable(output: Output, jobs: list[Job]) -> None:
    """Raises `InputError` if nothing can be written where any of the results go; makes the output folder."""
    if output.path is None:
        folders = {Path(job.target).parent for job in jobs if not (job.refused or job.skipped)}
    else:
        folder = output.path.parent if output.is_file else output.path
        make_folder(folder)
        folders = {folder}
    errors = [error for folder in sorted(folders) if (error := _unwritable(folder))]
    if errors and len(errors) == len(folders):
        raise errors[0]


def _unwritable(folder: Path) -> InputError | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")  # a full disk still makes empty files
    except OSError as error:
        return unwritable(folder, error, CHOOSE)
    return None


def _no_images(folder: Path) -> InputError:
    return InputError(folder, "no images in this folder", f"name files or folders with {' '.join(SUFFIXES)}")


def _only_results(folder: Path) -> InputError:
    return InputError(folder, "all images in it are named like results", "name those files, or give another --suffix")


def _sources(roots: list[Path], output: Output, recursive: bool, failures: list[InputError]) -> list[tuple[Path, Path]]:
    """All files, each once, and the folder that was named for each, or that holds it; what fails joins ``failures``."""
    sources = {}
    for root in roots:
        is_folder, before = os.path.isdir(root), len(failures)
        found = list(find([root], recursive, failures.append))
        new = [path for path in found if not (is_folder and _is_result(path, root, output))]
        for path in new:
            sources.setdefault(_place(path), (path, root if is_folder else root.parent))
        if not new and len(failures) == before and root != output.path:
            failures.append(_only_results(root) if found and output.path is None else _no_images(root))
    return list(sources.values())


def _is_result(path: Path, root: Path, output: Output) -> bool:
    """Whether a file that was found in a folder is a result of an earlier time."""
    if output.path is None:
        return bool(output.suffix) and formats.stem(path)[0].endswith(output.suffix)
    folder = Path(os.path.realpath(output.path))
    inside = Path(os.path.realpath(root)) in folder.parents
    return inside and not output.is_file and folder in _place(path).parents


def target_of(path: Path, root: Path, output: Output) -> Path:
    """Where the result of a file that was found in the folder ``root`` goes."""
    if output.path and output.is_file:
        return output.path
    own = path.suffix.lower()
    suffix = output.format or (".tif" if own in RAW_SUFFIXES else formats.suffix(path))
    stem = path.stem if own in SUFFIXES + RAW_SUFFIXES else path.name
    if output.path is None:
        stem, ome = formats.stem(Path(f"{stem}{suffix}"))
        return path.with_name(f"{stem}{output.suffix}{ome}{suffix}")
    return (output.path / path.relative_to(root)).with_name(f"{stem}{suffix}")


def _place(path: Path) -> Path:
    """Where a file is, by whatever names its folder was called; a link is where it is itself."""
    return Path(os.path.realpath(path.parent), path.name)


def _file(path: Path) -> tuple[int, int] | None:
    """What is one and the same for all names and links of a file; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _job(source: Path | str, target: Path | str, output: Output, other: object, exists: bool, is_input: bool) -> Job:
    refused = None
    if other is not None:
        reason = f"would be written to {target}, as {other} is"
        refused = InputError(source, reason, "denoise them into different folders")
    elif is_input:
        reason = f"its output {target} and an input are the same file"
        refused = InputError(source, reason, "choose another output with -o")
    elif exists and output.exists == "skip":
        return Job(source, target, skipped=True)
    elif exists and output.exists == "refuse":
        refused = InputError(target, "exists already", "add --overwrite or --skip-existing, or choose another -o")
    return Job(source, target, refused, replaces=exists)
