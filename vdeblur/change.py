"""How much a first stage changed each block: whether the second one, which costs more, is worth it.

An encoder tells by looks alone whether a block is blurred, and leaves many alone that are, since
what is sharp shall stay as it is. A first stage that has tried to deblur it knows better: of what
is blurred it changes much where there is little detail, of what is sharp next to nothing where
there is much. Routing by what a cheap stage found out is what cascades do (Viola & Jones, "Rapid
object detection using a boosted cascade of simple features", 2001).
"""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK, Grid
from .clusters import CLEAR, Clusters
from .found import Bytes, Floats, Found, to_bytes
from .frame import Frame, Plane

TRIED = 0.1
"""Share of a frame's blocks that must be taken for blurred for all of them to be tried."""
FLAT = 1e-3
"""Detail, in squared 8-bit steps, that every block is taken to have."""
ROOTS = np.sqrt(np.arange(256, dtype=np.float32))

Labels = NDArray[np.uint8]


def tried(labels: Labels, latents: Floats, clusters: Clusters) -> Labels:
    """(rows, columns), (rows, columns, D) -> labels with which a first stage tries a frame.

    Where much is blurred the rest may be, too: each block gets the filter that would suit it best.
    """
    if np.count_nonzero(labels) < TRIED * labels.size:
        return labels
    return np.where(labels == CLEAR, clusters.assign(latents, strength=1), labels)


def worth_more(found: Found, planes: tuple[Plane, ...], least: float) -> Found:
    """What a second stage shall filter of what a first one tried, and made `planes` of.

    These are the blocks that it changed by at `least` so much (see `relative_change`).
    """
    frame = found.frame
    if found.context is None or frame.labels is None:
        return found
    labels = np.where(change_of(frame, planes) < least, CLEAR, frame.labels)
    context = found.context if labels.any() else None
    return replace(found, frame=replace(frame, labels=labels.astype(np.uint8)), context=context)


def change_of(frame: Frame, planes: tuple[Plane, ...]) -> Floats:
    """(rows, columns): the `relative_change` of each block of a frame, now that it has `planes`."""
    before, after = (to_bytes(each[0], frame.format.depth) for each in (frame.planes, planes))
    return relative_change(before, after)


def relative_change(before: Bytes, after: Bytes) -> Floats:
    """(H, W), (H, W) -> (rows, columns) of blocks: how much changed, for the detail that there was.

    The squared mean of the roots of what pixels changed by, which a few pixels that change much do
    not raise, over the mean squared gradient of `before`; in the inverse of 8-bit steps.
    """
    smooth = cv2.GaussianBlur(before, (0, 0), 1.0)  # or noise would be detail
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, right, 1 - right, ksize=1, scale=0.5) for right in (1, 0))
    detail = _means(cv2.magnitude(x, y) ** 2)
    roots = _means(cv2.LUT(cv2.absdiff(before, after), ROOTS))
    return np.asarray(roots**2 / (detail + FLAT), np.float32)


def _means(field: NDArray[np.generic]) -> Floats:
    """(H, W) -> (rows, columns): of each block; what reaches past the frame repeats its edge."""
    grid = Grid(*field.shape)
    whole = grid.whole(field[None], stride=1)[0]
    blocks = whole.reshape(grid.rows, BLOCK, grid.columns, BLOCK)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)
