"""`cv2.VideoCapture`, steady and sharp."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event, Lock, RLock
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
    source that is 4:2:0 itself. Several threads may read, each gets pictures of its own; `release`
    in one of them waits for no more than the picture that the source is giving.
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
        self._using = RLock()
        self._waiting = RLock()
        if filename is not None:
            self.open(filename, apiPreference, params)

    def open(
        self,
        filename: str | int,
        apiPreference: int = cv2.CAP_ANY,  # noqa: N803
        params: Sequence[int] = (),
    ) -> bool:
        """Begin with another video; tell whether it can be read."""
        with self._stopped(), self._source.lock:
            return self._source.capture.open(filename, apiPreference, list(params))

    def isOpened(self) -> bool:  # noqa: N802
        """Whether there is something to read from."""
        return self._source.capture.isOpened()

    def release(self) -> None:
        """Close what is read from."""
        with self._stopped(), self._source.lock:
            self._source.capture.release()

    def grab(self) -> bool:
        """Go on to the next picture; tell whether there was one."""
        return self._grabbed() is not None

    def retrieve(self, image: Packed | None = None, flag: int = 0) -> tuple[bool, Packed | None]:
        """Return the picture that was grabbed, in the memory of `image` if that fits."""
        return _picture(self._frame, image, flag)

    def read(self, image: Packed | None = None) -> tuple[bool, Packed | None]:
        """Return the next picture: `grab` and `retrieve`."""
        return _picture(self._grabbed(), image)  # another thread may grab meanwhile

    def get(self, propId: int) -> float:  # noqa: N803
        """Return a property; places are those of the picture that was grabbed last."""
        if propId in PLACES and (frame := self._frame) is not None:
            place = frame.attachment
            assert isinstance(place, _Place)
            return place.values[PLACES.index(propId)]
        with self._source.lock:
            return self._source.capture.get(propId)

    def set(self, propId: int, value: float) -> bool:  # noqa: N803
        """Set a property; a new place begins a new video, as far as the camera's path goes."""
        with self._stopped() if propId in PLACES else nullcontext(), self._source.lock:
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

    def _grabbed(self) -> Frame | None:
        """Go on to the next frame; without one, `None` or an exception, as it is wished."""
        with self._alone():
            self._frame = frame = self._next() if self.isOpened() else None
            if frame is None:
                self._source.tell_end()
            return frame

    def _next(self) -> Frame | None:
        if self._frames is None:
            self._frames = self._processor.run(self._source.frames())
        frame = next(self._frames, None)
        if frame is None and self._source.goes_on:
            self._frames = None
            return self._next()
        return frame

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread takes frames meanwhile."""
        with self._waiting:  # else a loop that reads would have it again before those who wait
            self._using.acquire()
        try:
            yield
        finally:
            self._using.release()

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """The thread has ended, what it has read is forgotten, and nobody reads meanwhile."""
        self._source.stop.set()  # a `read` that waits for the source comes back
        with self._alone():
            try:
                if self._frames is not None:
                    self._frames.close()
                self._frames = self._frame = None
            finally:
                self._source.forget()
            yield


@dataclass(frozen=True, slots=True)
class _Place:
    """How far OpenCV had come when it had read a picture."""

    values: tuple[float, ...]
    """In the order of `PLACES`."""


def _picture(
    frame: Frame | None, image: Packed | None, flag: int = 0
) -> tuple[bool, Packed | None]:
    if flag:
        raise ValueError(f"only the first stream can be retrieved (flag 0), got {flag}")
    if frame is None:
        return False, None
    picture = packed_of(frame.planes, frame.format)
    if image is None or (image.shape, image.dtype) != (picture.shape, picture.dtype):
        return True, picture
    np.copyto(image, picture)
    return True, image


class _Source:
    """What is read from. The thread knows only this: it does not keep the `VideoCapture` alive."""

    def __init__(self, chroma: Chroma) -> None:
        self.chroma: Chroma = chroma
        self.capture = cv2.VideoCapture()
        self.lock = Lock()
        """Held while `capture` is used: reading goes on in a thread."""
        self.ahead: tuple[Packed, _Place] | None = None
        """A picture of another shape than those before it."""
        self.errors: list[cv2.error] = []
        """What ended the video in exception mode; a list, to be taken out of it."""
        self.stop = Event()
        """Nobody wants the next frame any more."""

    def frames(self) -> Iterator[Frame]:
        """Yield frames to the end of the video, or as long as their shape is the same."""
        first, clock = None, _Clock()
        while not self.stop.is_set() and (found := self.ahead or self._read()) is not None:
            self.ahead = None
            picture, place = found
            first = first if first is not None else picture
            if (picture.shape, picture.dtype) != (first.shape, first.dtype):
                self.ahead = found
                return
            planes, format = planes_of(picture, 8 if picture.dtype == np.uint8 else 16, self.chroma)
            pts = clock.tick(place.values[0])
            yield Frame(planes, format, pts, TICK, attachment=place)

    def tell_end(self) -> None:
        """Raise in exception mode what `cv2.VideoCapture` does where there is no picture."""
        if not self.capture.getExceptionMode():
            self.errors.clear()
        elif self.errors:
            raise self.errors.pop()
        else:  # it has been raised before
            nothing = cv2.VideoCapture()
            nothing.setExceptionMode(True)
            nothing.grab()

    @property
    def goes_on(self) -> bool:
        """Whether the frames have ended only because the next picture has another shape."""
        return self.ahead is not None and not self.stop.is_set()

    def forget(self) -> None:
        """Be ready for another video; no thread reads any more."""
        self.ahead = None
        self.errors.clear()
        self.stop.clear()

    def _read(self) -> tuple[Packed, _Place] | None:
        with self.lock:
            try:
                found, picture = self.capture.read()
            except cv2.error as error:
                if not self.capture.getExceptionMode():
                    raise
                self.errors.append(error.with_traceback(None))  # for after the frames before it
                return None
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
