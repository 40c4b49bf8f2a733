"""The restore stage: find the blurred blocks of each frame and filter only those."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .align import Aligned, Aligner, Laying, View, motion_of
from .backend import Backend
from .blocks import BLOCK, CONTEXT_STRIDE, HALO, SEAM, Grid, add, add_to_blocks, laid_out, merge
from .calm import Calm, speed_around
from .clusters import CLEAR
from .frame import Frame, Motion, Plane
from .timing import measured

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

SPARE = 8
"""Sets of planes that are kept to be used again."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame that waits for the one after it."""

    frame: Frame
    view: View
    repeats: bool
    """It is, bit for bit, the frame before."""


class Neighbour(NamedTuple):
    """The frame before or after one, as it was filmed."""

    frame: Frame
    luma: Bytes
    """(H, W)."""
    laying: Laying
    """Of it over the frame."""


@dataclass(frozen=True, slots=True)
class Found:
    """A frame whose blurred blocks are known, and what the filters need to know of it."""

    frame: Frame
    """It has its `labels`."""
    luma: Bytes | None = None
    """(3, h, w) as from `Grid.pad`: the frame, and room for its neighbours; `None` if all is as it
    was of the frame before."""
    context: Floats | None = None
    """(C, h/8, w/8) as from `Grid.pad`; `None` if there is nothing to filter."""
    before: Neighbour | None = None
    """None if it is not trusted: the frame stands in for it."""
    after: Neighbour | None = None
    unseen: bool = False
    """It was taken for clear without a look: it stays as it was filmed."""


