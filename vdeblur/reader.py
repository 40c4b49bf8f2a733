"""Read a video: its first stream as `Frame`s, everything else as packets to be passed on."""

import logging
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from . import pixels
from .errors import SourceError
from .frame import Frame, PixelFormat

logger = logging.getLogger(__name__)

Warn = Callable[[str], None]
"""Takes one line for the user."""


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


class VideoReader:
    """Iterate over the frames of a video, once, from the first to the last.

    Packets of all other streams are left in `packets` on the way, for a `VideoWriter`.
    Raises SourceError if no frame can be read.
    """

    def __init__(
        self, source: Path | str, *, threads: int = 0, warn: Warn = logger.warning
    ) -> None:
        self.path = Path(source)
        self.warn = warn
        self.packets: deque[av.Packet] = deque()
        """Demuxed and not yet written, in the order of the file."""
        self._tally = _Tally()
        self.container = _open(self.path)
        try:
            self.stream = _first_video(self.container, self.path)
            self.stream.thread_type = "AUTO"
            self.stream.thread_count = threads
            self._pictures = self._decode()
            self._first = next(self._pictures, None)
            if self._first is None:
                raise SourceError(self._why_nothing())
            self._layout = pixels.layout_of(self._first.format.name)
            self.info = _describe(self.container, self.stream, self._first, self._layout)
            self._warn_of_conversion()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._pictures.close()
        self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame that can be decoded, in order of `pts`."""
        clock = _Clock(self.info.time_base, self.info.rate)
        for picture in _progressive(self._with_first(), self.stream, self._tally, self.warn):
            yield self._frame(picture, clock)
        self._warn_of_damage(clock)

    def _with_first(self) -> Iterator[av.VideoFrame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._pictures

    def _frame(self, picture: av.VideoFrame, clock: "_Clock") -> Frame:
        info = self.info
        if (picture.width, picture.height) != (info.width, info.height):
            self._tally.say_once(
                self.warn,
                f"{self.path.name}: the size changes from {info.width}x{info.height} to "
                f"{picture.width}x{picture.height}: scaled to the first",
            )
        planar = pixels.normalise(picture, self._layout, width=info.width, height=info.height)
        return Frame(
            planes=pixels.views(planar, info.format),
            format=info.format,
            pts=clock.tick(picture.pts, picture.duration),
            time_base=info.time_base,
            duration=picture.duration,
            attachment=planar if _has_captions(picture) else None,
        )

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Yield decoded pictures, whatever can be had of a damaged file."""
        for packet in self._demux():
            try:
                yield from packet.decode()
            except av.EOFError:
                return
            except av.FFmpegError as error:
                self._tally.damaged += 1
                self._tally.encrypted |= packet.has_sidedata("encryption_info")
                logger.debug("packet at %s: %s", packet.pts, error)

    def _demux(self) -> Iterator[av.Packet]:
        """Yield packets of the video, the flushing one last; others go to `packets`."""
        demuxed = self.container.demux()
        while True:
            try:
                packet = next(demuxed, None)
            except av.FFmpegError as error:
                self._tally.broken = str(error.strerror)
                packet = None
            if packet is None:
                break
            empty = packet.size == 0 and packet.dts is None and packet.pts is None
            if empty:
                continue
            self._tally.see(packet)
            if packet.stream_index == self.stream.index:
                self._tally.packets += 1
                yield packet
            else:
                self.packets.append(packet)
        # More than one, since each stops at a damaged frame; the decoder says when it is done.
        for _ in range(64):
            flush = av.Packet()
            flush.stream = self.stream
            flush.time_base = self.stream.time_base
            yield flush

    def _why_nothing(self) -> str:
        codec = self.stream.codec_context.codec.name
        if self._tally.encrypted:
            return f"{self.path} is encrypted: its video cannot be decoded without the key"
        if not self._tally.packets:
            return f"{self.path} has a video stream ({codec}), but no frames in it"
        return (
            f"{self.path}: none of its {self._tally.packets} {codec} packets can be decoded; "
            f"the file is damaged or encrypted"
        )

    def _warn_of_conversion(self) -> None:
        if self._layout.alpha:
            self.warn(
                f"{self.path.name}: {self.info.pix_fmt} is read as {self._layout.name}: "
                f"transparency is lost"
            )
        elif self._layout.from_rgb:
            self.warn(f"{self.path.name}: {self.info.pix_fmt} is read as {self._layout.name}")

    def _warn_of_damage(self, clock: "_Clock") -> None:
        tally, name = self._tally, self.path.name
        if tally.damaged:
            self.warn(f"{name}: {tally.damaged} of {tally.packets} video packets are damaged")
        if clock.nudged:
            self.warn(f"{name}: {clock.nudged} frames had a time not after the one before: moved")
        expected = self.stream.frames
        if expected > tally.packets:
            self.warn(
                f"{name}: the file ends early: {clock.count} of {expected} frames were read"
            )
        elif self.info.duration is not None and not expected:
            end = float(tally.end - self.info.start)
            whole = float(self.info.duration)
            if end < whole - max(1.0, 0.05 * whole):
                self.warn(
                    f"{name}: the file ends early: {end:.1f} of {whole:.1f} s were read "
                    f"({clock.count} frames)"
                )
        elif tally.broken:
            self.warn(f"{name}: reading stopped after {clock.count} frames: {tally.broken}")


