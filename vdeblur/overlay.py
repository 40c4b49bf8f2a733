"""Show what the clusters decided: a colour and a thin border over each filtered block."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK
from .frame import Frame, PixelFormat, Plane

TINTS = ((-0.3, -0.4), (-0.45, 0.1), (-0.15, 0.45), (0.3, 0.35), (0.45, -0.1), (0.1, -0.45))
"""(U, V) of clusters 1, 2, ...: green, yellow, red, magenta, blue, cyan; then round again."""
OPACITY = 0.3
"""Of the colour over the picture."""
EDGE = 0.5
"""By how much of the range a border is lightened or darkened."""


class Overlay:
    """Paints each block's cluster over the picture; cluster 0, the clear one, stays as it is."""

    def push(self, frame: Frame) -> list[Frame]:
        """Return the frame at once, painted if it has labels."""
        if frame.labels is None or not frame.labels.any():
            return [frame]
        planes = [_bordered(frame.planes[0], frame.labels, frame.format)]
        for channel, plane in enumerate(frame.planes[1:]):
            planes.append(_tinted(plane, frame.labels, channel, frame.format))
        return [replace(frame, planes=tuple(planes))]

    def flush(self) -> list[Frame]:
        """Nothing was held back."""
        return []


def _blocks(
    labels: NDArray[np.uint8], shape: tuple[int, ...], height: int, width: int
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """The cluster and the place of each filtered block in a plane of `shape`."""
    for row, column in np.argwhere(labels):
        top, left = int(row) * height, int(column) * width
        bottom, right = min(top + height, shape[0]), min(left + width, shape[1])
        if top < bottom and left < right:
            yield int(labels[row, column]), (slice(top, bottom), slice(left, right))


def _bordered(luma: Plane, labels: NDArray[np.uint8], format: PixelFormat) -> Plane:
    """(H, W) -> the same with a line along the inside of each filtered block."""
    painted = luma.copy()
    lift = round(EDGE * format.peak)
    for _, place in _blocks(labels, luma.shape, BLOCK, BLOCK):
        block = painted[place]
        # Light lines on a dark block and dark ones on a light block: visible on any picture.
        step = lift if block.mean() * 2 <= format.peak else -lift
        for line in (np.s_[0], np.s_[-1], np.s_[1:-1, 0], np.s_[1:-1, -1]):
            block[line] = np.clip(block[line].astype(np.int32) + step, 0, format.peak)
    return painted


def _tinted(chroma: Plane, labels: NDArray[np.uint8], channel: int, format: PixelFormat) -> Plane:
    """(h, w) U (channel 0) or V (1) -> the same, drawn towards each filtered block's colour."""
    painted = chroma.copy()
    height, width = BLOCK >> format.shift_y, BLOCK >> format.shift_x
    for cluster, place in _blocks(labels, chroma.shape, height, width):
        tint = TINTS[(cluster - 1) % len(TINTS)][channel]
        colour = (0.5 + tint) * format.peak
        block = painted[place]
        block[:] = np.rint(block + (colour - block) * OPACITY)
    return painted
