"""Where a video comes from: a file, stdin, a camera or another device, the network."""

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.container.core import Flags
from av.format import ContainerFormat
from av.format import Flags as Format

from .errors import SourceError
from .options import AS_IT_IS, Input
from .pipes import STDIN, PipeReader

PATIENCE = 10.0
"""Seconds without anything from the network after which it is taken to have ended."""

PIECE = 1 << 17
"""Bytes that are asked of a pipe at once; more than most pipes hold."""

STREAMED = {"rtsp", "rtsps", "rtp", "udp", "srt", "rtmp", "rtmps", "sdp"}
"""Protocols that send as it happens, and do not wait for a reader."""

GENERATE_PTS: int = Flags.gen_pts.value  # type: ignore[assignment]

CONTAINERS = {"y4m": "yuv4mpegpipe", "mkv": "matroska", "ts": "mpegts"}
"""Other words for FFmpeg's names of containers."""

CAMERAS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's name of the system's cameras."""


def is_live(source: str, format: str | None = None) -> bool:
    """Tell from its name whether a source sends as it happens: a camera, a broadcast."""
    if format is not None and format != "lavfi" and _is_device(format):
        return True
    if _is_there(source):
        return False
    return source.startswith("camera:") or source.partition("://")[0] in STREAMED


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source."""

    name: str
    """What the user calls it."""
    short: str
    """The same without folders and passwords, to begin a line with."""
    container: InputContainer
    path: Path | None = None
    """The file, if it is one."""
    pipe: PipeReader | None = None
    live: bool = False
    """It does not wait: what is not read in time is lost."""
    given: Input = AS_IT_IS

    @property
    def size(self) -> int:
        """Bytes of the file, or that came through the pipe so far; 0 if unknown."""
        if self.pipe is not None:
            return self.pipe.count
        with suppress(OSError):
            return 0 if self.path is None else self.path.stat().st_size
        return 0

    @property
    def interruption(self) -> BaseException | None:
        """Ctrl-C that came while the pipe was read."""
        return None if self.pipe is None else self.pipe.interruption

    def reopened(self) -> InputContainer:
        """The same file once more, from the beginning."""
        return _open(f"file:{self.path}", self.name, self.given)

    def release(self) -> None:
        """Let nobody wait for a pipe any more."""
        if self.pipe is not None:
            self.pipe.release()

    def close(self) -> None:
        """Close it; a second time does nothing."""
        self.container.close()
        if self.pipe is not None:
            self.pipe.close()


def open_source(source: Path | str, given: Input = AS_IT_IS) -> Source:
    """Open whatever `source` names: `-`, `camera:0`, `lavfi:testsrc2`, a URL or a file.

    Raises SourceError, which says why it cannot be.
    """
    if given.format in CONTAINERS:
        given = replace(given, format=CONTAINERS[given.format])
    _check(given)
    name = str(source)
    if name == "-":
        return _stdin(given)
    if given.format is not None and _is_device(given.format):
        return Source(name, name, _open(name, name, given), live=given.format != "lavfi")
    if isinstance(source, str) and not _is_there(source):
        device, colon, rest = source.partition(":")
        if device == "camera" and colon:
            return _camera(source, rest, given)
        if device == "lavfi" and colon:
            given = Input(format="lavfi")
            return Source(name, "lavfi", _open(rest, name, given))
        if re.match(r"[a-z][a-z0-9+.]*://", source):
            return _network(source, given)
    return _file(Path(source), given)


def _check(given: Input) -> None:
    """Refuse what FFmpeg would refuse in a riddle."""
    if given.format is not None:
        try:
            ContainerFormat(given.format, "r")
        except ValueError as error:
            raise SourceError(f"there is no input format {given.format!r} here") from error
    if given.pix_fmt is not None:
        try:
            av.VideoFormat(given.pix_fmt)
        except ValueError as error:
            raise SourceError(f"there is no pixel format {given.pix_fmt!r}") from error
    if given.format == "rawvideo" and given.size is None:
        raise SourceError("raw video does not say how large it is: --input-size WIDTHxHEIGHT")


def _is_device(format: str) -> bool:
    try:
        return bool(Format(ContainerFormat(format, "r").flags) & Format.no_file)
    except ValueError:
        return False  # what is wrong with it is said when it is opened


