"""Filter the blurred blocks of a frame: gather what the filters see, run them, merge what they add.

Shapes have P pictures of luma and Q planes of chroma: what `Bundle` says that its filters see.
E is the edge of a block with its halo, `TILE`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import (
    BLOCK,
    CONTEXT_STRIDE,
    DIRECTED,
    HALO,
    TILE,
    TOLD,
    Grid,
    Part,
    add,
    add_to_blocks,
    laid_out,
    merge,
)
from .change import relative_to_detail, roots_of
from .clusters import CLEAR
from .found import (
    Bytes,
    Doubt,
    Floats,
    Found,
    Neighbour,
    Preview,
    small_chroma,
    to_bytes,
)
from .frame import Frame, Plane
from .timing import measured

Apply = Callable[[int, Bytes, Bytes, Floats], tuple[Floats, Floats]]
"""As `Backend.apply`."""
Filter = Callable[[Bytes, Bytes, Floats], tuple[Floats, Floats]]
"""The same of one cluster."""


GATHERED = 64
"""Blocks that are gathered at once: to begin takes as long as some blocks do, but all of a huge
picture would need much memory."""


class Room:
    """Memory for padded planes; used again and again, since fresh memory costs time."""

    def __init__(self) -> None:
        self._planes: Bytes = np.empty((0, 0, 0), np.uint8)

    def planes(self, count: int, grid: Grid) -> Bytes:
        """(P, h, w) of the size that `Grid.pad` gives, with anything in them."""
        if self._planes.shape[1:] != grid.padded or len(self._planes) < count:
            self._planes = np.empty((count, *grid.padded), np.uint8)
        return self._planes[:count]


class Filters:
    """`FrameFilters` in the computer's own memory."""

    def __init__(
        self,
        apply: Apply,
        *,
        colour_frames: int,
        batch: int,
        seconds: dict[str, float],
        name: str = "filter",
        both_ways: bool = False,
        room: Room | None = None,
    ) -> None:
        """`name` is what their time is booked to in `seconds`, with each one's number.

        They look at each block also turned by half if they look `both_ways`. Those of one thread
        may share their `room`.
        """
        self._apply, self._both_ways, self._colour_frames = apply, both_ways, colour_frames
        self._batch = max(1, batch // 2) if both_ways else batch
        self._seconds, self._name = seconds, name
        self._planes: tuple[Plane, ...] = ()  # of the last frame
        self._restored_luma: Bytes | None = None  # of the same; `None` if nothing was filtered
        self._restored_chroma: Bytes | None = None
        self._room = room or Room()

    def restored(
        self, found: Found, preview: Preview | None = None, *, doubt: Doubt | None = None
    ) -> tuple[Plane, ...]:
        """As `FrameFilters.restored`."""
        frame = found.frame
        if not found.stands_still:
            self._planes = frame.planes
            if found.context is not None:
                assert isinstance(found.context, np.ndarray), "it was found here"
                self._planes = self._filtered(found, found.context, preview, doubt)
            self._remember(frame)
        return self._planes

    def forget(self) -> None:
        """As `FrameFilters.forget`."""
        self._planes = ()
        self._restored_luma = self._restored_chroma = None

    def _remember(self, frame: Frame) -> None:
        """What the filters will see of this frame when the next one is restored."""
        self._restored_luma = self._restored_chroma = None
        if self._planes is not frame.planes:
            self._restored_luma = to_bytes(self._planes[0], frame.format.depth)
            if self._colour_frames > 1:
                self._restored_chroma = small_chroma(replace(frame, planes=self._planes))

    def _filtered(
        self, found: Found, context: Floats, preview: Preview | None, doubt: Doubt | None
    ) -> tuple[Plane, ...]:
        frame = found.frame
        assert frame.labels is not None, "it was looked at"
        blurred = frame.labels != CLEAR
        with measured("lay", self._seconds):
            luma = self._padded(frame, 3 if preview is None else 5)
            self._lay(luma, found, blurred, preview)
            chroma = self._chroma(found, blurred, preview)
        residual, colour = self._residuals(frame.labels, luma, chroma, context)
        if doubt is not None:
            with measured("assign", self._seconds):
                roots = roots_of(residual[doubt.blocks[blurred]])
                change = relative_to_detail(_luma(frame), roots, doubt.blocks)
                passed = doubt.passed(change) != CLEAR
            if not np.array_equal(passed, blurred):
                kept = passed[blurred]
                residual, colour, blurred = residual[kept], colour[:, kept], passed
        with measured("merge", self._seconds):
            light, *planes = frame.planes
            summed = add_to_blocks(light, merge(residual, blurred), blurred, frame.format.depth)
            tints = merge(colour, blurred, stride=2)
            tinted = [
                _with_colour(plane, part, blurred, frame)
                for plane, part in zip(planes, tints, strict=False)  # grey has none
            ]
        return summed, *tinted

    def _padded(self, frame: Frame, count: int) -> Bytes:
        """(P, h, w): the frame's luma first, as from `Grid.pad`, and room for `count` with it."""
        grid = Grid(frame.height, frame.width)
        luma = self._room.planes(count, grid)
        np.copyto(grid.inner(luma[0]), _luma(frame))
        grid.repeat_edges(luma[:1])
        return luma

    def _lay(
        self, luma: Bytes, found: Found, blurred: NDArray[np.bool_], preview: Preview | None
    ) -> None:
        """Lay the neighbours over the blurred blocks, with their halos, of (P, h, w).

        The previous frame as it was restored: if nothing of it was filtered, that is as filmed.
        """
        grid = Grid(found.frame.height, found.frame.width)
        parts = grid.parts(blurred)
        current, before, after, *previewed = grid.inner(luma)
        _show(before, found.before, self._restored_luma, current, parts)
        _show(after, found.after, None, current, parts)
        if preview is not None:
            following, own = previewed
            np.copyto(own, _luma(preview.frame))
            if preview.following is None:
                np.copyto(following, own)
            else:
                _show(following, found.after, _luma(preview.following), own, parts)
        grid.repeat_edges(luma[1:])

    def _chroma(self, found: Found, blurred: NDArray[np.bool_], preview: Preview | None) -> Bytes:
        """(Q, H/2, W/2): the frame's colours, and others' as far as the filters see them.

        These are laid over the blurred blocks, with their halos.
        """
        own = small_chroma(found.frame)
        if self._colour_frames == 1 and preview is None:
            return own
        seen = [own]
        parts = Grid(found.frame.height, found.frame.width).parts(blurred, stride=2)
        if self._colour_frames > 1:
            seen.append(_shown_colours(found.before, self._restored_chroma, own, parts))
            seen.append(_shown_colours(found.after, None, own, parts))
        if preview is not None:
            current = small_chroma(preview.frame)
            following = current
            if preview.following is not None:
                colours = small_chroma(preview.following)
                following = _shown_colours(found.after, colours, current, parts)
            seen += [following, current]
        return np.concatenate(seen)

    def _residuals(
        self, labels: NDArray[np.uint8], luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Run each cluster's filter -> residuals (N, E, E), (2, N, E/2, E/2), row by row."""
        grid = Grid(*(edge - HALO for edge in luma.shape[1:]))
        rows, columns = np.nonzero(labels)
        clusters = labels[rows, columns]
        lumas = np.empty((len(rows), TILE, TILE), np.float32)
        chromas = np.empty((2, len(rows), TILE // 2, TILE // 2), np.float32)
        with measured("gather", self._seconds):
            chroma = grid.pad(chroma, stride=2)
        for cluster in range(CLEAR + 1, int(labels.max()) + 1):
            of_it = np.flatnonzero(clusters == cluster)
            look = partial(self._apply, cluster)
            for begin in range(0, len(of_it), GATHERED):
                several = of_it[begin : begin + GATHERED]
                row, column = rows[several], columns[several]
                with measured("gather", self._seconds):
                    inputs = (
                        grid.gather(luma, row, column),
                        grid.gather(chroma, row, column, stride=2),
                        grid.gather(context, row, column, stride=CONTEXT_STRIDE),
                    )
                with measured(f"{self._name} {cluster}", self._seconds):
                    for start in range(0, len(several), self._batch):
                        part = np.s_[start : start + self._batch]
                        seen = [each[part] for each in inputs]
                        residual, colour = (
                            both_ways(look, *seen) if self._both_ways else look(*seen)
                        )
                        lumas[several[part]] = residual
                        chromas[:, several[part]] = colour.swapaxes(0, 1)
        return lumas, chromas


def both_ways(look: Filter, luma: Bytes, chroma: Bytes, context: Floats) -> tuple[Floats, Floats]:
    """What a filter says of blocks (N, ...), and of them turned by half: the mean.

    What it gets wrong one way only is halved, at twice the cost ("enhanced prediction": Timofte,
    Rothe & Van Gool, "Seven ways to improve example-based single image super resolution", 2016).
    The context is turned, not found anew.
    """
    turned = context[..., ::-1, ::-1].copy()
    turned[:, -TOLD : DIRECTED - TOLD] *= -1
    residuals = look(
        np.concatenate([luma, luma[..., ::-1, ::-1]]),
        np.concatenate([chroma, chroma[..., ::-1, ::-1]]),
        np.concatenate([context, turned]),
    )
    residual, colour = (_mean(each) for each in residuals)
    return residual, colour


def _mean(both: Floats) -> Floats:
    """(2 * N, ...) -> (N, ...)."""
    one, other = np.split(both, 2)
    return np.asarray((one + other[..., ::-1, ::-1]) / 2)


def _show(
    shown: Bytes,
    near: Neighbour | None,
    picture: Bytes | None,
    current: Bytes,
    parts: Sequence[Part],
) -> None:
    """Set parts of `shown` to a neighbour's luma as seen from the `current` one, all (H, W).

    The luma is `picture`, or as it was filmed. Without a neighbour the current one stands in.
    """
    if near is None:
        np.copyto(shown, current)
        return
    near.laying.lay(near.luma if picture is None else picture, current, shown, parts)


def _shown_colours(
    near: Neighbour | None, pictures: Bytes | None, current: Bytes, parts: Sequence[Part]
) -> Bytes:
    """The same of the chroma, (2, H/2, W/2); the current one is all around the parts."""
    shown = current.copy()
    if near is not None:
        pictures = small_chroma(near.frame) if pictures is None else pictures
        for plane, picture, own in zip(shown, pictures, current, strict=True):
            near.laying.lay(picture, own, plane, parts, shrunk=2)
    return shown


def _luma(frame: Frame) -> Bytes:
    return to_bytes(frame.planes[0], frame.format.depth)


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
