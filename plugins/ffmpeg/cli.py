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

if TYPE_CHECKING:
    from vdeblur import VideoInfo

SOURCE = Path(__file__).with_name("vdeblur.c")
FOLDER = Path("~/.frei0r-1/lib")
"""Where FFmpeg and GStreamer look in a user's home."""

MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
"""FFmpeg's names of the matrices in H.273 that its scaler knows."""
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
@click.argument("chroma", type=click.Choice(["", "444", "420"]))
@click.argument("options")
def ffmpeg_helper(width: int, height: int, columns: str, chroma: str, options: str) -> None:
    """Serve the frei0r filter, which starts this."""
    from .helper import serve

    if columns and not 0 < (int(columns) if columns.isdecimal() else 0) <= width:
        raise VdeblurError(f"columns must be 1..{width}, got {columns!r}")
    serve(
        width,
        height,
        parse(options),
        columns=int(columns or width),
        chroma="420" if chroma == "420" else "444",
    )


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
    click.echo(" ".join(["-i", shlex.quote(source), "-vf", shlex.quote(graph), "-c:a", "copy"]))


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
    delay = options.delay + EXCHANGE
    # FFmpeg 5.1 pads rows to 64 bytes, of which a frei0r filter cannot know.
    padded = -(-info.width // 16) * 16
    uneven = padded != info.width
    halved = info.format.planes == 3 and info.format.shift_y
    words = f"{_words(options)}|{delay}|{info.width}|{420 if halved else 444}"
    steps = [
        "format=bgra",
        *[f"pad={padded}:{info.height}:0:0"] * uneven,
        f"tpad=stop={delay}:stop_mode=add:color=black@0",
        f"frei0r=filter_name=vdeblur:filter_params={_escaped(words)}",
        f"trim=start_frame={delay}",
        *[f"crop={info.width}:{info.height}:0:0"] * uneven,
        "setpts=PTS-STARTPTS" + (f"+{late:.6f}/TB" if late > 0 else ""),
        *_back(info),
    ]
    return ",".join(steps)


def _back(info: "VideoInfo") -> list[str]:
    """From BGRA to the source's own format and colours; the filter has no more than 8 bits."""
    from vdeblur.pixels import name_of

    colors = info.colors
    scaler = {
        "out_color_matrix": MATRICES.get(colors.matrix),
        "out_range": RANGES.get(colors.range),
    }
    tags = {
        "range": colors.range or None,
        "color_primaries": _said(colors.primaries),
        "color_trc": _said(colors.transfer),
        "colorspace": _said(colors.matrix),
    }
    steps = [_step("scale", scaler), f"format={name_of(replace(info.format, depth=8))}"]
    return [step for step in [*steps, _step("setparams", tags)] if step]


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
