"""Images at URLs (s3://, gs://, whatever fsspec knows): which goes where, and each of them as a file for a while."""

import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from tbsn.errors import InputError
from tbsn.files import PARTIAL
from tbsn.images import RAW_SUFFIXES, SUFFIXES
from tbsn.plan import Job, Output, decide

CHECK = "check the URL and its permissions, and that what fsspec needs for it is installed"

Place = Path | str


def plan_urls(
    inputs: list[str], folder: str | None, output: Output, recursive: bool = True, share: tuple[int, int] = (1, 1)
) -> list[Job]:
    """`tbsn.plan.plan` for URLs among the inputs, or as the ``folder`` of results: each is listed once.

    Raises `InputError` if there is no such folder, no input, or what cannot be listed.
    """
    if folder is None or output.is_file:
        raise InputError(folder or inputs[0], "URLs need a folder for results", "name one with -o")
    files, results, names = _listed(folder)
    there = {_place(files, folder, name) for name in names}
    pairs = []
    for entry in inputs:
        sources, root, names = _listed(entry, recursive)
        for name in names:
            inside = posixpath.relpath(name, root if name != root else posixpath.dirname(root))
            earlier = sources is files and results.startswith(f"{root}/") and name.startswith(f"{results}/")
            if name == root or (_is_image(inside) and not earlier):
                target = posixpath.join(results, _renamed(inside, output))
                pairs.append((_place(sources, entry, name), _place(files, folder, target)))
    if not pairs:
        raise InputError(inputs[0], "no images there", f"name files or folders with {' '.join(SUFFIXES)}")
    return decide(pairs, output, there.__contains__, {source for source, _ in pairs}.__contains__, share)


def exists(place: Place) -> bool:
    """Whether something is there. Raises `InputError` if that cannot be found out."""
    if isinstance(place, Path):
        return place.exists()
    with _named(place, "cannot be reached"):
        files, name = url_to_fs(place)
        return files.exists(name)


@contextmanager
def as_files(job: Job) -> Iterator[Job]:
    """The same job with files in a temporary folder in place of URLs; its result, if there is one, is sent to its URL.

    Raises `InputError` if the source cannot be got, or the result not be put.
    """
    with tempfile.TemporaryDirectory(prefix="tbsn-") as folder:
        source, target = (
            Path(folder, kind, PurePosixPath(place).name) if isinstance(place, str) else place
            for kind, place in (("source", job.source), ("target", job.target))
        )
        if isinstance(job.source, str):
            source.parent.mkdir()
            with _named(job.source, "cannot be read"):
                files, name = url_to_fs(job.source)
                files.get_file(name, str(source))
        yield replace(job, source=source, target=target)
        if isinstance(job.target, str) and target.exists():
            with _named(job.target, "cannot be written"):
                _put(target, job.target)


def _put(file: Path, url: str) -> None:
    """Under another name first: not every file system keeps a half-written file from being seen."""
    files, name = url_to_fs(url)
    folder = posixpath.dirname(name)
    partial = posixpath.join(folder, f"{PARTIAL}{uuid4().hex}{file.suffix}")
    files.makedirs(folder, exist_ok=True)
    files.put_file(str(file), partial)
    files.mv(partial, name)


def _listed(entry: str, recursive: bool = True) -> tuple[AbstractFileSystem, str, list[str]]:
    with _named(entry, "cannot be listed"):
        files, root = url_to_fs(entry)
        root = root.rstrip("/")
        return files, root, sorted(files.find(root, maxdepth=None if recursive else 1))


def _place(files: AbstractFileSystem, entry: str, name: str) -> Place:
    return files.unstrip_protocol(name) if "://" in entry else Path(name)


def _is_image(inside: str) -> bool:
    path = PurePosixPath(inside)
    return path.suffix.lower() in SUFFIXES + RAW_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _renamed(inside: str, output: Output) -> str:
    path = PurePosixPath(inside)
    raw = ".tif" if path.suffix.lower() in RAW_SUFFIXES else path.suffix
    return str(path.with_suffix(output.format or raw))


@contextmanager
def _named(url: str, reason: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # those of the file systems share no base
        raise InputError(url, f"{reason} ({type(error).__name__}: {error})", CHECK) from error
