"""Lay the neighbours of a frame over it: by the camera's motion, then each place by its own.

The stabiliser's similarity is one motion for the whole frame. What moves otherwise (foregrounds,
parallax, perspective, the similarity's own error) is followed by a dense optical flow between the
frame and its neighbour so laid over it (DIS, Kroeger et al. 2016), but only where that makes the
two agree clearly better: between blurred pictures a flow errs more than the camera's motion does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import CONTEXT_STRIDE, MOTION
from .frame import Motion, Plane

MIN_CONFIDENCE = 0.3
"""Below it a neighbour is not trusted and the frame itself stands in for it."""
FLOW_EDGE = 24
"""Pixels at the flow's resolution; on smaller pictures there is no flow."""
FLOW_LONGER = 640
"""The flow is found at half size, or at a size whose longer side has so many pixels."""
COARSER, AGREEMENT = 4, 5
"""The pictures are compared in pixels so many times larger, in squares of so many of these."""
WORTH = 0.7
"""Places are worked out for the whole picture if parts of it would cover more than this share."""
GAIN, NOISE = 0.2, 0.5
"""The flow must lower their mean difference by this share and so many 8-bit steps."""
STEP = 16.0
"""Pixels a frame that count as 1 in the motion that the network sees."""

Floats = NDArray[np.float32]
Part = tuple[slice, slice]
"""Rows and columns of a picture."""


