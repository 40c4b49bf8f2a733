"""Lay the neighbours of a frame over it: by the camera's motion, then each place by its own.

The stabiliser's similarity is one motion for the whole frame. What moves otherwise (foregrounds,
parallax, perspective, the similarity's own error) is followed by a dense optical flow between the
frame and its neighbour so laid over it (DIS, Kroeger et al. 2016), but only where that makes the
two agree clearly better: between blurred pictures a flow errs more than the camera's motion does.
"""

from collections.abc import Sequence
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import CONTEXT_STRIDE, MOTION, Part
from .frame import Motion, Plane
from .laying import Laying, Way, area, coordinates, look_up, scaled_down, transformed, warp, whole

MIN_CONFIDENCE = 0.3
"""Below it a neighbour is not trusted and the frame itself stands in for it."""
FLOW_EDGE = 24
"""Pixels at the flow's resolution; on smaller pictures there is no flow."""
FLOW_LONGER = 640
"""The flow is found at half size, or at a third, a quarter... whose longer side has about so many
pixels."""
COARSER, AGREEMENT = 4, 5
"""The pictures are compared in pixels so many times larger, in squares of so many of these."""
WORTH = 0.7
"""Places are worked out for the whole picture if parts of it would cover more than this share."""
GAIN, NOISE = 0.2, 0.5
"""The flow clearly helps where it lowers their mean difference by this share and so many 8-bit
steps."""
SLIGHT_GAIN, SLIGHT_NOISE = 0.13, 0.35
"""It helps slightly where it lowers it by so much."""
CLEARLY = 0.3
"""Where it helps slightly it is believed if, in this share of what hangs together so, it clearly
does."""
FINEST, STRIDE, STEPS = 1, 6, 8
"""Of the flow: its finest picture is half as large, patches lie so many pixels apart, and each is
moved so often."""
AROUND = 24
"""Pixels at the flow's resolution around what moved on its own when it is followed back."""
SPARSE = 4
"""Every so many pixels are looked at to find out where that is."""
STEP = 16.0
"""Pixels a frame that count as 1 in the motion that the network sees."""

Floats = NDArray[np.float32]


