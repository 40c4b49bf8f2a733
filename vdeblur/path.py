"""The path a steady camera would have taken, and how far each frame must be moved onto it.

Places are luma pixels from the centre of a frame, z = x + iy; a similarity is z -> a z + b. The
steady path x minimises, over the frames in the window and for each of x, y, angle and scale,

    sum dt (-log(1 - u**2) + (smoothing**2 x'' / budget)**2),    u = (x - raw path) / budget

from where the path stands, on to where the camera seems to be heading. Far from the budget this is
the fixed-lag Kalman (RTS) smoother of a camera that is pushed by white noise, whose corner lies at
1 / (2 pi smoothing) Hz; near the budget the logarithm bends the path instead of clamping it.
A pan has no x'' and costs nothing: it is followed without lag.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import ceil, cos, exp, sin, sqrt

import numpy as np
from numpy.typing import NDArray

from .errors import VdeblurError
from .similarity import Similarity

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

ANGLE_SHARE, SCALE_SHARE = 0.84, 0.08
"""The parts of the crop budget that turning and scaling may use; moving has the rest."""
TURN_SMOOTHING = 1.4
"""Angle and scale are smoothed so much longer than the position."""
LOCK = 10.0
"""A locked camera is held so much more firmly than the picture's edge pushes it."""
NEWTON_STEPS = 400
"""At most; about 8 are taken, and 200 where a window of seconds is at its limits throughout."""
FORESEEN, FORESEEN_STEP = 0.7, 0.15
"""What lies ahead is thought out so far, in such steps, in units of `smoothing`, at most 1 s."""
SLACK = 0.05
"""px that stay clear of the border: cv2 takes the place of a pixel to 1/32."""
LEAST = 0.01
"""px of room that there always is; rounding may leave none."""
NEAR, FAR = 40, 20
"""So many frames ahead are planned one by one, and the rest of a window in so many steps."""
BLOCK = 32
"""Unknowns that are solved for at once, two a frame."""


@dataclass(frozen=True, slots=True)
class Intent:
    """Where the camera seems to be heading, seen from its newest frame: a Kalman filter's state."""

    offset: complex = 0
    """From the centre to where the camera should look, px."""
    velocity: complex = 0
    """px/s."""
    turn_offset: complex = 0
    """log scale + i angle between the newest frame and the intended one."""
    turn_velocity: complex = 0
    """1/s + i rad/s."""
    seen: int = 1
    """Frames that told something."""

    def expected(self, dt: float) -> Similarity:
        """The motion that carries a frame on as the camera is heading."""
        turn = self.turn_velocity * dt
        scale = exp(turn.real)
        return Similarity(
            complex(scale * cos(turn.imag), scale * sin(turn.imag)), -self.velocity * dt
        )

    def after(self, motion: Similarity, dt: float, smoothing: float) -> "Intent":
        """The state once the next frame's motion is known."""
        here = motion(self.offset + self.velocity * dt)
        turn_here = self.turn_offset + self.turn_velocity * dt - motion.log_turn
        gain, push = self._gains(dt, smoothing)
        turn_gain, turn_push = self._gains(dt, smoothing * TURN_SMOOTHING)
        return Intent(
            offset=here * (1 - gain),
            velocity=motion.turn * self.velocity - push * here,
            turn_offset=turn_here * (1 - turn_gain),
            turn_velocity=self.turn_velocity - turn_push * turn_here,
            seen=self.seen + 1,
        )

    def coasting(self, dt: float) -> "Intent":
        """The state after a frame that told nothing: what was known fades."""
        fading = exp(-dt)
        return replace(
            self, velocity=fading * self.velocity, turn_velocity=fading * self.turn_velocity
        )

    def _gains(self, dt: float, smoothing: float) -> tuple[float, float]:
        """Of position and of velocity (1/s).

        Those of a straight line fitted to all that was seen, until they fall to the steady Kalman
        gains for the cost above.
        """
        n = self.seen + 1
        slowness = max(smoothing, 3 * dt)  # a filter faster than its samples would swing
        gain = max(1 - exp(-sqrt(2) * dt / slowness), (4 * n - 2) / (n * (n + 1)))
        return gain, max(dt / slowness**2, 6 / (n * (n + 1) * dt))


