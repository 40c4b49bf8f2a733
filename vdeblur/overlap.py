"""Push frames one by one, while those before them are still worked on."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from weakref import finalize

from .frame import Frame
from .processor import Processor


class Overlapped:
    """A `Processor` whose stages work side by side, in threads behind `push`.

    It returns what `processor` would, `ahead` frames later: so many are in work when `push` is
    back. What goes wrong with a frame is raised when its turn comes; there is no going on then.
    """

    def __init__(self, processor: Processor, *, ahead: int) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1 frame, got {ahead}")
        self._processor, self._ahead = processor, ahead
        self._work: _Work | None = None
        self._pushed = 0
        self._end: Callable[[], object] | None = None

    @property
    def delay(self) -> int:
        """Frames that are held back."""
        return self._processor.delay + self._ahead

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the one `delay` before it, once there is one."""
        if self._work is None:
            self._begin()
        assert self._work is not None
        self._work.given.put(frame)
        self._pushed += 1
        if self._pushed <= self.delay:
            return []
        ready = self._next()
        assert ready is not None, "no stage loses a frame"
        return [ready]

    def flush(self) -> list[Frame]:
        """The video has ended: return the frames that were held back."""
        if self._work is None:
            return []
        self._work.given.put(None)
        frames = list(iter(self._next, None))
        self.close()
        return frames

    def close(self) -> None:
        """Forget the frames that are held back, and end the threads."""
        self._work = None
        if self._end is not None:
            self._end()

    def _next(self) -> Frame | None:
        """Wait for the next frame; `None` after the last."""
        assert self._work is not None
        try:
            ready = self._work.ready.get()
            if isinstance(ready, BaseException):
                raise ready
        except BaseException:  # an interruption, too
            self.close()
            raise
        return ready

    def _begin(self) -> None:
        self._work, self._pushed = _Work(), 0
        thread = Thread(
            target=_process, args=(self._processor, self._work), name="overlapped", daemon=True
        )
        self._end = finalize(self, _stop, self._work, thread)  # also where nobody calls `close`
        thread.start()


@dataclass(frozen=True, slots=True)
class _Work:
    """What goes to and fro between the caller and the threads, for one video."""

    given: SimpleQueue[Frame | None] = field(default_factory=SimpleQueue)
    """`None` comes last."""
    ready: SimpleQueue[Frame | BaseException | None] = field(default_factory=SimpleQueue)
    """The same; an exception comes last, too."""
    stop: Event = field(default_factory=Event)


def _process(processor: Processor, work: _Work) -> None:
    """Run until the video ends or nobody wants more. Does not keep the `Overlapped` alive."""
    last: BaseException | None = None
    try:
        frames = processor.run(
            iter(work.given.get, None), depth=2, release=lambda: work.given.put(None)
        )
        with closing(frames):
            for frame in frames:
                work.ready.put(frame)
                if work.stop.is_set():
                    break
    except BaseException as error:  # whatever it is, it belongs to the caller
        last = error
    work.ready.put(last)


def _stop(work: _Work, thread: Thread) -> None:
    work.stop.set()
    work.given.put(None)
    with suppress(RuntimeError):  # the garbage collector may have come in that thread
        thread.join()
