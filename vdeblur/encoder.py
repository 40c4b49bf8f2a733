"""Choose an encoder, its pixel format and its options."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from av.codec.codec import Codec, UnknownCodecError
from av.container import OutputContainer

from . import hardware, pixels
from .errors import SinkError
from .info import ContentLight, Mastering, VideoInfo
from .reader import Warn

ENCODERS = {
    "h264": ("libx264", "libopenh264"),
    "h265": ("libx265",),
    "hevc": ("libx265",),
    "av1": ("libsvtav1", "libaom-av1"),
    "vp8": ("libvpx",),
    "vp9": ("libvpx-vp9",),
    "ffv1": ("ffv1",),
    "prores": ("prores_ks", "prores"),
}
"""What a user calls a codec, and FFmpeg's encoders for it, best first."""

WHOLE_CHROMA = {"libx264", "libx265", "h264_nvenc", "hevc_nvenc", "libopenh264"}
"""They refuse a width or height that is no multiple of the chroma subsampling."""

CRF = {"libsvtav1": 26.0, "libaom-av1": 26.0, "libvpx-vp9": 26.0, "libvpx": 10.0}
"""Constant quality that looks like 18 does in H.264."""

LEAST = {"cq": 0.1}
"""Less than this means something else."""

_X26_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
PRESETS = {"libx264": _X26_PRESETS, "libx265": _X26_PRESETS}
"""All that there are, where another would make the encoder itself print an error."""

PRESET = {"libx264": "veryfast", "libx265": "veryfast", "libsvtav1": "9"}

FIXED = {
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "4", "deadline": "good"},
    "libvpx": {"cpu-used": "4", "deadline": "good"},
    "libx265": {"x265-params": "log-level=error"},
    "ffv1": {"level": "3"},
    **{name: {"rc": "vbr"} for name in hardware.ON_CPU},  # else they do not mind the quality
}
"""Options that a user should not have to know."""

SHORT_TIME_BASE = {"mpeg4", "msmpeg4", "libxvid", "h263", "h263p", "flv"}
"""They write the time in 16 bits."""


COUNTED = {"yuv4mpegpipe", "rawvideo"}
"""Formats that are nothing but pictures, which follow each other at the same rate."""

NO_TIMES = {"avi", "ogg", "mxf", *COUNTED}
"""Containers that count frames."""

WITHOUT_SHAPE = {"libvpx-vp9", "libvpx", "libsvtav1", "ffv1", "wrapped_avframe", "rawvideo"}
"""Their bitstream does not say how wide a pixel is."""

_DEPTHS = ("", "9le", "10le", "12le", "14le", "16le")
Y4M_FORMATS = (
    "yuv411p",
    *(f"gray{depth}" for depth in _DEPTHS if depth != "14le"),
    *(f"yuv{sampling}p{depth}" for sampling in (420, 422, 444) for depth in _DEPTHS),
)
"""All that Y4M has a name for."""

HUGE = 2560 * 1440
"""Pixels of a picture of which x264 shall not keep dozens, 50 MB each at 4K: slices of one picture
in threads instead of pictures, fewer ahead, and one of the kind that looks at those after it. Files
are 4 to 13 % smaller, 0.08 dB worse in SSIM's decibels, and memory is 290 MB less."""
SPARING = "sliced-threads=1:sync-lookahead=0:rc-lookahead=2:bframes=1"
UNASKED = {"mpegts": ("libx264", "libx265", "mpeg2video")}
"""FFmpeg does not say of these containers what they hold."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """All that the video stream of the output is made with."""

    name: str
    """FFmpeg's name of the encoder."""
    pix_fmt: str
    time_base: Fraction
    """Unit of the time stamps that it is given."""
    even_times: bool = False
    """Frames lie on a grid of `time_base`: the container cannot say anything else."""
    options: Mapping[str, str] = field(default_factory=dict)


