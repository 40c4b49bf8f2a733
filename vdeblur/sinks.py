"""The file that is written: whether it may be, what it can hold, what is copied to it."""

import io
import math
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.format import Flags
from av.stream import Discard, Disposition, Stream

from .errors import SinkError
from .reader import VideoReader

FINE = 1_000_000
"""Parts of a second; with more, durations would soon need more than 32 bits."""

MOV_FAMILY = {"mov", "mp4", "ipod", "3gp", "3g2", "psp", "f4v"}

KNOWN_TAGS = {
    *("title", "artist", "album_artist", "album", "author", "composer", "writer", "comment"),
    *("copyright", "date", "genre", "description", "synopsis", "grouping", "lyrics", "show"),
    *("episode_id", "network", "media_type", "track", "disc", "compilation", "location"),
    *("gapless_playback", "creation_time", "timecode", "location-eng"),
}
"""Metadata that MP4 has a place for, so that all players show it."""

CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
"""Metadata about the source file itself, which would be wrong in another."""


def checked(sink: Path, source: Path, *, overwrite: bool) -> Path:
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
        if source.exists() and final.samefile(source):
            raise SinkError(f"{sink} is the source itself: choose another name")
        if not overwrite:
            raise SinkError(f"{sink} exists already: choose another name, or overwrite it")
    if not os.access(final.parent, os.W_OK):
        raise SinkError(f"the folder {final.parent} may not be written to: permission denied")
    return final


def open_container(sink: Path, partial: Path, reader: VideoReader) -> OutputContainer:
    """Make the container that the name's ending asks for; no file is opened yet."""
    try:
        container = av.open(f"file:{partial}", "w", metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        ending = sink.suffix or "without an ending"
        raise SinkError(
            f"cannot tell the container from {sink.name} ({ending}): use .mp4, .mkv, .mov or .webm"
        ) from error
    if Flags(container.format.flags) & Flags.no_file:
        raise SinkError(
            f"{sink.name} would be many files ({container.format.long_name}): "
            f"use .mp4, .mkv, .mov or .webm"
        )
    if container.format.name in MOV_FAMILY:
        flags = "+faststart"
        if set(global_tags(reader.container.metadata)) - KNOWN_TAGS and not _pictures(reader):
            flags += "+use_metadata_tags"
        container.container_options["movflags"] = flags
        container.container_options["movie_timescale"] = str(_movie_timescale(reader))
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

    None, but for broadcasts, whose clock may say any hour, and for times below 0.
    """
    start, time_base = reader.info.start, reader.info.time_base
    broadcast = bool(Flags(reader.container.format.flags) & Flags.ts_discont)
    if container.format.name == reader.container.format.name:
        return Fraction(0)
    if start < 0 or broadcast:
        return -(start // time_base) * time_base
    return Fraction(0)


def acceptable(reader: VideoReader, container: OutputContainer) -> list[Stream]:
    """Find the other streams that this kind of container takes, by trying."""
    kept: list[Stream] = []
    for stream in reader.container.streams:
        if stream.index == reader.stream.index or stream.discard == Discard.all:
            continue
        if is_cover(stream) and container.format.name not in MOV_FAMILY:
            continue
        if _takes(container.format.name, [*kept, stream]):
            kept.append(stream)
    return kept


def _takes(format_name: str, streams: list[Stream]) -> bool:
    """Write the header of a file with these streams, into memory."""
    trial = av.open(io.BytesIO(), "w", format=format_name, metadata_errors="replace")
    try:
        for stream in streams:
            add_copy(trial, stream)
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
    is_track = stream.discard == Discard.all or "timecode" in stream.metadata
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


def video_tags(tags: dict[str, str]) -> dict[str, str]:
    """What stays true of the video when it is encoded anew."""
    stale = ("encoder", "duration", "bps", "number_of_", "_statistics", "rotate", "source_id")
    return {key: value for key, value in tags.items() if not key.lower().startswith(stale)}