class _Tally:
    """What was seen on the way, for warnings."""

    def __init__(self) -> None:
        self.packets = 0
        self.damaged = 0
        self.encrypted = False
        self.broken = ""
        self.end = Fraction(0)
        self._said: set[str] = set()

    def see(self, packet: av.Packet) -> None:
        """Remember how far the file reaches."""
        if packet.pts is not None and packet.time_base:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            self.end = max(self.end, end)

    def say_once(self, warn: Warn, line: str, *, topic: str = "size") -> None:
        """Warn, but of each topic only the first time."""
        if topic not in self._said:
            self._said.add(topic)
            warn(line)


class _Clock:
    """Gives each frame a time after the one before."""

    def __init__(self, time_base: Fraction, rate: Fraction) -> None:
        self.count = 0
        self.nudged = 0
        self._step = max(1, round(1 / (rate * time_base)))
        self._last: int | None = None
        self._duration = 0

    def tick(self, pts: int | None, duration: int) -> int:
        """Take what the decoder says (perhaps nothing) and return the time to use."""
        guess = 0 if self._last is None else self._last + (self._duration or self._step)
        time = guess if pts is None else pts
        if self._last is not None and time <= self._last:
            self.nudged += 1
            time = self._last + 1
        self._last, self._duration = time, duration
        self.count += 1
        return time


def _open(path: Path) -> InputContainer:
    """Open a file for reading. SourceError says why it cannot be."""
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder, not a video")
        if path.is_file() and path.stat().st_size == 0:
            raise SourceError(f"{path} is empty")
        # With the protocol before it, a colon in the name is not taken for one.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist") from error
    except PermissionError as error:
        raise SourceError(f"{path} may not be read: permission denied") from error
    except av.InvalidDataError as error:
        raise SourceError(f"{path} is not a video, or its beginning is damaged") from error
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"cannot open {path}: {error.strerror}") from error
    kind = container.format.name
    if kind == "tty" or kind.startswith("image2") or kind.endswith("_pipe"):
        container.close()
        raise SourceError(f"{path} is not a video, but {container.format.long_name}")
    return container


