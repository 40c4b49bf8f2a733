"""Filter frames once more from a later one back to an earlier one: what they gain reaches back.

Bidirectional propagation (Chan et al., "BasicVSR: the search for essential components in video
super-resolution and beyond", 2021). Going forth, a frame inherits what those before it gained, and
knows the one after it only as it was filmed; going back it is the other way round. The mean of both
is better than either. Time that runs backwards is nothing new to filters: the neighbours change
their places, and the velocity its sign.
"""

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .blocks import TOLD, VELOCITY, WAITING, WINDOW
from .found import Found, FrameFilters, Neighbour, Preview
from .frame import Plane

if TYPE_CHECKING:
    from torch import Tensor

    from .found import Floats

Planes = tuple[Plane, ...]
Restored = tuple[Found, Planes]
"""A frame, and what filters made of it."""


class Kept(NamedTuple):
    """A field of numbers in half the memory, while its frame waits."""

    values: NDArray[np.int16]
    step: float

    @classmethod
    def of(cls, field: "Floats") -> Self:
        """Rounded to a 32767th of its largest number."""
        step = max(float(field.max()), -float(field.min()), 1e-9) / np.iinfo(np.int16).max
        return cls(np.rint(field * np.float32(1 / step)).astype(np.int16), step)

    @property
    def field(self) -> "Floats":
        """As it was, nearly."""
        return np.multiply(self.values, self.step, dtype=np.float32)


class Forth(NamedTuple):
    """A frame that was restored, and waits."""

    found: Found
    """Without what is kept of it besides."""
    context: "Kept | Tensor | None"
    flows: tuple[Kept | None, Kept | None]
    """Of its neighbours, the one before first."""
    planes: Planes
    preview: Preview | None
    """What a second stage's filters see going back: the frame that follows is the one before."""

    @classmethod
    def of(cls, found: Found, planes: Planes, preview: Preview | None) -> Self:
        """Of a frame that was restored going forth."""
        context = found.context
        return cls(
            replace(
                found, context=None, before=_without(found.before), after=_without(found.after)
            ),
            Kept.of(context) if isinstance(context, np.ndarray) else context,
            (_flow(found.before), _flow(found.after)),
            planes,
            preview,
        )

    @property
    def whole(self) -> Found:
        """All that is known of it."""
        before, after = self.flows
        return replace(
            self.found,
            context=self.context.field if isinstance(self.context, Kept) else self.context,
            before=_with(self.found.before, before),
            after=_with(self.found.after, after),
        )


class Backwards:
    """Takes frames as they were restored going forth, and gives them back better, some later.

    Once it has `WINDOW` and `AHEAD` more, it goes back through all of these; the first `WINDOW` of
    them are ready then. It gives back one for each that it takes, so `WAITING` are held back.
    """

    def __init__(self, filters: FrameFilters, *, share: float) -> None:
        """`filters` are for going back alone; `share` is what theirs counts in the mean."""
        self._filters, self._share = filters, share
        self._waiting: deque[Forth] = deque()
        self._ready: deque[Forth] = deque()
        self._last: Planes = ()

    def push(self, found: Found, planes: Planes, preview: Preview | None = None) -> list[Restored]:
        """Take the next frame; return the one whose turn it is."""
        self._waiting.append(Forth.of(found, planes, preview))
        if len(self._ready) + len(self._waiting) <= WAITING:
            return []
        if not self._ready:
            self._go_back(WINDOW)
        return [self._settled(self._ready.popleft())]

    def flush(self) -> list[Restored]:
        """Return the frames that are held back; the next `push` begins a new video."""
        self._go_back(len(self._waiting))
        rest = [self._settled(each) for each in self._ready]
        self._ready.clear()
        return rest

    def release(self) -> list[Restored]:
        """Return the oldest frame that is held back, if any, before its time."""
        held = self._ready or self._waiting
        return [self._settled(held.popleft())] if held else []

    def _go_back(self, count: int) -> None:
        """Through all that wait, from the last one; the first ones are ready then."""
        for index in reversed(range(len(self._waiting))):
            each = self._waiting[index]
            back = self._filters.restored(_reversed(each.whole), each.preview)
            if index < count:
                self._waiting[index] = each._replace(planes=self._mean(each, back), preview=None)
        self._filters.forget()
        for _ in range(count):
            self._ready.append(self._waiting.popleft())

    def _mean(self, forth: Forth, back: Planes) -> Planes:
        if forth.context is None:  # nothing of it was filtered
            return forth.planes
        pairs = zip(forth.planes, back, strict=True)
        return tuple(
            cv2.addWeighted(one, 1 - self._share, other, self._share, 0) for one, other in pairs
        )

    def _settled(self, forth: Forth) -> Restored:
        """What is passed on of a frame: where all stands still, the same as of the one before."""
        if not forth.found.stands_still:
            self._last = forth.planes
        return forth.whole, self._last


def _flow(near: Neighbour | None) -> Kept | None:
    if near is None or near.laying.flow is None:
        return None
    return Kept.of(near.laying.flow)


def _without(near: Neighbour | None) -> Neighbour | None:
    if near is None or near.laying.flow is None:
        return near
    return near._replace(laying=replace(near.laying, flow=None))


def _with(near: Neighbour | None, flow: Kept | None) -> Neighbour | None:
    if near is None or flow is None:
        return near
    return near._replace(laying=replace(near.laying, flow=flow.field))


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
