"""How a frame lies in the 32-bit pictures that a host hands over."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur import Frame, PixelFormat
from vdeblur.errors import VdeblurError
from vdeblur.frame import Plane
from vdeblur_plugins.packed import Chroma, Packed, packed_of, planes_of

BANDS = 4
"""Channels of a picture."""
FORMATS = {
    "yuv420p": PixelFormat(8),
    "yuv422p": PixelFormat(8, 1, 0),
    "yuv444p": PixelFormat(8, 0, 0),
}
"""Whose planes can be handed over as they are, by FFmpeg's names."""


class Taken(NamedTuple):
    """What a picture shows."""

    planes: tuple[Plane, ...]
    format: PixelFormat
    alpha: NDArray[np.uint8] | None = None
    """(H, W), where some of it is transparent."""


class Layout(Protocol):
    """Finds a frame in a picture, (H, W, 4) uint8, and puts it there."""

    def is_empty(self, picture: Packed) -> bool:
        """Whether it shows nothing at all: it is what comes after the end of a video."""
        ...

    def take(self, picture: Packed) -> Taken:
        """Copy what it shows."""
        ...

    def put(self, frame: Frame, out: Packed) -> None:
        """Write a frame, with its alpha as its attachment."""
        ...


@dataclass(frozen=True, slots=True)
class Pixels:
    """BGRA, as frei0r has it. `chroma` says how much of its colour is looked at."""

    chroma: Chroma = "444"
    columns: int | None = None
    """From here on it is padding; `None` if nothing is."""

    def is_empty(self, picture: Packed) -> bool:
        """Whether it is wholly transparent."""
        return not picture[:, : self.columns, 3].any()

    def take(self, picture: Packed) -> Taken:
        """Convert it to planes."""
        seen = picture[:, : self.columns]
        alpha = cast(NDArray[np.uint8], cv2.extractChannel(seen, 3))
        planes, format = planes_of(seen, 8, self.chroma)
        return Taken(planes, format, None if alpha.min() == 255 else alpha)

    def put(self, frame: Frame, out: Packed) -> None:
        """Convert it to BGRA."""
        seen = out[:, : self.columns]
        cv2.cvtColor(packed_of(frame.planes, frame.format), cv2.COLOR_BGR2BGRA, dst=seen)
        if frame.attachment is not None:
            seen[:, :, 3] = frame.attachment


class Place(NamedTuple):
    """Where a plane lies on a sheet."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Bands:
    """The planes themselves: nothing is lost, and it takes a third of the memory.

    They lie on a sheet, luma above and the chroma below it: side by side where it is half as wide,
    else one below the other. The sheet is cut in four bands of equal height, and each is a channel
    of the picture, B to A. That it is no picture to look at does not matter to the host.
    """

    format: PixelFormat
    width: int
    height: int

    def places(self) -> Iterator[Place]:
        """Where each plane is."""
        rows, columns = self.format.chroma_shape(self.height, self.width)
        beside = self.format.shift_x
        yield Place(0, 0, self.height, self.width)
        yield Place(self.height, 0, rows, columns)
        yield Place(self.height + rows * (not beside), columns * beside, rows, columns)

    @property
    def rows(self) -> int:
        """The height of a band."""
        return -(-max(place.y + place.height for place in self.places()) // BANDS)

    def is_empty(self, picture: Packed) -> bool:
        """Whether all of it is nought, which no picture is."""
        return not (picture[0].any() or picture.any())

    def take(self, picture: Packed) -> Taken:
        """Lay the bands out."""
        sheet = np.empty((BANDS, *picture.shape[:2]), np.uint8)
        cv2.split(picture, list(sheet))
        return Taken(self._planes(sheet), self.format)

    def put(self, frame: Frame, out: Packed) -> None:
        """Cut the sheet into its bands."""
        sheet = np.empty((BANDS, *out.shape[:2]), np.uint8)
        for plane, given in zip(self._planes(sheet), frame.planes, strict=True):
            np.copyto(plane, given)
        cv2.merge(list(sheet), dst=out)

    def _planes(self, sheet: NDArray[np.uint8]) -> tuple[Plane, ...]:
        """Views of (4, rows, columns)."""
        whole = sheet.reshape(-1, sheet.shape[2])
        return tuple(whole[p.y : p.y + p.height, p.x : p.x + p.width] for p in self.places())

    def words(self) -> str:
        """What `layout_of` understands."""
        name = next(name for name, format in FORMATS.items() if format == self.format)
        return f"{name} {self.width}x{self.height}"


def layout_of(words: str, columns: int | None) -> Layout:
    """Read the filter's last parameter: `444`, `420`, or format and size: `yuv420p 640x360`.

    Raises VdeblurError for anything else.
    """
    if not words or words in get_args(Chroma):
        return Pixels(cast(Any, words or "444"), columns)
    name, _, size = words.partition(" ")
    sides = [int(side) if side.isdecimal() else 0 for side in size.split("x")]
    if name not in FORMATS or len(sides) != 2 or not all(sides):
        raise VdeblurError(f"layout must be 444, 420 or like 'yuv420p 640x360', got {words!r}")
    return Bands(FORMATS[name], *sides)
