"""`cv2.VideoCapture`, steady and sharp."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import get_args

import cv2
import numpy as np

from vdeblur import Frame, Options, Processor
from vdeblur_plugins.packed import Chroma, Packed, packed_of, planes_of
from vdeblur_plugins.ticks import SECOND, TICK, USUAL

PLACES = (cv2.CAP_PROP_POS_MSEC, cv2.CAP_PROP_POS_FRAMES, cv2.CAP_PROP_POS_AVI_RATIO)
"""Properties that tell how far reading has come."""


class VideoCapture:
    """Reads what `cv2.VideoCapture` reads (a file, a camera's number, a pipeline), made steady.

    Each method does what its namesake does. The first picture of a camera comes as late as
    `vdeblur.processor.delay_of(options)` tells; from a file none is lost and none is late. Reading
    runs ahead in a thread, which ends with `release`. `chroma` "420" is faster, and right for a
    source that is 4:2:0 itself.
    """

    def __init__(
        self,
        filename: str | int | None = None,
        apiPreference: int = cv2.CAP_ANY,  # noqa: N803 - the names are OpenCV's
        params: Sequence[int] = (),
        *,
        options: Options | None = None,
        chroma: Chroma = "444",
    ) -> None:
        if chroma not in get_args(Chroma):
            raise ValueError(f"chroma must be one of {', '.join(get_args(Chroma))}, got {chroma!r}")
        self._processor = Processor(options or Options())
        self._source = _Source(chroma)
        self._frames: Generator[Frame] | None = None
        self._frame: Frame | None = None
        if filename is not None:
            self.open(filename, apiPreference, params)

    def open(
        self,
        filename: str | int,
        apiPreference: int = cv2.CAP_ANY,  # noqa: N803
        params: Sequence[int] = (),
    ) -> bool:
        """Begin with another video; tell whether it can be read."""
        self._stop()
        return self._source.capture.open(filename, apiPreference, list(params))

    def isOpened(self) -> bool:  # noqa: N802
        """Whether there is something to read from."""
        return self._source.capture.isOpened()

    def release(self) -> None:
        """Close what is read from."""
        self._stop()
        self._source.capture.release()

    def grab(self) -> bool:
        """Go on to the next picture; tell whether there was one."""
        self._frame = self._next() if self.isOpened() else None
        return self._frame is not None

    def retrieve(self, image: Packed | None = None, flag: int = 0) -> tuple[bool, Packed | None]:
        """Return the picture that was grabbed, in the memory of `image` if that fits."""
        if flag:
            raise ValueError(f"only the first stream can be retrieved (flag 0), got {flag}")
        if self._frame is None:
            return False, None
        picture = packed_of(self._frame.planes, self._frame.format)
        if image is None or (image.shape, image.dtype) != (picture.shape, picture.dtype):
            return True, picture
        np.copyto(image, picture)
        return True, image

    def read(self, image: Packed | None = None) -> tuple[bool, Packed | None]:
        """Return the next picture: `grab` and `retrieve`."""
        self.grab()
        return self.retrieve(image)

    def get(self, propId: int) -> float:  # noqa: N803
        """Return a property; places are those of the picture that was grabbed last."""
        if propId in PLACES and self._frame is not None:
            place = self._frame.attachment
            assert isinstance(place, _Place)
            return place.values[PLACES.index(propId)]
        with self._source.lock:
            return self._source.capture.get(propId)

    def set(self, propId: int, value: float) -> bool:  # noqa: N803
        """Set a property; a new place begins a new video, as far as the camera's path goes."""
        if propId in PLACES:
            self._stop()
        with self._source.lock:
            return self._source.capture.set(propId, value)

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name of what reads the source."""
        return self._source.capture.getBackendName()

    def setExceptionMode(self, enable: bool) -> None:  # noqa: N802
        """Let `open` and reading raise `cv2.error` instead of telling that they failed."""
        self._source.capture.setExceptionMode(enable)

    def getExceptionMode(self) -> bool:  # noqa: N802
        """Whether exceptions are raised."""
        return self._source.capture.getExceptionMode()

    def _next(self) -> Frame | None:
        if self._frames is None:
            self._frames = self._processor.run(self._source.frames())
        frame = next(self._frames, None)
        if frame is None and self._source.ahead is not None:  # the pictures' size has changed
            self._frames = None
            return self._next()
        return frame

    def _stop(self) -> None:
        """End the thread, and forget what it has read."""
        if self._frames is not None:
            self._frames.close()
            self._processor.flush()
        self._frames = self._frame = self._source.ahead = None


@dataclass(frozen=True, slots=True)
class _Place:
    """How far OpenCV had come when it had read a picture."""

    values: tuple[float, ...]
    """In the order of `PLACES`."""


class _Source:
    """What is read from. The thread knows only this: it does not keep the `VideoCapture` alive."""

    def __init__(self, chroma: Chroma) -> None:
        self.chroma: Chroma = chroma
        self.capture = cv2.VideoCapture()
        self.lock = Lock()
        """Held while `capture` is used: reading goes on in a thread."""
        self.ahead: tuple[Packed, _Place] | None = None
        """A picture of another shape than those before it."""

    def frames(self) -> Iterator[Frame]:
        """Yield frames to the end of the video, or as long as their shape is the same."""
        first, clock = None, _Clock()
        while (found := self.ahead or self._read()) is not None:
            self.ahead = None
            picture, place = found
            first = first if first is not None else picture
            if (picture.shape, picture.dtype) != (first.shape, first.dtype):
                self.ahead = found
                return
            planes, format = planes_of(picture, 8 if picture.dtype == np.uint8 else 16, self.chroma)
            pts = clock.tick(place.values[0])
            yield Frame(planes, format, pts, TICK, attachment=place)

    def _read(self) -> tuple[Packed, _Place] | None:
        with self.lock:
            found, picture = self.capture.read()
            if not found:
                return None
            return picture, _Place(tuple(self.capture.get(place) for place in PLACES))


class _Clock:
    """Gives each picture a time after the one before, whatever the source knows of time."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._step = USUAL

    def tick(self, milliseconds: float) -> int:
        """Return the time in ticks."""
        time: int = round(milliseconds * SECOND / 1000)
        if self._last is not None:
            if time > self._last:
                self._step = time - self._last
            else:  # many cameras have no clock
                time = self._last + self._step
        self._last = time
        return time
