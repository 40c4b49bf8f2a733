"""Lay the neighbours of a frame over it: by the camera's motion, then each place by its own.

The stabiliser's similarity is one motion for the whole frame. What moves otherwise (foregrounds,
parallax, perspective, the similarity's own error) is followed by a dense optical flow between the
frame and its neighbour so laid over it (DIS, Kroeger et al. 2016), but only where that makes the
two agree clearly better: between blurred pictures a flow errs more than the camera's motion does.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Motion, Plane

MIN_CONFIDENCE = 0.3
"""Below it a neighbour is not trusted and the frame itself stands in for it."""
FLOW_EDGE = 24
"""Pixels at the flow's resolution; on smaller pictures there is no flow."""
FLOW_LONGER = 640
"""The flow is found at half size, or at a size whose longer side has so many pixels."""
AGREEMENT = 17
"""Edge in pixels, at the flow's resolution, of the squares in which the pictures are compared."""
GAIN, NOISE = 0.2, 0.2
"""The flow must lower their mean difference by this share and so many 8-bit steps."""

Floats = NDArray[np.float32]


def align_previous(previous: Plane, current: Plane, motion: Motion | None) -> Plane:
    """(H, W), (H, W) uint8 -> (H, W): `previous` as seen from `current`, whose motion is given."""
    if motion is None or not _trusted(motion):
        return current
    return _align(
        previous, current, np.asarray(cv2.invertAffineTransform(motion.transform), np.float64)
    )


def align_next(following: Plane, current: Plane, motion: Motion | None) -> Plane:
    """(H, W), (H, W) uint8 -> (H, W): `following`, whose motion is given, seen from `current`."""
    if motion is None or not _trusted(motion):
        return current
    return _align(following, current, motion.transform)


def _trusted(motion: Motion) -> bool:
    return not motion.cut and motion.confidence >= MIN_CONFIDENCE


def _align(neighbour: Plane, current: Plane, way: NDArray[np.float64]) -> Plane:
    """`way` (2, 3) takes a pixel of `current` to its place in `neighbour`."""
    if np.array_equal(neighbour, current):
        return neighbour
    flow = _flow(neighbour, current, way)
    if flow is None:
        return _warped(neighbour, current, way)
    # Where things are is worked out at the flow's size; only its enlarging is a whole picture's.
    height, width = flow.shape[:2]
    scale = np.array([current.shape[1] / width, current.shape[0] / height])
    enlarged = np.column_stack([way[:, :2] * scale, way[:, :2] @ ((scale - 1) / 2) + way[:, 2]])
    where = cv2.transform(flow + _places(height, width), enlarged)
    return _looked_up(neighbour, np.asarray(cv2.resize(where, current.shape[::-1])), current)


def _warped(neighbour: Plane, current: Plane, way: NDArray[np.float64]) -> Plane:
    if np.array_equal(way, np.eye(2, 3)):
        return neighbour
    # Where the neighbour does not reach, the frame itself shines through.
    return cv2.warpAffine(
        neighbour,
        way,
        current.shape[::-1],
        dst=current.copy(),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def _looked_up(picture: Plane, where: NDArray[Any], current: Plane) -> Plane:
    """(H, W) -> (h, w): `picture` at the places (h, w, 2); `current` (h, w) where it has none."""
    seen = current.copy()
    cv2.remap(  # type: ignore[call-overload]
        picture, where, None, cv2.INTER_LINEAR, dst=seen, borderMode=cv2.BORDER_TRANSPARENT
    )
    return seen


def _flow(neighbour: Plane, current: Plane, way: NDArray[np.float64]) -> Floats | None:
    """(H, W), (H, W) -> (h, w, 2): where each place of `current` is, beyond `way`, in its pixels.

    It is 0 where the two agree about as well without it; `None` if that is everywhere.
    """
    height, width = current.shape
    factor = max(2.0, max(height, width) / FLOW_LONGER)
    size = round(width / factor), round(height / factor)
    if min(size) < FLOW_EDGE:
        return None
    here, there = (
        np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.uint8)
        for plane in (current, neighbour)
    )
    there = _warped(there, here, _shrunk(way, width / size[0], height / size[1]))
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow = np.asarray(
        estimator.calc(here, there, np.zeros((*here.shape, 2), np.float32)), np.float32
    )
    moved = _looked_up(there, flow + _places(*here.shape), here)
    square = (AGREEMENT, AGREEMENT)
    before = cv2.boxFilter(cv2.absdiff(here, there), cv2.CV_32F, square)
    after = cv2.boxFilter(cv2.absdiff(here, moved), cv2.CV_32F, square)
    margin = cv2.addWeighted(before, 1 - GAIN, after, -1, -NOISE)
    _, better = cv2.threshold(margin, 0, 1, cv2.THRESH_BINARY)
    if not cv2.hasNonZero(better):
        return None
    share = cv2.boxFilter(better, cv2.CV_32F, square)
    return np.asarray(cv2.multiply(flow, cv2.merge([share, share])), np.float32)


def _shrunk(way: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
    """`way` between pictures that are `x` times narrower and `y` times lower."""
    scale = np.array([x, y])
    linear = way[:, :2] * scale / scale[:, None]
    middle = (scale - 1) / 2  # of a small pixel, in large ones
    shift = (way[:, :2] @ middle + way[:, 2] - middle) / scale
    return np.column_stack([linear, shift])


_PLACES: dict[tuple[int, int], Floats] = {}


def _places(height: int, width: int) -> Floats:
    """(H, W, 2): each pixel's own x and y; made once for a size."""
    key = (height, width)
    if key not in _PLACES:
        if len(_PLACES) > 4:
            _PLACES.clear()
        _PLACES[key] = np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(
            np.float32
        )
    return _PLACES[key]
