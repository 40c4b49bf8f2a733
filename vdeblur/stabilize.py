"""Steady the picture: the camera's path is smoothed, each frame is moved onto it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from math import exp
from typing import Literal, get_args

import numpy as np

from .fill import Placed, completed
from .frame import Frame, Motion
from .lens import focal_length, moved_by, turned
from .path import Budget, Floats, Intent, Similarity, SteadyPath, Step, thinned
from .sway import Complex
from .warp import INTERPOLATIONS, Interpolation, bend, warp

Zoom = Literal["auto", "adaptive", "static", "none"]
Border = Literal["replicate", "black", "reflect", "fill"]

DOUBTFUL = 0.15
"""A motion of less confidence is not believed; the camera is taken to go on as it was."""
UNSEEN = 0.02
"""A frame that would be moved by less, px, is left as it is."""
ZOOM_IN = 0.1
"""1/s: how fast the zoom may cut into the picture."""
ZOOM_OUT = 4.0
"""s: how slowly a zoom that is no longer needed is taken back."""
SMALLEST = 16
"""A picture of less on a side, px, has no room to be moved in and is left as it is."""
PAST = 15
"""Frames that are kept after they have gone out, to fill others' borders."""
LONGEST_STEP = 1.0
"""s: a longer gap between frames counts as this long."""


@dataclass(frozen=True, slots=True)
class Held:
    """A frame that waits for those after it."""

    frame: Frame
    step: Step
    cut: bool
    """It begins a scene."""


