"""How the camera moved from frame to frame: points are followed, a similarity is fitted to them."""

from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import direct
from .frame import Frame, Motion
from .lens import moved_by
from .mesh import local_motion
from .refine import refined
from .similarity import Similarity
from .turn import LearntLens, Turn, fitted, least_squares
from .view import Complex, Floats, Picture, Points, View, coarse_shift, likeness, relit

Interest = NDArray[np.float32]
"""(h, w) of the coarse picture, 0 to 1: where pixels are looked at."""

CELLS = 13
"""One point is kept in each cell of a grid with so many cells along the longer side."""
WINDOW = 17
"""Side of the square that is compared around a point, px of the small picture."""
LEVELS = 4
"""Halvings of the small picture: moves of about 100 px are found at 640."""
CORNER = 3e-5
"""Least eigenvalue of a corner, 4 (g / 255)**2 for gradients of g grey values a pixel."""
REACH = 0.7
"""A point that comes back this far from its start is lost, px of the small picture."""
TOLERANCE = 1.0
"""An inlier lies so near its predicted place, px of the small picture, and 3 % of the move."""
HYPOTHESES = 64
"""With 60 % inliers a pair is clean with p = 0.36: none of 64 is clean with p = 4e-13."""
LARGEST_TURN = 0.5
"""A camera neither turns by so many radians nor zooms by so much between frames."""
STILL = 0.04
"""Less motion than this is called none: noise moves points as far, px of the small picture."""
LOST = 0.1
"""A confidence below this is as good as nothing."""
DOUBTED = 0.3
"""Points of less confidence are not believed without another look."""
MATCHED = 2.0
"""Pictures that differ by less, grey values, need no second look."""
OUTVOTED, RESCUED = 0.78, 0.9
"""A motion of all pixels leaves this share of the difference that the points' leaves, or, where
points tell nothing, that standing still would leave."""
LED, LED_TO = 0.35, 3.0
"""The confidence of such a motion, and within how much of it, px of the small picture, points go
along."""
SURE, UNSURE = 0.25, 0.5
"""Inliers that miss their places by less (RMS, px of the small picture) are believed alone; beside
those that miss by more, the refined motion of all pixels has its largest share."""
REFINED = 0.9
"""That share."""
DISTRUSTED = 0.3
"""Where points are trusted less, the refinement does not look; twice as much is enough."""
FRESH = 0.5
"""Trust in a new point."""
STRAYED = 4.0
"""px of the small picture: a refinement that moves a corner further has found something else."""
SAME_SCENE = 0.5
"""Aligned thumbnails that correlate better than this show the same scene."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """Points of one view that were found again in the next."""

    start: Points
    end: Points
    trust: Floats
    """(N,) 0 to 1: how often the point moved with the camera so far."""
    share: float
    """The part of the points that was found, not counting those that left the picture."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The similarity z -> turn z + shift that most points follow."""

    turn: complex
    shift: complex
    inliers: NDArray[np.bool_]
    confidence: float
    residual: float
    """By how much the inliers miss their places, RMS in px of the small picture."""

    @property
    def transform(self) -> Floats:
        """(2, 3), as `Motion` holds it."""
        a, b = self.turn, self.shift
        return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


