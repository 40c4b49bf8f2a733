"""Filter frames once more from a later one back to an earlier one: what they gain reaches back.

Bidirectional propagation (Chan et al., "BasicVSR: the search for essential components in video
super-resolution and beyond", 2021). Going forth, a frame inherits what those before it gained, and
knows the one after it only as it was filmed; going back it is the other way round. The mean of both
is better than either. Time that runs backwards is nothing new to filters: the neighbours change
their places, and the velocity its sign.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from .blocks import TOLD, VELOCITY, WAITING, WINDOW
from .found import Found, FrameFilters, Preview
from .frame import Plane

if TYPE_CHECKING:
    from torch import Tensor

    from .found import Floats

Planes = tuple[Plane, ...]
Restored = tuple[Found, Planes]
"""A frame, and what filters made of it."""


class Forth(NamedTuple):
    """A frame that was restored going forth."""

    found: Found
    planes: Planes
    preview: Preview | None
    """What a second stage's filters see going back: the frame that follows is the one before."""


class Backwards:
    """Takes frames as they were restored going forth, and gives them back better, some later.

    Once it has `WINDOW` and `AHEAD` more, it goes back through all of these; the first `WINDOW` of
    them are ready then. It gives back one for each that it takes, so `WAITING` are held back.
    """

    def __init__(self, filters: FrameFilters, *, share: float) -> None:
        """`filters` are for going back alone; `share` is what theirs counts in the mean."""
        self._filters, self._share = filters, share
        self._waiting: deque[Forth] = deque()
        self._ready: deque[Restored] = deque()
        self._last: Planes = ()

    def push(self, found: Found, planes: Planes, preview: Preview | None = None) -> list[Restored]:
        """Take the next frame; return the one whose turn it is."""
        self._waiting.append(Forth(found, planes, preview))
        if len(self._ready) + len(self._waiting) <= WAITING:
            return []
        if not self._ready:
            self._ready.extend(self._better(WINDOW))
        return [self._ready.popleft()]

    def flush(self) -> list[Restored]:
        """Return the frames that are held back; the next `push` begins a new video."""
        rest = [*self._ready, *self._better(len(self._waiting))]
        self._ready.clear()
        return rest

    def release(self) -> list[Restored]:
        """Return the oldest frame that is held back, if any, before its time."""
        if self._ready:
            return [self._ready.popleft()]
        if self._waiting:
            found, planes, _ = self._waiting.popleft()
            return [self._settled(found, planes)]
        return []

    def _better(self, count: int) -> Iterator[Restored]:
        """The first ones that wait, after going back through all of them; these wait no longer."""
        self._filters.forget()
        back = [
            self._filters.restored(_reversed(each.found), each.preview)
            for each in reversed(self._waiting)
        ]
        for _ in range(count):
            found, forth, _ = self._waiting.popleft()
            yield self._settled(found, self._mean(found, forth, back.pop()))

    def _mean(self, found: Found, forth: Planes, back: Planes) -> Planes:
        if found.context is None:  # nothing of it was filtered
            return forth
        pairs = zip(forth, back, strict=True)
        return tuple(
            cv2.addWeighted(one, 1 - self._share, other, self._share, 0) for one, other in pairs
        )

    def _settled(self, found: Found, planes: Planes) -> Restored:
        """What is passed on of a frame: where all stands still, the same as of the one before."""
        if not found.stands_still:
            self._last = planes
        return found, self._last


def _reversed(found: Found) -> Found:
    """As if time ran backwards."""
    context = None if found.context is None else _turned_back(found.context)
    return replace(found, context=context, before=found.after, after=found.before)


def _turned_back(context: "Floats | Tensor") -> "Floats | Tensor":
    """(C, h, w) -> the same with the velocity's sign changed."""
    copied: Any = context.copy() if isinstance(context, np.ndarray) else context.clone()
    copied[-TOLD : VELOCITY - TOLD] *= -1
    back: Floats | Tensor = copied
    return back
