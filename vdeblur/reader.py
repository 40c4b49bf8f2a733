"""Read a video: its first stream as `Frame`s, everything else as packets to be passed on."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
from av.container import InputContainer
from av.format import Flags as Format
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard, Disposition, Stream
from av.video.stream import VideoStream

from . import hardware, pixels
from .cpu import this_cpu
from .deinterlace import progressive
from .errors import SourceError
from .frame import Frame
from .info import describe, side_data
from .options import AS_IT_IS, Input
from .section import Section
from .sources import open_source

logger = logging.getLogger(__name__)

PEEK = 5
"""Pictures that are decoded at once, to know the format and, where it is not written, the rate."""

JUMP = 10
"""Seconds between two packets of a stream that are taken for a break in the clock."""

MOST_THREADS = 16
"""Of a decoder, as FFmpeg has it: each holds a picture back."""

Warn = Callable[[str], None]
"""Takes one line for the user."""


class VideoReader:
    """Iterate over the frames of a video, once, from the first to the last.

    Packets of all other streams are left in `packets` on the way, for a `VideoWriter`.
    Raises SourceError if no frame can be read.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        given: Input = AS_IT_IS,
        threads: int = 0,
        low_delay: bool = False,
        warn: Warn = logger.warning,
    ) -> None:
        self.warn = warn
        self.packets: deque[Packet[Stream]] = deque()
        """Demuxed and not yet written, in the order of the file."""
        self._tally = _Tally()
        unit = hardware.decoder(given.hwaccel, warn)
        self.source = open_source(source, replace(given, hwaccel=unit))
        self.container = self.source.container
        self._splice = _Splice(self.container)
        self.section = Section.of(self.container, given)
        """The part that is read."""
        try:
            if self.section and self.source.live:
                raise SourceError(
                    f"{self.source.name} is live: it has no part that could be asked for"
                )
            self.stream = _first_video(self.container, self.source.name)
            # Decoding several pictures side by side holds as many back.
            self.stream.thread_type = "SLICE" if low_delay else "AUTO"
            most = hardware.THREADS if self.stream.codec_context.is_hwaccel else MOST_THREADS
            # As many as FFmpeg takes by itself, one more than cores, take 4 % more CPU time.
            self.stream.thread_count = threads or min(this_cpu().cores, most)
            if self.source.pipe is None:
                self.section.seek(self.container)
            self._demuxed = self._demux()
            self._pictures = self._decode()
            self._ahead = deque(
                islice(self._pictures, 1 if low_delay and self.stream.average_rate else PEEK)
            )
            if self.source.interruption is not None:
                raise self.source.interruption
            if not self._ahead:
                raise SourceError(self._why_nothing())
            self._layout = pixels.layout_of(self._ahead[0].format.name)
            whole = describe(self.container, self.stream, self._ahead, self._layout)
            self.info = self.section.of_info(whole)
            self._warn_of_conversion()
            if given.hwaccel == unit == self.source.given.hwaccel != "none":
                self._warn_without(unit)
        except BaseException:
            self.source.close()
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

    def release(self) -> None:
        """Let nobody wait for the source any more: it ends here. Any thread may call."""
        self.source.release()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._pictures.close()
        self.source.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame that can be decoded, in order of `pts`."""
        clock = _Clock(self.info.time_base, self.info.rate)
        for picture in progressive(self._all_pictures(), self.stream, self.warn):
            yield self._frame(picture, clock)
        self._warn_of_damage(clock)

    def _all_pictures(self) -> Iterator[av.VideoFrame]:
        while self._ahead:
            yield self._ahead.popleft()
        yield from self._pictures

    def _frame(self, picture: av.VideoFrame, clock: "_Clock") -> Frame:
        info = self.info
        if (picture.width, picture.height) != (info.width, info.height):
            self._tally.say_once(
                self.warn,
                f"{self.source.short}: the size changes from {info.width}x{info.height} to "
                f"{picture.width}x{picture.height}: scaled to the first",
            )
        planar = pixels.normalise(picture, self._layout, width=info.width, height=info.height)
        return Frame(
            planes=pixels.views(planar, info.format),
            format=info.format,
            pts=clock.tick(picture.pts, picture.dts, picture.duration),
            time_base=info.time_base,
            duration=picture.duration,
            attachment=planar if side_data(picture, SideDataType.A53_CC) else None,
        )

    def _decode(self) -> Generator[av.VideoFrame]:
        """Yield the decoded pictures of the section."""
        yield from self.section.of_pictures(self._decode_all())
        for packet in self._demuxed:  # what lies behind the pictures: sound
            if self.section.is_behind(packet):
                break

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        """Yield decoded pictures, whatever can be had of a damaged file."""
        shown: int | None = None
        damaged = 0
        for packet in self._demuxed:
            damaged = self._tally.damaged
            for picture in self._decoded(packet):
                shown = picture.pts
                yield picture
        seamless = self.source.path is not None and len(self._splice.offsets) == 1
        if shown is not None and self._tally.latest > shown and seamless:
            self._tally.damaged = damaged  # as it was before the decoder was emptied
            yield from self._lost(shown)

    def _decoded(self, packet: "Packet[VideoStream]") -> list[av.VideoFrame]:
        try:
            return packet.decode()
        except av.EOFError:
            return []
        except av.FFmpegError as error:
            self._tally.damaged += 1
            self._tally.encrypted |= packet.has_sidedata("encryption_info")
            logger.debug("packet at %s: %s", packet.pts, error)
            return []

    def _lost(self, shown: int) -> Iterator[av.VideoFrame]:
        """Decode what comes after the time `shown` again, not several pictures side by side.

        A decoder that does so holds pictures back. When it is emptied it stops at a damaged one,
        and PyAV cannot ask it for those behind.
        """
        with suppress(av.FFmpegError, SourceError), self.source.reopened() as container:
            stream = cast(VideoStream, container.streams[self.stream.index])
            stream.thread_type = "SLICE"
            container.seek(shown, stream=stream)
            for packet in container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.FFmpegError:
                    self._tally.damaged += packet.pts is None or packet.pts > shown
                    continue
                yield from (each for each in pictures if each.pts is not None and each.pts > shown)

    def _demux(self) -> Iterator["Packet[VideoStream]"]:
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
            self._splice.mend(packet)
            self._tally.see(packet)
            if packet.stream_index == self.stream.index:
                if self._is_cut_off(packet):
                    self._tally.cut_off = True
                    continue
                self._tally.packets += 1
                self._tally.read = (packet.pos or 0) + packet.size
                if packet.pts is not None and not packet.is_discard:
                    self._tally.latest = max(self._tally.latest, packet.pts)
                yield cast("Packet[VideoStream]", packet)
            elif self.section.takes(packet):
                self.packets.append(packet)
        flush = cast("Packet[VideoStream]", Packet())
        flush.stream = self.stream
        flush.time_base = self.stream.time_base or Fraction(1)
        yield flush

    def _is_cut_off(self, packet: "Packet[Stream]") -> bool:
        """Tell whether raw video ends in the middle of this picture."""
        context = self.stream.codec_context
        if context.name != "rawvideo" or context.pix_fmt is None:
            return False
        bits = av.VideoFormat(context.pix_fmt, 16, 16).padded_bits_per_pixel
        return packet.size * 8 < bits * context.width * context.height

    def _why_nothing(self) -> str:
        codec = self.stream.codec_context.codec.name
        if self._tally.encrypted:
            return f"{self.source.name} is encrypted: its video cannot be decoded without the key"
        if self.source.pipe is not None and "mp4" in self.container.format.name:
            return (
                f"{self.source.name} is an MP4 with its index at the end, which cannot come "
                f"through a pipe: name the file, or send Matroska, NUT or Y4M"
            )
        if self.section and self._tally.damaged <= self._tally.packets // 2:
            return f"{self.source.name} has no frame in the part that was asked for"
        if not self._tally.packets and self._tally.broken:
            return f"cannot read {self.source.name}: {self._tally.broken}"
        if not self._tally.packets:
            return f"{self.source.name} has a video stream ({codec}), but no frames in it"
        return (
            f"{self.source.name}: none of its {self._tally.packets} {codec} packets can be "
            f"decoded; the file is damaged or encrypted"
        )

    def _warn_of_conversion(self) -> None:
        if self._layout.alpha:
            self.warn(
                f"{self.source.short}: {self.info.pix_fmt} is read as {self._layout.name}: "
                f"transparency is lost"
            )
        elif self._layout.from_rgb:
            self.warn(f"{self.source.short}: {self.info.pix_fmt} is read as {self._layout.name}")
        elif self.stream.metadata.get("alpha_mode", "0") != "0":  # FFmpeg's VP9 decodes no alpha
            self.warn(f"{self.source.short}: transparency is lost")

    def _warn_without(self, unit: str) -> None:
        """Say so if the device that was asked for does not decode this."""
        context = self.stream.codec_context
        if not hardware.decodes(context):
            what = f"{context.codec.canonical_name}, {self.info.pix_fmt}"
            self.warn(f"{self.source.short}: {unit} does not decode it ({what}): the CPU does")

    def _warn_of_damage(self, clock: "_Clock") -> None:
        tally, name = self._tally, self.source.short
        if jumps := len(self._splice.offsets) - 1:
            self.warn(f"{name}: the clock jumps ({jumps}): times are joined")
        if tally.damaged:
            self.warn(f"{name}: {tally.damaged} of {tally.packets} video packets are damaged")
        raw = self.container.format.name == "yuv4mpegpipe"
        if tally.cut_off or (raw and self.source.size > tally.read + len(b"FRAME\n")):
            self.warn(f"{name}: it ends in the middle of a frame, which is left out")
        if clock.nudged:
            self.warn(f"{name}: {clock.nudged} frames had a time not after the one before: moved")
        if self.section:
            return
        # Only MP4 counts what is there; AVI counts dropped frames too.
        expected = self.stream.frames if "mp4" in self.container.format.name else 0
        if expected > tally.packets:
            self.warn(f"{name}: the file ends early: {clock.count} of {expected} frames were read")
        elif self.info.duration is not None and not expected:
            # Matroska counts its duration from 0 on, however late it begins.
            late = 0 if "matroska" in self.container.format.name else self.info.start
            end = float(tally.end - late)
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
        self.cut_off = False
        """The last frame of raw video is not complete."""
        self.read = 0
        """Where the last packet of the video ends, in bytes."""
        self.broken = ""
        self.latest = -(1 << 63)
        """The last time at which a packet of the video is to be shown, in its own unit."""
        self.end = Fraction(0)
        self._said: set[str] = set()

    def see(self, packet: "Packet[Stream]") -> None:
        """Remember how far the file reaches."""
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and packet.time_base:
            end = (time + (packet.duration or 0)) * packet.time_base
            self.end = max(self.end, end)

    def say_once(self, warn: Warn, line: str, *, topic: str = "size") -> None:
        """Warn, but of each topic only the first time."""
        if topic not in self._said:
            self._said.add(topic)
            warn(line)


class _Splice:
    """Joins the clock of a broadcast where it jumps (a wrap, a cut)."""

    def __init__(self, container: InputContainer) -> None:
        self.offsets = [Fraction(0)]
        """Seconds to add, from the first jump to the last."""
        self._may_jump = bool(Format(container.format.flags) & Format.ts_discont)
        self._current: dict[int, Fraction] = {}
        self._next: dict[int, Fraction] = {}

    def mend(self, packet: "Packet[Stream]") -> None:
        """Move the packet's time by what was lost or won in the jumps of its stream so far."""
        unit = packet.time_base
        if not self._may_jump or not unit or packet.stream.type not in ("video", "audio"):
            return
        index = packet.stream_index
        if packet.dts is not None:
            time = packet.dts * unit
            expected = self._next.get(index, time)
            if abs(time + self._current.get(index, Fraction(0)) - expected) > JUMP:
                self._current[index] = self._join(time, expected)
            rate = getattr(packet.stream, "average_rate", None)  # sound has none
            length = (packet.duration or 0) * unit or 1 / Fraction(rate or 25)
            self._next[index] = time + self._current.get(index, Fraction(0)) + length
        shift = round(self._current.get(index, Fraction(0)) / unit)
        packet.dts = None if packet.dts is None else packet.dts + shift
        packet.pts = None if packet.pts is None else packet.pts + shift

    def _join(self, time: Fraction, expected: Fraction) -> Fraction:
        """The streams do not jump in the same packet, but all of them by the same offset."""
        offset = min(self.offsets, key=lambda known: abs(time + known - expected))
        if abs(time + offset - expected) > JUMP:
            offset = expected - time
            self.offsets.append(offset)
        return offset


