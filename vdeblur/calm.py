"""Frames that need not be looked at: nothing was blurred lately, and nothing moves faster now.

To find out that a picture is sharp costs nearly a third of what it takes to filter all of it. What
a camera filmed sharply at some speed it goes on filming sharply at that speed. So where nothing was
found for a while, every third frame is looked at, and all that are faster than the median of those
that were clear.
"""

from collections import deque
from statistics import median

import numpy as np

from .frame import Frame, Motion
from .lens import moved_by
from .similarity import Floats

PATIENCE = 12
"""Looks without a find before frames are left out."""
LEFT_OUT = 2
"""At most so many in a row."""
SLACK = 0.25
"""What moves by no more than so many px faster than usual counts as no faster."""
TRUSTED = 0.3
"""A motion of less confidence says nothing."""


class Calm:
    """Decides which frames are looked at for blur."""

    def __init__(self) -> None:
        self._speeds: deque[float] = deque(maxlen=PATIENCE)
        self._left_out = 0

    @property
    def settled(self) -> bool:
        """Whether nothing was found for a while."""
        return len(self._speeds) == PATIENCE

    def looked(self, speed: float | None, *, clear: bool) -> None:
        """Learn what came of a look at a frame that moved so fast, px a frame; None: nobody knows.

        `clear` if nothing in it was blurred.
        """
        self._left_out = 0
        if clear and speed is not None:
            self._speeds.append(speed)
        else:
            self._speeds.clear()

    def leaves_out(self, speed: float | None) -> bool:
        """Whether the next frame, that moves so fast, goes unseen."""
        if speed is None or not self.settled or self._left_out == LEFT_OUT:
            return False
        if speed > median(self._speeds) + SLACK:
            return False
        self._left_out += 1
        return True


def speed_around(frame: Frame, following: Frame | None) -> float | None:
    """px a frame: by how much the fastest corner moves to this frame and on; None if unknown."""
    speeds = [
        None if each is None else _speed(each.motion, each.width, each.height)
        for each in (frame, following)
    ]
    known = [each for each in speeds if each is not None]
    return max(known) if len(known) == len(speeds) else None


def _speed(motion: Motion | None, width: int, height: int) -> float | None:
    if motion is None or motion.cut or motion.confidence < TRUSTED:
        return None
    corners = np.array([0, width, 1j * height, width + 1j * height], complex)
    way: Floats = motion.way
    return float(abs(moved_by(way, corners) - corners).max())
