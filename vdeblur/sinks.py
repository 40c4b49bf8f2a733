"""What is written: a file or stdout; whether it may be, what it can hold, what is copied to it."""

import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
from av.audio.codeccontext import AudioCodecContext
from av.container import OutputContainer
from av.format import Flags
from av.stream import Discard, Disposition, Stream

from .anew import Sound, Words, ways
from .errors import SinkError
from .pipes import STDOUT, PipeWriter
from .reader import VideoReader

FINE = 1_000_000
"""Parts of a second; with more, durations would soon need more than 32 bits."""

PIECE = 1 << 17
"""Bytes that the muxer collects before it writes."""

NUMBERS = count()
"""Of the files that this process has begun: two threads may write to the same name."""

Y4M = "yuv4mpegpipe"
"""FFmpeg's name of the format that most video tools read from a pipe."""

MOV_FAMILY = {"mov", "mp4", "ipod", "3gp", "3g2", "psp", "f4v"}

IN_BROADCASTS = {
    *("aac", "aac_latm", "ac3", "dts", "eac3", "mp1", "mp2", "mp3", "opus", "s302m", "truehd"),
    *("dvb_subtitle", "dvb_teletext"),
}
"""Audio and subtitles that are found in MPEG-TS again, which takes all kinds."""
ON_BLURAY = {"pcm_bluray", "hdmv_pgs_subtitle"}
"""And in one whose name ends with .m2ts."""
IN_FLV = {"aac", "ac3", "eac3", "flac", "mp3", "opus"}
"""Audio for which FLV has a name of four letters. When that is needed for any other, as where
nobody named the channels, FFmpeg ends the whole program."""

KNOWN_TAGS = {
    *("title", "artist", "album_artist", "album", "author", "composer", "writer", "comment"),
    *("copyright", "date", "genre", "description", "synopsis", "grouping", "lyrics", "show"),
    *("episode_id", "network", "media_type", "track", "disc", "compilation", "location"),
    *("gapless_playback", "creation_time", "timecode", "location-eng"),
}
"""Metadata that MP4 has a place for, so that all players show it."""

CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
"""Metadata about the source file itself, which would be wrong in another."""


def checked(sink: Path, source: Path | None, *, overwrite: bool) -> Path:
    """Return the file that is to be written, links followed, or say why it cannot be."""
    try:
        sink.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # of these, what is missing is said below
    except OSError as error:
        raise SinkError(f"cannot write {sink}: {error.strerror}") from error
    final = sink.resolve() if sink.is_symlink() else sink
    if sink.is_dir():
        raise SinkError(f"{sink} is a folder: name the file in it")
    if final.exists() and not final.is_file():
        raise SinkError(f"{sink} is a device or a pipe: name a file")
    if not final.parent.is_dir():
        raise SinkError(f"the folder {final.parent} does not exist")
    if final.exists():
        if source is not None and source.exists() and final.samefile(source):
            raise SinkError(f"{sink} is the source itself: choose another name")
        if not overwrite:
            raise SinkError(f"{sink} exists already: choose another name, or overwrite it")
        if not os.access(final, os.W_OK):
            raise SinkError(f"{sink} may not be written to: permission denied")
    if not os.access(final.parent, os.W_OK):
        raise SinkError(f"the folder {final.parent} may not be written to: permission denied")
    return final


class File:
    """A file, which gets its name when it is complete."""

    def __init__(self, path: Path, source: Path | None, *, overwrite: bool) -> None:
        self.name, self.label = str(path), path.name
        self.ending = path.suffix or "a file without an ending"
        self._final = checked(path, source, overwrite=overwrite)
        self._partial = self._final.with_name(
            f".{self._final.stem[:40]}.{os.getpid()}-{next(NUMBERS)}.part{self._final.suffix}"
        )
        self.target = f"file:{self._partial}"

    def begin(self) -> None:
        """Nothing is to be done before the header."""

    def complete(self, container: OutputContainer) -> None:
        """Close the file and give it its name."""
        container.close()
        with suppress(OSError):  # nothing is replaced, or the file system has no permissions
            self._partial.chmod(stat.S_IMODE(self._final.stat().st_mode))
        self._partial.replace(self._final)

    def abandon(self, container: OutputContainer) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            os.truncate(self._partial, 0)  # else closing would move the data to make a fast start
        with suppress(av.FFmpegError, OSError, ValueError):
            container.close()
        self._partial.unlink(missing_ok=True)

    def release(self) -> None:
        """A file keeps nobody waiting."""


