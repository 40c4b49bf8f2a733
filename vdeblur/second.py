"""The second stage of a model that has two: filter each frame again, with a preview of the next."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backend import Backend
from .blocks import Grid
from .filtering import Filters, Found, Preview, to_bytes, with_planes
from .frame import Frame, Plane
from .timing import measured

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame that was restored once, and waits until the one after it is."""

    found: Found
    frame: Frame
    """As the first stage restored it."""


class SecondStage:
    """Filter frames that were filtered before, knowing what came of them and of the next one.

    Cascaded stages (Pan, Bai & Tang, "Cascaded deep video deblurring using temporal sharpness
    prior", 2020): what the first one gained from frames further ahead reaches back to this frame.
    The residual is added to the frame as it was filmed. It holds one frame back.
    """

    def __init__(self, backend: Backend, *, batch: int, seconds: dict[str, float]) -> None:
        """`backend` runs the second stage's filters; the time goes to `seconds`."""
        bundle, self._seconds = backend.bundle, seconds
        self._planes = bundle.luma_planes
        self._filters = Filters(
            backend.apply,
            colour_frames=bundle.colour_frames,
            batch=batch,
            seconds=seconds,
            name="filter second",
        )
        self._waiting: _Waiting | None = None
        self._room: Bytes | None = None

    def push(self, found: Found, planes: tuple[Plane, ...]) -> list[Frame]:
        """Take the next frame and what the first stage made of it; return the one before it."""
        waiting = self._waiting
        self._waiting = _Waiting(found, with_planes(found.frame, planes))
        return [] if waiting is None else [self._restored(waiting, self._waiting.frame)]

    def flush(self) -> list[Frame]:
        """Return the frame that is held back, without a preview of the next one."""
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else [self._restored(waiting, None)]

    def _restored(self, waiting: _Waiting, following: Frame | None) -> Frame:
        """`following` as the first stage restored it."""
        found = waiting.found
        luma = None if found.is_clear else self._padded(found.frame)
        preview = Preview(waiting.frame, following)
        return with_planes(found.frame, self._filters.restored(found, luma, preview))

    def _padded(self, frame: Frame) -> Bytes:
        """(5, h, w): the frame's luma first, as from `Grid.pad`, and room for the others."""
        grid = Grid(frame.height, frame.width)
        if self._room is None or self._room.shape[1:] != grid.padded:
            self._room = np.empty((self._planes, *grid.padded), np.uint8)
        with measured("lay", self._seconds):
            np.copyto(grid.inner(self._room[0]), to_bytes(frame.planes[0], frame.format.depth))
            grid.repeat_edges(self._room[:1])
        return self._room
