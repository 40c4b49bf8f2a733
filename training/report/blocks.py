"""Cut pictures into the report's small overlapping blocks and merge them without seams.

Blocks of 18 pixels that share 4 with each neighbour lie 14 apart, and 18 + 17 * 14 = 256: a
picture of 256 x 256 is exactly 18 x 18 of them, one of 32 x 32 is 2 x 2, and nothing is padded.
Blocks of 16 lie 12 apart (21 x 21), and those of 14 side by side (2 x 2 in MNIST's 28 x 28).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the blocks of a picture lie. `merge` undoes `split`."""

    height: int
    width: int
    block: int = 18
    overlap: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.block:
            raise ValueError(f"overlap must be 0..{self.block - 1}, got {self.overlap}")
        for edge in (self.height, self.width):
            if edge < self.block or (edge - self.block) % self.step:
                raise ValueError(
                    f"{self.width}x{self.height} is not a whole number of blocks of {self.block} "
                    f"with {self.overlap} in common"
                )

    @property
    def step(self) -> int:
        """From one block's beginning to the next one's, in pixels."""
        return self.block - self.overlap

    @property
    def rows(self) -> int:
        """Blocks from top to bottom."""
        return (self.height - self.block) // self.step + 1

    @property
    def columns(self) -> int:
        """Blocks from left to right."""
        return (self.width - self.block) // self.step + 1

    def split(self, pictures: NDArray[Any]) -> NDArray[Any]:
        """(M, H, W, C) -> (M * rows * columns, E, E, C), row by row."""
        windows = sliding_window_view(pictures, (self.block, self.block), axis=(1, 2))
        blocks: NDArray[Any] = windows[:, :: self.step, :: self.step].transpose(0, 1, 2, 4, 5, 3)
        return blocks.reshape(-1, self.block, self.block, pictures.shape[-1])

    def merge(self, blocks: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M * rows * columns, E, E, C) -> (M, H, W, C): means weighted by `rising`."""
        shape = (-1, self.rows, self.columns, self.block, self.block, blocks.shape[-1])
        tiles = blocks.reshape(shape)
        weights = rising(self.block)
        merged = np.zeros((len(tiles), self.height, self.width, blocks.shape[-1]), np.float32)
        total = np.zeros((self.height, self.width, 1), np.float32)
        for row in range(self.rows):
            for column in range(self.columns):
                y, x = row * self.step, column * self.step
                window = (slice(y, y + self.block), slice(x, x + self.block))
                merged[:, *window] += weights * tiles[:, row, column]
                total[window] += weights
        return merged / total


def rising(block: int) -> NDArray[np.float32]:
    """(E, E, 1): weights that rise from every side of a block towards its centre."""
    ramp = np.minimum(np.arange(1, block + 1), np.arange(block, 0, -1)).astype(np.float32)
    return (ramp[:, None] * ramp)[..., None]
