"""Embed a huge picture strip by strip, so that the encoder needs less memory.

A strip overlaps the next one by as much as the encoder looks around: the result is the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK, CONTEXT_STRIDE, Grid

LARGEST = 5_000_000
"""Pixels that are embedded at once."""
AROUND = 3
"""Blocks beside a block that its context and latents depend on: a shipped encoder looks 136 pixels
around."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Array = NDArray[Any]
Embed = Callable[[Bytes, Bytes, Floats], tuple[Floats, Floats]]
"""As `Backend.embed`."""


def embed_in_strips(
    embed: Embed, luma: Bytes, around: Bytes, motion: Floats, *, largest: int = LARGEST
) -> tuple[Floats, Floats]:
    """What `embed` gives, of `largest` pixels at once where that is possible."""
    axis = -1 if luma.shape[-1] > luma.shape[-2] else -2
    blocks = luma.shape[axis] // BLOCK
    strips = strips_of(blocks, -(-luma.size // largest))
    if len(strips) == 1:
        return embed(luma, around, motion)
    whole = tuple[Floats, ...]()
    for seen, kept in strips:
        context, latents = embed(
            np.ascontiguousarray(_cut(luma, axis, seen, BLOCK)),
            np.ascontiguousarray(_cut(around, axis, seen, BLOCK // 2)),
            np.ascontiguousarray(_cut(motion, axis, seen, BLOCK // CONTEXT_STRIDE)),
        )
        inside = slice(kept.start - seen.start, kept.stop - seen.start)
        parts = (context, BLOCK // CONTEXT_STRIDE), (np.moveaxis(latents, -1, 0), 1)
        whole = whole or tuple(_room(part, axis, blocks * edge) for part, edge in parts)
        for joined, (part, edge) in zip(whole, parts, strict=True):
            _cut(joined, axis, kept, edge)[...] = _cut(part, axis, inside, edge)
    return whole[0], np.moveaxis(whole[1], 0, -1)


def seen_at_once(height: int, width: int) -> tuple[int, int]:
    """The (H, W) of whole blocks that `embed` gets, of pictures of this size."""
    rows, columns = Grid(height, width).rows, Grid(height, width).columns
    seen, _ = strips_of(max(rows, columns), -(-rows * columns * BLOCK**2 // LARGEST))[0]
    edge = seen.stop * BLOCK
    return (rows * BLOCK, edge) if columns > rows else (edge, columns * BLOCK)


def strips_of(blocks: int, count: int) -> list[tuple[slice, slice]]:
    """What each of about `count` strips sees and what is kept of it, in blocks.

    All see equally many, since a backend prepares itself for each size.
    """
    step = -(-blocks // max(count, 1))
    seen = min(blocks, step + (AROUND if count == 2 else 2 * AROUND))
    if seen == blocks:
        return [(slice(0, blocks), slice(0, blocks))]
    starts = range(0, blocks, step)
    return [
        (slice(first, first + seen), slice(start, min(start + step, blocks)))
        for start in starts
        for first in [min(max(start - AROUND, 0), blocks - seen)]
    ]


def _cut(cells: Array, axis: int, part: slice, edge: int) -> Array:
    """(C, H, W) -> so many blocks of it along an axis; `edge` cells make a block."""
    cut = slice(part.start * edge, part.stop * edge)
    return cells[..., cut] if axis == -1 else cells[..., cut, :]


def _room(part: Floats, axis: int, cells: int) -> Floats:
    """Memory for what a part belongs to, which has so many cells along an axis, in its order."""
    shape = list(part.shape)
    shape[axis] = cells
    return np.empty_like(part, shape=shape)
