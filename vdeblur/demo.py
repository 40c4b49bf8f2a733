"""Render a shaky, blurred clip of a still picture, so that there is something to try and measure.

`vdeblur demo` calls `render_demo`; `examples/shaky.mp4` was made so. The same arguments give the
same clip.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from .errors import SinkError
from .render import (
    RATE,
    Bytes,
    Camera,
    Exposure,
    Floats,
    Shake,
    add_noise,
    expose,
    hand_shake,
    to_linear,
    to_srgb,
)

SHUTTER = 0.8
"""Part of the frame interval for which the shutter is open."""
SAMPLES = 48_000
"""Audio samples a second."""
BT709 = 1
"""Its number among FFmpeg's colour primaries, transfers and matrices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the clip looks like."""

    seconds: float = 6.0
    width: int = 640
    height: int = 360
    seed: int = 7
    blur: float = 5.0
    """Median length of the streaks in the middle of the picture, in pixels; 0 is a sharp clip."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < inf:
            raise ValueError(f"seconds must be above 0 and finite, got {self.seconds}")
        if min(self.width, self.height) < 16 or self.width % 2 or self.height % 2:
            raise ValueError(f"size must be even and 16 at least, got {self.width}x{self.height}")
        limit = max(self.width, self.height) / 64  # beyond, the camera would look past the picture
        if not 0 <= self.blur <= limit:
            raise ValueError(f"blur must be 0..{limit:g} pixels at this size, got {self.blur:g}")

    @property
    def frames(self) -> int:
        """How many there are."""
        return max(1, round(self.seconds * RATE))

    @property
    def times(self) -> NDArray[np.float64]:
        """(frames,) seconds: the middle of each exposure."""
        return np.asarray((np.arange(self.frames) + 0.5) / float(RATE))

    @property
    def shutter(self) -> float:
        """Seconds for which a frame gathers light."""
        return SHUTTER / float(RATE)

    @property
    def camera(self) -> Camera:
        """A phone's main camera."""
        return Camera(self.width, self.height, focal=0.9 * max(self.width, self.height))


def render_demo(
    sink: Path, *, demo: Demo | None = None, truth: Path | None = None, overwrite: bool = False
) -> int:
    """Write the clip to `sink` and its sharp frames to `truth`; return the number of frames."""
    demo = demo or Demo()
    written = 0
    with ExitStack() as stack:
        size = (demo.width, demo.height)
        blurred = stack.enter_context(Clip(sink, size, crf=20, overwrite=overwrite))
        sharp = truth and stack.enter_context(Clip(truth, size, crf=10, overwrite=overwrite))
        noise = np.random.default_rng(demo.seed)
        for exposure in exposures(demo):
            light = add_noise(exposure.blurred, noise, shot=2e-4, read=1e-3)
            blurred.write(to_srgb(light))
            if sharp:
                sharp.write(to_srgb(exposure.sharp))
            written += 1
    return written


def exposures(demo: Demo, picture: Bytes | None = None) -> Iterator[Exposure]:
    """What the camera sees, frame by frame, of an (H, W, 3) sRGB picture or of the package's."""
    shake = camera_shake(demo)
    light = _picture(demo, shake, picture_of_demo() if picture is None else picture)
    for time in demo.times:
        yield expose(light, demo.camera, shake, float(time), shutter=demo.shutter)


def camera_shake(demo: Demo) -> Shake:
    """A hand's tremor of the wanted blur, on top of a slow pan to and fro."""
    tremor = hand_shake(np.random.default_rng(demo.seed), amplitude=1.0)
    # Its speed does not depend on the pan's, which is too slow to blur.
    length = float(np.median(_streaks(demo, tremor)))
    return Shake(
        frequencies=np.append(tremor.frequencies, 1 / 12),
        amplitudes=np.vstack([tremor.amplitudes * (demo.blur / length), [0.12, 0.03, 0.0]]),
        phases=np.vstack([tremor.phases, [-np.pi / 2, 0.0, 0.0]]),
        drift=tremor.drift,
    )


def _streaks(demo: Demo, shake: Shake) -> NDArray[np.float64]:
    """(frames,) how far the middle of the picture moves while the shutter is open, in pixels."""
    opened = shake.angles(demo.times - demo.shutter / 2)
    closed = shake.angles(demo.times + demo.shutter / 2)
    lengths: NDArray[np.float64] = np.linalg.norm((closed - opened)[:, :2], axis=1)
    return lengths * demo.camera.focal


