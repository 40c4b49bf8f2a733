"""Move a picture: every plane is resampled once, at its own depth."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Frame, PixelFormat, Plane
from .sway import Complex

Edge = Literal["replicate", "black", "reflect"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
Look = Callable[[Complex], Complex]
"""Places of the new picture, x + iy in luma pixels, to those of the old one."""

EDGES: dict[Edge, int] = {
    "replicate": cv2.BORDER_REPLICATE,
    "black": cv2.BORDER_CONSTANT,
    "reflect": cv2.BORDER_REFLECT_101,
}
INTERPOLATIONS: dict[Interpolation, int] = {
    "bicubic": cv2.INTER_CUBIC,
    "bilinear": cv2.INTER_LINEAR,
    "lanczos": cv2.INTER_LANCZOS4,
}
CELL = 16
"""A bent warp is worked out at nodes so many pixels of a plane apart, and linear between them."""


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a plane, in its own pixels."""

    left: int
    top: int
    width: int
    height: int

    @staticmethod
    def of(plane: Plane) -> "Region":
        """All of it."""
        return Region(0, 0, plane.shape[1], plane.shape[0])

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def warp(
    frame: Frame,
    transform: NDArray[np.float64],
    *,
    border: Edge = "replicate",
    interpolation: Interpolation = "bicubic",
) -> Frame:
    """The frame with its pixels moved by a (2, 3) or (3, 3) transform of luma pixels."""
    planes = tuple(
        warp_plane(plane, index, frame.format, transform, border, interpolation)
        for index, plane in enumerate(frame.planes)
    )
    return replace(frame, planes=planes)


def bend(
    frame: Frame,
    look: Look,
    *,
    border: Edge = "replicate",
    interpolation: Interpolation = "bicubic",
) -> Frame:
    """The frame with each pixel taken from where `look` says."""
    planes = tuple(
        sampled(
            plane, where(look, Region.of(plane), index, frame.format), index, frame.format,
            border, interpolation,
        )
        for index, plane in enumerate(frame.planes)
    )  # fmt: skip
    return replace(frame, planes=planes)


def chroma_transform(transform: NDArray[np.float64], format: PixelFormat) -> NDArray[np.float64]:
    """(2 or 3, 3) of luma pixels -> of chroma pixels.

    A chroma sample is taken to lie, as in MPEG-2 and H.264 by default, at the left of the luma
    samples that share it and halfway down.
    """
    step_x, step_y, down = _spread(1, format)
    to_luma = np.array([[step_x, 0, 0], [0, step_y, down], [0, 0, 1]])
    to_chroma = np.array([[1 / step_x, 0, 0], [0, 1 / step_y, -down / step_y], [0, 0, 1]])
    full = transform if len(transform) == 3 else np.vstack([transform, [0, 0, 1]])
    return np.asarray((to_chroma @ full @ to_luma)[: len(transform)])


def warp_plane(
    plane: Plane,
    index: int,
    format: PixelFormat,
    transform: NDArray[np.float64],
    border: Edge,
    interpolation: Interpolation,
) -> NDArray[Any]:
    """One plane, (H, W) -> (H, W), by a (2, 3) or (3, 3) transform of luma pixels."""
    move = partial(cv2.warpAffine if len(transform) == 2 else cv2.warpPerspective, plane)
    warped = move(
        chroma_transform(transform, format) if index else transform,
        (plane.shape[1], plane.shape[0]),
        flags=INTERPOLATIONS[interpolation],
        borderMode=EDGES[border],
        borderValue=_black(index, format),
    )
    return _within(np.asarray(warped), format, interpolation)


def sampled(
    plane: Plane,
    places: NDArray[np.float32],
    index: int,
    format: PixelFormat,
    border: Edge,
    interpolation: Interpolation,
) -> NDArray[Any]:
    """(H, W) -> (h, w): a plane at (h, w, 2) places, x and y in its own pixels."""
    flags = INTERPOLATIONS[interpolation]
    taken = remapped(plane, places, flags, EDGES[border], _black(index, format))
    return _within(taken, format, interpolation)


def remapped(
    picture: NDArray[Any],
    places: NDArray[np.float32],
    flags: int = cv2.INTER_LINEAR,
    edge: int = cv2.BORDER_REPLICATE,
    value: float = 0,
) -> NDArray[Any]:
    """(H, W) -> (h, w): a picture at (h, w, 2) places."""
    none: Any = None  # both coordinates are in the first map, which OpenCV's types do not know
    return np.asarray(cv2.remap(picture, places, none, flags, borderMode=edge, borderValue=value))


def where(look: Look, region: Region, index: int, format: PixelFormat) -> NDArray[np.float32]:
    """(h, w, 2): where each pixel of a region of plane `index` looks, in that plane's pixels.

    `look` is asked at the nodes of a coarse grid only; OpenCV fills in what lies between.
    """
    columns, rows = -(-region.width // CELL) + 1, -(-region.height // CELL) + 1
    # OpenCV takes nodes for the middles of cells. With half a cell cut off again at each side,
    # node k lies at pixel k CELL - 1/2.
    x = region.left - 0.5 + np.arange(columns) * CELL
    y = region.top - 0.5 + np.arange(rows) * CELL
    step_x, step_y, down = _spread(index, format)
    nodes = look(x[None] * step_x + 1j * (y[:, None] * step_y + down))
    coarse = np.stack([nodes.real / step_x, (nodes.imag - down) / step_y], axis=-1)
    size = (columns * CELL, rows * CELL)
    fine = cv2.resize(coarse.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    first = CELL // 2
    cut = fine[first : first + region.height, first : first + region.width]
    return np.asarray(cut)


def _spread(index: int, format: PixelFormat) -> tuple[int, int, float]:
    """Luma pixels from a sample of a plane to the next, right and down, and down to the first."""
    if not index:
        return 1, 1, 0.0
    return 1 << format.shift_x, 1 << format.shift_y, ((1 << format.shift_y) - 1) / 2


def _black(index: int, format: PixelFormat) -> int:
    return (128 if index else 16) << (format.depth - 8)


def _within(plane: NDArray[Any], format: PixelFormat, interpolation: str) -> NDArray[Any]:
    """A bicubic overshoots at edges; OpenCV clips to what the type holds, not to the depth."""
    if 8 < format.depth < 16 and interpolation != "bilinear":
        return np.asarray(np.minimum(plane, format.peak, dtype=plane.dtype))
    return plane
