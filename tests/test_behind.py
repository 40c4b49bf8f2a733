import threading
import time

import pytest

from vdeblur.behind import Behind


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "behind"]


def test_everything_is_written_in_order_before_the_end() -> None:
    written: list[int] = []
    with Behind(written.append, depth=2) as behind:
        for item in range(20):
            behind.put(item)
    assert written == list(range(20))
    assert not running()


def test_a_slow_writer_slows_its_producer() -> None:
    written: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.005)
        written.append(item)

    with Behind(slow, depth=2) as behind:
        for item in range(20):
            behind.put(item)
            assert item - len(written) <= 3  # two in the queue, one in the writer's hands


def fail(item: int) -> None:
    raise OSError("disk full")


def test_an_error_reaches_a_producer_that_goes_on() -> None:
    def write_all() -> None:
        with Behind(fail, depth=1) as behind:
            for item in range(1000):
                behind.put(item)

    with pytest.raises(OSError, match="disk full"):
        write_all()
    assert not running()


def test_an_error_at_the_last_item_is_not_lost() -> None:
    with pytest.raises(OSError, match="disk full"), Behind(fail) as behind:
        behind.put(0)
    assert not running()


def test_leaving_with_an_exception_drops_what_waits() -> None:
    written: list[int] = []
    gate = threading.Event()

    def wait(item: int) -> None:
        gate.wait()
        written.append(item)

    def write_until_interrupted() -> None:
        with Behind(wait) as behind:
            for item in range(5):
                behind.put(item)
            threading.Timer(0.05, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()
    assert len(written) <= 1
    assert not running()


def test_a_queue_needs_room_for_one() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        Behind(fail, depth=0)
