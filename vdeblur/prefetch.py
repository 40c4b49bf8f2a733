"""Run an iterator ahead of its consumer, in a thread of its own."""

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")


class _End:
    """The last thing in the queue: the producer is done, well or badly."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(
    items: Iterable[Item], *, depth: int = 8, release: Callable[[], None] | None = None
) -> Generator[Item]:
    """Yield `items` unchanged, producing up to `depth` of them ahead.

    `release` is called when this ends; it calls a producer back that waits for something else.

    What the producer raises is raised here, after the items before it. The thread has ended when
    this generator is closed or exhausted: close it before what `items` reads from.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    queue: Queue[Item | _End] = Queue(depth)
    stop = Event()
    thread = Thread(target=_produce, args=(items, queue, stop), name="prefetch", daemon=True)
    try:
        thread.start()
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        if release is not None:
            release()
        _empty(queue)  # wakes a producer that waits for room
        with suppress(RuntimeError):  # an interruption was quicker than the thread
            thread.join()


def _produce(items: Iterable[Item], queue: "Queue[Item | _End]", stop: Event) -> None:
    try:
        for item in items:
            if not _put(queue, item, stop):
                return
    except BaseException as error:  # whatever it is, it belongs to the consumer
        _put(queue, _End(error), stop)
    else:
        _put(queue, _End(), stop)


def _put(queue: "Queue[Item | _End]", item: Item | _End, stop: Event) -> bool:
    """Wait for room; False if nobody wants the item any more."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=0.1)
        except Full:
            continue
        return True
    return False


def _empty(queue: "Queue[Item | _End]") -> None:
    while True:
        try:
            queue.get_nowait()
        except Empty:
            return