def _stdin(given: Input) -> Source:
    try:
        if sys.stdin is None:  # so Python says; its number may have become another file's since
            raise OSError("closed")
        if os.isatty(STDIN):
            raise SourceError("stdin is a terminal: send a video through a pipe, or name a file")
        pipe = PipeReader()
    except OSError as error:
        raise SourceError("stdin is closed: there is nothing to read") from error
    try:
        return Source("stdin", "stdin", _open(pipe, "stdin", given), pipe=pipe, given=given)
    except BaseException as error:
        pipe.close()
        if pipe.interruption is not None:
            raise pipe.interruption from None
        if isinstance(error, SourceError) and not pipe.count:
            raise SourceError("stdin ended before there was any data") from error
        raise


def _camera(name: str, device: str, given: Input) -> Source:
    format = next((f for system, f in CAMERAS.items() if sys.platform.startswith(system)), None)
    if format is None:
        raise SourceError(f"{name}: cameras are not known on {sys.platform}")
    url = f"/dev/video{device}" if format == "v4l2" and device.isdecimal() else device
    if format == "v4l2" and not Path(url).exists():
        there = ", ".join(f"camera:{p.name[5:]}" for p in sorted(Path("/dev").glob("video*")))
        raise SourceError(f"there is no {name} ({url}); {f'try {there}' if there else 'none is'}")
    given = replace(given, format=format)
    return Source(name, name, _open(url, name, given), live=True, given=given)


def _network(url: str, given: Input) -> Source:
    protocol = url.partition(":")[0]
    shown = re.sub(r"://[^/@]*@", "://", url)  # a name and password stay private
    container = _open(url, shown, given, patience=PATIENCE)
    return Source(shown, shown, container, live=protocol in STREAMED, given=given)


def _is_there(source: str) -> bool:
    """Whether there is a file of that name, also one in a folder that may not be entered."""
    try:
        return Path(source).exists()
    except PermissionError:
        return True


def _file(path: Path, given: Input) -> Source:
    with suppress(PermissionError):  # which is said when it is opened
        if path.is_dir():
            raise SourceError(f"{path} is a folder, not a video")
        if path.is_file() and path.stat().st_size == 0:
            raise SourceError(f"{path} is empty")
    # With the protocol before it, a colon in the name is not taken for one.
    return Source(str(path), path.name, _open(f"file:{path}", str(path), given), path, given=given)


def _open(
    url: str | PipeReader, name: str, given: Input, *, patience: float | None = None
) -> InputContainer:
    """Open for reading. SourceError says why it cannot be."""
    try:
        container = _opened(url, given, patience)
    except FileNotFoundError as error:
        raise SourceError(f"{name} does not exist") from error
    except PermissionError as error:
        raise SourceError(f"{name} may not be read: permission denied") from error
    except av.InvalidDataError as error:
        raise SourceError(f"{name} is not a video, or its beginning is damaged") from error
    except av.ExitError as error:
        raise SourceError(f"{name}: nothing came for {patience:g} s") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"cannot open {name}: {reason}") from error
    # PyAV's default makes up times where AVI has none: each frame would be one frame late.
    container.flags &= ~GENERATE_PTS
    kind = container.format.name
    still = kind == "tty" or kind.startswith("image2") or kind.endswith("_pipe")
    if still and given.format is None:
        long_name = container.format.long_name
        container.close()
        raise SourceError(f"{name} is not a video, but {long_name}")
    return container


def _opened(url: str | PipeReader, given: Input, patience: float | None) -> InputContainer:
    """Where the hardware fails at the last moment, without it; what a pipe sent is lost then."""
    options: dict[str, Any] = {
        "format": given.format,
        "options": _demuxer_options(given),
        "metadata_errors": "replace",
        "timeout": patience,
        "buffer_size": PIECE,
    }
    if given.hwaccel != "none":
        try:
            opened = av.open(url, "r", **options, hwaccel=HWAccel(given.hwaccel))
            return cast(InputContainer, opened)
        except av.FFmpegError:
            if isinstance(url, PipeReader):
                raise
    return cast(InputContainer, av.open(url, "r", **options))


def _demuxer_options(given: Input) -> dict[str, str]:
    options = {}
    if given.size is not None:
        options["video_size"] = "{}x{}".format(*given.size)
    if given.rate is not None:
        options["framerate"] = str(Fraction(given.rate))
    if given.pix_fmt is not None:
        options["pixel_format"] = given.pix_fmt
    return options
