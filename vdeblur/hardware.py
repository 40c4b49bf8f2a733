"""The units of a GPU that decode and encode video, as far as FFmpeg and a driver know them."""

from collections.abc import Callable
from fractions import Fraction

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.video.codeccontext import VideoCodecContext

from .errors import SourceError

Warn = Callable[[str], None]

COMMON = "h264"
"""What every unit decodes: a device is tried with it."""

ON_CPU = {"h264_nvenc": "libx264", "hevc_nvenc": "libx265", "av1_nvenc": "libsvtav1"}
"""FFmpeg's encoders of NVIDIA's GPUs, and those that do the same without one."""


def decoder(name: str, warn: Warn) -> str:
    """The device that decodes where `name` ("cuda", "vaapi", ...) is asked for, or "none".

    "auto" is the first that works. Where the one that is named does not, there is a warning. Raises
    SourceError for a name that FFmpeg does not have.
    """
    known = hwdevices_available()
    if name == "none":
        return name
    if name == "auto":
        return next(iter(decoders()), "none")
    if name not in known:
        raise SourceError(
            f"there is no hardware decoder {name!r} here: use {', '.join(('auto', 'none', *known))}"
        )
    if (reason := _reason(name)) is not None:
        warn(f"{name} does not decode here ({reason}): the CPU does")
        return "none"
    return name


def decoders() -> list[str]:
    """The devices that decode here."""
    return [each for each in hwdevices_available() if _reason(each) is None]


def _reason(device: str) -> str | None:
    """Why a device does not decode; `None` if it does."""
    try:
        unit = HWAccel(device, allow_software_fallback=False)
        context = av.CodecContext.create(COMMON, "r", unit)
    except (av.FFmpegError, OSError, RuntimeError) as error:
        return _in_words(error)
    assert isinstance(context, VideoCodecContext)
    return None if context.is_hwaccel else f"FFmpeg's {COMMON} decoder does not know it"


def _in_words(error: Exception) -> str:
    """FFmpeg says no more than "not permitted" where it finds no driver."""
    if isinstance(error, PermissionError):
        return "no device or no driver"
    return getattr(error, "strerror", None) or str(error)


def encoder(name: str, warn: Warn) -> str:
    """The encoder `name`; where it needs a GPU that is not here, with a warning the CPU's."""
    if name not in ON_CPU:
        return name
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
    context.framerate = Fraction(25)
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        warn(f"{name} does not encode here ({_in_words(error)}): {ON_CPU[name]} does")
        return ON_CPU[name]
    return name