class Restorer:
    """A stage: deblur each frame with the help of the one before and the one after it.

    The encoder sees both as they were filmed, the filters the one before as it was restored, with
    what it had gained from those before it (Sajjadi et al., "Frame-recurrent video
    super-resolution", 2018).

    It holds one frame back. Frames need their `motion`; blocks of the clear cluster come back
    bit for bit, and so do whole frames that have no other. Its two halves, `look` and `restored`,
    may run in two threads. A picture that stands still, itself and its neighbours, is restored
    once. Where nothing was blurred for a while, only every third frame is looked at (see `calm`),
    and what moves on its own is followed only where that look finds something.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        strength: float = 0.5,
        batch: int = 32,
        seconds: dict[str, float] | None = None,
    ) -> None:
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
        self.seconds: dict[str, float] = {} if seconds is None else seconds
        """Spent in each step so far."""
        self._aligner = Aligner()
        self._calm = Calm()
        self._previous: Taken | None = None
        self._held: Taken | None = None
        self._labels: NDArray[np.uint8] | None = None
        self._found_with: float | None = None  # the strength of the last labels
        self._planes: tuple[Plane, ...] = ()  # of the last frame that was restored
        self._restored_luma: Bytes | None = None  # of the same; `None` if nothing was filtered
        self._restored_chroma: Bytes | None = None
        self._spare: deque[Bytes] = deque(maxlen=SPARE)

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the one before it, restored."""
        if self.paused:
            return [*self.flush(), frame]
        return self.restored(self.look(frame))

    def flush(self) -> list[Frame]:
        """Return the last frame; the next `push` begins a new video."""
        return self.restored(self.end())

    def look(self, frame: Frame) -> list[Found]:
        """Take the next frame; return what is found out about the one before it."""
        view = View(to_bytes(frame.planes[0], frame.format.depth))
        last = self._held
        taken = Taken(frame, view, last is not None and _same(last.frame, frame))
        ready = self._find_held(taken)
        self._held = taken
        return ready

    def end(self) -> list[Found]:
        """Return what is found out about the last frame; the next `look` begins a new video."""
        ready = self._find_held(None)
        self._held = self._previous = self._labels = None
        self._calm = Calm()
        return ready

    def restored(self, found: Iterable[Found]) -> list[Frame]:
        """The frames with their blurred blocks filtered."""
        return [self._restored(each) for each in found]

    def _find_held(self, following: Taken | None) -> list[Found]:
        if self._held is None:
            return []
        frame = self._held.frame
        if self._stands_still(following):
            return [self._counted(Found(replace(frame, labels=self._labels)))]
        speed = speed_around(frame, None if following is None else following.frame)
        known = self._labels is not None and self._found_with == self.strength
        if known and self._calm.leaves_out(speed):
            unseen = replace(frame, labels=np.zeros_like(self._labels))
            return [self._counted(Found(unseen, unseen=True))]
        settled, labels = self._calm.settled, self._labels
        found = self._seen(self._held, following, closely=not settled)
        if settled and found.context is not None and found.luma is not None:
            self._labels = labels
            self._spare.append(found.luma)
            found = self._seen(self._held, following)
        self._calm.looked(speed, clear=found.context is None)
        return [self._counted(found)]

    def _seen(self, held: Taken, following: Taken | None, *, closely: bool = True) -> Found:
        """What the encoder finds in a frame; if not `closely`, as if only the camera moved."""
        frame = held.frame
        grid = Grid(frame.height, frame.width)
        with measured("align", self.seconds):
            before, after = self._aligned(held, following, closely=closely)
            around = grid.whole(np.stack([before.half, after.half]), stride=2)
            motion = grid.whole(motion_of(before.offset, after.offset, grid.cells))
            luma = self._padded(grid, held.view.luma)
        with measured("load", self.seconds):
            self.backend.load()
        with measured("embed", self.seconds):
            context, latents = self.backend.embed(_whole_blocks(luma[:1]), around, motion)
        with measured("assign", self.seconds):
            labels = self._assign(latents, frame.motion)
            padded = grid.pad(context, stride=CONTEXT_STRIDE) if labels.any() else None
        near = _neighbour(self._previous, before), _neighbour(following, after)
        return Found(replace(frame, labels=labels), luma, padded, *near)

    def _stands_still(self, following: Taken | None) -> bool:
        """Whether all that was filmed is as it was for the frame before: its result is kept."""
        three = (self._previous, self._held, following)
        return (
            all(each is not None and each.repeats for each in three)
            and self._labels is not None
            and self._found_with == self.strength
        )

    def _counted(self, found: Found) -> Found:
        labels = found.frame.labels
        assert labels is not None, "it was looked at"
        self.blocks += np.bincount(labels.ravel(), minlength=len(self.blocks))
        self._previous, self._found_with = self._held, self.strength
        return found

    def _aligned(
        self, current: Taken, following: Taken | None, *, closely: bool
    ) -> tuple[Aligned, Aligned]:
        """The neighbours as seen from `current`."""
        view, previous = current.view, self._previous
        before = after = Aligned(view.half, None)
        if previous is not None and previous.view.luma.shape == view.luma.shape:
            before = self._aligner.previous(
                previous.view, view, current.frame.motion, closely=closely
            )
        if following is not None and following.view.luma.shape == view.luma.shape:
            after = self._aligner.following(
                following.view, view, following.frame.motion, closely=closely
            )
        # A frame that is shown twice seems to stop; only where all stands still it does.
        repeats = _repeats(current.frame), following is not None and _repeats(following.frame)
        if repeats == (True, False):
            before = before._replace(offset=None)
        elif repeats == (False, True):
            after = after._replace(offset=None)
        return before, after

    def _padded(self, grid: Grid, luma: Bytes) -> Bytes:
        """(H, W) -> (3, h, w): the first as from `Grid.pad`, and room for two more."""
        padded = self._room(grid)
        np.copyto(grid.inner(padded[0]), luma)
        grid.repeat_edges(padded[:1])
        return padded

    def _room(self, grid: Grid) -> Bytes:
        """Memory for three padded planes; used again, since fresh memory costs time."""
        size = (grid.rows * BLOCK + 2 * HALO, grid.columns * BLOCK + 2 * HALO)
        while self._spare:
            if (spare := self._spare.popleft()).shape[1:] == size:
                return spare
        return np.empty((3, *size), np.uint8)

    def _assign(self, latents: Floats, motion: Motion | None) -> NDArray[np.uint8]:
        """(rows, columns, D) -> (rows, columns): in a scene blocks tend to keep their cluster."""
        before = self._labels
        if motion is None or motion.cut or before is None or before.shape != latents.shape[:2]:
            before = None
        clusters = self.backend.bundle.clusters
        self._labels = clusters.assign(latents, strength=self.strength, before=before)
        return self._labels

    def _restored(self, found: Found) -> Frame:
        frame = found.frame
        if found.unseen:
            self._planes = frame.planes
            self._restored_luma = self._restored_chroma = None
        elif found.luma is not None:
            self._planes = self._filtered(frame, found)
            self._spare.append(found.luma)
            self._remember(frame)
        return frame if self._planes is frame.planes else replace(frame, planes=self._planes)

    def _remember(self, frame: Frame) -> None:
        """What the filters will see of this frame when the next one is restored."""
        self._restored_luma = self._restored_chroma = None
        if self._planes is not frame.planes:
            self._restored_luma = to_bytes(self._planes[0], frame.format.depth)
            if self.backend.bundle.colour_frames > 1:
                self._restored_chroma = small_chroma(replace(frame, planes=self._planes))

    def _filtered(self, frame: Frame, found: Found) -> tuple[Plane, ...]:
        """The planes with their blurred blocks filtered."""
        luma, context = found.luma, found.context
        if luma is None or context is None or frame.labels is None:
            return frame.planes
        blurred = frame.labels != CLEAR
        with measured("lay", self.seconds):
            self._lay(luma, found, blurred)
            chroma = self._chroma(found, blurred)
        residual, colour = self._residuals(frame.labels, luma, chroma, context)
        with measured("merge", self.seconds):
            planes = [
                add_to_blocks(
                    frame.planes[0], merge(residual, blurred), blurred, frame.format.depth
                )
            ]
            planes += [
                _with_colour(plane, merge(part, blurred, stride=2), blurred, frame)
                for plane, part in zip(frame.planes[1:], colour, strict=False)
            ]
        return tuple(planes)

    def _lay(self, luma: Bytes, found: Found, blurred: NDArray[np.bool_]) -> None:
        """Lay the neighbours over the blurred blocks, with their halos, of (3, h, w).

        The previous frame as it was restored: if nothing of it was filtered, that is as filmed.
        """
        grid = Grid(found.frame.height, found.frame.width)
        current, before, after = grid.inner(luma)
        parts = grid.parts(blurred)
        for shown, near in ((before, found.before), (after, found.after)):
            if near is None:
                np.copyto(shown, current)
                continue
            restored = self._restored_luma if near is found.before else None
            neighbour = near.luma if restored is None else restored
            for part in parts:
                near.laying.lay(neighbour, current, shown, part)
        grid.repeat_edges(luma[1:])

    def _chroma(self, found: Found, blurred: NDArray[np.bool_]) -> Bytes:
        """(2 * F, H/2, W/2): the frame's colours, and its neighbours' if the filters see them.

        These are laid over the blurred blocks, with their halos.
        """
        own = small_chroma(found.frame)
        if self.backend.bundle.colour_frames == 1:
            return own
        parts = Grid(found.frame.height, found.frame.width).parts(blurred, stride=2)
        chroma = np.concatenate([own] * 3)
        for first, near in ((2, found.before), (4, found.after)):
            if near is None:
                continue
            restored = self._restored_chroma if near is found.before else None
            neighbour = small_chroma(near.frame) if restored is None else restored
            for part in parts:
                for k in range(2):
                    near.laying.lay(neighbour[k], own[k], chroma[first + k], part, shrunk=2)
        return chroma

    def _residuals(
        self, labels: NDArray[np.uint8], luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Run each cluster's filter -> residuals (N, s, s), (2, N, s/2, s/2), row by row."""
        grid = Grid(*(edge - 2 * HALO for edge in luma.shape[1:]))
        rows, columns = np.nonzero(labels)
        clusters, size = labels[rows, columns], BLOCK + 2 * SEAM
        lumas = np.empty((len(rows), size, size), np.float32)
        chromas = np.empty((2, len(rows), size // 2, size // 2), np.float32)
        with measured("gather", self.seconds):
            chroma = grid.pad(chroma, stride=2)
        for cluster in range(CLEAR + 1, len(self.blocks)):
            for chosen in batches(np.flatnonzero(clusters == cluster), self.batch):
                row, column = rows[chosen], columns[chosen]
                with measured("gather", self.seconds):
                    inputs = (
                        grid.gather(luma, row, column),
                        grid.gather(chroma, row, column, stride=2),
                        grid.gather(context, row, column, stride=CONTEXT_STRIDE),
                    )
                with measured(f"filter {cluster}", self.seconds):
                    residual, colour = self.backend.apply(cluster, *inputs)
                lumas[chosen] = residual
                chromas[:, chosen] = colour.swapaxes(0, 1)
        return lumas, chromas


def batches(chosen: Indices, largest: int) -> Iterator[Indices]:
    """Cut (N,) into parts of `largest` and then of powers of two.

    A backend prepares itself for each size that it sees; so these are few.
    """
    start = 0
    while start < len(chosen):
        left = len(chosen) - start
        size = min(largest, 1 << (left.bit_length() - 1))
        yield chosen[start : start + size]
        start += size


def _neighbour(taken: Taken | None, aligned: Aligned) -> Neighbour | None:
    if taken is None or aligned.laying is None:
        return None
    return Neighbour(taken.frame, taken.view.luma, aligned.laying)


def _repeats(frame: Frame) -> bool:
    return frame.motion is not None and frame.motion.duplicate


def _same(before: Frame, after: Frame) -> bool:
    """Whether two frames show the same, bit for bit; only repetitions are looked at closely."""
    if after.motion is None or not after.motion.duplicate or after.format != before.format:
        return False
    return all(map(np.array_equal, before.planes, after.planes))


def _whole_blocks(padded: Bytes) -> Bytes:
    """(C, h, w) as from `Grid.pad` -> without its halo."""
    return np.ascontiguousarray(padded[:, HALO:-HALO, HALO:-HALO])


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


def _with_colour(
    plane: Plane, residuals: Floats, blurred: NDArray[np.bool_], frame: Frame
) -> Plane:
    """(H, W), (N, 32, 32) for 4:2:0 -> (H, W): their sum, whatever the chroma's size is."""
    form = frame.format
    if (form.shift_x, form.shift_y) == (1, 1):
        return add_to_blocks(plane, residuals, blurred, form.depth)
    large = enlarge(laid_out(residuals, blurred), blurred, form.shift_x, form.shift_y)
    height, width = plane.shape
    return add(plane, large[:height, :width], form.depth)


def enlarge(residual: Floats, blurred: NDArray[np.bool_], shift_x: int, shift_y: int) -> Floats:
    """A residual of 4:2:0 chroma -> one for chroma of another size; 0 stays 0 in clear blocks."""
    high, wide = BLOCK >> shift_y, BLOCK >> shift_x
    rows, columns = blurred.shape
    size = (columns * wide, rows * high)
    large = np.asarray(cv2.resize(residual, size, interpolation=cv2.INTER_LINEAR), np.float32)
    kept = large.reshape(rows, high, columns, wide) * blurred[:, None, :, None]
    return kept.reshape(rows * high, columns * wide)