class MotionEstimator:
    """Follows the camera through a video, one frame at a time.

    With `perspective` it also finds how the camera turned, exactly, and learns its lens; `skewed`,
    what a rolling shutter adds; `local`, how the parts of the picture moved on their own.
    """

    def __init__(
        self, *, perspective: bool = True, skewed: bool = True, local: bool = False
    ) -> None:
        self._perspective, self._skewed, self._local = perspective, skewed, local
        self._lens = LearntLens()
        self._before: View | None = None
        # A flash or a black frame hides a scene for a moment; this is what it looked like.
        self._scene: deque[View] = deque(maxlen=3)
        self._points: Points = np.zeros((0, 2), np.float32)
        self._trust: Floats = np.zeros(0)
        self._wanted = 1
        self._last: Floats = np.eye(3)

    def reset(self) -> None:
        """Forget the video seen so far."""
        self._before = None
        self._scene.clear()
        self._drop_points()
        self._last = np.eye(3)
        self._lens = LearntLens()

    def estimate(self, luma: NDArray[Any], depth: int = 8) -> Motion:
        """(H, W) luma of `depth` bits -> the motion since the luma of the call before."""
        view = View.of(luma, depth)
        before, self._before = self._before, view
        if before is None or before.scale != view.scale or before.small.shape != view.small.shape:
            self._drop_points()
            self._scene.clear()
            motion = Motion.none(cut=before is not None)
        elif view.flat or before.flat:
            self._drop_points()
            motion = Motion.none(cut=self._is_new(view))
        elif view.repeats(before):
            motion = Motion(np.eye(2, 3), duplicate=True)
        else:
            motion = self._follow(before, view)
        if motion.cut:
            self._last = np.eye(3)
        elif motion.confidence >= DOUBTED and not motion.duplicate:
            self._last = np.vstack([motion.transform, [0, 0, 1]])
        if not view.flat:
            self._scene.append(view)
        return motion

    def _follow(self, before: View, view: View) -> Motion:
        """The motion between two views with something to see."""
        self._refill(before)
        tracks = self._track(before, view, np.zeros(2, np.float32))
        fit = _fit(tracks, before, view)
        if fit.confidence < DOUBTED:
            lit = replace(before, small=relit(before, view))
            tracks_again = self._track(lit, view, coarse_shift(before, view))
            again = _fit(tracks_again, before, view)
            if again.confidence > fit.confidence:
                tracks, fit = tracks_again, again
        way = self._seen_by_all(fit, before, view)
        if way is not None:
            if fit.confidence < LOST or not _agree(fit, way, view):
                return self._led(way, tracks, before, view)
            fit = replace(fit, confidence=max(fit.confidence, LED))
        if fit.confidence < LOST:
            self._drop_points()
            return Motion.none(cut=self._is_new(view))
        self._points = tracks.end
        self._trust = 0.7 * tracks.trust + 0.3 * fit.inliers
        if _is_still(fit, tracks):
            return Motion(np.eye(2, 3), confidence=fit.confidence)
        share = _share(fit, tracks)
        interest = _camera(tracks.start, self._trust, before) if share else None
        transform = _refined(fit, before, view, share, interest)
        homography = None
        if self._perspective:
            homography = self._turned(fit, tracks, before, view, share, interest)
            if way is not None:  # the points have told of the lens, and are not right
                homography = self._led_turn(Similarity.of(way[:2], *view.size), before, view)
                transform = _nearest_similarity(homography, view)
        motion = Motion(
            transform,
            confidence=fit.confidence,
            skew=_skew(tracks, fit, before, view) if self._skewed else 0,
            homography=homography,
        )
        return _with_local(motion, tracks, before, view) if self._local else motion

    def _seen_by_all(self, fit: Fit, before: View, view: View) -> Floats | None:
        """(3, 3), luma px: a motion that all pixels clearly prefer to that of the points."""
        points = np.vstack([fit.transform, [0, 0, 1]])
        if fit.confidence >= DOUBTED:
            if direct.mismatch(before, view, points) < MATCHED:
                return None
            known, allowed, starts = points, OUTVOTED, []
        elif self._is_new(view):
            return None
        else:
            known, allowed, starts = np.eye(3), RESCUED, [points, self._last, np.eye(3)]
        best = direct.found(before, view, [direct.guessed(before, view), *starts])
        if best is None or abs(Similarity.of(best[:2], *view.size).turn - 1) >= LARGEST_TURN:
            return None
        left = direct.share_left(before, view, best, known, unmoved=known is points)
        return best if left <= allowed else None

    def _led(self, way: Floats, tracks: Tracks, before: View, view: View) -> Motion:
        """The motion that all pixels told: points that went along are trusted the more."""
        middle = Similarity.of(way[:2], *view.size)
        matrix = middle.matrix(*view.size)
        start, end = before.unscaled(tracks.start), view.unscaled(tracks.end)
        turn, shift = complex(*matrix[:, 0]), complex(*matrix[:, 2])
        along = _misses(turn, shift, start, end) < LED_TO * max(view.scale)
        self._points = tracks.end
        self._trust = 0.7 * tracks.trust + 0.3 * along
        turned = self._led_turn(middle, before, view) if self._perspective else None
        return Motion(matrix, confidence=LED, homography=turned)

    def _led_turn(self, middle: Similarity, before: View, view: View) -> Floats:
        """(3, 3): the same of a camera that turned, by what is known of its lens."""
        width, height = view.size
        turn = Turn(middle, self._lens)
        known = turn.homography(width, height)
        found = direct.found(before, view, [known])
        if found is None:
            return known
        turned = turn.moved_by(found, width, height).homography(width, height)
        settled = direct.settled(before, view, turned, last=self._last)
        turned = turn.moved_by(settled, width, height).homography(width, height)
        return min((turned, known), key=lambda way: direct.mismatch(before, view, way))

    def _turned(
        self,
        fit: Fit,
        tracks: Tracks,
        before: View,
        view: View,
        share: float,
        interest: Interest | None,
    ) -> Floats:
        """(3, 3): what a camera does whose turn most points follow; the lens is learnt."""
        width, height = view.size
        middle = complex(width - 1, height - 1) / 2
        start, end = before.unscaled(tracks.start), view.unscaled(tracks.end)
        unit = max(view.scale)
        turn = fitted(
            self._lens,
            start - middle,
            end - middle,
            tracks.trust,
            first=Similarity.of(fit.transform, width, height),
            tolerance=unit * TOLERANCE + 0.03 * float(np.median(abs(end - start))),
            unit=unit,
            width=width,
        )
        self._lens = turn.lens
        known = turn.homography(width, height)
        found = _by_all_pixels(known, before, view, interest)
        if found is None:
            return known
        better = turn.moved_by(found, width, height).middle
        if not _near(turn.middle, better, view):
            return known
        return Turn(turn.middle.mixed(better, share), turn.lens).homography(width, height)

    def _is_new(self, view: View) -> bool:
        """Whether `view` shows another scene than the last ones with something to see."""
        if view.flat or not self._scene:
            return False
        return all(likeness(known, view) < SAME_SCENE for known in self._scene)

    def _drop_points(self) -> None:
        self._points = np.zeros((0, 2), np.float32)
        self._trust = np.zeros(0)
        self._wanted = 1

    def _refill(self, view: View) -> None:
        """Put a point into every empty cell that has a corner, once a fifth of them is lost."""
        if len(self._points) > 0.8 * self._wanted:
            return
        height, width = view.small.shape
        cell = max(4, ceil(max(height, width) / CELLS))
        columns = ceil(width / cell)
        order = np.argsort(-self._trust, kind="stable")  # the best point of a cell stays
        x, y = (self._points[order] // cell).astype(int).T
        taken, first = np.unique(y * columns + x, return_index=True)
        corners, cells = _corners(view.small, cell)
        fresh = corners[~np.isin(cells, taken)]
        self._points = np.concatenate([self._points[order][first], fresh])
        self._trust = np.concatenate([self._trust[order][first], np.full(len(fresh), FRESH)])
        self._wanted = len(self._points)

    def _track(self, before: View, view: View, shift: NDArray[np.float32]) -> Tracks:
        """Find the points of `before` in `view`, expecting a `shift` (2,) in small pixels."""
        start, trust = self._points, self._trust
        if not len(start):
            return Tracks(start, start, trust, 0.0)
        end, found = _flow(before.small, view.small, start, start + shift, LEVELS)
        # The way back starts near its end, so that one level does; what moved otherwise is no loss.
        common = np.median((end - start)[found], axis=0) if found.any() else shift
        back, found_back = _flow(view.small, before.small, end, end - common, 0)
        height, width = view.small.shape
        inside = ((end > -0.5) & (end < (width - 0.5, height - 0.5))).all(axis=1)
        near = np.hypot(*(back - start).T) < REACH
        good = found & found_back & inside & near
        # A point that left the picture says nothing against the others.
        sought = max(1, int((inside | ~found).sum()))
        return Tracks(start[good], end[good], trust[good], good.sum() / sought)


class MotionStage:
    """Gives each frame its `motion`; see `MotionEstimator`."""

    def __init__(
        self, *, perspective: bool = True, skewed: bool = True, local: bool = False
    ) -> None:
        self._estimator = MotionEstimator(perspective=perspective, skewed=skewed, local=local)

    def push(self, frame: Frame) -> list[Frame]:
        """Return the frame at once, with its motion."""
        return [
            replace(frame, motion=self._estimator.estimate(frame.planes[0], frame.format.depth))
        ]

    def flush(self) -> list[Frame]:
        """Nothing was held back; the next frame is a first one."""
        self._estimator.reset()
        return []


def _nearest_similarity(way: Floats, view: View) -> Floats:
    """(2, 3): what moves the picture's places most nearly as (3, 3) `way` does."""
    x, y = (np.linspace(0, edge - 1, 9) for edge in view.size)
    places = np.add.outer(1j * y, x).ravel()
    turn, shift = least_squares(places, moved_by(way, places), np.ones(len(places)))
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _with_local(motion: Motion, tracks: Tracks, before: View, view: View) -> Motion:
    """The same with what the points say of the parts of the picture."""
    width, height = view.size
    start, end = before.unscaled(tracks.start), view.unscaled(tracks.end)
    return replace(motion, local=local_motion(start, end, motion.way, width, height))


def _window(picture: Picture) -> tuple[int, int]:
    """(width, height) of the compared square: no wider than a tiny picture has room for."""
    side = min(WINDOW, max(5, min(picture.shape) // 3 | 1))
    return side, side


def _flow(
    before: Picture, after: Picture, points: Points, guess: Points, levels: int
) -> tuple[Points, NDArray[np.bool_]]:
    """Follow (N, 2) points from picture to picture -> where they are, (N,) whether found."""
    end, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        points,
        guess.astype(np.float32),
        winSize=_window(before),
        maxLevel=levels,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.02),
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        minEigThreshold=1e-4,
    )
    return np.asarray(end, dtype=np.float32), np.asarray(status).ravel() == 1


def _corners(picture: Picture, cell: int) -> tuple[Points, NDArray[np.int_]]:
    """The best corner of each cell, where it has one -> (N, 2) points, (N,) cells.

    Of the least eigenvalue and not of FAST: a blurred picture has the one and not the other.
    """
    height, width = picture.shape
    margin = 3
    if min(height, width) <= 2 * margin:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.int_)
    strength = np.zeros((-(-height // cell) * cell, -(-width // cell) * cell), np.float32)
    inner = np.s_[margin : height - margin, margin : width - margin]
    strength[inner] = cv2.cornerMinEigenVal(picture, blockSize=5)[inner]
    rows, columns = strength.shape[0] // cell, strength.shape[1] // cell
    by_cell = strength.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(-1, cell * cell)
    best = by_cell.argmax(axis=1)
    cells = np.flatnonzero(by_cell.max(axis=1) > CORNER)
    y = cells // columns * cell + best[cells] // cell
    x = cells % columns * cell + best[cells] % cell
    return np.stack([x, y], axis=1).astype(np.float32), cells


def _fit(tracks: Tracks, before: View, view: View) -> Fit:
    """The similarity that most tracks follow, by random pairs and then by least squares."""
    if len(tracks.start) < 4:
        return Fit(1, 0, np.zeros(len(tracks.start), bool), 0.0, 0.0)
    start, end = before.unscaled(tracks.start), view.unscaled(tracks.end)
    unit = max(view.scale)
    tolerance = unit * TOLERANCE + 0.03 * float(np.median(abs(end - start)))
    turn, shift = _vote(start, end, 0.1 + tracks.trust, tolerance)
    for _ in range(3):
        miss = _misses(turn, shift, start, end) / tolerance
        weights = np.where(miss < 1, (1 - miss**2) ** 2, 0)  # Tukey's
        if weights.sum() < 1e-3:
            break
        turn, shift = least_squares(start, end, weights)
    miss = _misses(turn, shift, start, end) / tolerance
    inliers = miss < 1
    residual = float(np.sqrt((miss[inliers] ** 2).mean())) if inliers.any() else 0.0
    confidence = _confidence(tracks, miss, max(view.small.shape))
    return Fit(turn, shift, inliers, confidence, residual * tolerance / unit)


def _camera(points: Points, trust: Floats, before: View) -> Interest:
    """(h, w) of the coarse picture, 0 to 1: whether points nearby used to go with the camera."""
    height, width = before.small.shape
    cell = ceil(max(height, width) / CELLS)
    rows, columns = ceil(height / cell), ceil(width / cell)
    spot = points * (columns / width, rows / height)  # the map is stretched over the picture
    x, y = np.clip(spot, 0, (columns - 1, rows - 1)).astype(int).T
    sums = [
        np.bincount(y * columns + x, weights, rows * columns).reshape(rows, columns)
        for weights in (trust, np.ones(len(trust)))
    ]
    total, count = (cv2.blur(each.astype(np.float32), (3, 3)) for each in sums)
    weight = np.clip((total / np.maximum(count, 1e-3) - DISTRUSTED) / DISTRUSTED, 0, 1)
    size = before.coarse.shape[::-1]
    return np.asarray(cv2.resize(weight, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _share(fit: Fit, tracks: Tracks) -> float:
    """How much a refined motion is believed beside the points: the more, the less they agree."""
    share = REFINED * min(1.0, (fit.residual - SURE) / (UNSURE - SURE))
    if share < 0.05 or (tracks.trust == FRESH).all():  # nobody knows who goes with the camera
        return 0.0
    return share


def _by_all_pixels(
    motion: Floats, before: View, view: View, interest: Interest | None
) -> Floats | None:
    """(3, 3), px: what all pixels of the coarse picture say to `motion`; None if nothing."""
    if interest is None:
        return None
    to_coarse = view.coarsening
    back = np.linalg.inv(to_coarse)
    found = refined(before.coarse, view.coarse, to_coarse @ motion @ back, interest)
    return None if found is None else np.asarray(back @ found @ to_coarse)


def _agree(fit: Fit, way: Floats, view: View) -> bool:
    """Whether points and all pixels say the same of the middle; a lens bends the rest."""
    one, other = (Similarity.of(each, *view.size) for each in (fit.transform, way[:2]))
    return abs(one.shift - other.shift) <= STRAYED * max(view.scale)


def _near(known: Similarity, better: Similarity, view: View) -> bool:
    """Whether a refined motion has not found something else."""
    change = Similarity(1 + better.turn - known.turn, better.shift - known.shift)
    return change.effect(*view.size) <= STRAYED * max(view.scale)


def _refined(fit: Fit, before: View, view: View, share: float, interest: Interest | None) -> Floats:
    """(2, 3): the motion, the less by the points alone the less they agree."""
    known = np.vstack([fit.transform, [0, 0, 1]])
    found = _by_all_pixels(known, before, view, interest)
    if found is None:
        return fit.transform
    # The sides of the coarse picture are rounded: the nearest similarity.
    better = Similarity.of(found[:2], *view.size)
    first = Similarity.of(fit.transform, *view.size)
    if not _near(first, better, view):
        return fit.transform
    return first.mixed(better, share).matrix(*view.size)


def _misses(turn: complex, shift: complex, start: Complex, end: Complex) -> Floats:
    """(N,): how far each point is from its predicted place, in luma pixels."""
    return np.abs(turn * start + shift - end)


def _vote(start: Complex, end: Complex, votes: Floats, tolerance: float) -> tuple[complex, complex]:
    """The similarity through two of the (N,) points that misses the others least (MSAC)."""
    first, second = _pairs(len(start))
    base = start[second] - start[first]
    apart = abs(base) > 1e-6
    turn = np.where(apart, (end[second] - end[first]) / np.where(apart, base, 1), 1)
    turn = np.where(abs(turn - 1) < LARGEST_TURN, turn, 1)
    shift = end[first] - turn * start[first]
    error = (turn[:, None] * start + shift[:, None] - end) / tolerance
    cost = np.minimum(error.real**2 + error.imag**2, 1) @ votes
    best = int(cost.argmin())
    return complex(turn[best]), complex(shift[best])


@cache
def _pairs(count: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """(HYPOTHESES,) twice: random pairs of different points, always the same of so many."""
    random = np.random.default_rng(count)
    first = random.integers(0, count, HYPOTHESES)
    return first, (first + random.integers(1, count, HYPOTHESES)) % count


def _confidence(tracks: Tracks, miss: Floats, longer: int) -> float:
    """0 to 1 from the inliers' share, number and spread, and from how well they agree.

    `miss` is in units of the tolerance, `longer` the longer side of the small picture.
    """
    inliers = miss < 1
    count = int(inliers.sum())
    if count < 4:
        return 0.0
    votes = tracks.trust + 0.1
    share = tracks.share * float(votes[inliers].sum() / votes.sum())
    spread = float(np.hypot(*tracks.start[inliers].std(axis=0))) / longer
    residual = float(np.sqrt((miss[inliers] ** 2).mean()))
    return float(
        np.clip((share - 0.1) / 0.4, 0, 1)
        * min(1, count / 12)
        * np.clip(spread / 0.15, 0.1, 1)
        * (1 - 0.5 * residual)
    )


def _skew(tracks: Tracks, fit: Fit, before: View, view: View) -> complex:
    """What the similarity leaves, of the affine transform that most tracks follow."""
    start, end = before.unscaled(tracks.start), view.unscaled(tracks.end)
    left = end - (fit.turn * start + fit.shift)
    # Wider than for the similarity: what is sought is what it does not explain.
    unit = 3 * max(view.scale) * TOLERANCE
    terms = np.stack([np.ones(len(start)), start.real, start.imag], axis=1)
    solved = np.zeros(3, complex)
    for _ in range(3):
        miss = np.abs(left - terms @ solved) / unit
        weights = np.where(miss < 1, (1 - miss**2) ** 2, 0)
        square = (terms * weights[:, None]).T @ terms
        spread = np.diag(square).prod()
        if (weights > 0.1).sum() < 8 or np.linalg.det(square) < 1e-9 * spread:
            return 0  # on one line
        solved = np.linalg.solve(square, terms.T @ (weights * left))
    _, x, y = solved
    return complex(y.real + x.imag, y.imag - x.real)


def _is_still(fit: Fit, tracks: Tracks) -> bool:
    """Whether the points moved no further than noise moves them."""
    moves = (tracks.end - tracks.start)[fit.inliers]
    rms = np.sqrt((moves**2).sum(axis=1).mean())
    return bool(rms < 3 * STILL and np.hypot(*moves.mean(axis=0)) < STILL)