@dataclass(frozen=True, slots=True)
class Step:
    """What the path needs to know about a frame."""

    motion: Similarity
    """From the frame before."""
    dt: float
    """Seconds since the frame before."""
    intent: Intent
    """After this frame."""
    bare: float = 0.0
    """The part of its sides that is lost when the frame's own distortion is undone."""

    def then(self, later: "Step") -> "Step":
        """Both steps as one."""
        motion, bare = later.motion @ self.motion, max(self.bare, later.bare)
        return Step(motion, self.dt + later.dt, later.intent, bare)


def thinned(window: Sequence[Step], near: int = NEAR) -> list[Step]:
    """The window with what lies far ahead in fewer, longer steps, so that its cost is bounded."""
    stride = max(1, ceil((len(window) - near) / FAR))
    far = window[near:]
    return [
        *window[:near],
        *(reduce(Step.then, far[start : start + stride]) for start in range(0, len(far), stride)),
    ]


@dataclass(frozen=True, slots=True)
class Budget:
    """How far a frame of `width` x `height` may be moved when at most `crop` of it is cut off."""

    width: int
    height: int
    crop: float
    focal: float | None = None
    """px, of a lens so wide that the picture's edges move more than its middle; see `lens`."""

    def __post_init__(self) -> None:
        if not 0 < self.crop < 0.5:
            raise ValueError(f"crop must be above 0 and below 0.5, got {self.crop}")

    @property
    def half(self) -> complex:
        """From the centre of the frame to the centre of its last pixel."""
        return complex(self.width - 1, self.height - 1) / 2

    def turn(self, crop: float) -> complex:
        """The largest change of log scale and the largest turn, + i rad, at that crop."""
        longer = max(self.width, self.height) / min(self.width, self.height)
        return complex(SCALE_SHARE * crop, (1 / (1 - ANGLE_SHARE * crop) - 1) / longer)

    def room(self, log_turn: complex, crop: float) -> complex:
        """How far right and down, along its own axes, a frame that is turned so may be moved."""
        slack = complex(SLACK, SLACK)
        room = exp(log_turn.real) * self.half - (1 - crop) * self._reach(log_turn.imag) - slack
        room = complex(max(room.real, LEAST), max(room.imag, LEAST))
        if self.focal is None:
            return room
        along, across = self._stretch(self.focal)
        return complex(
            room.real / (along.real + across * room.imag / room.real),
            room.imag / (along.imag + across * room.real / room.imag),
        )

    def kept(self, correction: Similarity) -> float:
        """The side of the largest centred picture without borders, as a part of the frame's."""
        direction = correction.turn / abs(correction.turn)
        shift = correction.shift / direction
        if self.focal is not None:
            along, across = self._stretch(self.focal)
            shift = complex(
                abs(shift.real) * along.real + abs(shift.imag) * across,
                abs(shift.imag) * along.imag + abs(shift.real) * across,
            )
        reach = self._reach(correction.log_turn.imag)
        slack = min(SLACK, correction.effect(self.width, self.height))
        along_x = (abs(correction.turn) * self.half.real - abs(shift.real) - slack) / reach.real
        along_y = (abs(correction.turn) * self.half.imag - abs(shift.imag) - slack) / reach.imag
        return min(along_x, along_y, 1.0)

    def clamped(self, correction: Similarity, crop: float) -> Similarity:
        """The correction, with less shift where it would leave the budget, as by rounding."""
        room = self.room(correction.log_turn, crop)
        shift = correction.shift / correction.turn * abs(correction.turn)
        over = max(abs(shift.real) / room.real, abs(shift.imag) / room.imag, 1)
        return Similarity(correction.turn, correction.shift / over)

    def _stretch(self, focal: float) -> tuple[complex, float]:
        """How much further than its middle the picture's edges move at most, each along its own
        direction, and how far they move with a motion of the middle along the other one.

        A turn of the camera moves (x, y) by (1 + x**2 / focal**2, x y / focal**2), to first order;
        the divisor holds what a turn of the whole budget adds.
        """
        bow = complex(self.half.real**2, self.half.imag**2) / focal**2
        more = 1 - self.crop * max(bow.real, bow.imag)
        if more <= 0.2:
            raise VdeblurError(
                f"a crop of {self.crop:g} is too much for so wide a lens: "
                f"ask for less of --max-crop or of --field-of-view"
            )
        return complex(1 + bow.real, 1 + bow.imag) / more, sqrt(bow.real * bow.imag) / more

    def _reach(self, angle: float) -> complex:
        """How far a frame turned by `angle` rad reaches along the axes of one that is not."""
        c, s, half = abs(cos(angle)), abs(sin(angle)), self.half
        return complex(c * half.real + s * half.imag, s * half.real + c * half.imag)


