"""Cut a frame into blocks, gather those to be filtered, and lay their residuals back.

A block is 64 x 64 luma pixels. A filter reads and writes it with a halo of 8 pixels above it and to
its left: it lies over the ends of the blocks there, and where two filtered blocks meet, their
residuals fade into each other over it; towards a clear block the residual fades to nothing inside
the filtered one, so that the clear block stays as it was, bit for bit. Each of two neighbours knows
what lies behind the middle of where they fade, so that a halo on the other two sides would cost a
quarter more and bring next to nothing.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

BLOCK = 64
"""Edge of a block in luma pixels."""
HALO = 8
"""Pixels above a block and to its left that a filter also reads and writes."""
TILE = BLOCK + HALO
"""Edge of what it reads and writes."""
CONTEXT_STRIDE = 8
"""Luma pixels per cell of the encoder's context."""
MOTION = 5
"""Numbers that say how a cell moves: see `vdeblur.align.motion_of`."""
TOLD = MOTION + 4
"""Numbers by which filters are told of it: the last channels of what an encoder gives them."""
DIRECTED = 4
"""So many of these, velocity and acceleration, change their sign in a picture turned by half."""
VELOCITY = 2
"""So many of these, the velocity, change their sign where time runs backwards."""
WINDOW = 4
"""Frames that are ready at once where filters go backwards, too."""
AHEAD = 2
"""Frames behind these from which they come; the more, the more these have gained."""
WAITING = WINDOW + AHEAD - 1
"""Frames that are held back meanwhile."""

