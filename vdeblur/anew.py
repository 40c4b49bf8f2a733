"""Audio and subtitles that a container cannot hold as they are: decoded, and encoded anew."""

import io
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.stream import SubtitleStream

logger = logging.getLogger(__name__)

ENCODERS = ("aac", "libopus", "libmp3lame", "mp2")
"""Of audio. The one that a container is mostly used with comes first (see `CALLED`)."""
CALLED = {"opus": "libopus", "mp3": "libmp3lame"}
"""The encoders of codecs that have another name."""
BIT_RATE = 96_000
"""Of audio, bits a second and channel."""
WORDS = {
    **dict.fromkeys(("mov", "mp4", "ipod"), "mov_text"),
    **{"matroska": "srt", "webm": "webvtt"},
}
"""The encoder of a container's subtitles."""
WRITTEN = {"ass", "mov_text", "srt", "ssa", "subrip", "text", "webvtt"}
"""Subtitles that are text; others are pictures."""


@dataclass(frozen=True, slots=True)
class Sound:
    """How audio is encoded."""

    encoder: str
    rate: int
    """Samples a second."""
    layout: str

    def add_to(self, container: OutputContainer, source: Stream) -> "SoundAnew":
        """Add the stream that takes the place of `source`; ValueError if it cannot be."""
        options: dict[str, Any] = {"rate": self.rate, "layout": self.layout}
        stream = cast(AudioStream, container.add_stream(self.encoder, **options))
        stream.codec_context.bit_rate = BIT_RATE * stream.codec_context.layout.nb_channels
        return SoundAnew(stream, cast(AudioCodecContext, source.codec_context))


@dataclass(frozen=True, slots=True)
class Words:
    """How subtitles are encoded."""

    encoder: str

    def add_to(self, container: OutputContainer, source: Stream) -> "WordsAnew":
        """Add the stream that takes the place of `source`; ValueError if it cannot be."""
        stream = cast(SubtitleStream, container.add_stream(self.encoder))
        known = cast(SubtitleCodecContext, source.codec_context)
        known.open(strict=False)  # then it knows the style, which the encoder asks for
        stream.codec_context.subtitle_header = known.subtitle_header
        return WordsAnew(stream, known)


def ways(format_name: str, source: Stream) -> Iterator[Sound | Words]:
    """How `source` could be encoded anew for a container, the best way first.

    The rate is the source's or the next higher one, the channels are the source's or at most two.
    """
    context = source.codec_context
    if isinstance(context, SubtitleCodecContext):
        if context.name in WRITTEN and format_name in WORDS:
            yield Words(WORDS[format_name])
    elif isinstance(context, AudioCodecContext) and context.sample_rate > 0:
        known = "mono" if context.layout.nb_channels == 1 else "stereo"
        for encoder in _in_turn(format_name):
            rate = _rate(encoder, context.sample_rate)
            for layout in dict.fromkeys((context.layout.name, known)):
                yield Sound(encoder, rate, layout)


def _in_turn(format_name: str) -> list[str]:
    own = av.open(io.BytesIO(), "w", format=format_name).default_audio_codec
    return sorted(ENCODERS, key=lambda name: name != CALLED.get(own, own))


def _rate(encoder: str, rate: int) -> int:
    known = sorted(av.Codec(encoder, "w").audio_rates or [rate])
    return next((each for each in known if each >= rate), known[-1])


class SoundAnew:
    """Decodes the packets of an audio stream and encodes what they hold."""

    def __init__(self, stream: AudioStream, known: AudioCodecContext) -> None:
        self.stream = stream
        """The one that is written to."""
        self.damaged = 0
        """Packets that could not be decoded."""
        self._known = known
        self._shape: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def packets(self, packet: "Packet[Stream]") -> "Iterator[Packet[Stream]]":
        """What comes of the next packet of the source."""
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self.damaged += 1
            logger.debug("audio packet at %s: %s", packet.pts, error)
            return
        for frame in frames:
            yield from self._encoded(cast(av.AudioFrame, frame))

    def flush(self) -> "Iterator[Packet[Stream]]":
        """What comes at the end."""
        with suppress(av.FFmpegError):
            for frame in self._known.decode(None):
                yield from self._encoded(frame)
        yield from self._rest()
        yield from self.stream.encode(None)

    def _encoded(self, frame: av.AudioFrame) -> "Iterator[Packet[Stream]]":
        shape = frame.format.name, frame.layout.name, frame.sample_rate
        if shape != self._shape:  # as broadcasts do, from the film to what is between
            yield from self._rest()
            context = self.stream.codec_context
            self._resampler = av.AudioResampler(context.format, context.layout, context.sample_rate)
            self._shape = shape
        assert self._resampler is not None, "it was made for this shape"
        for each in self._resampler.resample(frame):
            yield from self.stream.encode(each)

    def _rest(self) -> "Iterator[Packet[Stream]]":
        """What the resampler holds back."""
        if self._resampler is not None:
            for each in self._resampler.resample(None):
                yield from self.stream.encode(each)


class WordsAnew:
    """Decodes the packets of subtitles and encodes what they say."""

    def __init__(self, stream: SubtitleStream, known: SubtitleCodecContext) -> None:
        self.stream = stream
        """The one that is written to."""
        self.damaged = 0
        """Packets that could not be decoded."""
        self._known = known

    def packets(self, packet: "Packet[Stream]") -> "Iterator[Packet[Stream]]":
        """What comes of the next packet of the source."""
        try:
            shown = self._known.decode2(packet)
            if shown is None:
                return
            written = self.stream.codec_context.encode_subtitle(shown)
        except av.FFmpegError as error:
            self.damaged += 1
            logger.debug("subtitle packet at %s: %s", packet.pts, error)
            return
        written.stream, written.time_base = self.stream, packet.time_base
        written.pts, written.dts, written.duration = packet.pts, packet.pts, packet.duration
        yield cast("Packet[Stream]", written)

    def flush(self) -> "Iterator[Packet[Stream]]":
        """Nothing is held back."""
        yield from ()
