"""Take the time of what a run does."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


@contextmanager
def measured(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time spent inside to `seconds`; a name is written by one thread only."""
    start = perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + perf_counter() - start
