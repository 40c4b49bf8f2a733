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


def seam_windows(filtered: NDArray[np.bool_], *, stride: int = 1) -> tuple[Array, Array]:
    """(rows, columns) -> vertical and horizontal windows (rows, columns, s), 0..1.

    A block's weight is their outer product. Towards a filtered neighbour it ramps over the two
    seams, so that both blocks' weights sum to 1; towards a clear one it ramps inside the block;
    at the frame's edge it stays 1.
    """
    return (
        _windows(filtered, stride),
        _windows(filtered.T, stride).swapaxes(0, 1),
    )


def _windows(filtered: NDArray[np.bool_], stride: int) -> Array:
    """Windows along the first axis."""
    seam, size = SEAM // stride, (BLOCK + 2 * SEAM) // stride
    ramp = (np.arange(2 * seam, dtype=np.float32) + 0.5) / (2 * seam)
    shared, fading = np.ones(size, np.float32), np.ones(size, np.float32)
    shared[: 2 * seam] = ramp
    fading[:seam] = 0
    fading[seam : 3 * seam] = ramp
    edge = np.ones(size, np.float32)
    before = np.zeros_like(filtered)
    before[1:] = filtered[:-1]
    first = np.where(before[..., None], shared, fading)
    first[0] = edge
    after = np.zeros_like(filtered)
    after[:-1] = filtered[1:]
    last = np.where(after[..., None], shared, fading)
    last[-1] = edge
    return (first * last[..., ::-1]).astype(np.float32)


def merge(
    residuals: NDArray[np.float32],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    filtered: NDArray[np.bool_],
    *,
    stride: int = 1,
) -> NDArray[np.float32]:
    """(N, s, s) residuals of the filtered blocks -> one (rows * b, columns * b) residual.

    It is 0 in every clear block.
    """
    block, seam = BLOCK // stride, SEAM // stride
    high, wide = filtered.shape
    vertical, horizontal = seam_windows(filtered, stride=stride)
    weighted = residuals * vertical[rows, columns][:, :, None]
    weighted *= horizontal[rows, columns][:, None, :]
    total = np.zeros((high * block + 2 * seam, wide * block + 2 * seam), np.float32)
    size = block + 2 * seam
    for part, row, column in zip(weighted, rows.tolist(), columns.tolist(), strict=True):
        total[row * block : row * block + size, column * block : column * block + size] += part
    total = total[seam:-seam, seam:-seam]
    keep = filtered[:, None, :, None]
    view = total.reshape(high, block, wide, block)
    return np.where(keep, view, np.float32(0)).reshape(high * block, wide * block)