def _first_video(container: InputContainer, path: Path) -> VideoStream:
    """Find the stream to work on; cover art and thumbnails are none."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    real = [stream for stream in container.streams.video if not stream.disposition & still]
    if not real:
        kinds = sorted({stream.type for stream in container.streams})
        only = f" ({' and '.join(kinds)} only)" if kinds else ""
        raise SourceError(f"{path} has no video stream{only}")
    for stream in real:
        if stream.codec_context is not None and stream.discard != Discard.all:
            return stream
    raise SourceError(f"{path}: there is no decoder here for its video stream")


def _describe(
    container: InputContainer, stream: VideoStream, first: av.VideoFrame, layout: pixels.Layout
) -> VideoInfo:
    """Collect what the container, the stream and the first picture say."""
    time_base = stream.time_base or Fraction(1, 90000)
    rate = _rate(stream)
    duration = _duration(container, stream)
    matrix = _side_data(first, SideDataType.DISPLAYMATRIX)
    aspect = stream.sample_aspect_ratio
    return VideoInfo(
        width=first.width,
        height=first.height,
        format=layout.format,
        pix_fmt=first.format.name,
        rate=rate,
        time_base=Fraction(time_base),
        start=Fraction(container.start_time or 0, av.time_base),
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


def _rate(stream: VideoStream) -> Fraction:
    """The most believable frame rate."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return Fraction(rate)
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


def _side_data(picture: av.VideoFrame, kind: SideDataType) -> bytes | None:
    for data in picture.side_data:
        if data.type is kind:
            return bytes(data)
    return None


def _has_captions(picture: av.VideoFrame) -> bool:
    return any(data.type is SideDataType.A53_CC for data in picture.side_data)


def _mastering(picture: av.VideoFrame) -> Mastering | None:
    """Read FFmpeg's AVMasteringDisplayMetadata: ten rationals and two flags."""
    raw = _side_data(picture, SideDataType.MASTERING_DISPLAY_METADATA)
    if raw is None or len(raw) < 88:
        return None
    numbers = struct.unpack_from("=22i", raw)
    if not (numbers[20] and numbers[21]):
        return None
    values = [Fraction(n, d or 1) for n, d in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
    points = list(zip(values[0:8:2], values[1:8:2], strict=True))
    return Mastering(*points, min_luminance=values[8], max_luminance=values[9])


def _content_light(picture: av.VideoFrame) -> ContentLight | None:
    raw = _side_data(picture, SideDataType.CONTENT_LIGHT_LEVEL)
    if raw is None or len(raw) < 8:
        return None
    return ContentLight(*struct.unpack_from("=2I", raw))


def _progressive(
    pictures: Iterator[av.VideoFrame], stream: VideoStream, tally: _Tally, warn: Warn
) -> Iterator[av.VideoFrame]:
    """Deinterlace from the first interlaced picture on; one in, one out, times kept."""
    for picture in pictures:
        if picture.interlaced_frame:
            warn("the video is interlaced: its fields are merged (bwdif)")
            yield from _deinterlaced(picture, pictures, stream)
            return
        yield picture


def _deinterlaced(
    first: av.VideoFrame, rest: Iterator[av.VideoFrame], stream: VideoStream
) -> Iterator[av.VideoFrame]:
    """FFmpeg's bwdif, which holds one picture back. A change of size starts it anew."""
    graph = _bwdif(first, stream)
    size = (first.width, first.height, first.format.name)
    times = deque([(first.pts, first.duration)])
    graph.vpush(first)
    for picture in rest:
        if (picture.width, picture.height, picture.format.name) != size:
            yield from _drained(graph, times)
            yield from _deinterlaced(picture, rest, stream)
            return
        times.append((picture.pts, picture.duration))
        graph.vpush(picture)
        yield from _pulled(graph, times)
    yield from _drained(graph, times)


def _bwdif(picture: av.VideoFrame, stream: VideoStream) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=stream.time_base,
        ),
        graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _drained(
    graph: av.filter.Graph, times: deque[tuple[int | None, int]]
) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _pulled(graph, times)


def _pulled(
    graph: av.filter.Graph, times: deque[tuple[int | None, int]]
) -> Iterator[av.VideoFrame]:
    """Yield what is ready, with the time it had: the filter halves the time base."""
    while times:
        try:
            picture = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        picture.pts, picture.duration = times.popleft()
        yield picture
