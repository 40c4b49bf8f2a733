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
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from vdeblur import Frame, Options, Processor
from vdeblur_plugins.ffmpeg import EXCHANGE
from vdeblur_plugins.packed import Chroma, Packed, packed_of, planes_of

SOCKET, MEMORY = 0, 3
MESSAGE = struct.Struct("=IId")
"""What goes over the socket: kind, number, time."""
READY, PICTURE = 1, 2

ANSWERS = 2
"""Slots for what comes back, used by turns: the host copies one while the next is filled."""

TICK = Fraction(1, 10**9)
"""Seconds; the unit of the frames' times."""


def serve(width: int, height: int, options: Options, *, columns: int, chroma: Chroma) -> None:
    """Answer each picture with one, until the host hangs up.

    Only the left `columns` of a picture are looked at: the rest is padding.
    """
    cv2.setNumThreads(max(1, (os.cpu_count() or 1) // 2))  # as the command line does
    with (
        suppress(ConnectionError),  # the host is gone and did not wait for its last picture
        socket.socket(fileno=SOCKET) as host,
        Processor(options) as processor,
    ):
        threading.Thread(target=_end_with, args=(host,), name="host", daemon=True).start()
        filter_ = DelayedFilter(processor, chroma)
        host.sendall(MESSAGE.pack(READY, processor.delay + EXCHANGE, 0.0))
        slots: Packed | None = None
        turn = 0
        while message := host.recv(MESSAGE.size, socket.MSG_WAITALL):
            _, slot, time = MESSAGE.unpack(message)
            if slots is None:  # the host makes room when it knows the delay
                memory = np.frombuffer(mmap.mmap(MEMORY, 0), np.uint8)
                slots = memory.reshape(-1, height, width, 4)[:, :, :columns]
            filter_.push(slots[slot], time, out=slots[turn - ANSWERS])
            host.sendall(MESSAGE.pack(PICTURE, turn, time))
            turn = (turn + 1) % ANSWERS


def _end_with(host: socket.socket) -> None:
    """End the process at once when the host is gone, whatever is being computed."""
    poll = select.poll()
    poll.register(host, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


class DelayedFilter:
    """Gives for each picture the one `delay` pictures before, steady and sharp.

    Pictures are (H, W, 4) BGRA. A wholly transparent one ends the video: those that are held back
    come out as at the end of a file. Where time jumps a new video begins. The first `delay`
    pictures are answered with themselves.
    """

    def __init__(self, processor: Processor, chroma: Chroma = "444") -> None:
        self._processor, self._chroma = processor, chroma
        self._clock = Clock()
        self._ready: deque[Frame | Packed] = deque()
        self._taken = 0

    def push(self, picture: Packed, time: float, *, out: Packed) -> None:
        """Take a picture, shown at `time` as the host counts it, and fill `out`."""
        tick = self._clock.tick(time)
        if tick is None:
            self._processor.flush()
            self._ready.clear()
            self._taken = 0
            tick = self._clock.now
        alpha = cv2.extractChannel(picture, 3)
        if alpha.any():
            planes, format = planes_of(picture, 8, self._chroma)
            kept = None if alpha.min() == 255 else alpha
            frame = Frame(planes, format, tick, TICK, attachment=kept)
            self._ready.extend(self._processor.push(frame))
        else:
            self._ready.extend(self._processor.flush())
            self._ready.append(picture.copy())
        self._taken += 1
        if self._taken > self._processor.delay:
            _fill(out, self._ready.popleft())
        else:
            np.copyto(out, picture)


def _fill(out: Packed, ready: Frame | Packed) -> None:
    if not isinstance(ready, Frame):
        np.copyto(out, ready)
        return
    cv2.cvtColor(packed_of(ready.planes, ready.format), cv2.COLOR_BGR2BGRA, dst=out)
    if ready.attachment is not None:
        out[:, :, 3] = ready.attachment


@dataclass(slots=True)
class Clock:
    """Makes sense of a host's time: FFmpeg counts milliseconds, MLT and GStreamer seconds."""

    now: int = 0
    """Ticks since the first picture."""
    last: float | None = None
    step: int = 33_333_333
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
        ticks = round(gap * (1e9 if self.in_seconds else 1e6))
        # FFmpeg's clock has gaps where the video has them, but never jumps.
        jumped = gap < 0 or (self.in_seconds and ticks > max(1_000_000_000, 3 * self.step))
        if not jumped:
            self.step = ticks
        self.now += self.step
        return None if jumped else self.now
