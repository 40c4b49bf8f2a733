"""Let a library's own threads give way to ours."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Made = TypeVar("Made")

POLITE = 5
"""Steps of niceness. With 10 a quiet machine gains another 1 %, but one that other programs keep
busy loses a quarter: an encoder that hardly runs holds up all of us."""


def giving_way(make: Callable[[], Made]) -> Made:
    """What `make` returns; the threads that it starts run when those of others leave a core free.

    An encoder's threads, and those of a decoder that is far ahead, always have something to do, but
    nobody waits for it. A thread of ours that is put off for them may hold Python's lock, and with
    it all others: 720p gets 5 to 10 % faster on two cores. Raises what `make` raises.
    """
    with ThreadPoolExecutor(1, "giving-way", _be_polite) as pool:
        return pool.submit(make).result()


def _be_polite() -> None:
    # On Linux niceness is a thread's own, and the threads that it starts inherit it (sched(7)).
    # Elsewhere it is the whole program's.
    if sys.platform.startswith("linux"):
        with suppress(OSError):  # a sandbox may forbid it, and it is not needed
            os.nice(POLITE)