def picture_of_demo() -> Bytes:
    """(H, W, 3) sRGB: the photograph that comes with the package."""
    data = np.frombuffer(files("vdeblur").joinpath("assets/colosseum.jpg").read_bytes(), np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert stored is not None, "the package's own picture is damaged"
    return np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)


def _picture(demo: Demo, shake: Shake, picture: Bytes) -> Floats:
    """(H, W, 3) linear light: the picture, scaled so that it just covers all that is looked at."""
    height, width = picture.shape[:2]
    reach_x, reach_y = _reach(demo, shake)
    scale = max(2 * reach_x / width, 2 * reach_y / height)
    size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
    light = to_linear(picture)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.clip(cv2.resize(light, size, interpolation=method), 0, 1)


def _reach(demo: Demo, shake: Shake) -> tuple[float, float]:
    """How far from the picture's middle the frame's corners come, along x and y, in pixels."""
    times = np.arange(0, demo.frames / float(RATE), 1 / 240)
    views = demo.camera.views(shake.angles(times), np.zeros((1, 1, 3), np.float32))
    right, bottom = demo.camera.width, demo.camera.height
    corners = np.array([[-1, -1, 1], [right, -1, 1], [-1, bottom, 1], [right, bottom, 1.0]])
    seen = views @ corners.T
    reach = np.abs(seen[:, :2] / seen[:, 2:]).max(axis=(0, 2)) + 2
    return float(reach[0]), float(reach[1])


class Clip:
    """An H.264 file; it appears under its name when it is complete.

    At the regular `RATE` it has a beep every second. With `ticks` (s) each frame comes with its
    own time, and there is no sound.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        *,
        crf: int,
        overwrite: bool = False,
        ticks: Fraction | None = None,
    ) -> None:
        if path.exists() and not overwrite:
            raise SinkError(f"{path} exists already: choose another name or allow it with -y")
        if not path.parent.is_dir():
            raise SinkError(f"the folder {path.parent} does not exist")
        self._path, self._crf = path, crf
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._size, self._written = size, 0
        self._ticks = ticks

    def __enter__(self) -> Self:
        try:
            self._container = av.open(str(self._partial), "w")
            self._video = self._add_video()
            self._audio = None if self._ticks else self._add_audio()
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from error
        return self

    def write(self, picture: Bytes, time: float = 0.0) -> None:
        """Append (H, W, 3) sRGB bytes and the sound that belongs to them.

        `time` in s counts where there are `ticks`.
        """
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = self._written, 1 / RATE
        if self._ticks:
            frame.pts, frame.time_base = round(Fraction(time) / self._ticks), self._ticks
        self._encode(frame, None if self._ticks else self._sound())
        self._written += 1

    def _sound(self) -> av.AudioFrame:
        """What belongs to the frame that is written."""
        sound = av.AudioFrame.from_ndarray(_beep(self._written), format="fltp", layout="mono")
        sound.sample_rate, sound.time_base = SAMPLES, Fraction(1, SAMPLES)
        sound.pts = self._written * int(SAMPLES / RATE)
        return sound

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._encode(None, None)
            self._container.close()
            if kind is None:
                self._partial.replace(self._path)
        except (av.FFmpegError, OSError) as failure:
            raise self._failure(failure) from failure
        finally:
            self._partial.unlink(missing_ok=True)

    def _encode(self, frame: av.VideoFrame | None, sound: av.AudioFrame | None) -> None:
        """Encode and mux both, or flush both encoders."""
        try:
            self._container.mux(self._video.encode(frame))
            if self._audio is not None:
                self._container.mux(self._audio.encode(sound))
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> SinkError:
        reason = getattr(error, "strerror", None) or str(error)
        return SinkError(f"cannot write {self._path}: {reason}")

    def _add_audio(self) -> Any:
        stream = self._container.add_stream("aac", rate=SAMPLES, layout="mono")
        stream.bit_rate = 48_000
        return stream

    def _add_video(self) -> Any:
        stream = self._container.add_stream(
            # One thread: the clip shall not depend on the machine's cores.
            "libx264",
            rate=RATE,
            options={"crf": str(self._crf), "threads": "1"},
        )
        (stream.width, stream.height), stream.pix_fmt = self._size, "yuv420p"
        context = stream.codec_context
        context.time_base = self._ticks or 1 / RATE
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = ColorRange.MPEG
        return stream


def _beep(index: int) -> Floats:
    """(1, samples): the sound of one frame, a soft tone in the first 0.1 s of each second."""
    count = int(SAMPLES / RATE)
    time = (index * count + np.arange(count)) % SAMPLES / SAMPLES
    swell = np.sin(np.pi * np.clip(time / 0.1, 0, 1)) ** 2
    return (0.1 * swell * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None]