def choose(
    info: VideoInfo,
    container: OutputContainer,
    *,
    codec: str = "auto",
    crf: float | None = None,
    preset: str | None = None,
    pix_fmt: str | None = None,
    low_delay: bool = False,
    warn: Warn,
) -> Encoder:
    """Settle the encoder for a video and a container. Raises SinkError if none fits."""
    name = _automatic(info, container) if codec == "auto" else _named(codec)
    if name in hardware.ON_CPU:
        name, preset, pix_fmt = _where_it_works(name, info, preset, pix_fmt, warn)
    if container.format.name == "yuv4mpegpipe":
        chosen = _pixel_format("Y4M", info, pix_fmt, list(Y4M_FORMATS), warn)
    else:
        chosen = _pixel_format(name, info, pix_fmt, _formats(name), warn)
    even_times = (
        container.format.name in NO_TIMES
        or (name in SHORT_TIME_BASE and info.time_base.denominator > 65535)
        or bool(Codec(name, "w").frame_rates)  # MPEG-1 and 2 know a few rates and no times
    )
    options = _options(name, info, crf=crf, preset=preset, even_times=even_times, warn=warn)
    if low_delay and name in PRESETS:
        options["tune"] = "zerolatency"  # else x264 and x265 hold dozens of pictures back
    if name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it has no other switch to keep it from chattering
    return Encoder(
        name=name,
        pix_fmt=chosen,
        time_base=1 / info.rate if even_times else info.time_base,
        even_times=even_times,
        options=options,
    )


def _automatic(info: VideoInfo, container: OutputContainer) -> str:
    """H.264 for 8 bit, H.265 for more; where the container takes neither, what it likes best."""
    supported = {*container.supported_codecs, *UNASKED.get(container.format.name, ())}
    wishes = ["h264", "hevc"] if info.format.depth == 8 else ["hevc", "h264"]
    if info.format.depth > 10:
        wishes = ["hevc", "ffv1"]
    if container.format.name == "webm":
        wishes = ["vp9", "av1"] if info.format.depth == 8 else ["av1", "vp9"]
    for wish in wishes:
        for name in ENCODERS[wish]:
            if name in supported and _exists(name):
                return name
    default = container.default_video_codec
    if default in ("none", "png", "mjpeg") or not _exists(default):
        raise SinkError(
            f"{container.format.long_name} ({container.format.name}) does not hold videos: "
            f"use .mp4, .mkv, .mov or .webm"
        )
    return Codec(default, "w").name


def _named(codec: str) -> str:
    for name in ENCODERS.get(codec.lower(), (codec,)):
        if _exists(name):
            return name
    known = ", ".join(word for word in ENCODERS if any(map(_exists, ENCODERS[word])))
    raise SinkError(
        f"there is no video encoder {codec!r} here: use {known}, or FFmpeg's name of one"
    )


def _where_it_works(
    name: str, info: VideoInfo, preset: str | None, pix_fmt: str | None, warn: Warn
) -> tuple[str, str | None, str | None]:
    """An encoder of a GPU, its preset and pixel format, or without that GPU those of the CPU's."""
    wanted = _pixel_format(name, info, pix_fmt, _formats(name), lambda line: None)
    reason = hardware.refuses(name, width=info.width, height=info.height, pix_fmt=wanted)
    if reason is None:
        return name, preset, pix_fmt
    other = _named(hardware.ON_CPU[name])
    known = preset if preset in PRESETS.get(other, ()) else None
    without = "" if known == preset else f", without --preset {preset}"
    warn(f"{name} does not encode here ({reason}): {other} does{without}")
    if pix_fmt is not None and pix_fmt not in _formats(other):
        pix_fmt = pixels.layout_of(pix_fmt).name
    return other, known, pix_fmt


def _formats(name: str) -> list[str]:
    """The pixel formats that an encoder takes; none if it does not say."""
    return [format.name for format in Codec(name, "w").video_formats or []]


def _exists(name: str) -> bool:
    try:
        return Codec(name, "w").type == "video"
    except UnknownCodecError:
        return False


