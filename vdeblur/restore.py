"""The restore stage: find the blurred blocks of each frame and filter only those."""

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .align import align_next, align_previous
from .backend import Backend
from .blocks import BLOCK, CONTEXT_STRIDE, SEAM, Grid, merge
from .clusters import CLEAR
from .frame import Frame, Motion, Plane

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Restorer:
    """A stage: deblur each frame with the help of the one before and the one after it.

    It holds one frame back. Frames need their `motion`; blocks of the clear cluster come back
    bit for bit, and so do whole frames that have no other.
    """

    def __init__(self, backend: Backend, *, strength: float = 0.5, batch: int = 32) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be 0..1, got {strength}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.backend = backend
        self.strength = strength
        self.batch = batch
        self.paused = False
        """Pass frames on at once, as they are: for a machine that cannot keep up."""
        self.block = BLOCK
        self.blocks: NDArray[np.int64] = np.zeros(len(backend.bundle.clusters), np.int64)
        """(K,): blocks seen of each cluster so far."""
        self._previous: Bytes | None = None
        self._held: tuple[Frame, Bytes] | None = None
        self._residuals: tuple[Floats, Floats] | None = None
        self._labels: NDArray[np.uint8] | None = None

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the one before it, restored."""
        if self.paused:
            return [*self.flush(), frame]
        luma = to_bytes(frame.planes[0], frame.format.depth)
        ready = self._restore_held((frame, luma))
        self._held = (frame, luma)
        return ready

    def flush(self) -> list[Frame]:
        """Return the last frame; the next `push` begins a new video."""
        ready = self._restore_held(None)
        self._held = self._previous = self._labels = None
        return ready

    def _restore_held(self, following: tuple[Frame, Bytes] | None) -> list[Frame]:
        if self._held is None:
            return []
        frame, luma = self._held
        if following is not None and following[1].shape != luma.shape:
            following = None
        before = after = luma
        if self._previous is not None and self._previous.shape == luma.shape:
            before = align_previous(self._previous, luma, frame.motion)
        if following is not None:
            after = align_next(following[1], luma, following[0].motion)
        self._previous = luma
        return [self._restore(frame, luma, before, after)]

    def _restore(self, frame: Frame, luma: Bytes, before: Bytes, after: Bytes) -> Frame:
        grid = Grid(frame.height, frame.width)
        padded = np.stack([grid.pad(plane) for plane in (luma, before, after)])
        halo = (padded.shape[1] - grid.rows * BLOCK) // 2
        inner = np.ascontiguousarray(padded[:, halo:-halo, halo:-halo])
        context, latents = self.backend.embed(inner)
        labels = self._assign(latents, frame.motion)
        self.blocks += np.bincount(labels.ravel(), minlength=len(self.blocks))
        frame = replace(frame, labels=labels)
        if not labels.any():
            return frame
        residual, colour = self._filter(grid, padded, small_chroma(frame), context, labels)
        planes = [add_residual(frame.planes[0], residual, frame.format.depth)]
        planes += [
            add_residual(
                plane,
                enlarge(part, labels != CLEAR, frame.format.shift_x, frame.format.shift_y),
                frame.format.depth,
            )
            for plane, part in zip(frame.planes[1:], colour, strict=False)
        ]
        return replace(frame, planes=tuple(planes))

    def _assign(self, latents: Floats, motion: Motion | None) -> NDArray[np.uint8]:
        """(rows, columns, D) -> (rows, columns): in a scene blocks tend to keep their cluster."""
        before = self._labels
        if motion is None or motion.cut or before is None or before.shape != latents.shape[:2]:
            before = None
        clusters = self.backend.bundle.clusters
        self._labels = clusters.assign(latents, strength=self.strength, before=before)
        return self._labels

    def _filter(
        self, grid: Grid, luma: Bytes, chroma: Bytes, context: Floats, labels: NDArray[np.uint8]
    ) -> tuple[Floats, list[Floats]]:
        """Run each cluster's filter on its blocks and lay the residuals side by side."""
        chroma_padded, context_padded = (
            grid.pad(chroma, stride=2),
            grid.pad(context, stride=CONTEXT_STRIDE),
        )
        lumas, chromas = self._room(grid)
        for cluster in range(CLEAR + 1, len(self.blocks)):
            for row, column in self._batches(labels == cluster):
                residual, colour = self.backend.apply(
                    cluster,
                    grid.gather(luma, row, column),
                    grid.gather(chroma_padded, row, column, stride=2),
                    grid.gather(context_padded, row, column, stride=CONTEXT_STRIDE),
                )
                lumas[row, column] = residual
                chromas[:, row, column] = colour.swapaxes(0, 1)
        blurred = labels != CLEAR
        return merge(lumas, blurred), [merge(part, blurred, stride=2) for part in chromas]

    def _room(self, grid: Grid) -> tuple[Floats, Floats]:
        """For all blocks' residuals; the same for every frame, since fresh memory costs time."""
        size = BLOCK + 2 * SEAM
        if self._residuals is None or self._residuals[0].shape[:2] != (grid.rows, grid.columns):
            self._residuals = (
                np.zeros((grid.rows, grid.columns, size, size), np.float32),
                np.zeros((2, grid.rows, grid.columns, size // 2, size // 2), np.float32),
            )
        return self._residuals

    def _batches(
        self, chosen: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        rows, columns = np.nonzero(chosen)
        for start in range(0, len(rows), self.batch):
            yield rows[start : start + self.batch], columns[start : start + self.batch]


def to_bytes(plane: Plane, depth: int) -> Bytes:
    """(H, W) of any depth -> uint8: what the network sees; an 8-bit plane is passed on."""
    if depth == 8:
        return plane
    step = 1 << (depth - 8)
    return cv2.convertScaleAbs(plane, alpha=1 / step).astype(np.uint8, copy=False)


def small_chroma(frame: Frame) -> Bytes:
    """The chroma of a frame at half the luma's size, (2, H/2, W/2) rounded up; grey has none."""
    height, width = -(-frame.height // 2), -(-frame.width // 2)
    if frame.format.planes == 1:
        return np.full((2, height, width), 128, np.uint8)
    planes = [to_bytes(plane, frame.format.depth) for plane in frame.planes[1:]]
    return np.stack(
        [
            plane
            if plane.shape == (height, width)
            else cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
            for plane in planes
        ]
    )


def add_residual(plane: Plane, residual: Floats, depth: int) -> Plane:
    """(H, W), (>= H, >= W) in 8-bit steps -> (H, W): their sum; where it is 0 nothing changes."""
    height, width = plane.shape
    part = residual[:height, :width]
    if depth == 8:
        return cv2.add(plane, part, dtype=cv2.CV_8U)
    summed = cv2.add(plane, part * np.float32(1 << (depth - 8)), dtype=cv2.CV_16U)
    return np.minimum(summed, np.uint16((1 << depth) - 1))


def enlarge(residual: Floats, blurred: NDArray[np.bool_], shift_x: int, shift_y: int) -> Floats:
    """A residual of 4:2:0 chroma -> one for chroma of another size; 0 stays 0 in clear blocks."""
    if (shift_x, shift_y) == (1, 1):
        return residual
    high, wide = BLOCK >> shift_y, BLOCK >> shift_x
    rows, columns = blurred.shape
    size = (columns * wide, rows * high)
    large = np.asarray(cv2.resize(residual, size, interpolation=cv2.INTER_LINEAR), np.float32)
    kept = large.reshape(rows, high, columns, wide) * blurred[:, None, :, None]
    return kept.reshape(rows * high, columns * wide)
