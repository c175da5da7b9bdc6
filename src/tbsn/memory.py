"""How the C library treats memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # mallopt(3)


def keep_freed_memory() -> None:
    """Have the process keep the memory it frees, for the next step of training (glibc; does nothing elsewhere).

    Left to itself glibc gives every large tensor back to the system, and the next step waits while its pages are
    cleared anew.
    """
    _set(M_MMAP_MAX, 0)
    _set(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Have the process give back what it frees of arrays of 32 megabytes and more (glibc; does nothing elsewhere).

    Left to itself glibc keeps more and more of it, and each of its threads its own. Tiles are smaller: to clear their
    pages anew for each of them took a tenth of all the time. glibc takes no higher threshold.
    """
    _set(M_MMAP_THRESHOLD, 32 << 20)


def _set(option: int, value: int) -> None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(option, value)