@dataclass(frozen=True, slots=True)
class Curve:
    """A raw path in the plane that is to be smoothed, over N frames."""

    raw: Complex
    """(N,)."""
    axes: Complex
    """(N,): the raw path less the smooth one, times this, is what must stay within `room`."""
    room: Complex
    """(N,): along both axes."""
    unit: complex
    """The budget that accelerations are measured in, along both axes."""
    times: Floats
    """(len(before) + N,) s."""
    before: Complex
    """(0 to 2,): the end of the smooth path so far."""
    heading: tuple[complex, complex] | None
    """Position and velocity that the path should end on; None if nothing follows."""
    smoothing: float
    """s."""
    anchor: complex | None = None
    """Where the path should stay."""

    def settled(self, guess: Complex) -> Complex:
        """(N,): the smooth path, by Newton's method, from a (N,) guess at the u of the formula."""
        energy = self._energy()
        x = self.raw + (guess.real * self.room.real + 1j * guess.imag * self.room.imag) / self.axes
        now = energy.value(x)
        for _ in range(NEWTON_STEPS):
            slope, bow = energy.slope(x), energy.bow(x)
            step = -_banded_solve(bow, slope)
            gain = -_dot(slope, step)
            if gain < 1e-7 * (1e-3 + now):
                break
            size = energy.free_step(x, step)
            while (then := energy.value(x + size * step)) > now - 0.1 * size * gain and size > 1e-4:
                size /= 2
            x, now = x + size * step, then
        return x

    def use(self, x: Complex) -> Complex:
        """(N,): u of the formula above, -1 to 1 along both axes."""
        away = (x - self.raw) * self.axes
        return np.asarray(away.real / self.room.real + 1j * away.imag / self.room.imag)

    def _energy(self) -> "Energy":
        """What the smooth path has least of."""
        rows, target = self._bending()
        if self.anchor is not None:
            pull = LOCK * np.sqrt(np.append(0, np.diff(self.times)))
            rows = np.concatenate([rows, np.diag(pull)])
            target = np.concatenate([target, pull * self.anchor])
        elif self.heading is not None and len(self.times) > 1:
            more, aim = self._arriving(self.heading)
            rows, target = np.concatenate([rows, more]), np.concatenate([target, aim])
        known = len(self.before)
        target = target - rows[:, :known] @ self.before
        rows = rows[:, known:]
        return Energy(self, rows, target, rows.T @ rows, self._durations())

    def _durations(self) -> Floats:
        """(N,) s: how long each frame counts."""
        steps = np.diff(self.times)
        both = np.concatenate([steps[:1], steps, steps[-1:]]) if len(steps) else np.ones(2)
        return np.asarray((both[:-1] + both[1:])[len(self.before) :] / 2)

    def _bending(self) -> tuple[Floats, Complex]:
        """Second derivatives at all times but the first and last, by their share of the cost."""
        steps = np.diff(self.times)
        count = max(0, len(self.times) - 2)
        rows = np.zeros((count, len(self.times)))
        at = np.arange(count)
        left, right = steps[:-1][:count], steps[1:][:count]
        weight = self.smoothing**2 * np.sqrt(2 / (left + right))
        rows[at, at] = weight / left
        rows[at, at + 1] = -weight * (1 / left + 1 / right)
        rows[at, at + 2] = weight / right
        return rows, np.zeros(count, complex)

    def _arriving(self, heading: tuple[complex, complex]) -> tuple[Floats, Complex]:
        """What the path beyond the window will cost: that of a linear-quadratic regulator."""
        tau = self.smoothing
        last, step = len(self.times) - 1, float(self.times[-1] - self.times[-2])
        place, speed = np.zeros(last + 1), np.zeros(last + 1)
        place[last] = 1
        speed[last - 1 :] = -1 / step, 1 / step
        position, velocity = heading
        root = 2**0.25
        rows = np.stack([root * place + tau / root * speed, tau / root * speed])
        aim = np.array([root * position + tau / root * velocity, tau / root * velocity])
        return sqrt(tau) * rows, np.asarray(sqrt(tau) * aim, complex)


