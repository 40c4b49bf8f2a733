"""What becomes of the memory that frames leave behind."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`."""
KEPT, LARGEST = 64 << 20, 32 << 20
"""Bytes: so much freed memory stays at hand, in blocks of up to so much."""


def keep_at_hand() -> None:
    """Let the next frames have the memory of those before them.

    glibc gives large blocks back to the system, which clears each page before it is used again.
    That takes 1 to 2 ms a frame. For programs only: it changes how the whole process behaves. Does
    nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