class _Clock:
    """Gives each frame a time after the one before."""

    def __init__(self, time_base: Fraction, rate: Fraction) -> None:
        self.count = 0
        self.nudged = 0
        self._step = max(1, round(1 / (rate * time_base)))
        self._last: int | None = None
        self._duration = 0

    def tick(self, pts: int | None, dts: int | None, duration: int) -> int:
        """Take what the decoder says (perhaps nothing) and return the time to use."""
        time = self._guess(dts) if pts is None else pts
        if self._last is not None and time <= self._last:
            self.nudged += 1
            time = self._last + 1
        self._last, self._duration = time, duration
        self.count += 1
        return time

    def _guess(self, dts: int | None) -> int:
        if self._last is None:
            return dts or 0
        if dts is not None and dts > self._last:
            return dts
        return self._last + (self._duration or self._step)


def _first_video(container: InputContainer, name: str) -> VideoStream:
    """Find the stream to work on; cover art and thumbnails are none."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    real = [stream for stream in container.streams.video if not stream.disposition & still]
    if not real:
        kinds = sorted({stream.type for stream in container.streams})
        only = f" ({' and '.join(kinds)} only)" if kinds else ""
        raise SourceError(f"{name} has no video stream{only}")
    for stream in real:
        if stream.codec_context is not None and stream.discard != Discard.all:
            return stream
    raise SourceError(f"{name}: there is no decoder here for its video stream")