@dataclass(frozen=True, slots=True)
class Energy:
    """What a smooth path through `curve` costs, its slope and its bow (second derivative)."""

    curve: Curve
    rows: Floats
    """(R, N): what of the path is to be ..."""
    target: Complex
    """(R,): ... near this."""
    square: Floats
    """(N, N): rows' rows."""
    weights: Floats
    """(N,) s."""

    def value(self, x: Complex) -> float:
        """Of the path x (N,)."""
        bend = _applied(self.rows, x) - self.target
        u, unit = self.curve.use(x), self.curve.unit
        barrier = self.weights @ (np.log1p(-(u.real**2)) + np.log1p(-(u.imag**2)))
        bent = (bend.real / unit.real) @ (bend.real / unit.real)
        return float(bent + (bend.imag / unit.imag) @ (bend.imag / unit.imag) - barrier)

    def slope(self, x: Complex) -> Complex:
        """(N,): along x and y of each frame."""
        u, room, unit = self.curve.use(x), self.curve.room, self.curve.unit
        push = (
            2
            * self.weights
            * (u.real / (1 - u.real**2) / room.real + 1j * u.imag / (1 - u.imag**2) / room.imag)
        )
        bend = 2 * _applied(self.rows.T, _applied(self.rows, x) - self.target)
        bent = bend.real / unit.real**2 + 1j * bend.imag / unit.imag**2
        return np.asarray(push * self.curve.axes.conj() + bent)

    def bow(self, x: Complex) -> Floats:
        """(2N, 2N): x and y of the first frame, x and y of the second, and so on."""
        u, room, unit, axes = self.curve.use(x), self.curve.room, self.curve.unit, self.curve.axes
        along = 2 * self.weights * (1 + u.real**2) / ((1 - u.real**2) * room.real) ** 2
        across = 2 * self.weights * (1 + u.imag**2) / ((1 - u.imag**2) * room.imag) ** 2
        bow = np.zeros((2 * len(x), 2 * len(x)))
        bow[0::2, 0::2] = 2 * self.square / unit.real**2
        bow[1::2, 1::2] = 2 * self.square / unit.imag**2
        at = 2 * np.arange(len(x))
        bow[at, at] += along * axes.real**2 + across * axes.imag**2
        bow[at + 1, at + 1] += along * axes.imag**2 + across * axes.real**2
        mixed = (across - along) * axes.real * axes.imag
        bow[at, at + 1] += mixed
        bow[at + 1, at] += mixed
        return bow

    def free_step(self, x: Complex, step: Complex) -> float:
        """The part of `step`, at most 1, that keeps clear of all limits."""
        here, there = self.curve.use(x), self.curve.use(x + step)
        part = 1.0
        for u, move in ((here.real, there.real - here.real), (here.imag, there.imag - here.imag)):
            away = np.where(move > 0, 1 - u, 1 + u)
            part = min(part, float((0.9 * away / np.maximum(np.abs(move), 1e-12)).min()))
        return part


def _applied(rows: Floats, x: Complex) -> Complex:
    """(R, N), (N,) -> (R,): their product, for which numpy alone would make `rows` complex."""
    both = rows @ np.ascontiguousarray(x, np.complex128).view(np.float64).reshape(-1, 2)
    return np.ascontiguousarray(both).view(np.complex128).ravel()


