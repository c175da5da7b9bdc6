"""What the user can mend: a bad file, model, folder or setting."""

import errno
from collections.abc import Mapping
from typing import Any

SOME_FAILED = 3  # exit code: of several inputs, some could not be used
NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "can't allocate memory")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """One line that says what is wrong where, and what to do: ``name: reason; remedy``."""

    label, code = "error", 2

    def __init__(self, name: object, reason: str, remedy: str) -> None:
        # Three arguments, so that it can be pickled: it may come from another machine.
        super().__init__(str(name).replace("\n", "\\n"), " ".join(reason.split()), remedy)

    def __str__(self) -> str:
        name, reason, remedy = self.args
        return f"{name}: {reason}; {remedy}"

    def called(self, names: Mapping[Any, object]) -> None:
        """Name files by what they stand in for."""
        for name, known in names.items():
            self.args = tuple(text.replace(str(name), str(known)) for text in self.args)


class UnexpectedError(InputError):
    """What should not have happened: a fault of ours or of a library."""

    code = 1


class NoRoomError(InputError):
    """Memory is full, or the disk."""

    code = 5

    def __init__(self, name: object, reason: str, remedy: str, disk: bool = True) -> None:
        super().__init__(name, reason, remedy)
        self.disk = disk


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is what numpy, ONNX Runtime, libvips or torch raise then: some of them have no type for it."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)


def unreadable(name: object, error: OSError) -> InputError:
    """What is to be raised if a file or folder cannot be read."""
    return InputError(name, f"cannot be read ({error.strerror or error})", "check its permissions")


def unwritable(name: object, error: OSError, remedy: str, reason: str = "cannot write here") -> InputError:
    """What is to be raised if a file or folder cannot be written: `NoRoomError` if there is no room for it."""
    kind = NoRoomError if error.errno in FULL else InputError
    room = "" if "make room" in remedy or kind is InputError else "make room, or "
    return kind(name, f"{reason} ({error.strerror or error})", room + remedy)


class DivergedError(InputError):
    """Training ran into a loss or weights that are not finite; the last checkpoint stays."""

    code = 4


class Stopped(InputError):  # noqa: N818 (not an error)
    """Training was asked to stop by a signal, and has written a checkpoint."""

    label = "stopped"

    def __init__(self, name: object, reason: str, remedy: str, signal: int) -> None:
        super().__init__(name, reason, remedy)
        self.code = 128 + signal
