import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest

from vdeblur.prefetch import prefetch


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_come_unchanged_and_in_order(depth: int) -> None:
    assert list(prefetch(range(20), depth=depth)) == list(range(20))
    assert not running()


def test_nothing_comes_of_nothing() -> None:
    assert list(prefetch([])) == []


def test_it_runs_ahead_but_no_further_than_depth() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(10):
            made.append(item)
            yield item

    with closing(prefetch(items(), depth=3)) as ahead:
        assert next(ahead) == 0
        time.sleep(0.3)
        assert made == [0, 1, 2, 3]


def test_an_exception_arrives_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="broken"):
        next(ahead)
    assert not running()


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    ended = threading.Event()

    def items() -> Generator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.set()

    source = items()
    with closing(prefetch(source, depth=2)) as ahead:
        assert next(ahead) == 0
    assert not running()
    source.close()  # it is ours again: no thread holds it
    assert ended.is_set()


def test_the_thread_ends_when_the_consumer_raises() -> None:
    with pytest.raises(ZeroDivisionError), closing(prefetch(range(10**9))) as ahead:
        next(ahead) // 0
    assert not running()


def test_no_thread_starts_before_the_first_item_is_asked_for() -> None:
    ahead = prefetch(range(3))
    assert not running()
    ahead.close()


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(prefetch([1], depth=depth))