class Stdout:
    """stdout, for another program."""

    name = "stdout"

    def __init__(self, format: str) -> None:
        try:
            if os.isatty(STDOUT):
                raise SinkError(
                    "stdout is a terminal, which cannot show a video: send it to a program (| ...)"
                )
            os.fstat(STDOUT)
        except OSError as error:
            raise SinkError("stdout is closed: nothing can be written to it") from error
        self.ending = format
        self.label = f"stdout ({format})"
        self.target = self
        self.sample_aspect_ratio: Fraction | None = None
        """FFmpeg leaves it out of Y4M's header, where it has a place."""
        self._pipe: PipeWriter | None = None

    def begin(self) -> None:
        """From now on only the video goes to stdout."""
        self._pipe = PipeWriter()

    def write(self, data: bytes) -> int:
        """Take what the muxer has."""
        if self._pipe is None:
            raise BrokenPipeError("stdout was not begun")
        if not self._pipe.count and self.sample_aspect_ratio is not None:
            self._pipe.write(data.replace(b" A0:0", self._aspect(), 1))
            return len(data)
        return self._pipe.write(data)

    def _aspect(self) -> bytes:
        ratio = self.sample_aspect_ratio or Fraction(1)
        return f" A{ratio.numerator}:{ratio.denominator}".encode()

    def complete(self, container: OutputContainer) -> None:
        """Write the end of the stream."""
        container.close()
        self._close()

    def abandon(self, container: OutputContainer) -> None:
        """Stop in the middle: what is written is written."""
        self.release()
        with suppress(av.FFmpegError, OSError, ValueError):
            container.close()
        self._close()

    def release(self) -> None:
        """Do not wait for the reader any more."""
        if self._pipe is not None:
            self._pipe.release()

    def _close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()

    @property
    def interruption(self) -> BaseException | None:
        """Ctrl-C that came while stdout was written to."""
        return None if self._pipe is None else self._pipe.interruption


Sink = File | Stdout


def open_sink(
    sink: Path | str, source: Path | None, *, format: str | None, overwrite: bool
) -> Sink:
    """Find out whether `sink` may be written; `-` is stdout, as Y4M unless said otherwise."""
    if str(sink) == "-":
        return Stdout(format or Y4M)
    return File(Path(sink), source, overwrite=overwrite)


def open_container(sink: Sink, reader: VideoReader, format: str | None) -> OutputContainer:
    """Make the container that is asked for; nothing is written yet."""
    is_file = isinstance(sink, File)
    try:
        container = av.open(
            sink.target,
            "w",
            format=format or (None if is_file else Y4M),
            metadata_errors="replace",
            buffer_size=PIECE,
        )
    except (av.FFmpegError, ValueError) as error:
        if format is not None:
            raise SinkError(f"there is no output format {format!r} here") from error
        name = Path(sink.name)
        ending = name.suffix or "without an ending"
        raise SinkError(
            f"cannot tell the container from {name.name} ({ending}): use .mp4, .mkv, .mov or .webm"
        ) from error
    if Flags(container.format.flags) & Flags.no_file:
        raise SinkError(
            f"{Path(sink.name).name} would be many files ({container.format.long_name}): "
            f"use .mp4, .mkv, .mov or .webm"
        )
    options = container.container_options
    if container.format.name == Y4M:
        options["strict"] = "-1"  # more than 8 bits are an extension, which everybody has
    if not is_file:
        options["flush_packets"] = "1"
    if container.format.name in MOV_FAMILY:
        options["movflags"] = "+faststart" if is_file else "+frag_keyframe+empty_moov"
        if set(global_tags(reader.container.metadata)) - KNOWN_TAGS and not _pictures(reader):
            options["movflags"] += "+use_metadata_tags"
        options["movie_timescale"] = str(_movie_timescale(reader))
    return container


def _movie_timescale(reader: VideoReader) -> int:
    """Unit of MP4's edit lists, fine enough that no stream's start is rounded."""
    units = [s.time_base.denominator for s in reader.container.streams if s.time_base]
    common = math.lcm(*units)
    if common <= FINE:
        return max(1000, common)
    return max(1000, min(reader.info.time_base.denominator, FINE))


