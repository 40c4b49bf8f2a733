"""Steady and sharpen the pictures of a loop that has them as OpenCV does."""

from fractions import Fraction
from math import isfinite
from types import TracebackType
from typing import Self, get_args

from vdeblur import Frame, Options, Processor
from vdeblur.overlap import Overlapped
from vdeblur_plugins.packed import Chroma, Packed, packed_of, planes_of
from vdeblur_plugins.ticks import TICK

FINEST = 1_000_000
"""Rates are taken as fractions with no larger a denominator."""


class Stabilizer:
    """Takes pictures in order and gives them back, steady and sharp, `delay` pictures later.

    Pictures are (H, W, 3) BGR or (H, W) grey, of uint8, or of uint16 with `depth` bits (9 to 16;
    10 if not said). `rate` is how many there are in a second, unless each comes with its time.
    `chroma` "420" is faster: right for pictures that were 4:2:0 in their file. `ahead` pictures are
    worked on in threads while the loop does something else; with 0 `apply` does all the work
    itself, and the delay is shorter by them.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        rate: float | Fraction = 30,
        depth: int | None = None,
        chroma: Chroma = "444",
        ahead: int = 2,
    ) -> None:
        if not 1 / FINEST <= rate <= FINEST:
            raise ValueError(f"rate must be 1e-6 to 1e6 pictures a second, got {rate}")
        if depth is not None and not 8 <= depth <= 16:
            raise ValueError(f"depth must be 8..16 bits, got {depth}")
        if chroma not in get_args(Chroma):
            raise ValueError(f"chroma must be one of {', '.join(get_args(Chroma))}, got {chroma!r}")
        self._step = 1 / Fraction(float(rate)).limit_denominator(FINEST)  # it may be numpy's
        self._depth, self._chroma = depth, chroma
        if ahead < 0:
            raise ValueError(f"ahead must be at least 0 pictures, got {ahead}")
        self._processor = Processor(options or Options())
        self._overlapped = Overlapped(self._processor, ahead=ahead) if ahead else None
        self._first: Packed | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._overlapped is not None:
            self._overlapped.close()
        self._processor.__exit__(kind, error, traceback)

    @property
    def delay(self) -> int:
        """How many pictures later a picture comes back."""
        return self._work.delay

    def apply(self, picture: Packed, time: float | None = None) -> list[Packed]:
        """Take the next picture, shown at `time` in seconds; return those that are ready.

        That is one once `delay` pictures have gone before, and none until then. All pictures up to
        a `flush` are of one shape and type (ValueError, TypeError). After an exception `flush`
        begins anew.
        """
        deep = getattr(picture, "dtype", None) == "uint16"
        depth = self._depth or (10 if deep else 8)
        planes, format = planes_of(picture, depth, self._chroma)
        self._first = picture if self._first is None else self._first
        if (picture.shape, picture.dtype) != (self._first.shape, self._first.dtype):
            raise ValueError(
                f"the picture changed from {self._first.shape} to {picture.shape}: flush first"
            )
        pts, time_base = self._count, self._step
        if time is not None:
            pts, time_base = _ticks(time), TICK
        self._count += 1
        return _packed(self._work.push(Frame(planes, format, pts, time_base)))

    @property
    def _work(self) -> Processor | Overlapped:
        return self._overlapped or self._processor

    def flush(self) -> list[Packed]:
        """Return the pictures that were held back, and be ready for another video."""
        self._first, self._count = None, 0
        return _packed(self._work.flush())


def _ticks(time: float) -> int:
    """Seconds in units of `TICK`."""
    if not isfinite(time):
        raise ValueError(f"time must be finite seconds, got {time}")
    ticks: int = round(Fraction(float(time)) / TICK)
    return ticks


def _packed(frames: list[Frame]) -> list[Packed]:
    return [packed_of(frame.planes, frame.format) for frame in frames]
