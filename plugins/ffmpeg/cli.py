"""`vdeblur ffmpeg-install`, `vdeblur ffmpeg-args` and the helper that the filter starts."""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur import Options
from vdeblur.cli import run
from vdeblur.errors import SinkError, VdeblurError
from vdeblur.options import DEFAULTS
from vdeblur.parameters import SETTINGS

from . import EXCHANGE
from .layout import BANDS, FORMATS, Bands, layout_of

if TYPE_CHECKING:
    from vdeblur import VideoInfo

SOURCE = Path(__file__).with_name("vdeblur.c")
FOLDER = Path("~/.frei0r-1/lib")
"""Where FFmpeg and GStreamer look in a user's home."""

MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
"""FFmpeg's names of the matrices in H.273 that its scaler knows."""
ROW = 64
"""FFmpeg 5.1 pads rows to 16 pixels, of which a frei0r filter cannot know. Others than those of 64
it copies once more, on some processors, and loses their times."""
RANGES = {1: "limited", 2: "full"}


def _processing() -> list[click.Parameter]:
    """The options of the main command that say what is done to the pictures."""
    known = {field.name for field in fields(Options)}
    return [parameter for parameter in run.params if parameter.name in known]


def parse(words: str) -> Options:
    """Read options as on the command line; VdeblurError says what is wrong."""
    command = click.Command(
        "vdeblur", params=_processing(), add_help_option=False, context_settings=SETTINGS
    )
    try:
        context = command.make_context("vdeblur", shlex.split(words))
        return Options(**context.params)
    except click.ClickException as error:
        raise VdeblurError(f"options {words!r}: {error.format_message()}") from error
    except ValueError as error:
        raise VdeblurError(f"options {words!r}: {error}") from error


@click.command(hidden=True)
@click.argument("width", type=click.IntRange(1))
@click.argument("height", type=click.IntRange(1))
@click.argument("columns")
@click.argument("layout")
@click.argument("options")
def ffmpeg_helper(width: int, height: int, columns: str, layout: str, options: str) -> None:
    """Serve the frei0r filter, which starts this."""
    from .helper import serve

    if columns and not 0 < (int(columns) if columns.isdecimal() else 0) <= width:
        raise VdeblurError(f"columns must be 1..{width}, got {columns!r}")
    seen = int(columns) if columns else None
    serve(width, height, parse(options), layout_of(layout, seen))


@click.command(context_settings=SETTINGS)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    help="Where to put it.",
)
def ffmpeg_install(folder: Path) -> None:
    """Build the frei0r filter and put it where FFmpeg looks."""
    if not sys.platform.startswith("linux"):
        raise VdeblurError("the FFmpeg filter is written for Linux")
    target = folder.expanduser() / "vdeblur.so"
    build(target)
    click.echo(f'{target} is there: eval "ffmpeg $(vdeblur ffmpeg-args INPUT) OUTPUT"')


def build(target: Path) -> None:
    """Compile the filter; it will start its helper with this Python."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        raise VdeblurError(f"there is no C compiler here ({compiler[0]}): install gcc or clang")
    interpreter = sys.executable.replace("\\", "\\\\").replace('"', '\\"')
    part = target.with_suffix(f".{os.getpid()}.part")
    flags = ["-std=c99", "-O2", "-fPIC", "-fvisibility=hidden", "-shared"]
    words = [*compiler, *flags, f'-DVDEBLUR_PYTHON="{interpreter}"', str(SOURCE), "-o", str(part)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            raise SinkError(f"cannot build {target}: {why}")
        part.replace(target)
    except OSError as error:
        raise SinkError(f"cannot write {target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def ffmpeg_args_body(source: str, **chosen: Any) -> None:
    """Print what to give to FFmpeg, so that no frame is late or lost.

    eval "ffmpeg $(vdeblur ffmpeg-args INPUT) OUTPUT"
    """
    from vdeblur import VideoReader

    options = Options(**chosen)
    with VideoReader(source) as reader:
        first = next(iter(reader))
        late = float(first.time - reader.info.start)
        graph = chain(options, reader.info, late=late)
        # FFmpeg would turn the picture before the filter sees it; so the player does, as before.
        turned = ["-noautorotate"] if reader.info.rotation or reader.info.display_matrix else []
        streams = ["-map", f"0:{reader.stream.index}", "-map", shlex.quote("0:a?"), "-c:a", "copy"]
    words = [*turned, "-i", shlex.quote(source), "-vf", shlex.quote(graph), *streams]
    click.echo(" ".join(words))


ffmpeg_args = click.Command(
    "ffmpeg-args",
    params=[click.Argument(["source"], metavar="INPUT"), *_processing()],
    callback=ffmpeg_args_body,
    help=ffmpeg_args_body.__doc__,
    context_settings=SETTINGS,
)


def chain(options: Options, info: "VideoInfo", *, late: float = 0.0) -> str:
    """Write the graph: transparent frames at the end push the last pictures out of the filter.

    `late` is when the video begins, in seconds after the file does.
    """
    from vdeblur.processor import delay_of

    delay = delay_of(options) + EXCHANGE
    bands = _bands(info)
    layout = bands.words() if bands else "420" if info.format.shift_y else "444"
    words = f"{_words(options)}|{delay}|{info.width}|{layout}"
    padded = -(-info.width // ROW) * ROW
    steps = [
        _as_bands(bands, padded) if bands else _as_pixels(info, padded),
        f"tpad=stop={delay}:stop_mode=add:color=black@0",
        f"frei0r=filter_name=vdeblur:filter_params={_escaped(words)}",
        f"trim=start_frame={delay}",
        "setpts=PTS-STARTPTS" + (f"+{late:.6f}/TB" if late > 0 else ""),
        _from_bands(bands) if bands else _from_pixels(info, padded),
        _tags(info),
    ]
    return ",".join(step for step in steps if step)


def _bands(info: "VideoInfo") -> Bands | None:
    """How the video's planes can be handed over as they are, if they can."""
    format = FORMATS.get(info.pix_fmt.replace("yuvj", "yuv"))
    if format is None:
        return None
    uneven = (info.width & format.shift_x) | (info.height & format.shift_y)
    return None if uneven else Bands(format, info.width, info.height)


