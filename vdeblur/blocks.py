"""Cut a frame into blocks, gather those to be filtered, and lay their residuals back.

A block is 64 x 64 luma pixels. A filter reads it with a halo of 8 pixels on each side and
writes it with a seam of 4: where two filtered blocks meet, their residuals fade into each
other; towards a clear block the residual fades to nothing inside the filtered one, so that the
clear block stays as it was, bit for bit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

BLOCK = 64
"""Edge of a block in luma pixels."""
HALO = 8
"""Pixels around a block that a filter reads."""
SEAM = 4
"""Pixels around a block that a filter also writes."""
CONTEXT_STRIDE = 8
"""Luma pixels per cell of the encoder's context."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the blocks of a frame lie; the last row and column may reach past the frame."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a frame has at least one pixel, got {self.width}x{self.height}")

    @property
    def rows(self) -> int:
        """Blocks from top to bottom."""
        return -(-self.height // BLOCK)

    @property
    def columns(self) -> int:
        """Blocks from left to right."""
        return -(-self.width // BLOCK)

    def pad(self, plane: Array, *, stride: int = 1) -> Array:
        """(h, w) or (C, h, w) -> whole blocks and a halo around them, edge pixels repeated.

        `stride` is how many luma pixels one cell of `plane` covers: 1 luma, 2 chroma, 8 context.
        """
        height, width = plane.shape[-2:]
        halo = HALO // stride
        below = self.rows * BLOCK // stride - height + halo
        right = self.columns * BLOCK // stride - width + halo
        lead = [(0, 0)] * (plane.ndim - 2)
        return np.pad(plane, [*lead, (halo, below), (halo, right)], mode="edge")

    def gather(self, padded: Array, rows: Array, columns: Array, *, stride: int = 1) -> Array:
        """(C, h, w) as from `pad`, (N,), (N,) -> (N, C, e, e): blocks with their halo."""
        edge, step = (BLOCK + 2 * HALO) // stride, BLOCK // stride
        windows = sliding_window_view(padded, (edge, edge), axis=(-2, -1))[:, ::step, ::step]
        return np.ascontiguousarray(windows[:, rows, columns].swapaxes(0, 1))


def merge(
    residuals: NDArray[np.float32], filtered: NDArray[np.bool_], *, stride: int = 1
) -> NDArray[np.float32]:
    """(rows, columns, s, s) -> (rows * b, columns * b): lay the blocks' residuals side by side.

    Where two filtered blocks meet, they fade into each other over their two seams, with weights
    that sum to 1; towards a clear block a residual fades to 0 inside its own block; at the
    frame's edge it is kept whole. The result is 0 in every clear block, whatever `residuals`
    holds there. `residuals` is used up.
    """
    seam, block = SEAM // stride, BLOCK // stride
    rows, columns = filtered.shape
    reach = 3 * seam  # of the weights that are not 1
    above, below = _ramps(filtered, seam)
    residuals[:, :, :reach] *= above[..., None]
    residuals[:, :, -reach:] *= below[..., None]
    left, right = (ramp.swapaxes(0, 1) for ramp in _ramps(filtered.T, seam))
    residuals[..., :reach] *= left[:, :, None]
    residuals[..., -reach:] *= right[:, :, None]
    residuals[~filtered] = 0

    # What reaches over a block's end is added to the beginning of the next one.
    strips = np.ascontiguousarray(residuals[..., seam : seam + block])
    strips[:, 1:, :, :seam] += residuals[:, :-1, :, seam + block :]
    strips[:, :-1, :, -seam:] += residuals[:, 1:, :, :seam]
    whole = strips[:, :, seam : seam + block].swapaxes(1, 2)
    whole = np.ascontiguousarray(whole)
    whole[1:, :seam] += strips[:-1, :, seam + block :].swapaxes(1, 2)
    whole[:-1, -seam:] += strips[1:, :, :seam].swapaxes(1, 2)
    whole.swapaxes(1, 2)[~filtered] = 0
    return whole.reshape(rows * block, columns * block)


def _ramps(filtered: NDArray[np.bool_], seam: int) -> tuple[Array, Array]:
    """(rows, columns) -> weights (rows, columns, r) of each block's first and last r pixel rows."""
    ramp = (np.arange(2 * seam, dtype=np.float32) + 0.5) / (2 * seam)
    ones, zeros = np.ones(seam, np.float32), np.zeros(seam, np.float32)
    shared, fading = np.concatenate([ramp, ones]), np.concatenate([zeros, ramp])
    first = np.empty((*filtered.shape, 3 * seam), np.float32)
    first[0] = 1
    first[1:] = np.where(filtered[:-1, :, None], shared, fading)
    last = np.empty_like(first)
    last[-1] = 1
    last[:-1] = np.where(filtered[1:, :, None], shared[::-1], fading[::-1])
    return first, last