Array = NDArray[Any]
Part = tuple[slice, slice]
"""Rows and columns of a picture."""


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

    @property
    def padded(self) -> tuple[int, int]:
        """Pixels of its whole blocks with their halo: height, width."""
        return self.rows * BLOCK + HALO, self.columns * BLOCK + HALO

    @property
    def cells(self) -> tuple[int, int]:
        """Cells of the encoder's context that the frame needs: rows, columns."""
        return -(-self.height // CONTEXT_STRIDE), -(-self.width // CONTEXT_STRIDE)

    def whole(self, field: Array, *, stride: int = CONTEXT_STRIDE) -> Array:
        """(C, H/stride, W/stride) rounded up -> that of whole blocks, the last ones repeated."""
        per_block = BLOCK // stride
        missing = (self.rows * per_block, self.columns * per_block) - np.array(field.shape[1:])
        return np.pad(field, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")

    def parts(self, chosen: NDArray[np.bool_], *, stride: int = 1) -> list[Part]:
        """(rows, columns) -> parts of the frame that cover the chosen blocks and their halos.

        Each is a run of neighbours, or all is one part where these would be more than that.
        `stride` is how many luma pixels one pixel covers.
        """
        height, width = -(-self.height // stride), -(-self.width // stride)
        block, halo = BLOCK // stride, HALO // stride
        rows, first = np.nonzero(np.diff(chosen, axis=1, prepend=False) & chosen)
        _, last = np.nonzero(np.diff(chosen, axis=1, append=False) & chosen)
        covered = ((last - first + 1) * block + halo).sum() * (block + halo)
        if covered > height * width:
            return [np.s_[0:height, 0:width]]
        return [
            (
                slice(max(0, row * block - halo), min(height, (row + 1) * block)),
                slice(max(0, left * block - halo), min(width, (right + 1) * block)),
            )
            for row, left, right in zip(rows.tolist(), first.tolist(), last.tolist(), strict=True)
        ]

    def inner(self, padded: Array, *, stride: int = 1) -> Array:
        """(..., h, w) as from `pad` -> the part that shows the frame, a view."""
        halo = HALO // stride
        height, width = -(-self.height // stride), -(-self.width // stride)
        return padded[..., halo : halo + height, halo : halo + width]

    def repeat_edges(self, padded: Array, *, stride: int = 1) -> None:
        """(..., h, w) whose inner part is set: set the rest to the pixel next to it."""
        halo = HALO // stride
        below, right = halo - (-self.height // stride), halo - (-self.width // stride)
        middle = padded[..., halo:below, :]
        middle[..., :halo] = middle[..., halo : halo + 1]
        middle[..., right:] = middle[..., right - 1 : right]
        padded[..., :halo, :] = padded[..., halo : halo + 1, :]
        padded[..., below:, :] = padded[..., below - 1 : below, :]

    def pad(self, plane: Array, *, stride: int = 1) -> Array:
        """(C, h, w) -> whole blocks and their halo, edge pixels repeated.

        `stride` is how many luma pixels one cell of `plane` covers: 1 luma, 2 chroma, 8 context;
        what covers whole blocks already (context) is no smaller than they are.
        """
        halo = HALO // stride
        size = (self.rows * BLOCK // stride + halo, self.columns * BLOCK // stride + halo)
        padded = np.empty_like(plane, shape=(len(plane), *size))  # in the same order of memory
        height, width = plane.shape[1:]
        whole = Grid(height * stride, width * stride)
        padded[:, halo : halo + height, halo : halo + width] = plane
        whole.repeat_edges(padded, stride=stride)
        return padded

    def gather(self, padded: Array, rows: Array, columns: Array, *, stride: int = 1) -> Array:
        """(C, h, w) as from `pad`, (N,), (N,) -> (N, C, e, e): blocks with their halo.

        Where the channels of `padded` lie together in memory, so do those of the blocks.
        """
        edge, step = TILE // stride, BLOCK // stride
        windows = sliding_window_view(padded, (edge, edge), axis=(-2, -1))[:, ::step, ::step]
        if padded.strides[0] < padded.strides[-1]:
            blocks = np.ascontiguousarray(windows.transpose(1, 2, 3, 4, 0)[rows, columns])
            return blocks.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(windows.transpose(1, 2, 0, 3, 4)[rows, columns])


def merge(
    residuals: NDArray[np.float32], filtered: NDArray[np.bool_], *, stride: int = 1
) -> NDArray[np.float32]:
    """(..., N, s, s), (rows, columns) -> (..., N, b, b): what to add to each filtered block.

    N counts the filtered blocks, row by row. Where two of them meet, they fade into each other
    over the halo of the later one, with weights that sum to 1; towards a clear block a residual
    fades to 0 inside its own block; at the frame's edge it is kept whole. `residuals` is used up.
    """
    above, below, left, right = neighbours(filtered)
    halo = HALO // stride
    rising, falling = fade_weights(halo)
    residuals *= _across(residuals.shape[-1], left, right, halo)[:, None]
    # Behind each lies its right neighbour, or one whose halo is lent to nobody: that is nought now.
    residuals[..., :-1, :, -halo:] += residuals[..., 1:, :, :halo]
    blocks = residuals[..., halo:, halo:]
    blocks[..., :halo, :] *= rising[above.clip(max=0)][..., None]
    blocks[..., -halo:, :] *= falling[below.clip(max=0)][..., None]
    lent = np.flatnonzero(below >= 0)
    halos = residuals[..., below[lent], :halo, halo:] * rising[CLEAR_SIDE][:, None]
    blocks[..., lent, -halo:, :] += halos
    return blocks


def _across(
    size: int, left: NDArray[np.intp], right: NDArray[np.intp], halo: int
) -> NDArray[np.float32]:
    """(N, size): the weights of columns of blocks with their halos, 0 where a halo is not lent."""
    rising, falling = fade_weights(halo)
    weights = np.ones((len(left), size), np.float32)
    weights[:, :halo] = rising[CLEAR_SIDE] * (left >= 0)[:, None]
    weights[:, halo : 2 * halo] = rising[left.clip(max=0)]
    weights[:, -halo:] = falling[right.clip(max=0)]
    return weights


ADDED = 128
"""Blocks to which is added at once: little memory, and it fits into a cache."""

CLEAR_SIDE, FRAME_EDGE = -1, -2
"""What lies beside a block, if it is not another filtered one."""


def neighbours(filtered: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """(rows, columns) -> (N,) each: what is above, below, left and right of the filtered blocks.

    It is the number of another one, or `CLEAR_SIDE`, or `FRAME_EDGE`.
    """
    rows, columns = np.nonzero(filtered)
    numbers = np.full((filtered.shape[0] + 2, filtered.shape[1] + 2), FRAME_EDGE)
    numbers[1:-1, 1:-1] = CLEAR_SIDE
    numbers[rows + 1, columns + 1] = np.arange(len(rows))
    beside = ((0, 1), (2, 1), (1, 0), (1, 2))
    return [numbers[rows + down, columns + across] for down, across in beside]


def fade_weights(halo: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(3, halo) each: of a block's first pixels, and of its last ones.

    Beside another filtered block, the frame's edge, a clear block: in the order of the indices 0,
    `FRAME_EDGE` and `CLEAR_SIDE`. The last row of the first is also the weight of a halo where it
    is laid over another block.
    """
    ramp = (np.arange(halo, dtype=np.float32) + 0.5) / halo
    ones = np.ones_like(ramp)
    return np.stack([ones, ones, ramp]), np.stack([1 - ramp, ones, 1 - ramp])


def add_to_blocks(
    plane: Array, residuals: NDArray[np.float32], filtered: NDArray[np.bool_], depth: int
) -> Array:
    """(H, W), (N, h, w) as from `merge` in 8-bit steps -> a new (H, W): their sum.

    Clear blocks stay as they are. The result is a view of memory that has room for whole blocks.
    """
    high, wide = residuals.shape[1:]
    rows, columns = filtered.shape
    height, width = plane.shape
    summed = np.empty((rows * high, columns * wide), plane.dtype)
    summed[:height, :width] = plane
    summed[height:], summed[:, width:] = 0, 0
    blocks = summed.reshape(rows, high, columns, wide).swapaxes(1, 2)
    row, column = np.nonzero(filtered)
    for start in range(0, len(row), ADDED):
        part = np.s_[start : start + ADDED]
        before = blocks[row[part], column[part]]
        blocks[row[part], column[part]] = add(
            before.reshape(-1, wide),
            np.ascontiguousarray(residuals[part]).reshape(-1, wide),
            depth,
        ).reshape(before.shape)
    return summed[:height, :width]


def add(plane: Array, residual: NDArray[np.float32], depth: int) -> Array:
    """(H, W), (H, W) in 8-bit steps -> (H, W): their sum; where it is 0 nothing changes."""
    if depth == 8:
        return np.asarray(cv2.add(plane, residual, dtype=cv2.CV_8U))
    summed = cv2.add(plane, residual * np.float32(1 << (depth - 8)), dtype=cv2.CV_16U)
    return np.minimum(summed, np.uint16((1 << depth) - 1))


def laid_out(residuals: NDArray[np.float32], filtered: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, b, b) as from `merge` -> (rows * b, columns * b), 0 in the clear blocks."""
    rows, columns = filtered.shape
    block = residuals.shape[-1]
    whole = np.zeros((rows, block, columns, block), np.float32)
    whole.swapaxes(1, 2)[filtered] = residuals
    return whole.reshape(rows * block, columns * block)
