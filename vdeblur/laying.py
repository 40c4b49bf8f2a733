"""How a neighbour is laid over a frame: by the camera's motion, and parts of it by a flow."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import Part
from .frame import Plane

BAND = 1 << 20
"""Pixels whose places are worked out at once: each takes 16 bytes on the way."""
BEGINNING = 1 << 15
"""Pixels whose places could be worked out in the time that it takes to begin with a part."""

Floats = NDArray[np.float32]
Way = NDArray[np.float64]
"""(3, 3): takes pixels to their places in another picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Laying:
    """How a neighbour is laid over a frame; what else belongs to the neighbour can go that way."""

    way: Way
    """Takes a pixel of the frame to its place in the neighbour."""
    flow: Floats | None = None
    """(h, w, 2): by how much the pixels of a smaller picture of the frame are moved before that,
    x and y in pixels of it; None where nothing is."""
    parts: tuple[Part, ...] = ()
    """Of the smaller picture, outside of which the flow is nought."""
    scale: int = 1
    """Pixels of the frame in one of the smaller picture, along each axis."""

    def way_between(self, shrunk: int) -> Way:
        """`way` between pictures that are so many times smaller."""
        return scaled_down(self.way, shrunk)

    def lay(
        self,
        neighbour: Plane,
        current: Plane,
        out: Plane,
        parts: Sequence[Part] | None = None,
        *,
        shrunk: int = 1,
    ) -> None:
        """(H, W) uint8 each: set parts of `out`, or all, to `neighbour` as seen from `current`.

        `current` shines through where the neighbour ends. The planes may be so many times
        `shrunk` by a mean. What lies between the parts may be set, too.
        """
        parts = [whole(current)] if parts is None else parts
        warp(neighbour, current, self.way_between(shrunk), out, parts)
        self.move(neighbour, current, out, parts, shrunk=shrunk)

    def move(
        self,
        neighbour: Plane,
        current: Plane,
        out: Plane,
        parts: Sequence[Part],
        *,
        shrunk: int = 1,
    ) -> None:
        """What `lay` does after it has laid the parts by `way` alone."""
        step, way = self.scale / shrunk, self.way_between(self.scale)
        for rows, columns in self.parts:
            moved = (
                slice(int(rows.start * step), ceil(rows.stop * step)),
                slice(int(columns.start * step), ceil(columns.stop * step)),
            )
            for both in _joined([both for part in parts if area(both := _both(moved, part))]):
                for band in _bands(both):
                    places = self._places(band, shrunk, way)
                    look_up(neighbour, places, current[band], out[band])

    def _places(self, part: Part, shrunk: int, way: Way) -> Floats:
        """(h, w, 2): where a `shrunk` frame's part is in its neighbour, x and y.

        `way` is between pictures as small as the flow.
        """
        if self.scale == shrunk:
            return self._moved(part, way)
        # How far they are from their own places changes slowly: it is worked out for the smaller
        # picture, and enlarged.
        assert self.flow is not None, "it has parts"
        step = self.scale / shrunk
        rows, columns = around = (
            _around(part[0], step, self.flow.shape[0]),
            _around(part[1], step, self.flow.shape[1]),
        )
        away = self._moved(around, way)
        away -= coordinates(around)
        size = (
            round(step * (columns.stop - columns.start)),
            round(step * (rows.stop - rows.start)),
        )
        first, left = round(step * rows.start), round(step * columns.start)
        within = np.s_[
            part[0].start - first : part[0].stop - first,
            part[1].start - left : part[1].stop - left,
        ]
        away *= np.float32(step)
        places = coordinates(part)
        places += cv2.resize(away, size, interpolation=cv2.INTER_LINEAR)[within]
        return places

    def _moved(self, part: Part, way: Way) -> Floats:
        """(h, w, 2): where a part of the smaller picture is in the neighbour's, x and y."""
        assert self.flow is not None, "it has parts"
        moved = coordinates(part)
        moved += self.flow[part]
        return np.asarray(transformed(moved, way), np.float32)


