"""Draw training patches from rendered clips, aligned as the runtime aligns frames."""

import multiprocessing
import multiprocessing.queues
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.align import Aligned, align_next, align_previous, motion_of
from vdeblur.blocks import BLOCK, CONTEXT_STRIDE
from vdeblur.errors import VdeblurError
from vdeblur.frame import Motion

from .config import TrainConfig
from .data import CELL, Clip
from .defocus import around, at_rest, defocused

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CARRIED = [0, 3, 2]
"""Those of a patch's lumas that the filters see: t, t-1 as it was restored, t+1."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One training example, or a batch of them with N in front."""

    luma: Tensor
    """(4, E, E) uint8: t, its aligned neighbours t-1, t+1, and t-1 as it was restored."""
    motion: Tensor
    """(5, E/8, E/8) float32, as `vdeblur.align.motion_of` gives it."""
    chroma: Tensor
    """(2, E/2, E/2) uint8."""
    sharp_luma: Tensor
    """(1, E, E) uint8."""
    sharp_chroma: Tensor
    """(2, E/2, E/2) uint8."""
    blur: Tensor
    """(E/BLOCK, E/BLOCK) mean length of each block's streaks in pixels."""

    @property
    def filmed(self) -> Tensor:
        """(..., 3, E, E): the lumas that the encoder sees."""
        return self.luma[..., :3, :, :]

    @property
    def carried(self) -> Tensor:
        """(..., 3, E, E): the lumas that the filters see, the neighbour before as restored."""
        return self.luma[..., CARRIED, :, :]


def stack(patches: list[Patch]) -> Patch:
    """N patches -> one batch."""
    return Patch(
        *(torch.stack([getattr(each, name) for each in patches]) for name in Patch.__slots__)
    )


