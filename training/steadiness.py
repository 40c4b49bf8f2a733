"""Measure how steady a video is, by means that the runtime's stabiliser does not use.

Dense optical flow (DIS; Kroeger et al., 2016) tells how each frame moved, SIFT (Lowe, 2004) how a
steadied frame lies in the one it was made from. Crop and distortion are defined as in the code of
DIFRINT (Choi and Kweon, 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
Floats = NDArray[np.float64]

SMALL = 640
"""The longer side of the pictures that are measured on."""
WIDE = 1280
"""Lengths are given in pixels of a picture so wide, whatever the video's size."""
SLOW = 0.5
"""s: sigma of the Gaussian that takes the slow part of a path."""
EVEN_RATE = 30
"""Frames/s, where frames are taken to lie at even distances."""
STRIDE = 8
"""Between flow vectors that are looked at, px of the small picture."""
MARGIN = 0.08
"""Of the sides: not looked at, there may be a border."""
THUMB = 64
"""The longer side of the pictures in which cuts are looked for."""
ALIKE = 0.75
"""The least correlation of two frames of a scene."""
TOLERANCE = 1.5
"""An inlier of a fit lies so near, px of the small picture."""
PARTS = (5, 8)
"""Rows and columns of parts of the picture that are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How the camera moved: position and roll after each frame."""

    position: Floats
    """(N, 2) px of a picture `WIDE` px wide."""
    roll: Floats
    """(N,) degrees."""
    times: Floats
    """(N,) s: when each frame is shown."""
    cuts: tuple[int, ...] = ()
    """The first frame of each scene but the first; nothing is known of the move to it."""

    @property
    def interval(self) -> float:
        """s: the mean distance of two frames of a scene."""
        distances = np.concatenate([np.diff(self.times[scene]) for scene in self.scenes])
        return float(distances.mean()) if len(distances) and distances.any() else 1.0

    @property
    def scenes(self) -> list[slice]:
        """What lies between the cuts."""
        ends = [0, *self.cuts, len(self.times)]
        return [slice(*pair) for pair in pairwise(ends) if pair[1] > pair[0]]


@dataclass(frozen=True, slots=True)
class Steadiness:
    """What is left of the shake, and what it cost."""

    high_pass: float
    """RMS of the fast part of the position, px at 1280."""
    acceleration: float
    """RMS of the position's second derivative, px a mean frame a mean frame at 1280."""
    roll: float
    """RMS of the fast part of the roll, degrees."""
    itf: float
    """Inter-frame transformation fidelity: mean PSNR of consecutive frames, dB."""
    crop: float
    """Mean inverse scale from the input's frames to the output's: 1 keeps all."""
    distortion: float
    """Worst ratio of the singular values of that transform: 1 keeps all angles."""
    border: float
    """Mean part of the output that its frame of the input does not cover."""


def steadiness(
    before: Sequence[Luma],
    after: Sequence[Luma],
    times: Floats,
    *,
    ideal: Sequence[Luma] | None = None,
    upper: float = 1.0,
    every: int = 6,
) -> Steadiness:
    """Of the frames `after`, (H, W) each, that were made from `before` and are shown at `times`.

    Where it is known what an `ideal` camera would have filmed, the path is how they lie against
    that, as seen in the `upper` part of the picture. Crop and distortion are taken of each
    `every`-th frame. Scenes are those of `before`.
    """
    path = walked(after, times) if ideal is None else strayed(ideal, after, times, upper=upper)
    path = replace(path, cuts=cuts(before))
    placed = [placement(before[i], after[i]) for i in range(0, len(after), every)]
    known = [each for each in placed if each is not None]
    fast = shake(path)
    return Steadiness(
        high_pass=fast[0],
        acceleration=acceleration(path),
        roll=fast[1],
        itf=fidelity(after),
        crop=float(np.mean([crop(each) for each in known])) if known else float("nan"),
        distortion=min((distortion(each) for each in known), default=float("nan")),
        border=float(np.mean([border(each, before[0].shape) for each in known]) if known else 1),
    )


@dataclass(frozen=True, slots=True)
class Wobble:
    """What is left of the shake of a picture's parts, each by itself."""

    acceleration: float
    """RMS over parts and frames, px a frame a frame at 1280."""
    usual: float
    """The same of the median part: what moves on its own, in the minority, does not count."""
    high_pass: float
    """RMS of what of a part's path is fast and not the picture's, px at 1280."""


def wobble(frames: Sequence[Luma]) -> Wobble:
    """Of (H, W) frames of one scene at even distances, by dense flow in `PARTS`."""
    moved, whole = moved_parts(frames)
    changed = np.diff(moved, axis=0)
    path = np.cumsum(moved - whole, axis=0).reshape(len(moved), -1)
    fast = (path - _slow(path, SLOW * EVEN_RATE)).reshape(moved.shape)
    by_part = np.sqrt((changed**2).sum(axis=-1).mean(axis=0))
    return Wobble(
        acceleration=_rms(changed.reshape(-1, 2)),
        usual=float(np.median(by_part)),
        high_pass=_rms(fast.reshape(-1, 2)),
    )


