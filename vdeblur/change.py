"""Which blocks filters restore: those that they change much, for their detail.

An encoder tells by looks alone whether a block is blurred, and leaves many alone that are, since
what is sharp shall stay as it is. A first stage that has tried to deblur it knows better: of what
is blurred it changes much where there is little detail, of what is sharp next to nothing where
there is much. Routing by what a cheap stage found out is what cascades do (Viola & Jones, "Rapid
object detection using a boosted cascade of simple features", 2001). A single stage knows it, too,
and what it has tried in vain is not shown.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK, HALO
from .clusters import CLEAR
from .found import Bytes, Floats, to_bytes
from .frame import Frame, Plane

FLAT = 1e-3
"""Detail, in squared 8-bit steps, that every block is taken to have."""
SMOOTHED, REACH = 1.0, 4
"""Noise is no detail: a Gaussian in pixels, and as far as a gradient behind it looks."""
ROOTS = np.sqrt(np.arange(256, dtype=np.float32))

Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Trying:
    """Which blocks are tried though the encoder takes them for clear."""

    share: float
    """Others must be taken for blurred: so much of the frame, 0..1."""
    doubted: float
    """A block whose clear share exceeds this is sharp for sure, and is not tried: it may be noisy,
    and a filter that takes noise away changes it much."""
    every: int
    """Frames after which a block is tried again that was tried in vain."""


BEFORE_ANOTHER = Trying(share=0.13, doubted=0.8, every=2)
"""By a first stage."""
ALONE = Trying(share=0.4, doubted=0.8, every=3)
"""By a single one, of whose work each block that is tried is a larger part."""


class Cascade:
    """Decides, frame after frame, which blocks a first stage tries and which ones pass on.

    Of a single stage, those that pass are shown as it restored them.
    """

    def __init__(self, least: float, trying: Trying = BEFORE_ANOTHER) -> None:
        """What is changed by less than `least` (see `relative_change`) does not pass."""
        self._least = least
        self.trying = trying
        self._turn = 0
        self.last: Labels | None = None
        """Of the frame before: what passed."""

    def tried(self, labels: Labels, suited: Labels) -> Labels:
        """(rows, columns) each -> those of the blocks that a first stage tries.

        `labels` are the encoder's, `suited` those with which no more than `Trying.doubted` counts
        as clear. Where much of a frame is blurred the rest may be, too.
        """
        if not self.doubts(labels):
            return labels
        return np.where((labels == CLEAR) & self._due(labels.shape), suited, labels)

    def doubts(self, labels: Labels) -> bool:
        """Whether so much of a frame is blurred that the rest may be, too."""
        return bool(np.count_nonzero(labels) >= self.trying.share * labels.size)

    def forget(self) -> None:
        """The next frame has none before it."""
        self.last, self._turn = None, 0

    def _due(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """All in a first frame; then those that passed, and of the others a part in turn."""
        if self.last is None or self.last.shape != shape:
            return np.ones(shape, np.bool_)
        rows, columns = np.indices(shape)
        in_turn = (rows + columns + self._turn) % self.trying.every == 0
        return np.asarray(in_turn | (self.last != CLEAR))

    def passed(self, tried: Labels, change: Floats) -> Labels:
        """(rows, columns) each: the labels of what was changed enough of what was tried."""
        self._turn += 1
        self.last = np.where(change < self._least, CLEAR, tried).astype(np.uint8)
        return self.last


def change_of(frame: Frame, planes: tuple[Plane, ...]) -> Floats:
    """(rows, columns): the `relative_change` of each block of a frame, now that it has `planes`."""
    before, after = (to_bytes(each[0], frame.format.depth) for each in (frame.planes, planes))
    return relative_change(before, after)


def relative_change(before: Bytes, after: Bytes) -> Floats:
    """(H, W), (H, W) -> (rows, columns) of blocks: how much changed, for the detail that there was.

    The squared mean of the roots of what pixels changed by, which a few pixels that change much do
    not raise, over the mean squared gradient of `before`; in the inverse of 8-bit steps.
    """
    tops = range(0, len(before), BLOCK)  # row by row: it takes little memory, and that is near
    return np.stack([_row(before, after, top) for top in tops])


def _row(before: Bytes, after: Bytes, top: int) -> Floats:
    """The same of the blocks that begin with a line of the frame."""
    inside = slice(top, top + BLOCK)
    roots = _means(cv2.LUT(cv2.absdiff(before[inside], after[inside]), ROOTS))
    return np.asarray(roots**2 / (_detail(before, top) + FLAT), np.float32)


def roots_of(residuals: Floats) -> Floats:
    """(N, E, E) of blocks with their halo -> (N,): the mean root of what their pixels change by."""
    if not len(residuals):
        return np.zeros(0, np.float32)
    own = residuals[:, HALO:, HALO:]
    steps = cv2.convertScaleAbs(np.ascontiguousarray(own).reshape(-1, BLOCK))
    return np.asarray(cv2.LUT(steps, ROOTS).reshape(len(own), -1).mean(axis=1), np.float32)


def relative_to_detail(before: Bytes, roots: Floats, doubted: NDArray[np.bool_]) -> Floats:
    """(H, W), (N,) as from `roots_of`, (rows, columns) with N set -> (rows, columns).

    As `relative_change`, before blocks are merged; infinite where nobody doubts.
    """
    change = np.full(doubted.shape, np.inf, np.float32)
    change[doubted] = roots**2
    for row in np.flatnonzero(doubted.any(axis=1)):
        change[row] /= _detail(before, BLOCK * int(row)) + FLAT
    return change


def _detail(before: Bytes, top: int) -> Floats:
    """(columns,): the mean squared gradient of the blocks that begin with a line of the frame."""
    first = max(0, top - REACH)
    smooth = cv2.GaussianBlur(before[first : top + BLOCK + REACH], (0, 0), SMOOTHED)
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, right, 1 - right, ksize=1, scale=0.5) for right in (1, 0))
    return np.asarray(_means(cv2.magnitude(x, y)[top - first :][:BLOCK] ** 2), np.float32)


def _means(band: NDArray[Any]) -> NDArray[Any]:
    """(h, W) -> (columns,): of each block, as far as it lies in the frame."""
    height, width = band.shape
    starts = np.arange(0, width, BLOCK)
    sums = np.add.reduceat(band.sum(axis=0), starts)
    return np.asarray(sums / (height * np.minimum(BLOCK, width - starts)))
