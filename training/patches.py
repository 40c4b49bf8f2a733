"""Draw training patches from rendered clips, aligned as the runtime aligns frames."""

import multiprocessing
import multiprocessing.queues
import queue
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur import direct
from vdeblur.align import Aligned, Aligner, View, align_next, align_previous, motion_of
from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, HALO, Part
from vdeblur.errors import VdeblurError
from vdeblur.frame import Motion
from vdeblur.laying import Laying
from vdeblur.view import View as SmallView

from .config import TrainConfig
from .data import CELL, Clip, clips_in
from .processes import Helper

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

READING = "reading the training clips"
"""What a helper does, for the case that it fails."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One training example, or a batch of them with N in front.

    What filters see and restore has the blocks' halo, above and to the left: L is E + HALO.
    """

    luma: Tensor
    """(3, L, L) uint8: t, and its aligned neighbours t-1, as it was restored, and t+1; for a second
    stage (5, L, L): also t+1 and t as the first one restored them."""
    around: Tensor
    """(2, E/2, E/2) uint8: the aligned neighbours t-1, t+1, both as they were filmed."""
    motion: Tensor
    """(5, E/8, E/8) float32, as `vdeblur.align.motion_of` gives it."""
    chroma: Tensor
    """(6, L/2, L/2) uint8, for a second stage (10, L/2, L/2): of the same as `luma`."""
    sharp_luma: Tensor
    """(1, L, L) uint8."""
    sharp_chroma: Tensor
    """(2, L/2, L/2) uint8."""
    blur: Tensor
    """(E/BLOCK, E/BLOCK) mean length of each block's streaks in pixels."""

    @property
    def own(self) -> Tensor:
        """(1, E, E): the luma of t without the halo, as the encoder sees it."""
        return self.luma[..., :1, HALO:, HALO:]


def stack(patches: list[Patch]) -> Patch:
    """N patches -> one batch."""
    return Patch(
        *(torch.stack([getattr(each, name) for each in patches]) for name in Patch.__slots__)
    )


def around(clip: Clip, t: int) -> tuple[Clip, int]:
    """Frame t with its neighbours alone, and where t now is."""
    first = max(t - 1, 0)
    shown = slice(first, t + 2)
    parts = {name: getattr(clip, name) for name in Clip.__slots__}
    return replace(clip, **{n: p[shown] for n, p in parts.items() if p is not None}), t - first


def at_rest(clip: Clip) -> Clip:
    """The truth as if it had been filmed: nothing to undo."""
    return replace(
        clip,
        luma=clip.sharp_luma,
        restored=clip.sharp_luma,
        restored_chroma=clip.sharp_chroma,
        chroma=clip.sharp_chroma,
        first=None if clip.first is None else clip.sharp_luma,
        first_chroma=None if clip.first_chroma is None else clip.sharp_chroma,
        blur=np.zeros_like(clip.blur),
        vector=np.zeros_like(clip.vector),
    )


def as_filmed(clip: Clip) -> Clip:
    """The clip as if nothing of it had been restored."""
    return replace(clip, restored=clip.luma, restored_chroma=clip.chroma)


class Neighbourhood(NamedTuple):
    """A frame with its neighbours laid over it."""

    luma: Bytes
    """(3, S, S): t, t-1 as it was restored, t+1. A missing neighbour is t itself. (5, S, S) where a
    first stage has restored the clip: t+1 and t as it did."""
    chroma: Bytes
    """(6, S/2, S/2) or (10, S/2, S/2): of the same."""
    around: Bytes
    """(2, S/2, S/2): t-1 and t+1 as they were filmed."""
    motion: Floats
    """(5, S/8, S/8)."""