class View:
    """A luma plane to be aligned, and what is worked out of it for both of its neighbours."""

    def __init__(self, luma: Plane) -> None:
        self.luma = luma
        """(H, W) uint8."""

    @cached_property
    def half(self) -> Plane:
        """(H/2, W/2) rounded up, uint8: each the mean of four pixels, the last ones repeated."""
        height, width = self.luma.shape
        even = cv2.copyMakeBorder(self.luma, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        size = even.shape[1] // 2, even.shape[0] // 2
        return np.asarray(cv2.resize(even, size, interpolation=cv2.INTER_AREA), np.uint8)

    @property
    def scale(self) -> int:
        """Pixels in one of the picture in which the flow is found."""
        return max(2, round(int(max(self.luma.shape)) / FLOW_LONGER))

    @cached_property
    def small(self) -> Plane | None:
        """(h, w) uint8, in which the flow is found; `None` where there is none."""
        scale, (height, width) = self.scale, self.half.shape
        # Of a third each pixel is one and a half of these, so it has an even number of them.
        whole = 2 if scale % 2 else 1
        h, w = (whole * ceil(2 * edge / scale / whole) for edge in (height, width))
        if min(h, w) < FLOW_EDGE:
            return None
        if scale == 2:
            return self.half
        missing = h * scale // 2 - height, w * scale // 2 - width
        even = cv2.copyMakeBorder(self.half, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(even, (w, h), interpolation=cv2.INTER_AREA), np.uint8)


class _Seen(NamedTuple):
    """How the frame after another one was laid over it."""

    current: View
    neighbour: View
    laying: Laying


class Aligned(NamedTuple):
    """A neighbour as seen from a frame."""

    half: Plane
    """(H/2, W/2) rounded up, uint8."""
    offset: Floats | None
    """(H/8, W/8, 2) rounded up: from the middle of each cell to its place in the neighbour, x and
    y in pixels. None where the neighbour is not trusted and the frame stands in for it."""
    laying: Laying | None = None
    """How it was done; None where the frame stands in for the neighbour."""


def align_previous(previous: View, current: View, motion: Motion | None) -> Aligned:
    """`previous` as seen from `current`, whose motion is given."""
    return Aligner().previous(previous, current, motion)


def align_next(following: View, current: View, motion: Motion | None) -> Aligned:
    """`following`, whose motion is given, as seen from `current`."""
    return Aligner().following(following, current, motion)


class Aligner:
    """Lays neighbours over frames; it keeps its memory, since fresh memory costs time.

    If not `closely`, all is taken to move as the camera makes it.
    """

    def __init__(self) -> None:
        self._estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._estimator.setPatchStride(STRIDE)
        self._estimator.setGradientDescentIterations(STEPS)
        self._grid: Floats = np.zeros((0, 0, 2), np.float32)
        self._moved: Floats = self._grid
        self._seen: _Seen | None = None

    def previous(
        self, previous: View, current: View, motion: Motion | None, *, closely: bool = True
    ) -> Aligned:
        """`previous` as seen from `current`, whose motion is given."""
        if motion is None or not _trusted(motion):
            return Aligned(current.half, None)
        way = np.asarray(np.linalg.inv(motion.way))
        parts = self._followed(previous, current, motion) if closely else None
        return self._aligned(previous, current, way, closely, parts)

    def _followed(self, previous: View, current: View, motion: Motion) -> list[Part] | None:
        """Where `current` shows what moved on its own since `previous`; None if nobody looked."""
        seen = self._seen
        if seen is None or seen.current is not previous or seen.neighbour is not current:
            return None
        same = np.array_equal(seen.laying.way, motion.way)
        return _landed(seen.laying, current) if same else None

    def following(
        self, following: View, current: View, motion: Motion | None, *, closely: bool = True
    ) -> Aligned:
        """`following`, whose motion is given, as seen from `current`."""
        self._seen = None
        if motion is None or not _trusted(motion):
            return Aligned(current.half, None)
        aligned = self._aligned(following, current, motion.way, closely)
        if closely and aligned.laying is not None:
            self._seen = _Seen(current, following, aligned.laying)
        return aligned

    def _aligned(
        self,
        neighbour: View,
        current: View,
        way: Way,
        closely: bool,
        parts: Sequence[Part] | None = None,
    ) -> Aligned:
        """`way` takes a pixel of `current` to its place in `neighbour`.

        Only `parts` of the smaller picture, if they are given, may move on their own.
        """
        size = current.luma.shape
        if np.array_equal(neighbour.luma, current.luma):
            still = Laying(np.eye(3))
            return Aligned(current.half, _offset(size, still), still)
        half = np.empty_like(current.half)
        warp(neighbour.half, current.half, scaled_down(way, 2), half, [whole(half)])
        laying = self._laying(neighbour, current, way, half, parts) if closely else Laying(way)
        laying.move(neighbour.half, current.half, half, [whole(half)], shrunk=2)
        return Aligned(half, _offset(size, laying), laying)

    def _laying(
        self,
        neighbour: View,
        current: View,
        way: Way,
        half: Plane,
        parts: Sequence[Part] | None,
    ) -> Laying:
        """With a flow where the two agree clearly better with it than by `way` alone.

        `half` is the neighbour at half size, laid by `way` alone.
        """
        here, there = current.small, neighbour.small
        if here is None or there is None or parts == []:
            return Laying(way)
        laid, scale = half, current.scale
        if here is not current.half:
            laid = np.empty_like(here)
            warp(there, here, scaled_down(way, scale), laid, [whole(here)])
        if self._grid.shape[:2] != here.shape:
            self._grid = coordinates(whole(here))
            self._moved = np.empty_like(self._grid)
        flow = self._flow(here, laid, parts)
        moved = np.empty_like(here)
        look_up(laid, np.add(flow, self._grid, out=self._moved), here, moved)
        better = _better(_difference(here, laid), _difference(here, moved))
        if not better.any():
            return Laying(way)
        share = cv2.boxFilter(better, cv2.CV_32F, (AGREEMENT, AGREEMENT))
        parts = tuple(_parts(share, here.shape))
        share = cv2.resize(share, here.shape[::-1], interpolation=cv2.INTER_LINEAR)
        both = cv2.merge([share, share], dst=self._moved)
        flow = np.asarray(cv2.multiply(flow, both, dst=flow), np.float32)
        return Laying(way, flow, parts, scale)

    def _flow(self, here: Plane, laid: Plane, parts: Sequence[Part] | None) -> Floats:
        """(h, w), (h, w) -> (h, w, 2): from `here` to `laid`, nought outside of the parts."""
        nothing: Any = None  # a flow to begin with; OpenCV's types want one
        self._estimator.setFinestScale(FINEST)  # it forgets that behind a tiny picture
        if parts is None:
            return np.asarray(self._estimator.calc(here, laid, nothing), np.float32)
        flow = np.zeros((*here.shape, 2), np.float32)
        for part in parts:
            first, second = (np.ascontiguousarray(picture[part]) for picture in (here, laid))
            flow[part] = self._estimator.calc(first, second, nothing)
        return flow


def _landed(laying: Laying, neighbour: View) -> list[Part] | None:
    """Where in the neighbour what moves on its own is, with room around; None if all may be it.

    Parts are of the smaller picture, of the neighbour as of the frame.
    """
    if laying.flow is None or neighbour.small is None:
        return []
    height, width = neighbour.small.shape
    way = laying.way_between(laying.scale)
    landed: list[Part] = []
    for part in laying.parts:
        flow, grid = (each[::SPARSE, ::SPARSE] for each in (laying.flow[part], coordinates(part)))
        places: NDArray[Any] = flow + grid
        found = transformed(places, way).reshape(-1, 2)
        left, top = np.floor(found.min(axis=0)).astype(int) - AROUND
        right, bottom = np.ceil(found.max(axis=0)).astype(int) + AROUND
        box = np.s_[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
        if all(side.stop - side.start >= FLOW_EDGE for side in box):
            landed.append(box)
    covered = sum(map(area, landed))
    return landed if covered < WORTH * height * width else None


def _trusted(motion: Motion) -> bool:
    return not motion.cut and motion.confidence >= MIN_CONFIDENCE


def _offset(size: tuple[int, ...], laying: Laying) -> Floats:
    """(H, W) -> (H/8, W/8, 2) rounded up: by how much each cell's middle is moved."""
    middle = (CONTEXT_STRIDE - 1) / 2
    y, x = (CONTEXT_STRIDE * np.arange(-(-edge // CONTEXT_STRIDE)) + middle for edge in size)
    place = np.dstack(np.meshgrid(x, y))
    moved = place.copy()
    if laying.flow is not None:
        flow = cv2.resize(laying.flow, (len(x), len(y)), interpolation=cv2.INTER_AREA)
        moved += laying.scale * flow
    return np.asarray(transformed(moved, laying.way) - place, np.float32)


def _difference(here: Plane, there: Plane) -> Floats:
    """(h, w), (h, w) -> a quarter of both: by how much they differ around each place."""
    height, width = here.shape
    size = max(1, width // COARSER), max(1, height // COARSER)
    coarse = cv2.resize(cv2.absdiff(here, there), size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.boxFilter(coarse, cv2.CV_32F, (AGREEMENT, AGREEMENT)))


def _better(before: Floats, after: Floats) -> Floats:
    """(h, w) differences without and with the flow -> 1 where it is believed, else 0.

    Whole things move: places where the flow helps a little count if it helps clearly beside them
    (hysteresis, Canny 1986).
    """
    clearly = (1 - GAIN) * before - after > NOISE
    slightly = clearly | ((1 - SLIGHT_GAIN) * before - after > SLIGHT_NOISE)
    count, numbers, sizes, _ = cv2.connectedComponentsWithStats(
        slightly.astype(np.uint8), connectivity=4
    )
    sure = np.bincount(numbers[clearly], minlength=count)
    believed = sure > CLEARLY * sizes[:, cv2.CC_STAT_AREA]
    believed[0] = False
    return np.asarray(believed[numbers], np.float32)


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
