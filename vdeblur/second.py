"""The second stage of a model that has two: filter each frame again, with a preview of the next."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import direct
from .found import Found, FrameFilters, Neighbour, Preview, with_planes
from .frame import Frame, Plane
from .timing import measured
from .view import View

Way = NDArray[np.float64]
"""(3, 3): from a frame's pixels to those of the one after it."""


@dataclass(frozen=True)
class _Waiting:
    """A frame that was restored once, and waits until the one after it is."""

    found: Found
    frame: Frame
    """As the first stage restored it."""

    @cached_property
    def view(self) -> View:
        """What it is laid over others by."""
        return View.of(self.frame.planes[0], self.frame.format.depth)


class SecondStage:
    """Filter frames that were filtered before, knowing what came of them and of the next one.

    Cascaded stages (Pan, Bai & Tang, "Cascaded deep video deblurring using temporal sharpness
    prior", 2020): what the first one gained from frames further ahead reaches back to this frame,
    and frames that it restored tell more exactly how the camera moved. The residual is added to the
    frame as it was filmed. It holds one frame back.
    """

    def __init__(self, filters: FrameFilters, *, seconds: dict[str, float]) -> None:
        """`seconds` is what its own time is booked to."""
        self._filters, self._seconds = filters, seconds
        self._waiting: _Waiting | None = None
        self._way: Way | None = None  # to the waiting frame from the one before it

    def push(self, found: Found, planes: tuple[Plane, ...]) -> list[Frame]:
        """Take the next frame and what the first stage made of it; return the one before it."""
        waiting = self._waiting
        self._waiting = _Waiting(found, with_planes(found.frame, planes))
        return [] if waiting is None else [self._restored(waiting, self._waiting)]

    def flush(self) -> list[Frame]:
        """Return the frame that is held back, without a preview of the next one."""
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else [self._restored(waiting, None)]

    def _restored(self, waiting: _Waiting, following: _Waiting | None) -> Frame:
        before = self._way
        with measured("align second", self._seconds):
            self._way = _way_between(waiting, following)
        back = None if before is None else np.asarray(np.linalg.inv(before))
        found = replace(
            waiting.found,
            before=_laid(waiting.found.before, back),
            after=_laid(waiting.found.after, self._way),
        )
        preview = Preview(waiting.frame, None if following is None else following.frame)
        return with_planes(found.frame, self._filters.restored(found, preview))


def _way_between(current: _Waiting, following: _Waiting | None) -> Way | None:
    """By what the first stage made of two frames; None if there is nothing to filter or to know."""
    if following is None or (current.found.context is None and following.found.context is None):
        return None
    after, before = current.found.after, following.found.before
    if after is not None:
        way = after.laying.way
    elif before is not None:  # nobody looked at the current one
        way = np.asarray(np.linalg.inv(before.laying.way))
    else:
        return None
    return direct.better(current.view, following.view, way)


def _laid(near: Neighbour | None, way: Way | None) -> Neighbour | None:
    """The neighbour as it is laid by another `way`, if there is one."""
    if near is None or way is None:
        return near
    return near._replace(laying=near.laying.by_another_way(way))
