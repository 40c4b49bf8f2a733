"""Steady the picture: the camera's path is smoothed, each frame is moved onto it."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from math import exp
from typing import Literal, get_args

import numpy as np

from .fill import OUTLINE, Placed, completed
from .frame import Frame, Motion
from .lens import focal_length, moved_by, turned
from .options import LONGEST_SMOOTHING
from .path import NEAR, Budget, Floats, Intent, SteadyPath, Step, thinned
from .similarity import Similarity
from .sway import Complex
from .warp import INTERPOLATIONS, Interpolation, bend, warp

Zoom = Literal["auto", "adaptive", "static", "none"]
Border = Literal["replicate", "black", "reflect", "fill"]

HIDDEN_CROP, BORDERED_CROP = 0.12, 0.3
"""How much of the sides may be lost where the edge is hidden, and where it may show."""
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
PLAN_AHEAD = 3
"""s: so far ahead the path of a file is planned; a third of it is then decided. With 5 or 8 s no
clip became steadier, with 2 s some became less steady."""
PLAN_FRAMES, PLAN_COUNT = 480, 150
"""At most so many frames are seen ahead of, and decided, at a time."""
LONGEST_STEP = 1.0
"""s: a longer gap between frames counts as this long."""


@dataclass(frozen=True, slots=True)
class Held:
    """A frame that waits for those after it."""

    frame: Frame
    step: Step
    cut: bool
    """It begins a scene."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What path is wanted."""

    smoothing: float = 0.8
    """s: shaking faster than about 1 / (2 pi smoothing) Hz goes, slower motion stays."""
    zoom: Zoom | float = "adaptive"
    """A number zooms by so much, 1 not at all."""
    max_crop: float = 0.12
    """The part of the width and height that a frame may be moved out of the picture."""
    camera_lock: bool = False
    """Stay where the scene began, as on a tripod."""
    field_of_view: float | None = None
    """Degrees that a wide lens sees from left to right; None for any other."""

    def __post_init__(self) -> None:
        if not 0 < self.smoothing <= LONGEST_SMOOTHING:
            raise ValueError(
                f"smoothing must be above 0 and at most {LONGEST_SMOOTHING} s, got {self.smoothing}"
            )
        if not 0 < self.max_crop < 0.5:
            raise ValueError(f"max_crop must be above 0 and below 0.5, got {self.max_crop}")
        if isinstance(self.zoom, float) and not 1 <= self.zoom <= 4:
            raise ValueError(f"zoom must be 1 to 4, got {self.zoom}")
        if not isinstance(self.zoom, float) and self.zoom not in get_args(Zoom):
            names = ", ".join(get_args(Zoom))
            raise ValueError(f"zoom must be a number or one of {names}, got {self.zoom!r}")
        if self.field_of_view is not None:
            focal_length(self.field_of_view, 1)  # refuses nonsense

    @staticmethod
    def of(
        smoothing: float,
        zoom: Zoom | float,
        border: Border,
        max_crop: float | None,
        camera_lock: bool,
        field_of_view: float | None = None,
    ) -> "Aim":
        """What `Stabilizer` is asked for, with the defaults that depend on the rest."""
        if zoom == "auto":
            zoom = "none" if border == "fill" else "adaptive"
        if not isinstance(zoom, str):
            zoom = float(zoom)  # it may be a whole number, or numpy's
        if max_crop is None:
            max_crop = BORDERED_CROP if isinstance(zoom, float) else HIDDEN_CROP
        return Aim(smoothing, zoom, max_crop, camera_lock, field_of_view)

    def focal(self, width: int) -> float | None:
        """px, of a wide lens that takes pictures so wide."""
        return None if self.field_of_view is None else focal_length(self.field_of_view, width)


