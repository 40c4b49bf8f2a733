"""A source that does not wait: a camera, a broadcast. Frames come out in time, or not at all."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from math import ceil, inf
from pathlib import Path
from threading import Condition, Event, Thread
from time import monotonic
from typing import Protocol

import numpy as np

from .behind import Behind
from .errors import SourceError
from .frame import Frame, Motion
from .options import AS_IT_IS, AS_THE_SOURCE, DEFAULTS, Input, Options, Output
from .pipeline import filtered_share, peak_memory
from .processor import Processor
from .video import VideoInfo, VideoReader, VideoWriter

logger = logging.getLogger(__name__)

LATENCY = 0.5
"""Seconds, unless asked otherwise."""
LEVELS = (1.0, 0.5, 0.25, 0.0)
"""Shares of the wanted strength, from the best picture to the cheapest: only stabilising."""
BUSY, IDLE = 0.9, 0.6
"""Busy shares of the time between frames: above BUSY work gets cheaper, below IDLE better."""
STALE = 1 / 3
"""Share of the promised latency that a frame may wait before anything is done to it."""
PATIENCE = 2.0
"""Seconds of idleness before better work is tried; doubled when that was too much."""
LEAVE = 1.0
"""Seconds that a source gets to notice that it shall end."""


class Display(Protocol):
    """Shows frames as they come: a window, a virtual camera."""

    def show(self, before: Frame, after: Frame) -> None:
        """Show one frame, as it was and as it became."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True)
class LiveProgress:
    """How a live run goes."""

    frames: int
    """Written or shown."""
    dropped: int
    latency: float
    """Seconds, of the last frame."""
    strength: float
    """Share of the wanted strength at which the machine keeps up."""


@dataclass(frozen=True, slots=True)
class LiveSummary:
    """What a live run did."""

    source: str
    sink: str
    width: int
    height: int
    frames: int
    """That were written or shown."""
    seconds: float
    dropped: int
    """Frames that came and were not written, since they would have been late."""
    promise: float
    """The latency that was asked for, in seconds."""
    latency: float
    """Mean, in seconds: from a frame's arrival until it was written."""
    latency_max: float
    full_strength: float
    """Share of the frames that were deblurred as wanted, 0..1."""
    only_stabilized: float
    """Share of the frames for which the networks had no time, 0..1."""
    filtered: float
    memory_mb: float
    backend: str | None
    warnings: tuple[str, ...]