def shift(reader: VideoReader, container: OutputContainer) -> Fraction:
    """Seconds that all times are moved by.

    None, but for parts, for broadcasts, whose clock may say any hour, and for times below 0.
    """
    start, time_base = reader.info.start, reader.info.time_base
    if reader.section:
        return -(start // time_base) * time_base
    broadcast = bool(Flags(reader.container.format.flags) & Flags.ts_discont)
    if container.format.name == reader.container.format.name:
        return Fraction(0)
    if start < 0 or broadcast:
        return -(start // time_base) * time_base
    return Fraction(0)


def acceptable(reader: VideoReader, container: OutputContainer) -> dict[int, Sound | Words | None]:
    """Find the other streams that this kind of container takes, by trying.

    By their index: how it is encoded anew; None if it is copied as it is.
    """
    raw = Flags(container.format.flags) & Flags.no_timestamps
    if raw and container.default_audio_codec == "none":
        return {}  # what else was in it could not be told from the pictures
    kept: dict[Stream, Sound | Words | None] = {}
    for stream in reader.container.streams:
        if stream.index == reader.stream.index or stream.discard == Discard.all:
            continue
        if remade(stream, container):
            continue
        if is_cover(stream) and container.format.name not in MOV_FAMILY:
            continue
        for way in _ways(container, stream):
            if _takes(container.format.name, {**kept, stream: way}):
                kept[stream] = way
                break
    return {stream.index: way for stream, way in kept.items()}


def _ways(container: OutputContainer, stream: Stream) -> Iterator[Sound | Words | None]:
    """As it is, and how else."""
    may_be_copied = {"flv": _fits_flv, "mpegts": _fits_broadcasts}.get(container.format.name)
    if may_be_copied is None or may_be_copied(container, stream):
        yield None
    yield from ways(container.format.name, stream)


def _fits_flv(_container: OutputContainer, stream: Stream) -> bool:
    context = stream.codec_context
    if not isinstance(context, AudioCodecContext):
        return True
    return context.codec.canonical_name in IN_FLV or context.layout.name in ("mono", "stereo")


def _fits_broadcasts(container: OutputContainer, stream: Stream) -> bool:
    context = stream.codec_context
    if stream.type not in ("audio", "subtitle", "attachment"):
        return True
    if context is None:  # no decoder is here that knows it
        return stream.type != "attachment"
    known = context.codec.canonical_name
    return known in IN_BROADCASTS or (known in ON_BLURAY and container.name.endswith(".m2ts"))


def _takes(format_name: str, streams: Mapping[Stream, Sound | Words | None]) -> bool:
    """Write the header of a file with these streams, into memory."""
    trial = av.open(io.BytesIO(), "w", format=format_name, metadata_errors="replace")
    try:
        for stream, way in streams.items():
            add_copy(trial, stream) if way is None else way.add_to(trial, stream)
        trial.start_encoding()
    except (av.FFmpegError, ValueError, TypeError, OSError):
        return False
    finally:
        with suppress(av.FFmpegError, ValueError, OSError):
            trial.close()
    return True


def add_copy(container: OutputContainer, source: Stream) -> Stream:
    """Add a stream that takes the packets of `source` as they are."""
    stream = container.add_stream_from_template(source, opaque=True)
    stream.metadata.update(source.metadata)
    stream.disposition = source.disposition
    return stream


def is_cover(stream: Stream) -> bool:
    """Tell whether a stream is one picture that belongs to the film, and no film."""
    return bool(stream.disposition & Disposition.attached_pic)


def attach_cover(container: OutputContainer, stream: Stream, reader: VideoReader) -> bool:
    """Attach a picture in Matroska's way, as a file; False if that cannot be."""
    packets = [p for p in reader.packets if p.stream_index == stream.index]
    if container.format.name != "matroska" or not packets or stream.codec_context is None:
        return False
    kind = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
    ending, mimetype = kind.get(stream.codec_context.name, ("bin", "application/octet-stream"))
    container.add_attachment(f"cover.{ending}", mimetype, bytes(packets[0]))
    return True


def remade(stream: Stream, container: OutputContainer) -> bool:
    """Chapters and time code are tracks in MP4, which the muxer makes anew by itself."""
    is_code = stream.type == "data" and "timecode" in stream.metadata
    is_track = stream.discard == Discard.all or is_code
    return is_track and container.format.name in MOV_FAMILY


def _pictures(reader: VideoReader) -> bool:
    return any(map(is_cover, reader.container.streams))


def label(stream: Stream) -> str:
    """Name a stream for a warning: subtitle 2 (subrip, eng)."""
    context = stream.codec_context
    name = context.name if context is not None else getattr(stream, "name", None)
    about = [name, stream.language]
    words = ", ".join(word for word in about if word and word != "und")
    return f"{stream.type} {stream.index}{f' ({words})' if words else ''}"


def global_tags(tags: dict[str, str]) -> dict[str, str]:
    """Keep what is said of the film; leave what is said of the file that held it."""
    return {key: value for key, value in tags.items() if key.lower() not in CONTAINER_TAGS}


def encoded_tags(tags: dict[str, str]) -> dict[str, str]:
    """What stays true of a stream when it is encoded anew."""
    stale = (
        *("encoder", "duration", "bps", "number_of_", "_statistics", "rotate", "source_id"),
        "alpha_mode",  # what is written has none
    )
    return {key: value for key, value in tags.items() if not key.lower().startswith(stale)}
