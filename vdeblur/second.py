"""The second stage of a model that has two: filter each frame again, with a preview of the next."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from . import align, direct
from .align import Aligned, Aligner
from .backwards import Backwards, Restored
from .found import Found, FrameFilters, Neighbour, Preview, to_bytes, with_planes
from .frame import Frame, Motion, Plane
from .timing import measured
from .view import View


@dataclass(frozen=True)
class _Waiting:
    """A frame that was restored once, and waits until the one after it is."""

    found: Found
    frame: Frame
    """As the first stage restored it."""

    @cached_property
    def small(self) -> View:
        """By which it is told how the camera moved."""
        return View.of(self.frame.planes[0], self.frame.format.depth)

    @cached_property
    def view(self) -> align.View:
        """By which others are laid over it."""
        return align.View(to_bytes(self.frame.planes[0], self.frame.format.depth))


class SecondStage:
    """Filter frames that were filtered before, knowing what came of them and of the next one.

    Cascaded stages (Pan, Bai & Tang, "Cascaded deep video deblurring using temporal sharpness
    prior", 2020): what the first one gained from frames further ahead reaches back to this frame,
    and frames that it restored tell more exactly how the camera moved, and what moved on its own.
    The residual is added to the frame as it was filmed. It holds one frame back, and those that
    wait for it to go `backwards`, too.
    """

    def __init__(
        self,
        filters: FrameFilters,
        backwards: Backwards | None = None,
        *,
        seconds: dict[str, float],
    ) -> None:
        """`seconds` is what its own time is booked to."""
        self._filters, self._backwards, self._seconds = filters, backwards, seconds
        self._aligner = Aligner()
        self._waiting: _Waiting | None = None
        self._last: _Waiting | None = None  # the frame before the waiting one
        self._motion: Motion | None = None  # from that one to the waiting one

    def push(self, found: Found, planes: tuple[Plane, ...]) -> list[Frame]:
        """Take the next frame and what the first stage made of it; return the one before it."""
        waiting = self._waiting
        self._waiting = _Waiting(found, with_planes(found.frame, planes))
        return [] if waiting is None else self._restored(waiting, self._waiting)

    def flush(self) -> list[Frame]:
        """Return the frames that are held back, the last one without a preview of the next."""
        waiting, self._waiting = self._waiting, None
        frames = [] if waiting is None else self._restored(waiting, None)
        return frames + ([] if self._backwards is None else _shown(self._backwards.flush()))

    def release(self) -> list[Frame]:
        """Return the oldest frame that waits for those behind it only to go back from them."""
        return [] if self._backwards is None else _shown(self._backwards.release())

    def _restored(self, waiting: _Waiting, following: _Waiting | None) -> list[Frame]:
        found = waiting.found
        with measured("align second", self._seconds):
            if found.context is not None:
                found = replace(found, before=self._before(waiting))
            self._motion = _motion_between(waiting, following)
            if found.context is not None:
                found = replace(found, after=self._after(waiting, following))
        preview = _preview(waiting, following)
        planes = self._filters.restored(found, preview)
        last, self._last = self._last, waiting
        if self._backwards is None:
            return _shown([(found, planes)])
        return _shown(self._backwards.push(found, planes, _preview(waiting, last)))

    def _before(self, waiting: _Waiting) -> Neighbour | None:
        """The one before, laid by what the first stage made of both."""
        near, last = waiting.found.before, self._last
        if near is None or last is None or self._motion is None:
            return near
        return _laid(near, self._aligner.previous(last.view, waiting.view, self._motion))

    def _after(self, waiting: _Waiting, following: _Waiting | None) -> Neighbour | None:
        near = waiting.found.after
        if near is None or following is None or self._motion is None:
            return near
        return _laid(near, self._aligner.following(following.view, waiting.view, self._motion))


def _preview(waiting: _Waiting, other: _Waiting | None) -> Preview:
    """Of a frame, and of the one that follows, or the one before where time runs backwards."""
    return Preview(waiting.frame, None if other is None else other.frame)


def _shown(restored: Iterable[Restored]) -> list[Frame]:
    return [with_planes(found.frame, planes) for found, planes in restored]


def _motion_between(current: _Waiting, following: _Waiting | None) -> Motion | None:
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
    known = following.found.frame.motion
    assert known is not None, "it was trusted"
    return replace(known, homography=direct.better(current.small, following.small, way))


def _laid(near: Neighbour, aligned: Aligned) -> Neighbour:
    """The neighbour as it was laid anew; what stands still does so by any way."""
    if aligned.laying is None or np.array_equal(near.laying.way, np.eye(3)):
        return near
    return near._replace(laying=aligned.laying)