def aligned(
    clip: Clip, t: int, rng: np.random.Generator | None = None, misalignment: float = 0.0
) -> tuple[Bytes, Floats]:
    """Frame t and its neighbours laid over it (4, S, S), and its motion (5, S/8, S/8).

    They are t, t-1, t+1, and t-1 as it was restored. A missing neighbour is t itself.
    """
    current = clip.luma[t]
    before = after = Aligned(current, None)
    if t > 0:
        before = align_previous(clip.luma[t - 1], current, motion_at(clip, t, rng, misalignment))
    if t + 1 < len(clip.luma):
        motion = motion_at(clip, t + 1, rng, misalignment)
        after = align_next(clip.luma[t + 1], current, motion)
    rows, columns = (-(-edge // CONTEXT_STRIDE) for edge in current.shape)
    moving = motion_of(before.offset, after.offset, (rows, columns))
    carried = before.luma
    if before.laying is not None:
        carried = before.laying.lay(clip.restored[t - 1], current)
    return np.stack([current, before.luma, after.luma, carried]), moving


def motion_at(clip: Clip, t: int, rng: np.random.Generator | None, misalignment: float) -> Motion:
    """The motion of frame t as the runtime estimates it, and an extra error of `misalignment`."""
    homography = clip.motions[t]
    if rng is not None and misalignment > 0:
        heading = rng.uniform(0, 2 * np.pi)
        error = rng.exponential(misalignment)
        moved = np.eye(3)
        moved[:2, 2] = error * np.cos(heading), error * np.sin(heading)
        homography = moved @ homography
    confidence = float(clip.confidence[t])
    return Motion(np.eye(2, 3), confidence=confidence, homography=homography)


def cut_patch(
    clip: Clip, lumas: Bytes, motion: Floats, t: int, edge: int, rng: np.random.Generator
) -> Patch:
    """A random square of frame t, turned, mirrored and sometimes in full range."""
    room = (lumas.shape[-1] - edge) // CONTEXT_STRIDE + 1
    y, x = (CONTEXT_STRIDE * int(rng.integers(room)) for _ in range(2))
    whole = (slice(y, y + edge), slice(x, x + edge))
    half = (slice(y // 2, (y + edge) // 2), slice(x // 2, (x + edge) // 2))
    rows, columns = (
        slice(side.start // CONTEXT_STRIDE, side.stop // CONTEXT_STRIDE) for side in whole
    )
    parts = [
        lumas[:, *whole],
        clip.chroma[t][:, *half],
        clip.sharp_luma[t][None, *whole],
        clip.sharp_chroma[t][:, *half],
    ]
    if rng.random() < 0.15:
        parts = [
            _full_range(part, 16, 219) if luma else _full_range(part, 128, 224)
            for part, luma in zip(parts, (True, False, True, False), strict=True)
        ]
    blur = block_blur(clip.blur[t], y, x, edge)
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    turned = [_turn(part, turns, mirrored) for part in [*parts, blur]]
    moved = _turn(_turned_vectors(motion[:, rows, columns], turns, mirrored), turns, mirrored)
    return Patch(turned[0], moved, *turned[1:])


def _turned_vectors(motion: Floats, turns: int, mirrored: bool) -> Floats:
    """(5, h, w): velocity and acceleration in the axes of a picture that was turned, mirrored."""
    x, y, known = motion[0:4:2], motion[1:4:2], motion[4]
    for _ in range(turns):  # as `numpy.rot90` turns a picture whose y points down
        x, y = y, -x
    if mirrored:
        x = -x
    return np.stack([x[0], y[0], x[1], y[1], known])


def _full_range(part: Bytes, centre: int, span: int) -> Bytes:
    zero = 0 if centre == 16 else centre
    values = (np.arange(256) - centre) * 255 / span + zero
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    stretched: Bytes = table[part]
    return stretched


def block_blur(cells: NDArray[np.float32], y: int, x: int, edge: int) -> NDArray[np.float32]:
    """(S/16, S/16) -> (E/64, E/64): mean over the cells that lie nearest to each block."""
    per_block, blocks = BLOCK // CELL, edge // BLOCK
    top, left = round(y / CELL), round(x / CELL)
    part = cells[top : top + edge // CELL, left : left + edge // CELL]
    means: NDArray[np.float32] = part.reshape(blocks, per_block, blocks, per_block).mean(
        axis=(1, 3)
    )
    return means


def _turn(part: NDArray[np.generic], turns: int, mirrored: bool) -> Tensor:
    turned = np.rot90(part, turns, axes=(-2, -1))
    if mirrored:
        turned = turned[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(turned))


def batches(
    pool: Path, config: TrainConfig, seed: int, *, readers: int = 1, device: str = "cpu"
) -> Iterator[Patch]:
    """Endless batches from the clips in `pool`, which may still be filling.

    They are read ahead in processes of their own, since their Python would hold up the
    training's. With one reader the order of the batches depends on `seed` and the pool alone.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Queue(maxsize=4 + 4 * readers)
    processes = [
        context.Process(target=_fill, args=(ready, pool, config, seed + 10**6 * index), daemon=True)
        for index in range(readers)
    ]
    for process in processes:
        process.start()
    try:
        while True:
            parts = (torch.from_numpy(part) for part in _next(ready, processes))
            yield Patch(*(part.to(device, non_blocking=True) for part in parts))
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _next(
    ready: "multiprocessing.queues.Queue[list[Any]]",
    readers: Sequence[multiprocessing.process.BaseProcess],
) -> list[Any]:
    while True:
        try:
            return ready.get(timeout=5)
        except queue.Empty:
            if not all(reader.is_alive() for reader in readers):
                raise VdeblurError("reading the training clips failed: see above") from None


def _fill(
    ready: "multiprocessing.queues.Queue[list[Any]]", pool: Path, config: TrainConfig, seed: int
) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    files: list[Path] = []
    for count in range(1 << 62):
        if count % 200 == 0:
            files = sorted(pool.glob("*[0-9].npz"))
        drawn = stack([_draw(files, config, rng) for _ in range(config.batch)])
        ready.put([getattr(drawn, name).numpy() for name in Patch.__slots__])


def _draw(files: list[Path], config: TrainConfig, rng: np.random.Generator) -> Patch:
    clip = Clip.load(files[int(rng.integers(len(files)))])
    clip, t = around(clip, int(rng.integers(len(clip.luma))))
    if rng.random() < config.at_rest_share:
        clip = at_rest(clip)
    if rng.random() < config.defocus_share:
        clip = defocused(clip, rng)
    extra = config.misalignment if rng.random() < 0.5 else 0.0
    lumas, motion = aligned(clip, t, rng, extra)
    return cut_patch(clip, lumas, motion, t, config.patch, rng)