def _as_bands(bands: Bands, padded: int) -> str:
    """Steps that lay the planes on a sheet and make its four bands the channels of a picture."""
    rows = bands.rows
    below = "[u][v]hstack[c];[y][c]vstack" if bands.format.shift_x else "[y][u][v]vstack=inputs=3"
    cut = [f"crop={padded}:{rows}:0:{rows * band}" for band in range(BANDS)]
    return ";".join(
        [
            "extractplanes=y+u+v[y][u][v]",
            f"{below},pad={padded}:{BANDS * rows}:0:0,split=4[k][l][m][n]",
            *(f"[{old}]{step}[{new}]" for old, step, new in zip("klmn", cut, "bgra", strict=True)),
            # The planes of FFmpeg's planar RGB are G, B, R and A.
            f"[g][b][r][a]{_merged(4)}:format=gbrap,format=bgra",
        ]
    )


def _from_bands(bands: Bands) -> str:
    """The way back."""
    name = bands.words().partition(" ")[0]
    cut = [f"crop={p.width}:{p.height}:{p.x}:{p.y}" for p in bands.places()]
    return ";".join(
        [
            "extractplanes=r+g+b+a[r][g][b][a]",
            "[b][g][r][a]vstack=inputs=4,split=3[k][l][m]",
            *(f"[{old}]{step}[{new}]" for old, step, new in zip("klm", cut, "yuv", strict=True)),
            f"[y][u][v]{_merged(3)}:format={name}",
        ]
    )


def _merged(count: int) -> str:
    """One plane of each of so many inputs."""
    return "mergeplanes=" + ":".join(f"map{index}s={index}" for index in range(count))


def _as_pixels(info: "VideoInfo", padded: int) -> str:
    """Steps to BGRA."""
    return "format=bgra" + f",pad={padded}:{info.height}:0:0" * (padded != info.width)


def _from_pixels(info: "VideoInfo", padded: int) -> str:
    """From BGRA to the source's own format and colours; the filter has no more than 8 bits."""
    from vdeblur.pixels import name_of

    scaler = {
        "out_color_matrix": MATRICES.get(info.colors.matrix),
        "out_range": RANGES.get(info.colors.range),
    }
    steps = [
        f"crop={info.width}:{info.height}:0:0" * (padded != info.width),
        _step("scale", scaler),
        f"format={name_of(replace(info.format, depth=8))}",
    ]
    return ",".join(step for step in steps if step)


def _tags(info: "VideoInfo") -> str:
    """What is said of the colours."""
    colors = info.colors
    tags = {
        "range": colors.range or None,
        "color_primaries": _said(colors.primaries),
        "color_trc": _said(colors.transfer),
        "colorspace": _said(colors.matrix),
    }
    return _step("setparams", tags)


def _said(number: int) -> int | None:
    """A number of H.273, unless it stands for nothing."""
    return number if number not in (0, 2) else None


def _step(name: str, values: dict[str, Any]) -> str:
    """An FFmpeg filter with those of its options that are not None; nothing without any."""
    known = ":".join(f"{key}={value}" for key, value in values.items() if value is not None)
    return f"{name}={known}" if known else ""


def _words(options: Options) -> str:
    """Write what differs from the defaults as on the command line."""
    words = []
    for parameter in _processing():
        value = getattr(options, str(parameter.name))
        if value == getattr(DEFAULTS, str(parameter.name)):
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            words += [parameter.opts[0], shlex.quote(str(value))]
    return " ".join(words)


def _escaped(text: str) -> str:
    """As a value in a graph of FFmpeg, which reads it twice: the graph, then the options."""
    for special in ("\\':", "\\'[],;"):
        text = "".join("\\" * (letter in special) + letter for letter in text)
    return text
