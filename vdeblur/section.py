"""A part of a video: which pictures and packets belong to it."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.format import Flags as Format
from av.packet import Packet
from av.stream import Disposition, Stream

from .info import VideoInfo, start_of
from .options import Input

EARLIER = 12
"""Seconds before the beginning from which a broadcast is read: it has no index, and pictures that
need no other may be far apart. And what has words, some of which may still be shown."""
BEHIND = 1
"""Seconds by which sound may lie behind its pictures in a file."""


@dataclass(frozen=True, slots=True)
class Section:
    """What is wanted of a video; times are those of its packets, in seconds."""

    begin: Fraction | None = None
    """`None`: all from where it begins."""
    end: Fraction | None = None
    """The first moment that does not belong to it any more."""
    begins_later: bool = False
    """Its first frame is not the video's."""

    @classmethod
    def of(cls, container: InputContainer, given: Input) -> "Section":
        """What is asked for of a file that is open."""
        if not given.start and given.duration is None:
            return cls()
        begin = start_of(container) + Fraction(given.start).limit_denominator(av.time_base)
        later = given.start > 0
        if given.duration is None:
            return cls(begin, begins_later=later)
        length = Fraction(given.duration).limit_denominator(av.time_base)
        return cls(begin, begin + length, later)

    def __bool__(self) -> bool:
        """Whether it is a part, and not the whole."""
        return self.begin is not None

    def seek(self, container: InputContainer) -> None:
        """Go to where a decoder has to begin; where that cannot be, all before is decoded."""
        if self.begin is None:
            return
        broadcast = bool(Format(container.format.flags) & Format.ts_discont)
        target = self.begin - EARLIER * (broadcast or bool(container.streams.subtitles))
        if target > start_of(container):
            with suppress(av.FFmpegError):
                container.seek(int(target * av.time_base))

    def of_pictures(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """Those that begin within; what comes after the first one behind is not decoded."""
        for picture in pictures:
            time = _time(picture)
            if self.end is not None and time is not None and time >= self.end:
                return
            if self.begin is None or time is None or time >= self.begin:
                yield picture

    def is_behind(self, packet: "Packet[Any]") -> bool:
        """Whether nothing that comes after this packet belongs to it."""
        time = _time(packet)
        return self.end is not None and time is not None and time >= self.end + BEHIND

    def takes(self, packet: "Packet[Stream]") -> bool:
        """Whether a packet of another stream belongs to it; words that last into it are cut."""
        time, unit = _time(packet), packet.time_base
        still = bool(packet.stream.disposition & Disposition.attached_pic)
        if self.begin is None or time is None or unit is None or still:
            return True
        if self.end is not None and time >= self.end:
            return False
        late = self.begin - time
        if late > 0 and packet.stream.type == "subtitle" and packet.duration:
            lost = round(late / unit)
            packet.duration -= min(lost, packet.duration)
            packet.pts = packet.dts = round(time / unit) + lost
            return packet.duration > 0
        return late <= 0

    def of_info(self, info: VideoInfo) -> VideoInfo:
        """What is known of the whole video -> the same of this part."""
        if self.begin is None:
            return info
        whole = None if info.duration is None else info.start + info.duration
        ends = [each for each in (self.end, whole) if each is not None]
        length = max(min(ends) - self.begin, Fraction(0)) if ends else None
        frames = 0 if length is None else round(length * info.rate)
        return replace(info, start=self.begin, duration=length, frames=frames)

    def of_tags(self, tags: dict[str, str]) -> dict[str, str]:
        """Metadata, without the time code of a first frame that is no part of it."""
        if not self.begins_later:
            return dict(tags)
        return {key: value for key, value in tags.items() if key.lower() != "timecode"}

    def of_chapters(self, chapters: Sequence[Any]) -> list[Any]:
        """FFmpeg's chapters, cut; those without a moment in it are left out."""
        if self.begin is None:
            return list(chapters)
        kept = []
        for chapter in chapters:
            unit = Fraction(chapter["time_base"] or 1)
            first = max(chapter["start"], round(self.begin / unit))
            last = chapter["end"] if self.end is None else min(chapter["end"], self.end / unit)
            if first < last:
                kept.append({**chapter, "start": first, "end": round(last)})
        return kept


def _time(timed: "av.VideoFrame | Packet[Any]") -> Fraction | None:
    """When it is shown, in seconds; None if nobody says so."""
    moment = timed.pts if timed.pts is not None else timed.dts
    return None if moment is None or timed.time_base is None else moment * timed.time_base