class Stabilizer:
    """Holds `lookahead` frames back and gives them out as a steadier camera would have seen them.

    `smoothing` in seconds: shaking faster than about 1 / (2 pi smoothing) Hz goes, slower motion
    stays. `max_crop` is the part of the width and height that may be lost. `zoom` "adaptive" zooms
    in no further than needed, and slowly; "static" always by the whole of `max_crop`; "none" never,
    and shows a `border`; "auto" is "none" with the border "fill", which completes the picture from
    its neighbours, and "adaptive" with the others.
    """

    def __init__(
        self,
        *,
        lookahead: int = 15,
        smoothing: float = 0.8,
        zoom: Zoom = "auto",
        max_crop: float = 0.12,
        border: Border = "replicate",
        interpolation: Interpolation = "bicubic",
        field_of_view: float | None = None,
    ) -> None:
        if field_of_view is not None:
            focal_length(field_of_view, 1)  # refuses nonsense
        self._field_of_view = field_of_view
        if lookahead < 0:
            raise ValueError(f"lookahead must be 0 or more frames, got {lookahead}")
        if not smoothing > 0:
            raise ValueError(f"smoothing must be above 0 s, got {smoothing}")
        if not 0 < max_crop < 0.5:
            raise ValueError(f"max_crop must be above 0 and below 0.5, got {max_crop}")
        for name, value, choices in (
            ("zoom", zoom, get_args(Zoom)),
            ("border", border, get_args(Border)),
            ("interpolation", interpolation, tuple(INTERPOLATIONS)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        self._lookahead = lookahead
        self._smoothing = smoothing
        if zoom == "auto":
            zoom = "none" if border == "fill" else "adaptive"
        self._zoom: Zoom = zoom
        self._max_crop = max_crop
        self._past: deque[Held] = deque(maxlen=PAST if border == "fill" else 0)
        self._here: Held | None = None  # the frame that is being moved
        self._border: Border = border
        self._interpolation: Interpolation = interpolation
        self._held: deque[Held] = deque()
        self._last: Held | None = None  # the newest frame taken
        self._scene: Scene | None = None  # of the frame that is next to go

    def push(self, frame: Frame) -> list[Frame]:
        """Take one frame; return the one that has been held long enough."""
        self._last = self._seen(frame, self._last)
        self._held.append(self._last)
        return [self._released(ended=False)] if len(self._held) > self._lookahead else []

    @property
    def held(self) -> int:
        """Frames that wait for those after them."""
        return len(self._held)

    def release(self, count: int) -> list[Frame]:
        """Return the `count` oldest frames now, though they have not been held long enough."""
        return [self._released(ended=False) for _ in range(min(count, len(self._held)))]

    def flush(self) -> list[Frame]:
        """Return the frames still held and be ready for a new video."""
        frames = [self._released(ended=True) for _ in range(len(self._held))]
        self._last = self._scene = self._here = None
        self._past.clear()
        return frames

    def _seen(self, frame: Frame, last: Held | None) -> Held:
        """What the path needs to know about a frame that comes after `last`."""
        motion = frame.motion or Motion.none()
        resized = last is not None and last.frame.planes[0].shape != frame.planes[0].shape
        if last is None or motion.cut or resized:
            return Held(frame, Step(Similarity(), 0.0, Intent()), cut=True)
        dt = _seconds(last, frame)
        before = last.step.intent
        if motion.confidence < DOUBTFUL and not motion.duplicate:
            intent = before.coasting(dt)
            return Held(frame, Step(intent.expected(dt), dt, intent), cut=False)
        similarity = Similarity.of(motion.transform, frame.width, frame.height)
        return Held(
            frame, Step(similarity, dt, before.after(similarity, dt, self._smoothing)), cut=False
        )

    def _released(self, *, ended: bool) -> Frame:
        """The oldest frame held, moved to its place."""
        first, *later = self._held
        if min(first.frame.width, first.frame.height) < SMALLEST:
            return self._held.popleft().frame
        same = list(takewhile(lambda held: not held.cut, later))
        if first.cut or self._scene is None:
            width, height = first.frame.width, first.frame.height
            budget = Budget(width, height, self._max_crop, self._focal(width))
            self._scene = Scene(budget, self._smoothing, self._zoom)
        steps = [held.step for held in (first, *same)]
        correction = self._scene.advance(steps, ended=ended or len(same) < len(later))
        if (given := first.frame.correction) is not None:
            correction = Similarity.of(given, first.frame.width, first.frame.height)
        self._here = self._held.popleft()
        if first.cut:
            self._past.clear()
        moved = self._moved(first.frame, correction)
        self._past.append(self._here)
        return moved

    def _moved(self, frame: Frame, correction: Similarity) -> Frame:
        """The frame under its correction; the very same one where that does nothing."""
        if correction.effect(frame.width, frame.height) < UNSEEN and frame.sway is None:
            return frame
        matrix = correction.matrix(frame.width, frame.height)
        moved = self._resampled(frame, correction, matrix)
        return replace(moved, correction=matrix)

    def _resampled(self, frame: Frame, correction: Similarity, matrix: Floats) -> Frame:
        """The frame in its place, its edge as it was asked for."""
        focal = self._focal(frame.width)
        if self._border == "fill":
            others = [
                _placed(other, correction @ to_here, focal, away)
                for other, to_here, away in self._neighbours()
            ]
            base = _placed(frame, correction, focal)
            return completed(base, others, interpolation=self._interpolation)
        if frame.sway is None:
            if focal is not None:
                matrix = turned(correction, frame.width, frame.height, focal)
            return warp(frame, matrix, border=self._border, interpolation=self._interpolation)
        look = _placed(frame, correction, focal).look
        return bend(frame, look, border=self._border, interpolation=self._interpolation)

    def _focal(self, width: int) -> float | None:
        """px, of a wide lens."""
        return None if self._field_of_view is None else focal_length(self._field_of_view, width)

    def _neighbours(self) -> list[tuple[Frame, Similarity, int]]:
        """The frames at hand, how each moves to the current one, and how many frames away it is."""
        assert self._here is not None, "a frame is being moved"
        found = []
        pose = Similarity()
        for away, held in enumerate(self._held, start=1):
            if not _connected(held):
                break
            pose = held.step.motion @ pose
            found.append((held.frame, pose.inverse, away))
        pose, later = Similarity(), self._here
        for away, held in enumerate(reversed(self._past), start=1):
            if not _connected(later):
                break
            pose, later = pose @ later.step.motion, held
            found.append((held.frame, pose, -away))
        return found


class Scene:
    """The frames between two cuts: their path and their zoom."""

    def __init__(self, budget: Budget, smoothing: float, zoom: Zoom) -> None:
        self._budget = budget
        self._path = SteadyPath(budget, smoothing)
        self._zoom = zoom
        self._kept: float | None = None  # the part of the sides shown; None before the first frame

    def advance(self, window: Sequence[Step], *, ended: bool) -> Similarity:
        """The correction of the first frame in `window`, zoom included."""
        window = thinned(window)
        corrections = self._path.advance(window, self._crops(window), ended=ended)
        if self._zoom == "none":
            return corrections[0]
        possible = [self._budget.kept(each) for each in corrections]
        self._kept = self._shown(window, possible)
        return Similarity(1 / self._kept) @ corrections[0]

    def _crops(self, window: Sequence[Step]) -> list[float]:
        """How much of each frame the zoom can have cut off by then."""
        most = self._budget.crop
        if self._zoom != "adaptive" or self._kept is None:
            return [most] * len(window)
        times = accumulate(step.dt for step in window)
        return [min(most, 1 - self._kept + ZOOM_IN * time) for time in times]

    def _shown(self, window: Sequence[Step], possible: list[float]) -> float:
        """The part of the sides to show, given what the coming frames allow."""
        if self._zoom == "static":
            return 1 - self._budget.crop
        wanted, kept = min(possible), self._kept
        if kept is None:
            return wanted
        ahead = sum(step.dt for step in window[1:]) / 3
        slowness = ZOOM_OUT if wanted > kept else max(ahead, 1e-3)
        kept += (wanted - kept) * (1 - exp(-window[0].dt / slowness))
        kept = min(kept, possible[0])
        return kept if kept < 1 - 1e-4 else 1.0


def _connected(held: Held) -> bool:
    """Whether it is known how the frame before moved to this one."""
    motion = held.frame.motion
    believed = motion is not None and (motion.duplicate or motion.confidence >= DOUBTFUL)
    return believed and not held.cut


def _placed(frame: Frame, correction: Similarity, focal: float | None, away: int = 0) -> Placed:
    """A frame under a correction, its rolling shutter undone."""
    sway = frame.sway
    if focal is None:
        forward = np.vstack([correction.matrix(frame.width, frame.height), [0, 0, 1]])
    else:
        forward = turned(correction, frame.width, frame.height, focal)
    back = np.linalg.inv(forward)

    def look(places: Complex) -> Complex:
        true = moved_by(back, places)
        return true if sway is None else sway.observed(true)

    def place(places: Complex) -> Complex:
        return moved_by(forward, places if sway is None else sway.true(places))

    return Placed(frame, look, place, away)


def _seconds(last: Held, frame: Frame) -> float:
    """From one frame to the next; where the clock stands still or runs backwards, as before."""
    gap = float(frame.time - last.frame.time)
    if gap <= 0:
        return last.step.dt or 1 / 30
    return float(np.clip(gap, 1e-3, LONGEST_STEP))
