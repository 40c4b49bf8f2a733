"""Undo a rolling shutter: each row of a frame was taken a little later than the one above.

A row's time is known from the readout ratio (the part of the frame interval in which the sensor is
read), the camera's motion at that time from the motion between the frames around; each row is moved
to where it would have been at the frame's middle (Grundmann et al., "Calibration-free rolling
shutter removal", 2012, with one motion model instead of a mixture).

With v the picture's motion in px a frame interval, r the ratio and h the height, two frames in a
row differ by an affine transform A whose parts that no turn or zoom explains are

    A01 + A10 = r (vx' - vx) / h        A11 - A00 = r (vy' - vy) / h

from which r itself is found (`auto`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import numpy as np

from .frame import Frame
from .options import ROLLING_DELAY
from .similarity import Similarity
from .sway import Sway, distorted_by

Readout = float | Literal["auto"]

SIDE = ROLLING_DELAY
"""Frames before and after whose motion is looked at."""
LEAST_CONFIDENCE = 0.15
"""A motion of less is not believed."""
ROUNDS = 2
"""How often the motions are freed of what the rolling shutter does to them."""
FADING = 0.997
"""What a frame still counts for in the estimate of the ratio, a frame later."""
SURE = 5.0
"""A ratio so many times its own uncertainty is believed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame that waits for those after it."""

    frame: Frame
    motion: Similarity
    """From the frame before, as it was measured."""
    dt: float
    """s since the frame before."""
    linked: bool
    """The motion is known: no cut, nothing lost."""


class RollingShutter:
    """Gives each frame its `sway`, `SIDE` frames later, and frees its `motion` of the shutter.

    `readout` is the part of a frame interval in which a frame is read from its first row to its
    last, 0..1; "auto" finds it out. Motions that were not `measured` on these frames but come from
    a file are taken as they are.
    """

    def __init__(self, readout: Readout, *, measured: bool = True) -> None:
        if readout != "auto" and not 0 <= readout <= 1:
            raise ValueError(f"readout must be 0..1 or 'auto', got {readout}")
        self._wanted: Readout = readout
        self._rounds = ROUNDS if measured else 0
        self.reset()

    def reset(self) -> None:
        """Forget the video seen so far."""
        self._seen: deque[Seen] = deque(maxlen=4 * SIDE + 1)
        self._waiting = 0
        self._estimate = Ratio()

    @property
    def readout(self) -> float:
        """The ratio in use."""
        return self._estimate.value if self._wanted == "auto" else float(self._wanted)

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the one that has seen enough."""
        self._seen.append(self._linked(frame))
        self._waiting += 1
        return [self._released()] if self._waiting > SIDE else []

    def flush(self) -> list[Frame]:
        """Return the frames still held and be ready for a new video."""
        frames = [self._released() for _ in range(self._waiting)]
        self.reset()
        return frames

    def _linked(self, frame: Frame) -> Seen:
        motion, last = frame.motion, self._seen[-1] if self._seen else None
        if last is None or motion is None or motion.cut or not _same_size(frame, last.frame):
            return Seen(frame, Similarity(), 0.0, linked=False)
        dt = max(float(frame.time - last.frame.time), 1e-3)
        linked = motion.duplicate or motion.confidence >= LEAST_CONFIDENCE
        return Seen(frame, Similarity.of(motion.transform, frame.width, frame.height), dt, linked)

    def _released(self) -> Frame:
        """The oldest waiting frame with its sway."""
        seen = list(self._seen)
        at = len(seen) - self._waiting
        self._waiting -= 1
        frame, motion = seen[at].frame, seen[at].frame.motion
        if self._wanted == "auto":
            self._learn(seen, at)
        if self.readout <= 0 or motion is None:
            return frame
        motions = _freed(seen, self.readout, self._rounds)
        sway = _sway(seen, motions, at, self.readout)
        if sway is None or sway.effect < 0.02:
            sway = None
        if seen[at].linked and not motion.duplicate:
            transform = motions[at].matrix(frame.width, frame.height)
            motion = replace(motion, transform=transform)
        return replace(frame, motion=motion, sway=distorted_by(frame.sway, sway))

    def _learn(self, seen: Sequence[Seen], at: int) -> None:
        """Compare a frame's skew with the change of the camera's speed."""
        motion = seen[at].frame.motion
        if at == 0 or not seen[at].linked or motion is None or motion.duplicate:
            return
        motions = _freed(seen, self.readout, self._rounds)
        here, before = (_sway(seen, motions, k, 1.0) for k in (at, at - 1))
        if here is not None and before is not None:
            change = complex(here.place[0] - before.place[0]) / here.height
            self._estimate.learn(change, motion.skew)


