"""Write a video: encode `Frame`s and pass on everything else that the source holds."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from math import inf
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

import av
from av.format import Flags
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from . import encoder, pixels, sinks
from .anew import Sound, SoundAnew, Words, WordsAnew
from .errors import SinkError
from .frame import Frame
from .info import VideoInfo
from .priority import giving_way
from .reader import VideoReader, Warn
from .sources import CONTAINERS

logger = logging.getLogger(__name__)

LATE = Fraction(9, 10)
"""Frames that a picture may be late without a gap being seen in it: times are often rounded."""

WAITING = 4096
"""Packets of other streams that may wait for their time; more are written ahead of it."""


class VideoWriter:
    """Write frames beside the packets that `reader` leaves, and keep all that it knows.

    The file gets its name when the `with` block ends well; else nothing of it remains.
    Raises SinkError, before the first frame if it can be known by then.
    """

    def __init__(
        self,
        sink: Path | str,
        reader: VideoReader,
        *,
        format: str | None = None,
        codec: str = "auto",
        crf: float | None = None,
        preset: str | None = None,
        pix_fmt: str | None = None,
        overwrite: bool = False,
        low_delay: bool = False,
        warn: Warn = logger.warning,
    ) -> None:
        self.warn = warn
        self._reader = reader
        format = None if format is None else CONTAINERS.get(format, format)
        self.sink = sinks.open_sink(sink, reader.source.path, format=format, overwrite=overwrite)
        self._container = sinks.open_container(self.sink, reader, format)
        self.encoder = encoder.choose(
            reader.info,
            self._container,
            codec=codec,
            crf=crf,
            preset=preset,
            pix_fmt=pix_fmt,
            low_delay=low_delay,
            warn=warn,
        )
        self._low_delay = low_delay
        if low_delay:
            self._container.container_options["max_interleave_delta"] = "100000"  # us
        self._shift = sinks.shift(reader, self._container)
        self._copies: dict[int, Stream] = {}
        self._anew: dict[int, SoundAnew | WordsAnew] = {}
        self._last_dts: dict[int, int] = {}
        self._durations: dict[int, int] = {}
        self._last_pts: int | None = None
        self._counts = self._container.format.name in encoder.COUNTED
        self._began = Fraction(0)
        self._shown: av.VideoFrame | None = None
        self.count = 0
        """Frames that were written."""
        self._said: set[str] = set()
        self._video = self._add_streams()
        self._add_metadata()

    def __enter__(self) -> Self:
        try:
            self._open()
        except (av.FFmpegError, ValueError) as error:
            info, name = self._reader.info, self.encoder.name
            raise SinkError(
                f"{name} cannot encode {info.width}x{info.height} {self.encoder.pix_fmt} "
                f"with these options: {_reason(error)}"
            ) from error
        try:
            self.sink.begin()
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as error:
            self._abandon()
            raise self._failed(error) from error
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            self._finish()
        except BaseException:
            self._abandon()
            raise

    def _open(self) -> None:
        """Start the encoder: it gives way to what makes its pictures, unless these are live."""
        start = self._video.codec_context.open
        start() if self._low_delay else giving_way(start)

    def write(self, frame: Frame, *, deadline: float = inf) -> None:
        """Encode one frame; frames come in order of their time.

        After the `deadline` (of `time.monotonic`) no gap before it is filled any more.
        """
        self._pass_on(until=frame.time)
        picture = _picture(frame)
        self._dress(picture, frame)
        if picture.format.name != self.encoder.pix_fmt:
            picture = picture.reformat(format=self.encoder.pix_fmt)
        if self._counts:
            self._repeat(picture, deadline)
        self._encode(picture)
        self.count += 1

    def release(self) -> None:
        """Let nobody wait any more until the sink takes what was written. Any thread may call."""
        self.sink.release()

    def _repeat(self, following: av.VideoFrame, deadline: float) -> None:
        """Show the last picture again where a format without times has a gap."""
        last, self._shown = self._shown, following
        if last is not None:
            for pts in range((last.pts or 0) + 1, following.pts or 0):
                if monotonic() > deadline:  # the rest of the gap is filled when there is time
                    following.pts = self._last_pts = pts
                    self._durations[pts] = 1
                    break
                last.pts = pts
                self._encode(last)

    def _dress(self, picture: av.VideoFrame, frame: Frame) -> None:
        """Give the picture its time and colours."""
        time_base = self.encoder.time_base
        exact = (frame.time + self._shift) / time_base
        pts = self._numbered(exact) if self._counts else round(exact)
        if self._last_pts is not None and pts <= self._last_pts:
            pts = self._last_pts + 1
        rounded = abs(exact - self._began - pts) > Fraction(1, 10)
        if self.encoder.even_times and rounded:
            self._say_once(f"{self.sink.ending} has no variable frame rate: times are rounded")
        self._last_pts = pts
        length = frame.duration * frame.time_base or 1 / self._reader.info.rate
        self._durations[pts] = max(1, round(length / time_base))
        picture.pts, picture.time_base, picture.duration = pts, time_base, self._durations[pts]
        picture.pict_type = 0  # the encoder decides which pictures are key frames
        colors = self._reader.info.colors
        picture.color_range, picture.colorspace = colors.range, colors.matrix
        picture.color_primaries, picture.color_trc = colors.primaries, colors.transfer

    def _numbered(self, exact: Fraction) -> int:
        """The frame's number from 0 on, so that the gaps before it come to the right length."""
        if self._last_pts is None:
            self._began = exact
            return 0
        expected = self._last_pts + 1
        late = exact - self._began - expected
        return expected + (round(late) if late > LATE else 0)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        """Encode one picture, or flush the encoder, and mux what comes out."""
        try:
            for packet in self._video.encode(picture):
                if packet.pts is not None:
                    packet.duration = self._durations.pop(packet.pts, packet.duration)
                self._container.mux(packet)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failed(error) from error

    def _pass_on(self, *, until: Fraction | None) -> None:
        """Mux the packets of other streams up to a time in seconds, or all that are there."""
        packets = self._reader.packets
        while packets:
            packet = packets[0]
            time = packet.dts if packet.dts is not None else packet.pts
            due = time is None or until is None or time * packet.time_base <= until
            if not (due or len(packets) > WAITING):
                return
            self._copy(packets.popleft())

    def _copy(self, packet: "Packet[Stream]") -> None:
        """Mux one packet as it is, or what is encoded anew of it, if its stream is kept."""
        if (anew := self._anew.get(packet.stream_index)) is not None:
            self._mux_anew(anew, anew.packets(packet))
            return
        stream = self._copies.get(packet.stream_index)
        if stream is None or not packet.time_base:
            return
        kind = packet.stream.type
        self._set_time(packet, packet.time_base, stream)
        packet.stream = stream
        try:
            self._container.mux(packet)
        except (av.ArgumentError, av.InvalidDataError, ValueError) as error:
            logger.debug("packet of stream %d: %s", stream.index, error)
            self._say_once(f"some {kind} packets cannot be copied to {self.sink.ending}")
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _mux_anew(self, anew: SoundAnew | WordsAnew, packets: "Iterator[Packet[Stream]]") -> None:
        try:
            for packet in packets:
                self._set_time(packet, packet.time_base or Fraction(1), anew.stream)
                self._container.mux(packet)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failed(error) from error
        if anew.damaged:
            self._say_once(f"some {anew.stream.type} packets are damaged: they are left out")

    def _set_time(self, packet: "Packet[Stream]", unit: Fraction, stream: Stream) -> None:
        """Express the packet's time in the muxer's unit, in an order that it does not refuse."""
        to = stream.time_base or unit
        pts = None if packet.pts is None else round((packet.pts * unit + self._shift) / to)
        dts = pts if packet.dts is None else round((packet.dts * unit + self._shift) / to)
        nonstrict = Flags(self._container.format.flags) & Flags.ts_nonstrict
        last = self._last_dts.get(stream.index)
        earliest = None if last is None else last + (0 if nonstrict else 1)
        if dts is None:
            dts = earliest or 0
        elif earliest is not None:
            dts = max(dts, earliest)
        self._last_dts[stream.index] = dts
        packet.pts, packet.dts = dts if pts is None else max(pts, dts), dts
        packet.duration = round((packet.duration or 0) * unit / to)
        packet.time_base = to

    def _finish(self) -> None:
        self._encode(None)
        self._pass_on(until=None)
        for anew in self._anew.values():
            self._mux_anew(anew, anew.flush())
        try:
            self.sink.complete(self._container)
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _abandon(self) -> None:
        """Leave nothing behind."""
        self.sink.abandon(self._container)

    def _failed(self, error: Exception) -> BaseException:
        """What to raise when the sink does not take what is written."""
        if isinstance(self.sink, sinks.Stdout) and self.sink.interruption is not None:
            return self.sink.interruption
        if isinstance(error, BrokenPipeError):
            return SinkError(f"the reader of {self.sink.name} went away after {self.count} frames")
        return SinkError(f"cannot write {self.sink.name}: {_reason(error)}")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.warn(line)

    def _add_streams(self) -> VideoStream:
        """Add the video and all others that the container takes, in the source's order."""
        reader, container = self._reader, self._container
        kept = sinks.acceptable(reader, container)
        dropped = []
        video = None
        for stream in reader.container.streams:
            if stream.index == reader.stream.index:
                video = self._add_video()
            elif stream.index in kept:
                self._add_other(stream, kept[stream.index])
            elif sinks.is_cover(stream) and sinks.attach_cover(container, stream, reader):
                continue
            elif not sinks.remade(stream, container):
                dropped.append(sinks.label(stream))
        if dropped:
            self.warn(f"{self.sink.label} cannot hold {', '.join(dropped)}: dropped")
        if video is None:
            raise SinkError(f"{self.sink.name}: the source has lost its video stream")
        return video

    def _add_other(self, source: Stream, way: Sound | Words | None) -> None:
        """Add a stream that is copied, or encoded anew in a `way`."""
        if way is None:
            self._copies[source.index] = sinks.add_copy(self._container, source)
            return
        anew = self._anew[source.index] = way.add_to(self._container, source)
        anew.stream.metadata.update(sinks.encoded_tags(source.metadata))
        anew.stream.disposition = source.disposition
        codec = anew.stream.codec_context.codec.canonical_name
        self.warn(f"{self.sink.label} cannot hold {sinks.label(source)}: encoded anew as {codec}")

    def _add_video(self) -> VideoStream:
        info, chosen = self._reader.info, self.encoder
        try:
            stream = self._container.add_stream(
                chosen.name,
                rate=info.rate.limit_denominator(1 << 30),
                options=dict(chosen.options),
                width=info.width,
                height=info.height,
                time_base=chosen.time_base,
            )
        except ValueError as error:
            raise SinkError(
                f"{self.sink.ending} files cannot hold "
                f"{chosen.name}'s video: choose another codec or ending"
            ) from error
        if not isinstance(stream, VideoStream):
            raise SinkError(f"{chosen.name} is no video encoder")
        self._set_picture_properties(stream, info)
        source = self._reader.stream
        tags = self._reader.section.of_tags(source.metadata)
        stream.metadata.update(sinks.encoded_tags(tags))
        stream.disposition = source.disposition
        return stream

    def _set_picture_properties(self, stream: VideoStream, info: VideoInfo) -> None:
        context, colors = stream.codec_context, info.colors
        context.thread_type = "AUTO"  # PyAV's default makes x264 cut its pictures into slices
        context.pix_fmt = self.encoder.pix_fmt
        context.color_range, context.colorspace = colors.range, colors.matrix
        context.color_primaries, context.color_trc = colors.primaries, colors.transfer
        if info.sample_aspect_ratio:
            context.sample_aspect_ratio = info.sample_aspect_ratio
            in_bitstream = self.encoder.name not in encoder.WITHOUT_SHAPE
            if self._container.format.name == sinks.Y4M and isinstance(self.sink, sinks.Stdout):
                self.sink.sample_aspect_ratio = info.sample_aspect_ratio
            elif info.sample_aspect_ratio != 1 and not (
                in_bitstream or self._container.format.name in sinks.MOV_FAMILY
            ):
                self.warn(f"{self.sink.ending} with {self.encoder.name} loses the pixels' shape")
        turns = {*sinks.MOV_FAMILY, "matroska", "webm"}
        if info.rotation and self._container.format.name not in turns:
            self.warn(f"{self.sink.ending} cannot say that a player must turn the picture")
        if info.display_matrix is not None:
            stream.set_display_matrix(info.display_matrix)
        elif info.rotation:
            stream.set_display_rotation(info.rotation)
        if self.encoder.name.startswith(("libx265", "hevc")) and (
            self._container.format.name in sinks.MOV_FAMILY
        ):
            context.codec_tag = "hvc1"  # Apple's players want it so

    def _add_metadata(self) -> None:
        source, section = self._reader.container, self._reader.section
        self._container.metadata.update(sinks.global_tags(section.of_tags(source.metadata)))
        chapters = section.of_chapters(source.chapters())
        for chapter in chapters:
            shift = round(self._shift / (chapter["time_base"] or 1))
            chapter["start"] += shift
            chapter["end"] += shift
        if chapters:
            self._container.set_chapters(chapters)


def _reason(error: Exception) -> str:
    """The operating system's or FFmpeg's words, on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


def _picture(frame: Frame) -> av.VideoFrame:
    """Copy the planes into a picture; one with captions gets those of the decoded one."""
    decoded = frame.attachment
    size = (frame.width, frame.height)
    if not isinstance(decoded, av.VideoFrame) or (decoded.width, decoded.height) != size:
        return pixels.picture_of(frame.planes, frame.format)
    graph = av.filter.Graph()  # PyAV has no other way to copy side data
    graph.link_nodes(
        graph.add_buffer(
            width=decoded.width,
            height=decoded.height,
            format=decoded.format,
            time_base=frame.time_base,
        ),
        graph.add("copy"),
        graph.add("buffersink"),
    ).configure()
    graph.vpush(decoded)
    picture = graph.vpull()
    pixels.fill(picture, frame.planes, frame.format)
    return picture