def watch(
    source: str | Path,
    sink: str | Path | None,
    *,
    latency: float = LATENCY,
    options: Options = DEFAULTS,
    given: Input = AS_IT_IS,
    output: Output = AS_THE_SOURCE,
    displays: Sequence[Callable[[VideoInfo], Display]] = (),
    stop: Event | None = None,
    progress: Callable[[LiveProgress], None] | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> LiveSummary:
    """Write and show what comes from `source`, at most `latency` seconds after it came.

    On a machine that is too slow the pictures are filtered less, then only steadied, then left
    out. It ends with the source, or when `stop` is set; the file is complete then. A source that
    could be read faster (a file, lavfi) is read at its own pace.
    """
    if not 0 < latency < inf:
        raise ValueError(f"latency must be above 0 seconds and finite, got {latency}")
    if options.motion != DEFAULTS.motion:
        raise ValueError(f"the motion {options.motion!r} sees too far ahead for a live source")
    stop = stop or Event()
    warnings: list[str] = []

    def tell(line: str) -> None:
        warnings.append(line)
        warn(line)

    with (
        Processor(replace(options, lookahead=300), low_delay=True, warn=warn) as processor,
        ExitStack() as stack,
    ):
        reader = VideoReader(source, given=given, low_delay=True, warn=tell)
        capture = Capture(reader, stop, room=1 + ceil(latency * STALE * reader.info.rate))
        stack.callback(capture.close)
        writer = None
        if sink is not None:
            writer = stack.enter_context(
                VideoWriter(sink, reader, low_delay=True, warn=tell, **asdict(output))
            )
        shown = [stack.enter_context(closing(display(reader.info))) for display in displays]
        run = _Live(processor, writer, shown, latency, float(1 / reader.info.rate), progress)
        processor.warm_up(_grey(reader.info))
        started = monotonic()
        run.go(capture)
        seconds = monotonic() - started
    return run.summary(reader, "" if writer is None else writer.sink.name, seconds, warnings)


def _grey(info: VideoInfo) -> Frame:
    """A frame of the video's kind."""
    shapes = [(info.height, info.width), *[info.format.chroma_shape(info.height, info.width)] * 2]
    planes = tuple(
        np.full(shape, info.format.peak // 2, info.format.dtype)
        for shape in shapes[: info.format.planes]
    )
    return Frame(planes, info.format, pts=0, time_base=info.time_base, motion=Motion.none())


class Capture:
    """Reads in a thread of its own and keeps only the newest frames, each with its arrival."""

    def __init__(self, reader: VideoReader, stop: Event, *, room: int) -> None:
        self.dropped = 0
        """Frames for which there was no room."""
        self.ended = False
        self._reader, self._stop, self._room = reader, stop, room
        self._waiting: deque[tuple[Frame, float]] = deque()
        self._changed = Condition()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._read, name="capture", daemon=True)

    @property
    def stopped(self) -> bool:
        """Whether it shall end; a source that sends nothing does not notice."""
        return self._stop.is_set()

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def next(self, timeout: float) -> tuple[Frame, float] | None:
        """Return the oldest frame that waits; `None` after `timeout` seconds or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.ended, timeout)
            if self._waiting:
                return self._waiting.popleft()
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """End the thread, then close the source; one that hangs in a read is left to itself."""
        self._stop.set()
        self._reader.release()
        if self._thread.ident is not None:
            self._thread.join(LEAVE)
        if not self._thread.is_alive():
            self._reader.close()

    def _read(self) -> None:
        try:
            for frame in self._paced():
                if self._stop.is_set():
                    break
                self._put(frame)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self._error = error
        with self._changed:
            self.ended = True
            self._changed.notify()

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if len(self._waiting) == self._room:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((frame, monotonic()))
            self._changed.notify()

    def _paced(self) -> Iterator[Frame]:
        """A file would be over in no time: hold its frames back until they are due."""
        source = self._reader.source
        waits = source.path is not None or source.short == "lavfi"
        start: float | None = None
        for frame in self._reader:
            if waits:
                time = float(frame.time)
                start = monotonic() - time if start is None else start
                self._stop.wait(max(0.0, start + time - monotonic()))
            yield frame


class Governor:
    """Chooses how much work is done, from how busy the machine is with it."""

    def __init__(self, interval: float) -> None:
        self.level = 0
        """Into `LEVELS`."""
        self._interval = interval
        self._busy = (BUSY + IDLE) / 2
        self._changed, self._tried = monotonic(), -inf
        self._patience = PATIENCE

    def spent(self, seconds: float, now: float) -> None:
        """Learn how long one frame took."""
        self._busy += 0.15 * (seconds / self._interval - self._busy)
        if self._busy > BUSY and self.level < len(LEVELS) - 1 and now > self._changed + 0.3:
            if now < self._tried + 5:  # the last try for more was too much
                self._patience = min(30.0, 2 * self._patience)
            self._go(self.level + 1, now)
        elif self._busy < IDLE and self.level > 0 and now > self._changed + self._patience:
            self._go(self.level - 1, now)
            self._tried = now

    def _go(self, level: int, now: float) -> None:
        self.level, self._changed = level, now
        self._busy = (BUSY + IDLE) / 2


class _Live:
    """One call of `watch`: what it counts, and its loop."""

    def __init__(
        self,
        processor: Processor,
        writer: VideoWriter | None,
        displays: Sequence[Display],
        promise: float,
        interval: float,
        progress: Callable[[LiveProgress], None] | None,
    ) -> None:
        self._processor, self._writer, self._displays = processor, writer, displays
        self._promise, self._interval, self._progress = promise, interval, progress
        self._governor = Governor(interval)
        self._inside: deque[tuple[Frame, float]] = deque()
        self._step = self._written = interval / 2  # seconds: slow to forget a slow one
        self._backend = processor.backend.name if processor.backend else None
        self._frames = self._late = self._stale = self._lost = 0
        self._levels = [0] * len(LEVELS)
        self._sum = self._max = 0.0

    def go(self, capture: Capture) -> None:
        """Run until the source ends."""
        capture.start()
        with Behind(self._write, depth=1) as behind:
            try:
                while not (capture.ended or capture.stopped):
                    self._turn(capture, behind)
                while (item := capture.next(0)) is not None:
                    self._take(*item, behind)
                self._hand(self._processor.flush(), behind)
            except BaseException:
                if self._writer is not None:
                    self._writer.release()
                raise
        self._lost = capture.dropped
        if not self._frames:
            raise SourceError(
                "it was stopped before a frame came"
                if capture.stopped
                else "no frame of the source came out in time: allow more latency"
            )

    def _turn(self, capture: Capture, behind: "Behind[tuple[Frame, float]]") -> None:
        """Wait for the next frame, but no longer than the oldest inside may wait."""
        wait = 0.2
        if self._inside:
            wait = min(wait, max(0.0, self._due(self._inside[0][1]) - monotonic()))
        item = capture.next(wait)
        if item is not None:
            self._take(*item, behind)
        else:
            self._hand(self._processor.release(self._overdue()), behind)

    def _take(self, frame: Frame, arrived: float, behind: "Behind[tuple[Frame, float]]") -> None:
        start = monotonic()
        if start > arrived + STALE * self._promise:
            self._stale += 1
            return
        self._inside.append((frame, arrived))
        self._processor.weaken(LEVELS[self._governor.level])
        self._levels[self._governor.level] += 1
        ready = self._processor.push(frame)
        ready += self._processor.release(self._overdue() - len(ready))
        self._hand(ready, behind)
        now = monotonic()
        self._step = max(now - start, 0.95 * self._step)
        self._governor.spent(now - start, now)

    def _due(self, arrived: float) -> float:
        """When a frame must leave: after that there may be no turn before its promise ends."""
        return arrived + self._promise - 2 * self._step - self._written - self._interval

    def _overdue(self) -> int:
        now = monotonic()
        return sum(now >= self._due(arrived) for _, arrived in self._inside)

    def _hand(self, ready: list[Frame], behind: "Behind[tuple[Frame, float]]") -> None:
        for frame in ready:
            before, arrived = self._inside.popleft()
            if monotonic() <= arrived + self._promise:
                for display in self._displays:  # in the main thread: windows want that
                    display.show(before, frame)
            behind.put((frame, arrived))

    def _write(self, item: tuple[Frame, float]) -> None:
        """Write one frame, unless it is too late for it."""
        frame, arrived = item
        start = monotonic()
        if start + self._written > arrived + self._promise + self._interval:
            self._late += 1
            self._written *= 0.95
            return
        if self._writer is not None:
            self._writer.write(frame, deadline=arrived + self._promise - self._written)
        now = monotonic()
        self._written = max(now - start, 0.95 * self._written)
        self._frames += 1
        self._sum += now - arrived
        self._max = max(self._max, now - arrived)
        if self._progress is not None:
            strength = LEVELS[self._governor.level]
            dropped = self._late + self._stale
            self._progress(LiveProgress(self._frames, dropped, now - arrived, strength))

    def summary(
        self, reader: VideoReader, sink: str, seconds: float, warnings: list[str]
    ) -> LiveSummary:
        """Everything that is known at the end."""
        taken = max(1, sum(self._levels))
        return LiveSummary(
            source=reader.source.name,
            sink=sink,
            width=reader.info.width,
            height=reader.info.height,
            frames=self._frames,
            seconds=seconds,
            dropped=self._late + self._stale + self._lost,
            promise=self._promise,
            latency=self._sum / self._frames,
            latency_max=self._max,
            full_strength=self._levels[0] / taken,
            only_stabilized=self._levels[-1] / taken,
            filtered=filtered_share(self._processor.clusters),
            memory_mb=peak_memory(),
            backend=self._backend,
            warnings=tuple(warnings),
        )
