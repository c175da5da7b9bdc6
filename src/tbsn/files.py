"""Files that are whole or not there."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tbsn.errors import unwritable

PARTIAL = ".partial-"
ONNX_FORMAT = "tbsn-onnx-1"
MODEL = "model.safetensors"
CHOOSE = "choose a writable folder with -o"


@contextmanager
def atomic(path: Path, remedy: str = CHOOSE) -> Iterator[Path]:
    """A new name beside ``path`` to write to; it takes the place of ``path`` if the block ends well.

    The temporary name keeps the suffix. Raises `InputError`, with ``remedy``, if ``path`` cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=_partial_prefix(path), suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise unwritable(path, error, remedy) from error
    partial = Path(name)
    try:
        os.close(handle)
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        try:
            partial.replace(path)
        except OSError as error:
            raise unwritable(path, error, remedy) from error
    finally:
        partial.unlink(missing_ok=True)


def _partial_prefix(path: Path) -> str:
    return f"{PARTIAL}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


def make_folder(folder: Path) -> None:
    """Make it, unless it is there. Raises `InputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, CHOOSE) from error


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder, and below it."""
    for path in folder.rglob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


def remove_partial_of(targets: Iterable[Path]) -> None:
    """Remove what processes that were killed while writing ``targets`` have left beside them."""
    prefixes = {(path.parent, _partial_prefix(path)) for path in targets}
    for folder in {folder for folder, _ in prefixes}:
        for path in folder.glob(f"{PARTIAL}*"):
            if (folder, path.name[: len(_partial_prefix(path))]) in prefixes:
                path.unlink(missing_ok=True)
