"""What becomes of the memory that frames leave behind."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of glibc's `mallopt`."""
HEAPS = 2
"""That all threads share."""
KEPT, LARGEST = 64 << 20, 32 << 20
"""Bytes: so much freed memory stays at hand, in blocks of up to so much."""


def share_heaps() -> None:
    """Let threads use each other's memory.

    Else glibc gives each a heap of its own, and what a frame leaves in one does not help in
    another: 50 MB at 4K. For programs only, before they have threads.
    """
    _set({M_ARENA_MAX: HEAPS})


def keep_at_hand() -> None:
    """Let the next frames have the memory of those before them.

    glibc gives large blocks back to the system, which clears each page before it is used again.
    That takes 1 to 2 ms a frame. For programs only: it changes how the whole process behaves.
    """
    _set({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: KEPT})


def _set(options: dict[int, int]) -> None:
    """Set options of glibc; elsewhere this does nothing."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
