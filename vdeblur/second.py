"""The second stage of a model that has two: filter each frame again, with a preview of the next."""

from dataclasses import dataclass

from .found import Found, FrameFilters, Preview, with_planes
from .frame import Frame, Plane


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

    def __init__(self, filters: FrameFilters) -> None:
        self._filters = filters
        self._waiting: _Waiting | None = None

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
        planes = self._filters.restored(found, Preview(waiting.frame, following))
        return with_planes(found.frame, planes)