def aligned(
    clip: Clip, t: int, rng: np.random.Generator | None = None, misalignment: float = 0.0
) -> Neighbourhood:
    """Frame t with its neighbours, as the runtime aligns them."""
    current = View(clip.luma[t])
    before = after = Aligned(current.half, None)
    luma = np.stack([current.luma] * 3)
    chroma = np.concatenate([clip.chroma[t]] * 3)
    if clip.first is not None and clip.first_chroma is not None:
        luma = np.stack([*luma, *[clip.first[t]] * 2])
        chroma = np.concatenate([chroma, *[clip.first_chroma[t]] * 2])
    if t > 0:
        motion = motion_at(clip, t, rng, misalignment)
        before = align_previous(View(clip.luma[t - 1]), current, motion)
        if before.laying is not None:
            laying = _by_first_stage(clip, before.laying, motion, t, t - 1)
            _lay(laying, clip.restored[t - 1], clip.restored_chroma[t - 1], luma, chroma, 1)
    if t + 1 < len(clip.luma):
        motion = motion_at(clip, t + 1, rng, misalignment)
        after = align_next(View(clip.luma[t + 1]), current, motion)
        if after.laying is not None:
            laying = _by_first_stage(clip, after.laying, motion, t, t + 1)
            _lay(laying, clip.luma[t + 1], clip.chroma[t + 1], luma, chroma, 2)
            if clip.first is not None and clip.first_chroma is not None:
                first = clip.first[t + 1], clip.first_chroma[t + 1]
                _lay(laying, *first, luma, chroma, 3, over=4)
    rows, columns = (-(-edge // CONTEXT_STRIDE) for edge in current.luma.shape)
    moving = motion_of(before.offset, after.offset, (rows, columns))
    return Neighbourhood(luma, chroma, np.stack([before.half, after.half]), moving)


def _by_first_stage(clip: Clip, laying: Laying, motion: Motion, t: int, other: int) -> Laying:
    """How frame `other` is laid over frame t, by what a first stage made of both, if it did.

    `motion` is that of the later one, by which `laying` was found.
    """
    if clip.first is None or np.array_equal(laying.way, np.eye(3)):
        return laying
    earlier, later = (SmallView.of(clip.first[frame], 8) for frame in sorted((t, other)))
    here, there = (View(clip.first[frame]) for frame in (t, other))
    way = laying.way if t < other else np.asarray(np.linalg.inv(laying.way))
    exact = replace(motion, homography=direct.better(earlier, later, way))
    aligner = Aligner()
    if t < other:
        found = aligner.following(there, here, exact)
    else:
        aligner.following(here, there, exact)  # back goes only what went ahead
        found = aligner.previous(there, here, exact)
    return found.laying or laying


def _lay(
    laying: Laying,
    theirs: Bytes,
    colours: Bytes,
    luma: Bytes,
    chroma: Bytes,
    place: int,
    *,
    over: int = 0,
) -> None:
    """Lay a neighbour's luma (S, S) and colours (2, S/2, S/2) over the picture `over`."""
    laying.lay(theirs, luma[over], luma[place])
    for k in range(2):
        laying.lay(colours[k], chroma[2 * over + k], chroma[2 * place + k], shrunk=2)


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
    clip: Clip, near: Neighbourhood, t: int, edge: int, rng: np.random.Generator
) -> Patch:
    """A random square of frame t, turned, mirrored and sometimes in full range."""
    room = (near.luma.shape[-1] - edge) // CONTEXT_STRIDE + 1
    y, x = (CONTEXT_STRIDE * int(rng.integers(room)) for _ in range(2))
    whole = (slice(y, y + edge), slice(x, x + edge))
    half = (slice(y // 2, (y + edge) // 2), slice(x // 2, (x + edge) // 2))
    rows, columns = (
        slice(side.start // CONTEXT_STRIDE, side.stop // CONTEXT_STRIDE) for side in whole
    )
    parts = [
        haloed(near.luma, whole, HALO),
        near.around[:, *half],
        haloed(near.chroma, half, HALO // 2),
        haloed(clip.sharp_luma[t][None], whole, HALO),
        haloed(clip.sharp_chroma[t], half, HALO // 2),
    ]
    if rng.random() < 0.15:
        parts = [
            _full_range(part, 16, 219) if luma else _full_range(part, 128, 224)
            for part, luma in zip(parts, (True, True, False, True, False), strict=True)
        ]
    blur = block_blur(clip.blur[t], y, x, edge)
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    turned = [_turn(part, turns, mirrored) for part in parts]
    moved = _turn(_turned_vectors(near.motion[:, rows, columns], turns, mirrored), turns, mirrored)
    luma, around, chroma, sharp_luma, sharp_chroma = turned
    return Patch(
        luma=first_halo(luma, HALO),
        around=around,
        motion=moved,
        chroma=first_halo(chroma, HALO // 2),
        sharp_luma=first_halo(sharp_luma, HALO),
        sharp_chroma=first_halo(sharp_chroma, HALO // 2),
        blur=_turn(blur, turns, mirrored),
    )


def haloed(field: Bytes, part: Part, halo: int) -> Bytes:
    """(C, h, w) -> a part of it and what lies around; beyond the edges these are repeated."""
    rows, columns = (
        np.arange(side.start - halo, side.stop + halo).clip(0, size - 1)
        for side, size in zip(part, field.shape[1:], strict=True)
    )
    return field[:, rows[:, None], columns]


def first_halo(part: Tensor, halo: int) -> Tensor:
    """As from `haloed`, turned or not -> without what lies below and to the right."""
    return part[..., :-halo, :-halo].contiguous()


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
    pool: Path,
    config: TrainConfig,
    seed: int,
    *,
    readers: int = 1,
    device: str = "cpu",
    recurrent: bool = True,
) -> Iterator[Patch]:
    """Endless batches from the clips in `pool`, which may still be filling.

    They show the previous frame as it was restored, or if not `recurrent` as it was filmed.
    They are read ahead in processes of their own, since their Python would hold up the
    training's. With one reader the order of the batches depends on `seed` and the pool alone.
    """
    ready = multiprocessing.get_context("spawn").Queue(maxsize=4 + 4 * readers)
    helpers = [
        Helper(READING, _fill, ready, pool, config, seed + 10**6 * index, recurrent)
        for index in range(readers)
    ]
    try:
        while True:
            parts = (torch.from_numpy(part) for part in _next(ready, helpers))
            yield Patch(*(part.to(device, non_blocking=True) for part in parts))
    finally:
        for helper in helpers:
            helper.stop()


def _next(ready: "multiprocessing.queues.Queue[list[Any]]", readers: Sequence[Helper]) -> list[Any]:
    while True:
        for reader in readers:
            reader.check()
        with suppress(queue.Empty):
            return ready.get(timeout=1)


def _fill(
    ready: "multiprocessing.queues.Queue[list[Any]]",
    pool: Path,
    config: TrainConfig,
    seed: int,
    recurrent: bool,
) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    files: list[Path] = []
    for count in range(1 << 62):
        if count % 200 == 0:
            files = clips_in(pool, previewed=config.model.second_stage)
            if not files:
                raise VdeblurError(f"there are no clips in {pool} that can be shown")
        drawn = stack([_draw(files, config, rng, recurrent) for _ in range(config.batch)])
        ready.put([getattr(drawn, name).numpy() for name in Patch.__slots__])


def _draw(
    files: list[Path], config: TrainConfig, rng: np.random.Generator, recurrent: bool
) -> Patch:
    clip = Clip.load(files[int(rng.integers(len(files)))])
    t = int(rng.integers(len(clip.luma)))
    if config.ends_share and rng.random() < config.ends_share:
        t = int(rng.choice([0, len(clip.luma) - 1]))
    clip, t = around(clip, t)
    if not config.model.second_stage:  # the pool may be that of one
        clip = replace(clip, first=None, first_chroma=None)
    if not recurrent:
        clip = as_filmed(clip)
    if rng.random() < config.at_rest_share:
        clip = at_rest(clip)
    extra = config.misalignment if rng.random() < 0.5 else 0.0
    return cut_patch(clip, aligned(clip, t, rng, extra), t, config.patch, rng)