class View:
    """A luma plane to be aligned, and what is worked out of it for both of its neighbours."""

    def __init__(self, luma: Plane) -> None:
        self.luma = luma
        """(H, W) uint8."""

    @cached_property
    def small(self) -> Plane | None:
        """(h, w) uint8, in which the flow is found; `None` where there is none."""
        height, width = self.luma.shape
        factor = max(2.0, max(height, width) / FLOW_LONGER)
        size = round(width / factor), round(height / factor)
        if min(size) < FLOW_EDGE:
            return None
        return np.asarray(cv2.resize(self.luma, size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Laying:
    """How a neighbour is laid over a frame; what else belongs to the neighbour can go that way."""

    way: NDArray[np.float64]
    """(3, 3): takes a pixel of the frame to its place in the neighbour."""
    elsewhere: tuple[tuple[Part, Floats], ...] = ()
    """Parts of the frame whose pixels are found at other places (h, w, 2) of the neighbour."""

    def lay(self, neighbour: Plane, current: Plane, out: Plane | None = None) -> Plane:
        """(H, W), (H, W) uint8: `neighbour` as seen from `current`, which shows where it ends.

        It is `neighbour` itself where there is nothing to move, or else `out`, which is allocated
        if it is not given.
        """
        luma = _warped(neighbour, current, self.way, out)
        if self.elsewhere and luma is neighbour:
            luma = _copied(luma, out)
        for part, where in self.elsewhere:
            _look_up(neighbour, where, current[part], luma[part])
        return luma


class Aligned(NamedTuple):
    """A neighbour as seen from a frame."""

    luma: Plane
    """(H, W) uint8."""
    offset: Floats | None
    """(H/8, W/8, 2) rounded up: from the middle of each cell to its place in the neighbour, x and
    y in pixels. None where the neighbour is not trusted and the frame stands in for it."""
    laying: Laying | None = None
    """How it was done; None where the frame stands in for the neighbour."""


def align_previous(previous: Plane, current: Plane, motion: Motion | None) -> Aligned:
    """(H, W), (H, W) uint8: `previous` as seen from `current`, whose motion is given."""
    return Aligner().previous(View(previous), View(current), motion)


def align_next(following: Plane, current: Plane, motion: Motion | None) -> Aligned:
    """(H, W), (H, W) uint8: `following`, whose motion is given, as seen from `current`."""
    return Aligner().following(View(following), View(current), motion)


class Aligner:
    """Lays neighbours over frames; it keeps its memory, since fresh memory costs time.

    The lumas that `previous` and `following` return are a plane of the caller's, unchanged, where
    there is nothing to move, or else `out` (H, W), which they allocate if it is not given.
    """

    def __init__(self) -> None:
        self._estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._places: Floats = np.zeros((0, 0, 2), np.float32)
        self._moved: Floats = self._places

    def previous(
        self, previous: View, current: View, motion: Motion | None, out: Plane | None = None
    ) -> Aligned:
        """`previous` as seen from `current`, whose motion is given."""
        if motion is None or not _trusted(motion):
            return Aligned(current.luma, None)
        return self._aligned(previous, current, np.asarray(np.linalg.inv(motion.way)), out)

    def following(
        self, following: View, current: View, motion: Motion | None, out: Plane | None = None
    ) -> Aligned:
        """`following`, whose motion is given, as seen from `current`."""
        if motion is None or not _trusted(motion):
            return Aligned(current.luma, None)
        return self._aligned(following, current, motion.way, out)

    def _aligned(
        self, neighbour: View, current: View, way: NDArray[np.float64], out: Plane | None
    ) -> Aligned:
        """`way` (3, 3) takes a pixel of `current` to its place in `neighbour`."""
        size = current.luma.shape
        if np.array_equal(neighbour.luma, current.luma):
            still = np.zeros_like(_offset(way, size))
            return Aligned(neighbour.luma, still, Laying(np.eye(3)))
        found = self._flow(neighbour, current, way)
        flow, parts = (None, []) if found is None else found
        elsewhere = () if flow is None else tuple(_elsewhere(flow, parts, way, size))
        laying = Laying(way, elsewhere)
        luma = laying.lay(neighbour.luma, current.luma, out)
        return Aligned(luma, _offset(way, size, flow), laying)

    def _flow(
        self, neighbour: View, current: View, way: NDArray[np.float64]
    ) -> tuple[Floats, list[Part]] | None:
        """Where each place of `current` is, beyond `way`, and the parts where it is elsewhere.

        (h, w, 2) in pixels of the small picture: 0 where the two agree about as well without it;
        `None` if that is everywhere.
        """
        if current.small is None or neighbour.small is None:
            return None
        here, (height, width) = current.small, current.luma.shape
        shrunk = _shrunk(way, width / here.shape[1], height / here.shape[0])
        there = _warped(neighbour.small, here, shrunk)
        if self._places.shape[:2] != here.shape:
            self._places = _places(np.s_[0 : here.shape[0], 0 : here.shape[1]])
            self._moved = np.empty_like(self._places)
        nothing: Any = None  # a flow to begin with; OpenCV's types want one
        flow = np.asarray(self._estimator.calc(here, there, nothing), np.float32)
        moved = here.copy()
        _look_up(there, cv2.add(flow, self._places, dst=self._moved), here, moved)
        before, after = _difference(here, there), _difference(here, moved)
        better = ((1 - GAIN) * before - after > NOISE).astype(np.float32)
        if not better.any():
            return None
        share = cv2.boxFilter(better, cv2.CV_32F, (AGREEMENT, AGREEMENT))
        parts = _parts(share, here.shape)
        share = cv2.resize(share, here.shape[::-1], interpolation=cv2.INTER_LINEAR)
        both = cv2.merge([share, share], dst=self._moved)
        return np.asarray(cv2.multiply(flow, both, dst=flow), np.float32), parts


def _trusted(motion: Motion) -> bool:
    return not motion.cut and motion.confidence >= MIN_CONFIDENCE


def _offset(way: NDArray[np.float64], size: tuple[int, ...], flow: Floats | None = None) -> Floats:
    """(3, 3), (H, W) -> (H/8, W/8, 2) rounded up: by how much `way` moves each cell's middle.

    `flow` (h, w, 2) is by how much it was moved before, in pixels of a smaller picture.
    """
    middle = (CONTEXT_STRIDE - 1) / 2
    y, x = (CONTEXT_STRIDE * np.arange(-(-edge // CONTEXT_STRIDE)) + middle for edge in size)
    place = np.dstack(np.meshgrid(x, y))
    moved = place
    if flow is not None:
        beyond = cv2.resize(flow, (len(x), len(y)), interpolation=cv2.INTER_AREA)
        moved = place + beyond * (size[1] / flow.shape[1], size[0] / flow.shape[0])
    return np.asarray(cv2.perspectiveTransform(moved, way) - place, np.float32)


def _warped(
    neighbour: Plane, current: Plane, way: NDArray[np.float64], out: Plane | None = None
) -> Plane:
    if np.array_equal(way, np.eye(3)):
        return neighbour
    # Where the neighbour does not reach, the frame itself shines through.
    return cv2.warpPerspective(
        neighbour,
        way,
        current.shape[::-1],
        dst=_copied(current, out),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def _look_up(picture: Plane, where: NDArray[Any], current: Plane, out: Plane) -> None:
    """(H, W) -> `out` (h, w): `picture` at the places (h, w, 2); `current` where it has none."""
    np.copyto(out, current)
    cv2.remap(  # type: ignore[call-overload]
        picture,
        where,
        None,
        cv2.INTER_LINEAR,
        dst=out,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def _difference(here: Plane, there: Plane) -> Floats:
    """(h, w), (h, w) -> a quarter of both: by how much they differ around each place."""
    height, width = here.shape
    size = max(1, width // COARSER), max(1, height // COARSER)
    coarse = cv2.resize(cv2.absdiff(here, there), size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.boxFilter(coarse, cv2.CV_32F, (AGREEMENT, AGREEMENT)))


def _parts(share: NDArray[Any], size: tuple[int, ...]) -> list[Part]:
    """Boxes of a picture of `size` (h, w) outside of which the coarser `share` is nought."""
    rows, columns = share.shape
    y, x = size[0] / rows, size[1] / columns
    touched = cv2.dilate((share > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(touched, connectivity=4)
    if boxes[1:, cv2.CC_STAT_WIDTH] @ boxes[1:, cv2.CC_STAT_HEIGHT] > WORTH * touched.size:
        return [np.s_[0 : size[0], 0 : size[1]]]
    return [
        np.s_[int(top * y) : ceil((top + high) * y), int(left * x) : ceil((left + wide) * x)]
        for left, top, wide, high, _ in boxes[1:count].tolist()
    ]


def _elsewhere(
    flow: Floats, parts: list[Part], way: NDArray[np.float64], size: tuple[int, ...]
) -> Iterator[tuple[Part, Floats]]:
    """Parts of a picture of `size` (H, W), and the places of their pixels in the neighbour.

    `flow` (h, w, 2) comes before `way`, and is found in a smaller picture, as are the `parts`.
    """
    height, width = flow.shape[:2]
    y, x = size[0] / height, size[1] / width
    if (x, y) != (round(x), round(y)):
        parts = [np.s_[0:height, 0:width]]  # others would have their edges between pixels
    for part in parts:
        rows, columns = large = _enlarged(part, y, x)
        shape = columns.stop - columns.start, rows.stop - rows.start
        beyond = np.asarray(cv2.resize(flow[part], shape))
        places = beyond * np.array([x, y], np.float32) + _places(large)
        yield large, np.asarray(cv2.perspectiveTransform(places, way), np.float32)


def _enlarged(part: Part, y: float, x: float) -> Part:
    """A part of a picture that is so many times higher and wider."""
    rows, columns = part
    return (
        slice(round(rows.start * y), round(rows.stop * y)),
        slice(round(columns.start * x), round(columns.stop * x)),
    )


def _copied(plane: Plane, out: Plane | None) -> Plane:
    if out is None:
        return plane.copy()
    np.copyto(out, plane)
    return out


def _shrunk(way: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
    """`way` between pictures that are `x` times narrower and `y` times lower."""
    enlarging = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    shrunk = np.linalg.inv(enlarging) @ way @ enlarging
    return np.asarray(shrunk / shrunk[2, 2])


def _places(part: Part) -> Floats:
    """(h, w, 2): x and y of each pixel of a part of a picture."""
    y, x = (np.arange(side.start, side.stop, dtype=np.float32) for side in part)
    return np.dstack(np.meshgrid(x, y))


def motion_of(before: Floats | None, after: Floats | None, cells: tuple[int, int]) -> Floats:
    """Offsets to the previous and the next frame -> (MOTION, rows, columns): a field.

    Velocity x and y and acceleration x and y at this frame, a frame being the unit of time and
    `STEP` pixels that of length, and the share of the neighbours that are known (0, 1/2 or 1).
    With one neighbour the motion is taken as even, with none as nought.
    """
    field = np.zeros((MOTION, *cells), np.float32)
    if before is None and after is None:
        return field
    field[4] = 1 if before is not None and after is not None else 0.5
    ahead = after if after is not None else -before  # type: ignore[operator]
    back = before if before is not None else -ahead
    field[:2] = np.moveaxis((ahead - back) / (2 * STEP), -1, 0)
    field[2:4] = np.moveaxis((ahead + back) / STEP, -1, 0)
    return field