def _pixel_format(
    name: str, info: VideoInfo, wanted: str | None, supported: list[str], warn: Warn
) -> str:
    """Keep the source's format where the encoder takes it."""
    if wanted is not None:
        if supported and wanted not in supported:
            raise SinkError(f"{name} cannot encode {wanted}, only {', '.join(supported)}")
        return wanted
    native = pixels.name_of(info.format)
    best = pixels.nearest(
        info.format,
        supported or [native],
        width=info.width,
        height=info.height,
        whole_chroma=name in WHOLE_CHROMA,
    )
    if best is None:
        raise SinkError(f"{name} cannot encode {info.width}x{info.height} {native}")
    if best != native:
        reason = "a size that is not even" if native in supported else native
        warn(f"{name} does not take {reason}: encoded as {best}{_hint(name, native, supported)}")
    return best


def _hint(name: str, native: str, supported: list[str]) -> str:
    return " (vp9 and av1 take it)" if native in supported and name in WHOLE_CHROMA else ""


def _options(
    name: str,
    info: VideoInfo,
    *,
    crf: float | None,
    preset: str | None,
    even_times: bool,
    warn: Warn,
) -> dict[str, str]:
    """Quality, speed and HDR, in the encoder's own words."""
    codec = Codec(name, "w")
    known = {option.name for option in codec.create("video").supported_options.private}
    options = dict(FIXED.get(name, {}))
    quality = next((word for word in ("crf", "cq") if word in known), None)
    if quality is not None:
        wanted = CRF.get(name, 18.0) if crf is None else crf
        options[quality] = f"{max(wanted, LEAST.get(quality, 0.0)):g}"
    elif crf is not None:
        warn(f"{name} has no constant rate factor: --crf is ignored")
    elif codec.lossy and name not in ("prores_ks", "prores", "gif"):
        options |= {"flags": "+qscale", "global_quality": str(3 * 118)}  # 118: FF_QP2LAMBDA
    if preset is not None and preset not in PRESETS.get(name, (preset,)):
        raise SinkError(f"{name} has no preset {preset!r}: use {', '.join(PRESETS[name])}")
    if "preset" in known and (preset or name in PRESET):
        options["preset"] = preset or PRESET[name]
    elif preset is not None:
        warn(f"{name} has no presets: --preset is ignored")
    if name == "libx264" and preset is None and info.width * info.height > HUGE:
        options["x264-params"] = SPARING
    if even_times and name in ("libx264", "libx265", "mpeg4"):
        options["bf"] = "0"  # without presentation times, pictures must come in order
    _add_hdr(options, name, info, warn)
    return options


def _add_hdr(options: dict[str, str], name: str, info: VideoInfo, warn: Warn) -> None:
    """Put the HDR10 values into the bitstream; PyAV has no other way to hand them over."""
    words = {
        "libx264": ("x264-params", "mastering-display", "cll"),
        "libx265": ("x265-params", "master-display", "max-cll"),
        "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
    }
    if info.mastering is None and info.content_light is None:
        return
    if name not in words:
        warn(f"{name} cannot carry HDR10's mastering display and light level: they are lost")
        return
    parameter, display, light = words[name]
    parts = [options[parameter]] if parameter in options else []
    if info.mastering is not None:
        parts.append(f"{display}={_mastering_words(info.mastering, whole=name != 'libsvtav1')}")
    if info.content_light is not None:
        parts.append(f"{light}={_light_words(info.content_light)}")
    options[parameter] = ":".join(parts)


def _mastering_words(mastering: Mastering, *, whole: bool) -> str:
    """G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min), as numbers or (`whole`) in the SEI message's units."""
    unit_xy, unit_light = (50000, 10000) if whole else (1, 1)

    def number(value: Fraction, unit: int) -> str:
        return str(round(value * unit)) if whole else f"{float(value):.5f}"

    points = {
        "G": mastering.green,
        "B": mastering.blue,
        "R": mastering.red,
        "WP": mastering.white,
    }
    words = [f"{k}({number(x, unit_xy)},{number(y, unit_xy)})" for k, (x, y) in points.items()]
    most, least = mastering.max_luminance, mastering.min_luminance
    return f"{''.join(words)}L({number(most, unit_light)},{number(least, unit_light)})"


def _light_words(light: ContentLight) -> str:
    return f"{light.max_cll},{light.max_fall}"