def moved_parts(frames: Sequence[Luma]) -> tuple[Floats, Floats]:
    """(N - 1, rows, columns, 2) twice, px at 1280: how each part moved, and how the picture did."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    small = _small(frames[0])
    (height, width), (rows, columns) = small.shape, PARTS
    top, left = round(MARGIN * height), round(MARGIN * width)
    inner = np.s_[top : height - top, left : width - left]
    y, x = (
        np.linspace(edge, side - 1 - edge, 2 * parts + 1)[1::2]
        for edge, side, parts in ((top, height, rows), (left, width, columns))
    )
    places = np.stack([*np.meshgrid(x, y), np.ones(PARTS)], axis=-1)
    parts, wholes = [], []
    for frame in frames[1:]:
        before, small = small, _small(frame)
        field = _flow(flow, before, small)
        cells = [np.array_split(row, columns, axis=1) for row in np.array_split(field[inner], rows)]
        parts.append([[np.median(cell, axis=(0, 1)) for cell in row] for row in cells])
        wholes.append(places @ _moved(field, before).T - places[..., :2])
    unit = WIDE / width
    return unit * np.array(parts), unit * np.array(wholes)


def cuts(frames: Sequence[Luma]) -> tuple[int, ...]:
    """The frames that show something else than the one before.

    What moved by more than a fifth of a side between two frames is taken for something else.
    """
    thumbs = [_thumb(frame) for frame in frames]
    return tuple(
        index
        for index, (before, after) in enumerate(pairwise(thumbs), start=1)
        if _likeness(before, after) < ALIKE
    )


def _thumb(frame: Luma) -> NDArray[np.float32]:
    factor = THUMB / max(frame.shape)
    size = (max(8, round(frame.shape[1] * factor)), max(8, round(frame.shape[0] * factor)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1))


def _likeness(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The best correlation of the middle of one with a part of the other; 0 if one is flat."""
    height, width = before.shape
    middle = before[height // 5 : -(height // 5), width // 5 : -(width // 5)]
    if min(middle.std(), after.std()) < 1:
        return 0.0
    return float(cv2.matchTemplate(after, middle, cv2.TM_CCOEFF_NORMED).max())


def walked(frames: Sequence[Luma], times: Floats) -> Walk:
    """The camera's path through (H, W) frames, by dense flow."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    position, roll = np.zeros((len(frames), 2)), np.zeros(len(frames))
    small = _small(frames[0])
    unit = WIDE / small.shape[1]
    for index in range(1, len(frames)):
        before, small = small, _small(frames[index])
        moved = _moved(_flow(flow, before, small), before)
        height, width = small.shape
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        shift = moved[:, :2] @ centre + moved[:, 2] - centre
        position[index] = position[index - 1] - unit * shift
        roll[index] = roll[index - 1] - np.degrees(np.arctan2(moved[1, 0], moved[0, 0]))
    return Walk(position, roll, np.asarray(times, np.float64))


def strayed(
    ideal: Sequence[Luma], frames: Sequence[Luma], times: Floats, *, upper: float = 1.0
) -> Walk:
    """How far (H, W) frames are from those of the ideal camera, by SIFT: nothing adds up.

    What most features in the `upper` part of the picture follow counts; a frame without any is
    where the last one was.
    """
    position, roll = np.zeros((len(frames), 2)), np.zeros(len(frames))
    width, height = frames[0].shape[1], round(upper * frames[0].shape[0])
    centre = np.array([(width - 1) / 2, (height - 1) / 2, 1])
    for index, (wanted, frame) in enumerate(zip(ideal, frames, strict=True)):
        placed = placement(wanted[:height], frame[:height])
        if placed is None:
            position[index], roll[index] = position[index - 1], roll[index - 1]
            continue
        there = placed @ centre
        position[index] = WIDE / width * (there[:2] / there[2] - centre[:2])
        roll[index] = np.degrees(np.arctan2(placed[1, 0], placed[0, 0]))
    return Walk(position, roll, np.asarray(times, np.float64))


def shake(path: Walk) -> tuple[float, float]:
    """RMS of what is faster than `SLOW`: of the position in px at 1280, of the roll in degrees."""
    moved, turned = [np.zeros((0, 2))], [np.zeros((0, 1))]
    for scene in path.scenes:
        times = path.times[scene]
        sigma = SLOW * max(1, len(times) - 1) / max(float(times[-1] - times[0]), 1e-3)
        for values, fast in ((path.position, moved), (path.roll[:, None], turned)):
            even = _evenly(values[scene], path.times[scene])
            fast.append(even - _slow(even, sigma))
    return _rms(np.concatenate(moved)), _rms(np.concatenate(turned))


def acceleration(path: Walk) -> float:
    """RMS of the position's second derivative, px a mean frame a mean frame at 1280."""
    bent = [np.zeros((0, 2))]
    for scene in path.scenes:
        frames = np.diff(path.times[scene])[:, None] / path.interval
        speed = np.diff(path.position[scene], axis=0) / np.maximum(frames, 1e-3)
        bent.append(np.diff(speed, axis=0) / ((frames[1:] + frames[:-1]) / 2))
    return _rms(np.concatenate(bent))


def _rms(vectors: Floats) -> float:
    """Of the lengths of (N, M); 0 if there are none."""
    return float(np.sqrt((vectors**2).sum(axis=1).mean())) if len(vectors) else 0.0


def _evenly(values: Floats, times: Floats) -> Floats:
    """(N, M) at (N,) s -> as many at even distances."""
    even = np.linspace(times[0], times[-1], len(times))
    return np.stack([np.interp(even, times, column) for column in values.T], axis=1)


def fidelity(frames: Sequence[Luma]) -> float:
    """Mean PSNR in dB of each (H, W) frame against the one before; of a repeated one 60."""
    values = [min(60.0, cv2.PSNR(a, b)) for a, b in pairwise(frames)]
    return float(np.mean(values)) if values else float("nan")


def placement(before: Luma, after: Luma) -> Floats | None:
    """(3, 3): from the pixels of `before` to those of `after`, by SIFT; None if none is found."""
    small_before, small_after = _small(before), _small(after)
    detector = cv2.SIFT.create(700)
    points, features = detector.detectAndCompute(small_before, None)
    points_after, features_after = detector.detectAndCompute(small_after, None)
    if features is None or features_after is None or min(len(points), len(points_after)) < 12:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(features, features_after, k=2)
    good = [
        pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < 0.75 * pair[1].distance
    ]
    if len(good) < 12:
        return None
    start = np.array([points[match.queryIdx].pt for match in good])
    end = np.array([points_after[match.trainIdx].pt for match in good])
    found, _ = cv2.findHomography(start, end, cv2.RANSAC, TOLERANCE)
    if found is None:
        return None
    scale = np.diag([small_before.shape[1] / before.shape[1]] * 2 + [1.0])
    return np.asarray(np.linalg.inv(scale) @ found @ scale)


def crop(transform: Floats) -> float:
    """Inverse scale of a (3, 3) transform, as DIFRINT takes it: at most 1."""
    affine = transform[:2, :2] / transform[2, 2]
    return min(1.0, float(1 / np.sqrt(np.abs(np.linalg.det(affine)))))


def distortion(transform: Floats) -> float:
    """Ratio of the smaller to the larger singular value of a (3, 3) transform's affine part."""
    values = np.linalg.svd((transform / transform[2, 2])[:2, :2], compute_uv=False)
    return float(values[1] / values[0])


def border(transform: Floats, shape: tuple[int, ...]) -> float:
    """The part of an (H, W) output that the input, moved by a (3, 3) transform, leaves bare."""
    height, width = shape
    y, x = np.mgrid[0 : height - 1 : 64j, 0 : width - 1 : 64j].reshape(2, -1)
    found = np.linalg.inv(transform) @ np.stack([x, y, np.ones_like(x)])
    seen_x, seen_y = found[:2] / found[2]
    outside = (np.abs(seen_x - (width - 1) / 2) > width / 2) | (
        np.abs(seen_y - (height - 1) / 2) > height / 2
    )
    return float(outside.mean())


def _slow(values: Floats, sigma: float) -> Floats:
    """(N, M): the slow part of each of the M columns, by a Gaussian of `sigma` frames."""
    length = 2 * ceil(4 * sigma) + 1
    slow = [
        cv2.GaussianBlur(
            np.ascontiguousarray(column)[:, None],
            (1, length),
            sigmaX=1,
            sigmaY=sigma,
            borderType=cv2.BORDER_REFLECT,
        ).ravel()
        for column in values.T
    ]
    return np.stack(slow, axis=1).astype(np.float64)


def _small(frame: Luma) -> Luma:
    """(H, W) -> its longer side is at most `SMALL`."""
    factor = SMALL / max(frame.shape)
    if factor >= 1:
        return np.ascontiguousarray(frame)
    size = round(frame.shape[1] * factor), round(frame.shape[0] * factor)
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _flow(method: cv2.DISOpticalFlow, before: Luma, after: Luma) -> NDArray[np.float32]:
    """(H, W, 2) px: from `before` to `after`."""
    flow = np.zeros((*before.shape, 2), np.float32)
    return np.asarray(method.calc(before, after, flow), np.float32)


def _moved(flow: NDArray[np.float32], picture: Luma) -> Floats:
    """(2, 3): the similarity that most of the (H, W, 2) flow follows where there is detail."""
    height, width = picture.shape
    top, left = round(MARGIN * height), round(MARGIN * width)
    y, x = np.mgrid[top : height - top : STRIDE, left : width - left : STRIDE].reshape(2, -1)
    edges = cv2.blur(cv2.morphologyEx(picture, cv2.MORPH_GRADIENT, np.ones((3, 3))), (9, 9))[y, x]
    detailed = edges >= max(2.0, float(np.median(edges)))
    if detailed.sum() < 12:
        return np.eye(2, 3)
    start = np.stack([x, y], axis=1)[detailed].astype(np.float64)
    end = start + flow[y, x][detailed]
    cv2.setRNGSeed(1)
    found, _ = cv2.estimateAffinePartial2D(
        start, end, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE, maxIters=500
    )
    return np.eye(2, 3) if found is None else np.asarray(found)
