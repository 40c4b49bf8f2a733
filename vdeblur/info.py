"""What is known of a video before its frames are read."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideData, SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from . import pixels
from .frame import PixelFormat


@dataclass(frozen=True, slots=True)
class Colors:
    """What the sample values mean, in the numbers of H.273 (2 or 0: not said)."""

    range: int = 0
    """1 limited, 2 full."""
    primaries: int = 2
    transfer: int = 2
    matrix: int = 2


@dataclass(frozen=True, slots=True)
class Mastering:
    """HDR10: the display that the film was graded on (SMPTE ST 2086)."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    min_luminance: Fraction
    """In cd/m2."""
    max_luminance: Fraction


@dataclass(frozen=True, slots=True)
class ContentLight:
    """HDR10: how bright the film gets, in cd/m2."""

    max_cll: int
    max_fall: int


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a video after its first frame."""

    width: int
    height: int
    format: PixelFormat
    """How the frames lie in memory."""
    pix_fmt: str
    """FFmpeg's name of what is in the file."""
    rate: Fraction
    """Frames per second, on average."""
    time_base: Fraction
    """Unit of `pts`, in seconds."""
    start: Fraction = Fraction(0)
    """Where the container says that it begins, in seconds."""
    frames: int = 0
    """An estimate; 0 if unknown."""
    duration: Fraction | None = None
    """In seconds."""
    rotation: int = 0
    """Degrees counterclockwise that a player turns the frames by."""
    display_matrix: tuple[int, ...] | None = None
    """The nine numbers of FFmpeg's display matrix, which also know of mirroring."""
    sample_aspect_ratio: Fraction | None = None
    """Width of a pixel by its height; `None` if not said."""
    interlaced: bool = False
    """The first frame is made of two fields (frames are deinterlaced when read)."""
    colors: Colors = Colors()
    mastering: Mastering | None = None
    content_light: ContentLight | None = None


def describe(
    container: InputContainer,
    stream: VideoStream,
    ahead: Sequence[av.VideoFrame],
    layout: pixels.Layout,
) -> VideoInfo:
    """Collect what the container, the stream and the first pictures say."""
    first = ahead[0]
    time_base = stream.time_base or Fraction(1, 90000)
    rate = _rate(stream, [picture.pts for picture in ahead])
    duration = _duration(container, stream)
    matrix = side_data(first, SideDataType.DISPLAYMATRIX)
    aspect = stream.sample_aspect_ratio
    return VideoInfo(
        width=first.width,
        height=first.height,
        format=layout.format,
        pix_fmt=first.format.name,
        rate=rate,
        time_base=Fraction(time_base),
        start=start_of(container),
        frames=stream.frames or (round(duration * rate) if duration else 0),
        duration=duration,
        rotation=first.rotation,
        display_matrix=struct.unpack("=9i", matrix) if matrix else None,
        sample_aspect_ratio=Fraction(aspect) if aspect else None,
        interlaced=first.interlaced_frame,
        colors=_colors(stream, first, layout),
        mastering=_mastering(first),
        content_light=_content_light(first),
    )


def start_of(container: InputContainer) -> Fraction:
    """Where the container begins; it says so in microseconds, its streams exactly."""
    said = Fraction(container.start_time or 0, av.time_base)
    exact = [
        stream.start_time * Fraction(stream.time_base)
        for stream in container.streams
        if stream.start_time is not None and stream.time_base
    ]
    best = min(exact, key=lambda start: abs(start - said), default=said)
    return best if abs(best - said) < Fraction(1, 100_000) else said


def _rate(stream: VideoStream, times: list[int | None]) -> Fraction:
    """The most believable frame rate; 1000 and more is Matroska's time base, not a rate."""
    if stream.average_rate and 0 < stream.average_rate < 1000:
        return Fraction(stream.average_rate)
    known = [time for time in times if time is not None]
    if stream.time_base and len(known) > 1 and known[-1] > known[0]:
        return Fraction(len(known) - 1) / ((known[-1] - known[0]) * Fraction(stream.time_base))
    if stream.guessed_rate and 0 < stream.guessed_rate < 1000:
        return Fraction(stream.guessed_rate)
    return Fraction(25)


def _duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    if container.duration:
        return Fraction(container.duration, av.time_base)
    return None


def _colors(stream: VideoStream, first: av.VideoFrame, layout: pixels.Layout) -> Colors:
    """The picture knows best, then the stream."""
    context = stream.codec_context
    range_ = first.color_range or context.color_range
    matrix = first.colorspace if first.colorspace != 2 else context.colorspace
    if layout.full_range:
        range_ = pixels.FULL_RANGE
    if layout.from_rgb:
        range_, matrix = pixels.LIMITED_RANGE, pixels.BT709
    primaries = first.color_primaries if first.color_primaries != 2 else context.color_primaries
    transfer = first.color_trc if first.color_trc != 2 else context.color_trc
    return Colors(range_, primaries, transfer, matrix)


def side_data(picture: av.VideoFrame, kind: SideDataType) -> bytes | None:
    """Return what FFmpeg attached to the picture, if it did, as it lies in memory."""
    try:
        # Not `picture.side_data`, which would tie the picture into a reference cycle: it would stay
        # in memory until the garbage collector comes.
        attached = SideDataContainer(picture)  # type: ignore[call-arg]
        # It is typed as a mapping, but iterating over it gives the values.
        found = [d for d in cast(Iterable[SideData], attached) if d.type is kind]
    except ValueError:  # PyAV 18.1 does not know all kinds, and gives none if one is unknown
        return None
    return bytes(found[0]) if found else None


def _mastering(picture: av.VideoFrame) -> Mastering | None:
    """Read FFmpeg's AVMasteringDisplayMetadata: ten rationals and two flags."""
    raw = side_data(picture, SideDataType.MASTERING_DISPLAY_METADATA)
    if raw is None or len(raw) < 88:
        return None
    numbers = struct.unpack_from("=22i", raw)
    if not (numbers[20] and numbers[21]):
        return None
    values = [Fraction(n, d or 1) for n, d in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
    red, green, blue, white = zip(values[0:8:2], values[1:8:2], strict=True)
    return Mastering(red, green, blue, white, min_luminance=values[8], max_luminance=values[9])


def _content_light(picture: av.VideoFrame) -> ContentLight | None:
    raw = side_data(picture, SideDataType.CONTENT_LIGHT_LEVEL)
    if raw is None or len(raw) < 8:
        return None
    return ContentLight(*struct.unpack_from("=2I", raw))
