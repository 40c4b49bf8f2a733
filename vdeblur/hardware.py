"""The units of a GPU that decode and encode video, as far as FFmpeg and a driver know them."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.video.codeccontext import VideoCodecContext

from .errors import SourceError

Warn = Callable[[str], None]

COMMON = "h264"
"""What every unit decodes: a device is tried with it."""

ON_CPU = {"h264_nvenc": "h264", "hevc_nvenc": "hevc", "av1_nvenc": "av1"}
"""FFmpeg's encoders on NVIDIA's GPUs, and the codecs that others encode without one."""

THREADS = 4
"""Of a decoder that hardware helps: each holds memory of the device, of which there is little."""


def decoder(name: str, warn: Warn) -> str:
    """The device that decodes where `name` ("cuda", "vaapi", ...) is asked for, or "none".

    "auto" is the first that works. Where the one that is named does not, there is a warning. Raises
    SourceError for a name that FFmpeg does not have.
    """
    known = hwdevices_available()
    if name == "none":
        return name
    if name == "auto":
        return next(decoders(), "none")
    if name not in known:
        raise SourceError(
            f"there is no hardware decoder {name!r} here: use {', '.join(('auto', 'none', *known))}"
        )
    if (reason := _reason(name)) is not None:
        warn(f"{name} does not decode here ({reason}): the CPU does")
        return "none"
    return name


def decoders() -> Iterator[str]:
    """The devices that decode here."""
    return (each for each in hwdevices_available() if _reason(each) is None)


def decodes(context: VideoCodecContext) -> bool:
    """Whether the pictures that `context` has decoded came from a device.

    Where it does not know a stream's profile or size, FFmpeg decodes without it and says nothing.
    """
    return context.pix_fmt is not None and not av.VideoFormat(context.pix_fmt).components


def _reason(device: str) -> str | None:
    """Why a device does not decode; `None` if it does."""
    try:
        unit = HWAccel(device, allow_software_fallback=False)
        context = av.CodecContext.create(COMMON, "r", unit)
    except (av.FFmpegError, OSError) as error:
        return _in_words(error)
    assert isinstance(context, VideoCodecContext)
    return None if context.is_hwaccel else f"FFmpeg's {COMMON} decoder does not know it"


def refuses(encoder: str, *, width: int, height: int, pix_fmt: str) -> str | None:
    """Why an encoder of a GPU does not encode such pictures here; `None` if it does."""
    context = av.CodecContext.create(encoder, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, pix_fmt
    context.framerate = Fraction(25)
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        return _in_words(error)
    return None


def _in_words(error: Exception) -> str:
    """FFmpeg says no more than "not permitted" where it finds no driver."""
    if isinstance(error, PermissionError):
        return "no device or no driver"
    return getattr(error, "strerror", None) or str(error)
