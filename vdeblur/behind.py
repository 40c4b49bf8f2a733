"""Hand items to a slow function in a thread of its own: the mirror image of `prefetch`."""

from collections.abc import Callable
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class _End:
    """The last thing in the queue."""


class Behind(Generic[Item]):
    """Calls `write` with each item that is `put`, at most `depth` of them behind.

    What `write` raises is raised by the next `put`, or at the end of the `with` block; that waits
    until all is written, or, leaving with an exception, drops what is not. The thread has ended
    then.
    """

    def __init__(self, write: Callable[[Item], None], *, depth: int = 8) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._write = write
        self._queue: Queue[Item | _End] = Queue(depth)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = Thread(target=self._consume, name="behind", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, item: Item) -> None:
        """Wait for room, and leave `item` to the thread."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dropping = kind is not None
        self._queue.put(_End())
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _consume(self) -> None:
        # It goes on emptying the queue after an error, so that `put` never waits in vain.
        while not isinstance(item := self._queue.get(), _End):
            if self._error is None and not self._dropping:
                try:
                    self._write(item)
                except BaseException as error:  # whatever it is, it belongs to the producer
                    self._error = error
