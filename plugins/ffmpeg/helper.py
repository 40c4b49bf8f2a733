"""The process behind the frei0r filter: takes pictures from shared memory and puts them back.

It is started by vdeblur.c, with a socket as its standard input and the memory as file 3.
"""

import math
import mmap
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vdeblur import Frame, Options, Processor
from vdeblur_plugins.ffmpeg import EXCHANGE
from vdeblur_plugins.ffmpeg.layout import Layout, Pixels
from vdeblur_plugins.packed import Packed
from vdeblur_plugins.ticks import SECOND, TICK, USUAL

SOCKET, MEMORY = 0, 3
MESSAGE = struct.Struct("=IId")
"""What goes over the socket: kind, number, time."""
READY, PICTURE = 1, 2

ANSWERS = EXCHANGE + 1
"""Slots for what comes back, used by turns: the host takes an answer `EXCHANGE` pictures later."""


def serve(width: int, height: int, options: Options, layout: Layout) -> None:
    """Answer each picture with one, until the host hangs up."""
    cv2.setNumThreads(max(1, (os.cpu_count() or 1) // 2))  # as the command line does

    def slots() -> Packed:  # the host makes room when it knows the delay
        memory = np.frombuffer(mmap.mmap(MEMORY, 0), np.uint8)
        return memory.reshape(-1, height, width, 4)

    with (
        suppress(ConnectionError),  # the host is gone and did not wait for its last pictures
        socket.socket(fileno=SOCKET) as host,
        Processor(options) as processor,
    ):
        threading.Thread(target=_end_with, args=(host,), name="host", daemon=True).start()
        Conversation(host, slots, processor, layout).hold()


def _end_with(host: socket.socket) -> None:
    """End the process at once when the host is gone, whatever is being computed."""
    poll = select.poll()
    poll.register(host, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


class Conversation:
    """Gives the host for each picture the one `delay` pictures before, steady and sharp.

    Pictures are (H, W, 4); `layout` finds frames in them. Before an empty one a video ends: those
    that are held back come out as at the end of a file, and then it itself. Where time jumps
    everything begins anew, and `delay` pictures are answered with themselves. Pictures are
    received, and their motion is found, in a thread of its own, while the ones before are moved.
    """

    def __init__(
        self,
        host: socket.socket,
        slots: Callable[[], Packed],
        processor: Processor,
        layout: Layout | None = None,
    ) -> None:
        self._host, self._room, self._processor = host, slots, processor
        self._layout = layout or Pixels()
        self._slots: Packed | None = None
        self._clock = Clock()
        self._taken = 0  # pictures since the last jump
        self._sent = 0  # of their answers, those that were not the picture itself
        self._answered = 0  # pictures in all
        self._ended: deque[Frame | Packed] = deque()  # of a video that ended, not yet asked for
        self._next: Asked | None = None  # received, but not of this video

    def hold(self) -> None:
        """Answer until the host hangs up."""
        self._say(READY, self._processor.delay + EXCHANGE)
        self._next = self._received()
        while self._next is not None:
            self._video()

    def _video(self) -> None:
        """Answer the pictures of one video, and the empty ones after it."""
        over = threading.Event()
        with closing(self._processor.run(self._frames(over), depth=2, release=over.set)) as frames:
            for frame in frames:
                if self._taken - self._processor.delay > self._sent:
                    self._send(frame)
                else:
                    self._ended.append(frame)
        while (picture := self._empty()) is not None:
            self._ended.append(picture)
            self._take(picture)

    def _frames(self, over: threading.Event) -> Iterator[Frame]:
        """The pictures up to the end of the video, or until it is `over`."""
        asked, self._next = self._next, None
        first = True
        while asked is not None:
            if asked.tick is None:
                if not first:
                    self._next = asked
                    return
                self._taken = self._sent = 0
                self._ended.clear()
            if self._layout.is_empty(asked.picture):
                self._next = replace(asked, tick=self._clock.now)
                return
            planes, format, alpha = self._layout.take(asked.picture)
            tick = self._clock.now if asked.tick is None else asked.tick
            self._take(asked.picture)
            yield Frame(planes, format, tick, TICK, attachment=alpha)
            first = False
            asked = self._received(over)

    def _empty(self) -> Packed | None:
        """The next picture if it belongs to the end of this video."""
        asked = self._next if self._next is not None else self._received()
        self._next = asked
        if asked is None or asked.tick is None or not self._layout.is_empty(asked.picture):
            return None
        self._next = None
        return asked.picture.copy()

    def _take(self, picture: Packed) -> None:
        """Count a picture; answer it if that needs no frame that is still being worked on."""
        self._taken += 1
        if self._taken <= self._processor.delay:
            self._answer(picture)
        elif self._ended:
            self._send(self._ended.popleft())

    def _send(self, ready: Frame | Packed) -> None:
        self._answer(ready)
        self._sent += 1

    def _received(self, over: threading.Event | None = None) -> "Asked | None":
        """The host's next picture; None when it has hung up, or when it is all `over`."""
        while over is not None and not select.select([self._host], [], [], 0.1)[0]:
            if over.is_set():
                return None
        message = self._host.recv(MESSAGE.size, socket.MSG_WAITALL)
        if len(message) < MESSAGE.size:
            return None
        _, slot, time = MESSAGE.unpack(message)
        if self._slots is None:
            self._slots = self._room()
        return Asked(self._slots[slot], self._clock.tick(time))

    def _answer(self, ready: Frame | Packed) -> None:
        assert self._slots is not None, "a picture has been received"
        turn = self._answered % ANSWERS
        out = self._slots[turn - ANSWERS]
        if isinstance(ready, Frame):
            self._layout.put(ready, out)
        else:
            np.copyto(out, ready)
        self._answered += 1
        self._say(PICTURE, turn)

    def _say(self, kind: int, number: int) -> None:
        self._host.sendall(MESSAGE.pack(kind, number, 0.0))


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture that waits for its answer."""

    picture: Packed
    """(H, W, 4), in the host's memory until it is answered."""
    tick: int | None
    """`None` after a jump in time."""


@dataclass(slots=True)
class Clock:
    """Makes sense of a host's time: FFmpeg counts milliseconds, MLT and GStreamer seconds."""

    now: int = 0
    """Ticks since the first picture."""
    last: float | None = None
    step: int = USUAL
    in_seconds: bool | None = None
    """Not known before the second picture."""

    def tick(self, time: float) -> int | None:
        """Return the time in ticks; `None` after a jump, which an editor makes."""
        last, self.last = self.last, time
        if last is None:
            return self.now
        gap = time - last
        if not math.isfinite(gap) or gap == 0:  # a host without a clock
            self.now += self.step
            return self.now
        if self.in_seconds is None or 0 < gap < 0.5:  # no video has 2000 frames a second
            self.in_seconds = 0 < gap < 1.5
        ticks = round(gap * SECOND / (1 if self.in_seconds else 1000))
        # FFmpeg's clock has gaps where the video has them, but never jumps.
        jumped = gap < 0 or (self.in_seconds and ticks > max(SECOND, 3 * self.step))
        if not jumped:
            self.step = ticks
        self.now += self.step
        return None if jumped else self.now
