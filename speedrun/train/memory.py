"""What the C library does with freed memory, and should not do while training."""

import ctypes
import sys

# Names of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BYTES = 2**25
"""The most that M_MMAP_THRESHOLD may be."""


def keep_freed_memory() -> bool:
    """Have glibc keep what tensors leave behind; returns whether it does.

    By default it hands large pieces back to the system and asks for them again a moment later: on
    two cores the page faults of a step of 4,096 tokens cost 12 ms of its processors.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