def _dot(a: Complex, b: Complex) -> float:
    """Of two (N,) lists of vectors."""
    return float(a.real @ b.real + a.imag @ b.imag)


def _banded_solve(matrix: Floats, right: Complex) -> Complex:
    """The x of matrix x = right, where frames more than two apart have nothing in common.

    In blocks, from the first to the last and back: the time grows with N and not with its cube,
    and each solve is too small for the threads of LAPACK, which on a busy machine cost more.
    """
    size = 2 * len(right)
    values = np.stack([right.real, right.imag], axis=1).ravel()
    cuts = [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
    reduced: list[tuple[Floats, Floats]] = []  # of each block: what follows it, its own values
    for index, here in enumerate(cuts):
        pivot, own = matrix[here, here], values[here]
        if index:
            link = matrix[here, cuts[index - 1]]
            follow, solved = reduced[-1]
            pivot, own = pivot - link @ follow, own - link @ solved
        after = matrix[here, cuts[index + 1]] if index + 1 < len(cuts) else np.zeros((len(own), 0))
        both: Floats = np.linalg.solve(pivot, np.column_stack([after, own])).astype(np.float64)
        reduced.append((both[:, :-1], both[:, -1]))
    parts = [reduced[-1][1]]
    for follow, solved in reversed(reduced[:-1]):
        parts.append(solved - follow @ parts[-1])
    x = np.concatenate(parts[::-1])
    return np.asarray(x[0::2] + 1j * x[1::2])


class SteadyPath:
    """The path of one scene, laid down frame by frame."""

    def __init__(self, budget: Budget, smoothing: float, *, camera_lock: bool = False) -> None:
        self._budget = budget
        self._smoothing = smoothing
        self._camera_lock = camera_lock
        self._anchor_turn, self._anchor_place = 0j, 0j  # of the first frame, seen from the last
        self._correction: Similarity | None = None  # of the last frame that was decided
        self._camera: Similarity | None = None  # the steady camera's motion to that frame
        self._dt = 0.0  # the time it took
        self._turn_plan: Complex = np.zeros(0, complex)  # how the last plan used its room
        self._place_plan: Complex = np.zeros(0, complex)

    def advance(
        self, window: Sequence[Step], crops: Sequence[float], *, ended: bool, count: int = 1
    ) -> list[Similarity]:
        """The corrections of the frames in `window`; those of the first `count` are decided.

        A correction takes the pixels of the frame to those of the steady one, with no more of it
        cut off than `crops` allow each. `ended` tells that no frame of this scene follows.
        """
        given = len(window)
        if not ended:
            window = [*window, *_foreseen(window, self._smoothing)]
            crops = [*crops, *[crops[-1]] * (len(window) - given)]
        raw = self._raw(window)
        turns = self._turns(window, raw, crops, ended)
        places = self._places(window, raw, turns, crops, ended)
        corrections = []
        for turn, place, frame, crop in zip(turns, places, raw, crops, strict=True):
            steady = Similarity(_exp(turn), -_exp(turn) * place)
            corrections.append(self._budget.clamped(steady @ frame, crop))
        for step, decided in zip(window[:count], corrections, strict=False):
            self._decide(step, decided)
        self._turn_plan, self._place_plan = self._turn_plan[count:], self._place_plan[count:]
        return corrections[:given]

    def _decide(self, step: Step, correction: Similarity) -> None:
        """Go on from a frame that is moved so."""
        if self._correction is not None:
            self._camera = correction @ step.motion @ self._correction.inverse
            self._dt = step.dt
            self._anchor_turn -= self._camera.log_turn
            self._anchor_place = self._camera(self._anchor_place)
        self._correction = correction

    def _raw(self, window: Sequence[Step]) -> list[Similarity]:
        """From each frame to the steady picture of the last decided one (or the first frame)."""
        if self._correction is None:
            raw = [Similarity()]
        else:
            raw = [self._correction @ window[0].motion.inverse]
        for step in window[1:]:
            raw.append(raw[-1] @ step.motion.inverse)
        return raw

    def _turns(
        self,
        window: Sequence[Step],
        raw: list[Similarity],
        crops: Sequence[float],
        ended: bool,
    ) -> Complex:
        """(N,): log scale + i angle of the steady camera against the last decided one."""
        logs = np.array([-frame.log_turn for frame in raw])
        intent = window[-1].intent
        before = [] if self._camera is None else [-self._camera.log_turn]
        curve = Curve(
            raw=logs,
            axes=np.ones(len(raw), complex),
            room=np.array([self._budget.turn(crop) for crop in crops], complex),
            unit=self._budget.turn(self._budget.crop),
            times=self._times(window),
            before=np.array([*before, *self._here()], complex),
            heading=None if ended else (logs[-1] + intent.turn_offset, intent.turn_velocity),
            smoothing=self._smoothing * TURN_SMOOTHING,
            anchor=self._anchor_turn if self._camera_lock else None,
        )
        turns = curve.settled(_next(self._turn_plan, len(raw)))
        self._turn_plan = curve.use(turns)
        return turns

    def _places(
        self,
        window: Sequence[Step],
        raw: list[Similarity],
        turns: Complex,
        crops: Sequence[float],
        ended: bool,
    ) -> Complex:
        """(N,): where the steady camera looks, in pixels of the last decided steady picture."""
        room = [
            self._budget.room(turn + frame.log_turn, crop)
            for turn, frame, crop in zip(turns, raw, crops, strict=True)
        ]
        axes = [
            _exp(turn.real - 1j * frame.log_turn.imag)
            for turn, frame in zip(turns, raw, strict=True)
        ]
        intent, newest = window[-1].intent, raw[-1]
        before = [] if self._camera is None else [self._camera.shift]
        curve = Curve(
            raw=np.array([frame.shift for frame in raw], complex),
            axes=np.array(axes, complex),
            room=np.array(room, complex),
            unit=self._budget.crop * self._budget.half,
            times=self._times(window),
            before=np.array([*before, *self._here()], complex),
            heading=None if ended else (newest(intent.offset), newest.turn * intent.velocity),
            smoothing=self._smoothing,
            anchor=self._anchor_place if self._camera_lock else None,
        )
        places = curve.settled(_next(self._place_plan, len(raw)))
        self._place_plan = curve.use(places)
        return places

    def _here(self) -> list[complex]:
        """Where the last decided frame lies: it is what everything is measured from."""
        return [] if self._correction is None else [0j]

    def _times(self, window: Sequence[Step]) -> Floats:
        """(up to 2 + N,) s: of the decided frames, then of the window."""
        steps = [step.dt for step in window]
        if self._correction is None:
            steps[0] = 0.0
            return np.cumsum(steps)
        past = [0.0] if self._camera is None else [0.0, self._dt]
        return np.cumsum([*past, *steps])


def _next(plan: Complex, count: int) -> Complex:
    """(count,): what is left of the last plan; a little off the limits, to start from."""
    later = plan[:count]
    return np.concatenate([0.95 * later, np.zeros(count - len(later))])


def _foreseen(window: Sequence[Step], smoothing: float) -> list[Step]:
    """Steps of a camera that goes where it is heading, for as long as the window is too short.

    Without them a short window sees the limits too late.
    """
    newest, dt = window[-1], FORESEEN_STEP * min(smoothing, 1.0)
    missing = FORESEEN * min(smoothing, 1.0) - sum(step.dt for step in window[1:])
    intent = newest.intent
    turn = _exp(intent.turn_offset + intent.turn_velocity * dt)
    arrival = Similarity(turn, -turn * (intent.offset + intent.velocity * dt))
    later = Intent(0, turn * intent.velocity, 0, intent.turn_velocity)
    count = max(0, round(missing / dt))
    return [Step(later.expected(dt) if i else arrival, dt, later) for i in range(count)]


def _exp(z: complex) -> complex:
    """e**z."""
    return exp(z.real) * complex(cos(z.imag), sin(z.imag))
