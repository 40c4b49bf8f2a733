"""The command line: parse, call, print.

Everything heavy is imported inside the commands, so that `vdeblur --help` stays instant.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from . import __version__
from .commands import bench, demo, doctor
from .errors import VdeblurError
from .heap import keep_at_hand, share_heaps
from .options import (
    AS_IT_IS,
    DEFAULTS,
    BackendName,
    Border,
    Device,
    Interpolation,
    MotionModel,
    Options,
    Zoom,
)
from .parameters import LENGTH, RATE, SECONDS, SETTINGS, SIZE, Number, Readout, ZoomOrFactor
from .progress import live_line, live_sentence, progress_bar, sentence

if TYPE_CHECKING:
    from .live import LiveProgress, LiveSummary
    from .pipeline import Summary

HEADINGS = ("What to do", "Stabilising", "Deblurring", "Input", "Output", "Live", "Running")

TOLD_ANYHOW = ("motion_in", "motion_out", "plot_motion")
"""Options of the stabiliser that say something without it, too: how the camera moved."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
STOPPING = [
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""What ends a run before its time: Ctrl-C, a plain `kill`, a closed terminal."""

HEADLESS = "if OpenCV asks for it, pip install opencv-python-headless instead of opencv-python"
"""A server often lacks the libraries of OpenCV's windows, which nothing here needs."""

EXTENSIONS = {
    "compile": "Make the model ready for this machine: a faster start.",
    "evaluate": "Measure on clips with a known truth.",
    "ffmpeg-args": "Print what to give to FFmpeg, which runs vdeblur as a filter.",
    "ffmpeg-install": "Build that filter and put it where FFmpeg looks.",
    "train": "Train a model.",
}
"""Commands that other packages bring (entry points "vdeblur.commands"), and what they do."""


def entry() -> None:
    """Run `main` as a program."""
    # Before NumPy is there: its matrices are small here, and its threads would spin on the cores
    # that the decoder and the encoder need.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = main()
    if code > 128:
        # Stopped in the middle: everything of ours is cleared up, but libraries' own threads may
        # still be at work, and Python's orderly end then aborts now and then.
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 (failed), 2 (usage) or 128 + a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    for each in STOPPING:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(each, _stop)
    try:
        _dispatch([word for word in words if word != "--debug"])
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except SystemExit as stop:  # see `_stop`
        return int(stop.code or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        left = str(stop) or ("" if _to_stdout(words) else "nothing was written")
        _say(f"interrupted: {left}" if left else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        _say(f"error: {_one_line(error)}")
        return 1
    return 0


def _to_stdout(words: list[str]) -> bool:
    """Tell whether what was made so far has gone to stdout."""
    return any(
        word in ("-o-", "--output=-") or (word in ("-o", "--output") and after == "-")
        for word, after in zip(words, [*words[1:], ""], strict=True)
    )


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, VdeblurError):
        return message
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space is left to write {error.filename or 'what is to be said'}"
    if isinstance(error, ImportError) and ".so" in message:
        return f"a system library is missing ({message}): {HEADLESS}"
    return f"internal error ({type(error).__name__}: {message}): run again with --debug"


def _stop(number: int, frame: FrameType | None) -> None:
    """End the run, once: a second Ctrl-C must not disturb the clearing up after the first."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _say(message: str) -> None:
    click.echo(f"vdeblur: {message}", err=True)


def _warn(message: str) -> None:
    _say(f"warning: {message}")


def _dispatch(words: list[str]) -> None:
    """Run the command that the first word names, or else the main one with all words."""
    name = words[0] if words else "--help"
    if name in COMMANDS:
        _invoke(COMMANDS[name], f"vdeblur {name}", words[1:])
    elif extension := _extension(name):
        _extend(extension, words[1:])
    else:
        _invoke(run, "vdeblur", words or ["--help"])


def _invoke(command: click.Command, name: str, words: list[str]) -> None:
    with command.make_context(name, words) as context:
        command.invoke(context)


def _extension(name: str) -> EntryPoint | None:
    """Find the command in another package; names of files rarely look like one."""
    if not name.replace("-", "_").isidentifier():
        return None
    return next(iter(entry_points(group="vdeblur.commands", name=name)), None)


def _extend(extension: EntryPoint, words: list[str]) -> None:
    try:
        _invoke(extension.load(), f"vdeblur {extension.name}", words)
    except ModuleNotFoundError as error:
        raise VdeblurError(
            f"'{extension.name}' needs packages that are not here ({error}): "
            f"pip install 'vdeblur[train]'"
        ) from error


class HeadedOption(click.Option):
    """An option that is listed under a heading."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class MainCommand(click.Command):
    """Lists its options under their headings, and the other commands after them."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Name what cannot be left out."""
        return ["INPUT", "-o OUTPUT", "[OPTIONS]"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options."""
        headings: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for option in self.get_params(ctx):
            row = option.get_help_record(ctx)
            if row and isinstance(option, click.Option):
                headings[getattr(option, "heading", HEADINGS[-1])].append(row)
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
        with formatter.section("Other commands (vdeblur COMMAND --help)"):
            own = {name: each.get_short_help_str(limit=90) for name, each in COMMANDS.items()}
            formatter.write_dl(list({**own, **EXTENSIONS}.items()))


_doing = partial(click.option, cls=HeadedOption, heading="What to do")
_stabilizing = partial(click.option, cls=HeadedOption, heading="Stabilising")
_deblurring = partial(click.option, cls=HeadedOption, heading="Deblurring")
_reading = partial(click.option, cls=HeadedOption, heading="Input")
_writing = partial(click.option, cls=HeadedOption, heading="Output")
_live = partial(click.option, cls=HeadedOption, heading="Live")
_running = partial(click.option, cls=HeadedOption, heading="Running")


@click.command(
    "vdeblur",
    cls=MainCommand,
    context_settings=SETTINGS,
)
@click.argument("source", metavar="INPUT")
@_doing("--deblur/--no-deblur", default=DEFAULTS.deblur, help="Filter the blurred blocks.")
@_doing("--stabilize/--no-stabilize", default=DEFAULTS.stabilize, help="Smooth the camera's path.")
@_doing("--show-clusters", is_flag=True, help="Paint over each block what it was taken for.")
@_stabilizing(
    "--lookahead",
    type=click.IntRange(0, 300),
    metavar="FRAMES",
    help="See so far ahead: more is steadier, needs memory and delays.  [default: a file's path "
    "is planned over 3 s; 15 otherwise]",
)
@_stabilizing(
    "--smoothing",
    type=Number(0, 60, min_open=True),
    default=DEFAULTS.smoothing,
    metavar="SECONDS",
    help="Smooth over so long: more is steadier and follows a pan later.",
)
@_stabilizing(
    "--zoom",
    type=ZoomOrFactor(),
    default=str(DEFAULTS.zoom),
    metavar="|".join(("FACTOR", *get_args(Zoom))),
    help="Hide the moving edge: as needed, always by the same, or not at all; auto is adaptive, "
    "and none where --border fill completes the picture. A FACTOR zooms by so much, and what it "
    "does not hide shows.",
)
@_stabilizing(
    "--max-crop",
    type=Number(0, 0.5, min_open=True, max_open=True),
    metavar="0..0.5",
    help="Part of the sides that steadying may cost: more is steadier.  [default: 0.12; 0.3 with a "
    "zoom FACTOR]",
)
@_stabilizing("--camera-lock", is_flag=True, help="Stand still, as on a tripod.")
@_stabilizing(
    "--border",
    type=click.Choice(get_args(Border)),
    default=DEFAULTS.border,
    help="What completes an edge that is not hidden: fill takes it from neighbouring frames.",
)
@_stabilizing(
    "--interpolation",
    type=click.Choice(get_args(Interpolation)),
    default=DEFAULTS.interpolation,
    help="How the moved picture is resampled: bilinear is faster, lanczos sharper and slower.",
)
@_stabilizing(
    "--motion",
    type=click.Choice(get_args(MotionModel)),
    default=DEFAULTS.motion,
    help="How the picture is taken to move: as a whole, as a turning camera sees it (wide angles), "
    "or each part on its own (things near and far).",
)
@_stabilizing(
    "--rolling-shutter",
    type=Readout(),
    default=str(int(DEFAULTS.rolling_shutter)),
    metavar="0..1|auto",
    help="Part of the frame interval in which the sensor's rows are read: undoes the rubber.",
)
@_stabilizing(
    "--field-of-view",
    type=Number(0, 175, min_open=True, max_open=True),
    metavar="DEGREES",
    help="What a wide lens sees from left to right: undoes turns without wobbling edges.",
)
@_stabilizing(
    "--motion-out",
    type=click.Path(path_type=Path),
    metavar="PATH.json",
    help="Write the camera's path and what was done about it, frame by frame.",
)
@_stabilizing(
    "--motion-in",
    type=click.Path(path_type=Path),
    metavar="PATH.json",
    help="Obey such a path, as it is or edited; what has no correction is smoothed anew.",
)
@_stabilizing(
    "--plot-motion",
    type=click.Path(path_type=Path),
    metavar="PATH.png",
    help="Draw the path as filmed and as shown.",
)
@_deblurring(
    "--model",
    default=str(DEFAULTS.model),
    metavar="NAME|PATH",
    help="fast, best, or a model bundle's folder; auto: best on a GPU, else fast.",
)
@_deblurring(
    "--strength",
    type=Number(0, 1),
    default=DEFAULTS.strength,
    metavar="0..1",
    help="How readily blocks are filtered: 0 none, 1 all.",
)
@_deblurring(
    "--device",
    type=click.Choice(get_args(Device)),
    default=DEFAULTS.device,
    help="Where the networks run.",
)
@_deblurring(
    "--backend",
    type=click.Choice(get_args(BackendName)),
    default=DEFAULTS.backend,
    help="What runs them.",
)
@_reading(
    "--start",
    "input_start",
    type=SECONDS,
    default=AS_IT_IS.start,
    metavar="TIME",
    help="Begin so far into INPUT: seconds, or 1:30, or 0:01:30.5.",
)
@_reading(
    "--duration",
    "input_duration",
    type=LENGTH,
    metavar="TIME",
    help="Of INPUT, only so much.  [default: all]",
)
@_reading(
    "--input-format",
    metavar="NAME",
    help="Container or device, as FFmpeg's -f before -i: rawvideo, y4m, nut, ...",
)
@_reading(
    "--input-size",
    "--size",
    type=SIZE,
    metavar="WIDTHxHEIGHT",
    help="Of raw video's frames, or a camera's.",
)
@_reading(
    "--input-rate",
    "--rate",
    type=RATE,
    metavar="FPS",
    help="Of raw video, or a camera; also 30000/1001.  [default: 25, or the camera's]",
)
@_reading(
    "--input-pix-fmt",
    metavar="NAME",
    help="Pixel format of raw video, or a camera.  [default: yuv420p, or the camera's]",
)
@_reading(
    "--hwaccel",
    "input_hwaccel",
    default=AS_IT_IS.hwaccel,
    metavar="NAME|auto|none",
    help="Let the GPU decode (cuda, vaapi, ...), as FFmpeg's -hwaccel.",
)
@_writing(
    "-o",
    "--output",
    "sink",
    metavar="OUTPUT",
    help="File to write; its ending chooses the container. - is stdout, as Y4M.",
)
@_writing(
    "--output-format",
    metavar="NAME",
    help="Container, as FFmpeg's -f: y4m, nut or matroska (with sound), rawvideo, ...",
)
@_writing("-y", "--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@_writing(
    "--codec",
    default="auto",
    metavar="NAME",
    help="Encoder: auto is H.264 for 8 bit and HEVC for more.",
)
@_writing(
    "--crf",
    type=Number(0, 63),
    metavar="N",
    help="Quality of the encoder, lower is better.  [default: visually lossless]",
)
@_writing("--preset", metavar="NAME", help="Speed of the encoder, as FFmpeg calls it.")
@_writing("--pix-fmt", metavar="NAME", help="Pixel format of OUTPUT.  [default: the source's]")
@_live(
    "--latency",
    type=Number(0, 60, min_open=True),
    metavar="SECONDS",
    help="Write frames no later than this after they came; filter less or drop frames for it.  "
    "[default: 0.5 for cameras and broadcasts; files are not live]",
)
@_live("--preview", is_flag=True, help="Show before | after in a window (q closes it).")
@_live("--virtual-camera", is_flag=True, help="Send the video to a virtual camera (pyvirtualcam).")
@_running("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@_running("--json", "as_json", is_flag=True, help="Print the summary as a JSON object.")
@_running("--debug", is_flag=True, expose_value=False, help="Show where an error came from.")
@click.version_option(__version__, message="vdeblur %(version)s")
def run(
    source: str,
    sink: str | None,
    *,
    latency: float | None,
    preview: bool,
    virtual_camera: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the video INPUT steady and sharp, and write it to OUTPUT.

    INPUT is a file, a URL, camera:0 or lavfi:GRAPH. INPUT and OUTPUT may be - for a pipe.

    A file that is called like a command is written ./demo.
    """
    shows = preview or virtual_camera
    if sink is None and not shows:
        raise click.UsageError("Missing option '-o' / '--output'.")
    _refuse_conflicts(options)
    for line in _without_effect(click.get_current_context()):
        _warn(line)
    import cv2

    from .sources import is_live

    # Several stages work side by side: OpenCV's own threads would only stand in their way.
    cv2.setNumThreads(max(1, (os.cpu_count() or 1) // 2))

    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    shown = on_terminal and not quiet
    summary: Summary | LiveSummary
    if latency is not None or shows or is_live(source, options["input_format"]):
        summary = _watch(source, sink, latency, preview, virtual_camera, shown, options)
        told = live_sentence(summary)
    else:
        share_heaps()
        assert sink is not None
        summary = _process(source, sink, shown, options)
        told = sentence(summary)
    to_stderr = sink == "-"  # stdout carries the video and nothing else
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2), err=to_stderr)
    elif not quiet:
        click.echo(told, err=to_stderr)


def _process(source: str, sink: str, shown: bool, options: dict[str, Any]) -> "Summary":
    """A file's run. The networks load while Python still imports the rest."""
    opened, warnings = None, list[str]()

    def tell(line: str) -> None:
        warnings.append(line)
        _warn(line)

    if options["deblur"] and _may_begin(source, sink, overwrite=options["overwrite"]):
        from .backend import open_backend

        # OpenVINO does without its converter, whose import takes twice as long as the rest of it.
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
        names = {name: options[name] for name in ("model", "device", "backend")}
        opened = open_backend(**names, wait=False, warn=tell)
    elif not options["deblur"]:  # beside networks there is no memory to spare
        keep_at_hand()
    from .pipeline import process

    with progress_bar(Path(sink).name, shown=shown) as progress:
        # The options' names are the keywords of `process`.
        summary = process(source, sink, opened=opened, progress=progress, warn=_warn, **options)
    return replace(summary, warnings=(*warnings, *summary.warnings))


def _may_begin(source: str, sink: str, *, overwrite: bool) -> bool:
    """Whether nothing plain is in the way, which would be said later than need be."""
    with suppress(OSError):
        read = source == "-" or ":" in source or Path(source).is_file()
        return read and (sink == "-" or overwrite or not Path(sink).exists())
    return False


def _refuse_conflicts(options: dict[str, Any]) -> None:
    """Say what does not go together before anything is opened."""
    known = {name: value for name, value in options.items() if name in Options.__dataclass_fields__}
    try:
        Options(**known)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _without_effect(context: click.Context) -> Iterator[str]:
    """What was asked of the half of the work that is left out."""
    for half, heading in (("deblur", "Deblurring"), ("stabilize", "Stabilising")):
        if context.params[half]:
            continue
        for option in context.command.params:
            name = str(option.name)
            about = getattr(option, "heading", None) == heading and name not in TOLD_ANYHOW
            if (about or (name, half) == ("show_clusters", "deblur")) and (
                context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            ):
                yield f"{option.opts[0]} does nothing with --no-{half}"


def _watch(
    source: str,
    sink: str | None,
    latency: float | None,
    preview: bool,
    virtual_camera: bool,
    shown: bool,
    options: dict[str, Any],
) -> "LiveSummary":
    """Run live. Ctrl-C ends the recording, the file is complete then; a second one aborts."""
    from .displays import Preview, VirtualCamera
    from .live import LATENCY, Display, watch
    from .options import Input, Output
    from .video import VideoInfo

    for name in ("motion_in", "motion_out", "plot_motion"):
        if options.pop(name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with a live source")
    if options["motion"] != DEFAULTS.motion:
        word = options["motion"]
        raise click.UsageError(f"--motion {word} sees too far ahead for a live source")
    stop = Event()
    displays: list[Callable[[VideoInfo], Display]] = []
    if preview:
        displays.append(partial(Preview, on_close=stop.set))
    if virtual_camera:
        displays.append(VirtualCamera)
    given = {name: options.pop(f"input_{name}") for name in Input.__dataclass_fields__}
    output = {
        name: options.pop("output_format" if name == "format" else name)
        for name in Output.__dataclass_fields__
    }
    begun = Event()

    def tell(progress: "LiveProgress") -> None:
        begun.set()
        if shown:
            live_line(progress)

    with _first_signal(stop, begun):
        return watch(
            source,
            sink,
            latency=LATENCY if latency is None else latency,
            options=Options(**options),
            given=Input(**given),
            output=Output(**output),
            displays=displays,
            stop=stop,
            progress=tell,
            warn=_warn,
        )


@contextmanager
def _first_signal(stop: Event, begun: Event) -> Iterator[None]:
    """Let the first Ctrl-C or `kill` set `stop` only, once there is something to complete."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in STOPPING:
            signal.signal(each, _stop)
        if not begun.is_set():
            _stop(number, frame)
        stop.set()

    for each in STOPPING:
        if signal.getsignal(each) is _stop:
            signal.signal(each, end)
    yield


COMMANDS = {"demo": demo, "doctor": doctor, "bench": bench}
"""What is not the main job."""