def whole(picture: Plane) -> Part:
    """All of it."""
    return np.s_[0 : picture.shape[0], 0 : picture.shape[1]]


def warp(neighbour: Plane, current: Plane, way: Way, out: Plane, parts: Iterable[Part]) -> None:
    """Set parts of `out` to `neighbour` by `way` alone."""
    if np.array_equal(way, np.eye(3)):
        for part in parts:
            np.copyto(out[part], neighbour[part])
        return
    for rows, columns in parts:
        part = rows, columns
        # Where the neighbour does not reach, the frame itself shines through.
        np.copyto(out[part], current[part])
        cv2.warpPerspective(
            neighbour,
            way @ np.array([[1.0, 0, columns.start], [0, 1, rows.start], [0, 0, 1]]),
            (columns.stop - columns.start, rows.stop - rows.start),
            dst=out[part],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_TRANSPARENT,
        )


def transformed(places: NDArray[Any], way: Way) -> NDArray[Any]:
    """(h, w, 2) -> the same memory: where `way` takes them, x and y."""
    if np.array_equal(way[2], (0, 0, 1)):  # nothing is to be divided: five times as fast
        return np.asarray(cv2.transform(places, way[:2], dst=places))
    return np.asarray(cv2.perspectiveTransform(places, way, dst=places))


def look_up(picture: Plane, places: Floats, current: Plane, out: Plane) -> None:
    """(H, W) -> `out` (h, w): `picture` at (h, w, 2) places; `current` where it has none."""
    np.copyto(out, current)
    none: Any = None  # both coordinates are in the first map, which OpenCV's types do not know
    cv2.remap(
        picture,
        places,
        none,
        cv2.INTER_LINEAR,
        dst=out,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def scaled_down(way: Way, scale: int) -> Way:
    """`way` between pictures that are so many times smaller."""
    middle = (scale - 1) / 2
    enlarging = np.array([[scale, 0, middle], [0, scale, middle], [0, 0, 1]])
    shrinking = np.array([[1, 0, -middle], [0, 1, -middle], [0, 0, scale]]) / scale
    shrunk = shrinking @ way @ enlarging
    return np.asarray(shrunk / shrunk[2, 2])


def _around(side: slice, step: float, edge: int) -> slice:
    """Of a picture whose pixels are `step` times as large: those that cover a side, and some more.

    Twice a step is a whole number of pixels, so they come in pairs.
    """
    first = max(0, int(side.start / step) - 1) // 2 * 2
    return slice(first, min(edge, (ceil(side.stop / step) + 2) // 2 * 2))


def _both(one: Part, other: Part) -> Part:
    """What lies in both; it may be nothing."""
    rows, columns = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return rows, columns


def area(part: Part) -> int:
    """Its pixels; none where it ends before it begins."""
    high, wide = (max(0, side.stop - side.start) for side in part)
    return int(high * wide)


def _joined(parts: Sequence[Part]) -> Sequence[Part]:
    """One part around all of them where that is less work."""
    if not parts:
        return parts
    rows, columns = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*parts, strict=True)
    )
    each = sum(area(part) + BEGINNING for part in parts)
    return [(rows, columns)] if area((rows, columns)) + BEGINNING <= each else parts


def _bands(part: Part) -> Iterator[Part]:
    """Cut a part into rows of `BAND` pixels at most."""
    rows, columns = part
    if columns.start < columns.stop:
        step = max(1, BAND // (columns.stop - columns.start))
        for top in range(rows.start, rows.stop, step):
            yield slice(top, min(top + step, rows.stop)), columns


def coordinates(part: Part) -> Floats:
    """(h, w, 2): x and y of each pixel of a part of a picture."""
    y, x = (np.arange(side.start, side.stop, dtype=np.float32) for side in part)
    grid = np.empty((len(y), len(x), 2), np.float32)
    grid[..., 0], grid[..., 1] = x, y[:, None]
    return grid
