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
        handle, name = tempfile.mkstemp(prefix=f"{_partial(path.name)}-", suffix=path.suffix, dir=path.parent)
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


def _partial(name: str) -> str:
    """How the temporary names of a file of this name begin: of no other, but by rare chance."""
    return f"{PARTIAL}{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def make_folder(folder: Path) -> None:
    """Make it, unless it is there. Raises `InputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, CHOOSE) from error


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder."""
    for path in folder.glob(f"{PARTIAL}{'[0-9a-f]' * 8}-*"):
        path.unlink(missing_ok=True)


def remove_partial_of(targets: Iterable[Path]) -> None:
    """Remove what processes that were killed while writing ``targets`` have left beside them."""
    theirs = {path.with_name(_partial(path.name)) for path in targets}
    for folder in {path.parent for path in theirs}:
        for path in folder.glob(f"{PARTIAL}*-*"):
            if path.with_name("-".join(path.name.split("-")[:2])) in theirs:
                path.unlink(missing_ok=True)