class Ratio:
    """The readout ratio that explains the skews seen so far: a robust straight line through 0."""

    def __init__(self) -> None:
        self._power = self._product = self._error = 0.0
        self._count = 0.0
        self.value = 0.0

    def learn(self, change: complex, skew: complex) -> None:
        """Take the change of speed, in heights a frame interval, and the skew that came with it."""
        size = 3 * (self._error / self._count) ** 0.5 if self._count > 10 else 0.01
        miss = abs(skew - self._slope * change) / max(size, 1e-4)
        weight = 1 / (1 + miss**2)  # Cauchy's
        self._power = FADING * self._power + weight * abs(change) ** 2
        self._product = FADING * self._product + weight * (skew * change.conjugate()).real
        self._error = FADING * self._error + weight * abs(skew - self._slope * change) ** 2
        self._count = FADING * self._count + weight
        uncertain = (self._error / max(2 * self._count * self._power, 1e-18)) ** 0.5
        sure = self._count > 12 and self._slope > max(SURE * uncertain, 0.08)
        wanted = min(self._slope, 1.0) if sure else 0.0
        self.value += 0.2 * (wanted - self.value)  # a leap of the ratio would be seen
        if self.value < 0.02:
            self.value = 0.0 if not sure else self.value

    @property
    def _slope(self) -> float:
        return self._product / self._power if self._power > 0 else 0.0


def _same_size(frame: Frame, other: Frame) -> bool:
    return frame.planes[0].shape == other.planes[0].shape


def _freed(seen: Sequence[Seen], readout: float, rounds: int) -> list[Similarity]:
    """The motions between the frames as a global shutter would have shown them."""
    measured = [each.motion for each in seen]
    motions = list(measured)
    for _ in range(rounds):
        sways = [_sway(seen, motions, at, readout) for at in range(len(seen))]
        motions = [
            _unbiased(seen[at], measured[at], motions[at], sways[at - 1], sways[at])
            if at and seen[at].linked
            else measured[at]
            for at in range(len(seen))
        ]
    return motions


def _unbiased(
    seen: Seen, measured: Similarity, motion: Similarity, before: Sway | None, here: Sway | None
) -> Similarity:
    """What was measured, less what a similarity makes of both frames' sways."""
    if before is None or here is None:
        return measured
    width, height = seen.frame.width, seen.frame.height
    centre = complex(width - 1, height - 1) / 2
    x, y = np.meshgrid(np.linspace(-0.45, 0.45, 6) * width, np.linspace(-0.45, 0.45, 6) * height)
    start = (x + 1j * y).ravel()
    moved = here.observed(
        motion.turn * (before.true(start + centre) - centre) + motion.shift + centre
    )
    end = moved - centre
    turn = complex((start.conj() @ (end - end.mean())) / (np.abs(start) ** 2).sum())
    shift = complex(end.mean() - turn * start.mean())
    fitted = Similarity(turn, shift)
    return measured @ fitted.inverse @ motion


def _sway(
    seen: Sequence[Seen], motions: Sequence[Similarity], at: int, readout: float
) -> Sway | None:
    """The motion within frame `at`, from a polynomial through the places of those around it."""
    known = _around(seen, motions, at)
    if len(known) < 2:
        return None
    interval = median(each.dt for each in list(seen)[max(1, at - SIDE) : at + SIDE + 1] if each.dt)
    times = np.array([time for time, _ in known]) / interval
    powers = times[:, None] ** np.arange(1, len(known) + 1)
    rows = np.array([(pose.log_turn, pose.shift) for _, pose in known])
    solved = np.linalg.solve(powers, rows) * readout ** np.arange(1, len(known) + 1)[:, None]
    frame = seen[at].frame
    return Sway(solved[:, 1], solved[:, 0], frame.width, frame.height)


def _around(
    seen: Sequence[Seen], motions: Sequence[Similarity], at: int
) -> list[tuple[float, Similarity]]:
    """(s, from the picture of frame `at` to theirs) of its neighbours, without repetitions."""
    known: list[tuple[float, Similarity]] = []
    pose, time = Similarity(), 0.0
    for k in range(at + 1, min(len(seen), at + SIDE + 1)):
        if not seen[k].linked:
            break
        pose, time = motions[k] @ pose, time + seen[k].dt
        if not _repeated(seen[k]):
            known.append((time, pose))
    pose, time = Similarity(), 0.0
    for k in range(at, max(0, at - SIDE), -1):
        if not seen[k].linked:
            break
        pose, time = motions[k].inverse @ pose, time - seen[k].dt
        if not _repeated(seen[k]):
            known.append((time, pose))
    return known


def _repeated(seen: Seen) -> bool:
    return seen.frame.motion is not None and seen.frame.motion.duplicate
