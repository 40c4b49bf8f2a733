"""Run an iterator ahead of its consumer, in a thread of its own."""

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _End:
    """The last thing in the queue: the producer is done, well or badly."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(
    items: Iterable[Item], *, depth: int = 8, release: Callable[[], None] | None = None
) -> Generator[Item]:
    """Yield `items` unchanged, producing up to `depth` of them ahead, the one being made included.

    `release` is called when this ends; it calls a producer back that waits for something else.

    What the producer raises is raised here, after the items before it. The thread has ended when
    this generator is closed or exhausted: close it before what `items` reads from.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    made: _Made[Item] = _Made(Semaphore(depth))
    thread = Thread(target=_produce, args=(items, made), name="prefetch", daemon=True)
    try:
        thread.start()
        while (item := made.next()) is not None:
            made.room.release()
            yield item.pop()  # nothing here keeps it: it may be large
    finally:
        made.stop.set()
        if release is not None:
            release()
        made.room.release()  # wakes a producer that waits for room
        with suppress(RuntimeError):  # an interruption was quicker than the thread
            thread.join()


@dataclass(frozen=True, slots=True)
class _Made(Generic[Item]):
    """What goes from the producer to the consumer."""

    room: Semaphore
    """Counts the items that may still be made."""
    items: "SimpleQueue[Item | _End]" = field(default_factory=SimpleQueue)
    stop: Event = field(default_factory=Event)
    """Nobody wants an item any more."""

    def next(self) -> list[Item] | None:
        """Wait for the next item, in a list to take it out of; `None` after the last."""
        item = self.items.get()
        if not isinstance(item, _End):
            return [item]
        if item.error is not None:
            raise item.error
        return None


def _produce(items: Iterable[Item], made: _Made[Item]) -> None:
    try:
        source = iter(items)
        while made.room.acquire() and not made.stop.is_set():
            made.items.put(next(source))
    except StopIteration:
        made.items.put(_End())
    except BaseException as error:  # whatever it is, it belongs to the consumer
        made.items.put(_End(error))
