"""How the C library treats memory in training on the CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed_memory() -> None:
    """Have the process keep the memory it frees, for the next step of training (glibc; does nothing elsewhere).

    Left to itself glibc gives every large tensor back to the system, and the next step waits while its pages are
    cleared anew.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