class Planner:
    """Plans the path of a file: sees `PLAN_AHEAD` seconds ahead, and needs no pictures for it.

    Takes frames with their motion and gives them out later with their `correction`; it holds
    `most` of them at a time.
    """

    def __init__(self, aim: Aim, most: int = PLAN_FRAMES) -> None:
        self._aim, self._most = aim, most
        self._ready: deque[Frame] = deque()  # decided, given out one by one: nobody waits for many
        self._held: deque[Held] = deque()
        self._last: Held | None = None
        self._scene: Scene | None = None

    def push(self, frame: Frame) -> list[Frame]:
        """Take one frame; return those whose place is decided."""
        held = self._last = _seen(frame, self._last, self._aim.smoothing)
        if held.cut:
            self._ready.extend(self._decided(ended=True))
        self._held.append(held)
        span = frame.time - self._held[0].frame.time
        if span >= PLAN_AHEAD or len(self._held) >= self._most:
            self._ready.extend(self._decided(ended=False))
        return [self._ready.popleft()] if self._ready else []

    def flush(self) -> list[Frame]:
        """Return the frames still held and be ready for a new video."""
        decided = [*self._ready, *self._decided(ended=True)]
        self._ready.clear()
        self._last = self._scene = None
        return decided

    def _decided(self, *, ended: bool) -> list[Frame]:
        """All frames held, when the scene has ended, or else the first part of them."""
        decided: list[Frame] = []
        while self._held and (ended or not decided):
            first = self._held[0]
            width, height = first.frame.width, first.frame.height
            if first.cut or self._scene is None:
                self._scene = Scene(self._aim, width, height)
            count = max(1, min(PLAN_COUNT, len(self._held) // (1 if ended else 3)))
            corrections = [Similarity()] * count
            if min(width, height) >= SMALLEST:
                steps = [held.step for held in self._held]
                corrections = self._scene.advance(steps, ended=ended, count=count)
            for correction in corrections:
                matrix = correction.matrix(width, height)
                decided.append(replace(self._held.popleft().frame, correction=matrix))
        return decided


class Followed:
    """Gives each frame what was found out about it before: motion, sway and correction.

    `planned` yields the same frames in the same order, without their pictures. A damaged file need
    not be read twice in the same way: what only one of the readings has is told by its `pts`.
    """

    def __init__(self, planned: Iterator[Frame]) -> None:
        self._planned = planned
        self._next: Frame | None = None

    def push(self, frame: Frame) -> list[Frame]:
        """Return the frame at once."""
        while self._next is None or self._next.pts < frame.pts:
            self._next = next(self._planned, None)
            if self._next is None:
                break
        known = self._next
        if known is None or known.pts != frame.pts:
            return [replace(frame, motion=Motion.none())]
        return [replace(frame, motion=known.motion, sway=known.sway, correction=known.correction)]

    def flush(self) -> list[Frame]:
        """Nothing was held back."""
        return []


class Stabilizer:
    """Holds `lookahead` frames back and gives them out as a steadier camera would have seen them.

    `smoothing` in seconds: shaking faster than about 1 / (2 pi smoothing) Hz goes, slower motion
    stays. `max_crop` is the part of the width and height that may be lost (0.12). `zoom` "adaptive"
    zooms in no further than needed, and slowly; "static" always by the whole of `max_crop`; "none"
    never, and shows a `border`; "auto" is "none" with the border "fill", which completes the
    picture from its neighbours, and "adaptive" with the others. A number always zooms by so much;
    frames may then move further, by a `max_crop` of 0.3, and show a border where they do.
    `camera_lock` keeps the camera where each scene began. A frame that comes with a `correction`
    is moved by that one.
    """

    def __init__(
        self,
        *,
        lookahead: int = 15,
        smoothing: float = 0.8,
        zoom: Zoom | float = "auto",
        max_crop: float | None = None,
        camera_lock: bool = False,
        border: Border = "replicate",
        interpolation: Interpolation = "bicubic",
        field_of_view: float | None = None,
    ) -> None:
        if lookahead < 0:
            raise ValueError(f"lookahead must be 0 or more frames, got {lookahead}")
        for name, value, choices in (
            ("border", border, get_args(Border)),
            ("interpolation", interpolation, tuple(INTERPOLATIONS)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        self._lookahead = lookahead
        self._aim = Aim.of(smoothing, zoom, border, max_crop, camera_lock, field_of_view)
        self._past: deque[Held] = deque(maxlen=PAST if border == "fill" else 0)
        self._here: Held | None = None  # the frame that is being moved
        self._border: Border = border
        self._interpolation: Interpolation = interpolation
        self._held: deque[Held] = deque()
        self._last: Held | None = None  # the newest frame taken
        self._scene: Scene | None = None  # of the frame that is next to go
        self.planned = False
        """Frames come with a `correction` and wait only to fill each other's borders, so that few
        pictures are held."""

    def push(self, frame: Frame) -> list[Frame]:
        """Take one frame; return the one that has been held long enough."""
        self._last = _seen(frame, self._last, self._aim.smoothing)
        self._held.append(self._last)
        known = all(held.frame.correction is not None for held in self._held)
        if self.planned and known and self._border != "fill":
            return self.release(len(self._held))
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

    def _released(self, *, ended: bool) -> Frame:
        """The oldest frame held, moved to its place."""
        first, *later = self._held
        if min(first.frame.width, first.frame.height) < SMALLEST:
            return self._held.popleft().frame
        if all(held.frame.correction is not None for held in self._held):
            self._scene = None  # there is nothing to smooth in sight
            correction = Similarity()
        else:
            same = list(takewhile(lambda held: not held.cut, later))
            if first.cut or self._scene is None:
                self._scene = Scene(self._aim, first.frame.width, first.frame.height)
            steps = [held.step for held in (first, *same)]
            ended = ended or len(same) < len(later)
            correction, *_ = self._scene.advance(steps, ended=ended)
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
        focal = self._aim.focal(frame.width)
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

    def __init__(self, aim: Aim, width: int, height: int) -> None:
        self._budget = Budget(width, height, aim.max_crop, aim.focal(width))
        self._path = SteadyPath(self._budget, aim.smoothing, camera_lock=aim.camera_lock)
        self._zoom = aim.zoom
        self._kept: float | None = None  # the part of the sides shown; None before the first frame

    def advance(self, window: Sequence[Step], *, ended: bool, count: int = 1) -> list[Similarity]:
        """The corrections of the first `count` frames in `window`, zoom included."""
        window = thinned(window, max(NEAR, 2 * count))
        crops = self._crops(window)
        corrections = self._path.advance(window, crops, ended=ended, count=count)
        if self._zoom == "none":
            return corrections[:count]
        possible = [
            self._budget.kept(correction) - step.bare
            for correction, step in zip(corrections, window, strict=True)
        ]
        zoomed = []
        for index, correction in enumerate(corrections[:count]):
            self._kept = self._shown(window[index:], possible[index:])
            zoomed.append(Similarity(1 / self._kept) @ correction)
        return zoomed

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
        if isinstance(self._zoom, float):
            return 1 / self._zoom
        wanted, kept = min(possible), self._kept
        if kept is None:
            return wanted
        ahead = sum(step.dt for step in window[1:]) / 3
        slowness = ZOOM_OUT if wanted > kept else max(ahead, 1e-3)
        kept += (wanted - kept) * (1 - exp(-window[0].dt / slowness))
        kept = min(kept, possible[0])
        return kept if kept < 1 - 1e-4 else 1.0


def _seen(frame: Frame, last: Held | None, smoothing: float) -> Held:
    """What the path needs to know about a frame that comes after `last`."""
    motion, bare = frame.motion or Motion.none(), laid_bare(frame)
    if last is None or motion.cut or not _alike(last.frame, frame):
        return Held(frame, Step(Similarity(), 0.0, Intent(), bare), cut=True)
    dt = _seconds(last, frame)
    before = last.step.intent
    if motion.confidence < DOUBTFUL and not motion.duplicate:
        intent = before.coasting(dt)
        return Held(frame, Step(intent.expected(dt), dt, intent, bare), cut=False)
    similarity = Similarity.of(motion.transform, frame.width, frame.height)
    intent = before.after(similarity, dt, smoothing)
    return Held(frame, Step(similarity, dt, intent, bare), cut=False)


def _alike(one: Frame, other: Frame) -> bool:
    """Whether they can belong to one scene: size and format are the same."""
    return one.format == other.format and one.planes[0].shape == other.planes[0].shape


def laid_bare(frame: Frame) -> float:
    """The part of a frame's sides, 0 to 1, that undoing its distortion leaves without a picture."""
    if frame.sway is None:
        return 0.0
    half = complex(frame.width - 1, frame.height - 1) / 2
    edge = 2 * (OUTLINE.real * half.real + 1j * OUTLINE.imag * half.imag)
    moved = frame.sway.true(edge) - edge
    away = edge - half
    inward_x = np.where(abs(away.real) >= half.real - 0.5, -moved.real * np.sign(away.real), 0)
    inward_y = np.where(abs(away.imag) >= half.imag - 0.5, -moved.imag * np.sign(away.imag), 0)
    return max(0.0, float(inward_x.max() / half.real), float(inward_y.max() / half.imag))


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
