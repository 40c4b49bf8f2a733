"""From source to sink: a file goes through the chain of stages.

source - decode - motion | align - embed | filter - merge | overlay - warp | encode - sink
         a thread          a thread        a thread         the caller's     a thread
"""

import logging
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

from .backend import Backend
from .behind import Behind
from .errors import SinkError, SourceError
from .frame import Frame
from .info import VideoInfo
from .motionfile import PathRecorder
from .options import (
    AS_IT_IS,
    DEFAULTS,
    BackendName,
    Border,
    Device,
    Input,
    Interpolation,
    MotionModel,
    Options,
    Zoom,
)
from .priority import giving_way
from .processor import DEPTH, Processor
from .sinks import checked
from .stabilize import PLAN_AHEAD
from .timing import measured
from .video import VideoReader, VideoWriter

logger = logging.getLogger(__name__)

HELD, HELD_BESIDE_NETWORK = 300_000_000, 64_000_000
"""Bytes of the pictures that may wait in memory until a file's path is planned."""
AHEAD = 20_000_000
"""Bytes of the pictures that one thread may be ahead of another: of huge ones it is one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    frames: int
    """Frames handed to the encoder."""
    total: int
    """An estimate; 0 if unknown."""
    seconds: float
    filtered: float
    """Share of the blocks that were filtered, 0..1."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did."""

    source: str
    sink: str
    width: int
    height: int
    frames: int
    seconds: float
    """From opening the source to the complete file."""
    fps: float
    milliseconds: dict[str, float]
    """Per frame, of each stage; stages run side by side, so that their sum exceeds the whole."""
    clusters: tuple[float, ...]
    """Share of the blocks in each cluster; cluster 0 is the clear one, which is left alone."""
    filtered: float
    """Share of the blocks that were filtered, 0..1."""
    memory_mb: float
    """The most memory that this process ever had."""
    backend: str | None
    """What ran the networks; `None` if nothing did."""
    warnings: tuple[str, ...]


def process(
    source: str | Path,
    sink: str | Path,
    *,
    deblur: bool = DEFAULTS.deblur,
    stabilize: bool = DEFAULTS.stabilize,
    model: str | Path = DEFAULTS.model,
    strength: float = DEFAULTS.strength,
    lookahead: int | None = DEFAULTS.lookahead,
    smoothing: float = DEFAULTS.smoothing,
    zoom: Zoom | float = DEFAULTS.zoom,
    max_crop: float | None = DEFAULTS.max_crop,
    camera_lock: bool = DEFAULTS.camera_lock,
    border: Border = DEFAULTS.border,
    interpolation: Interpolation = DEFAULTS.interpolation,
    motion: MotionModel = DEFAULTS.motion,
    rolling_shutter: float | Literal["auto"] = DEFAULTS.rolling_shutter,
    field_of_view: float | None = DEFAULTS.field_of_view,
    motion_in: str | Path | None = None,
    motion_out: str | Path | None = None,
    plot_motion: str | Path | None = None,
    device: Device = DEFAULTS.device,
    backend: BackendName = DEFAULTS.backend,
    show_clusters: bool = DEFAULTS.show_clusters,
    input_format: str | None = None,
    input_size: tuple[int, int] | None = None,
    input_rate: str | Fraction | None = None,
    input_pix_fmt: str | None = None,
    input_hwaccel: str = AS_IT_IS.hwaccel,
    input_start: float = AS_IT_IS.start,
    input_duration: float | None = AS_IT_IS.duration,
    output_format: str | None = None,
    codec: str = "auto",
    crf: float | None = None,
    preset: str | None = None,
    pix_fmt: str | None = None,
    overwrite: bool = False,
    opened: Backend | None = None,
    progress: Callable[[Progress], None] | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> Summary:
    """Read the video `source`, make it steady and sharp, and write it to `sink`.

    The source is a file, a URL or `-` for stdin, the sink a file or `-` for stdout.
    `Options` explains most keywords, `Input` those that begin with `input_`, `VideoWriter` `codec`
    to `output_format`. `motion_out` is where the camera's path is written (see `motionfile`),
    `plot_motion` where it is drawn (PNG). Networks that are `opened` already (`open_backend`) serve
    one video after the other, in the place of those that the options name. `warn` gets one line for
    whatever went otherwise than asked, from any thread. After an exception nothing is left under
    the sink's name.
    """
    options = Options(
        deblur=deblur,
        stabilize=stabilize,
        model=model,
        strength=strength,
        lookahead=lookahead,
        smoothing=smoothing,
        zoom=zoom,
        max_crop=max_crop,
        camera_lock=camera_lock,
        border=border,
        interpolation=interpolation,
        motion=motion,
        rolling_shutter=rolling_shutter,
        field_of_view=field_of_view,
        motion_in=Path(motion_in) if motion_in else None,
        device=device,
        backend=backend,
        show_clusters=show_clusters,
    )
    given = Input(
        format=input_format,
        size=input_size,
        rate=input_rate,
        pix_fmt=input_pix_fmt,
        hwaccel=input_hwaccel,
        start=input_start,
        duration=input_duration,
    )
    recorder = PathRecorder() if motion_out or plot_motion else None
    kept = [Path(each) for each in (motion_out, plot_motion) if each]
    run = _Run(progress, warn)
    with VideoReader(source, given=given, warn=run.warn) as reader:
        _check_apart([Path(sink), *kept], reader, overwrite=overwrite)
        writer = VideoWriter(
            sink,
            reader,
            format=output_format,
            codec=codec,
            crf=crf,
            preset=preset,
            pix_fmt=pix_fmt,
            overwrite=overwrite,
            warn=run.warn,
        )
        size = (reader.info.height, reader.info.width)
        with (
            Processor(
                options, recorder=recorder, opened=opened, size=size, warn=run.warn
            ) as processor,
            _scout(reader, given, processor) as (scout, held),
        ):
            keep = partial(_keep, recorder, motion_out, plot_motion, overwrite=overwrite)
            run.copy(reader, writer, processor, scout=scout, held=held, keep=keep)
            return run.summary(reader, writer, processor)


def _check_apart(sinks: list[Path], reader: VideoReader, *, overwrite: bool) -> None:
    """Raise SinkError where what is kept beside the video (the first) would replace something."""
    video, *kept = sinks
    for path in kept:
        if str(path) == "-":
            raise SinkError("the camera's path cannot go to stdout: name a file")
        checked(path, reader.source.path, overwrite=overwrite)
    places = [os.path.realpath(path) for path in sinks if str(path) != "-"]
    if len(set(places)) < len(places):
        raise SinkError(f"{video} and what is told of the camera's path need names of their own")


def _keep(
    recorder: PathRecorder | None,
    motion_out: str | Path | None,
    plot_motion: str | Path | None,
    *,
    overwrite: bool,
) -> None:
    """Write what was recorded of the camera's path."""
    if recorder is None:
        return
    if motion_out:
        recorder.path.write(Path(motion_out), overwrite=overwrite)
    if plot_motion:
        from .plot import plot  # few runs draw

        plot(recorder.path, Path(plot_motion), overwrite=overwrite)


@contextmanager
def _scout(
    reader: VideoReader, given: Input, processor: Processor
) -> Iterator[tuple[Iterator[Frame] | None, int]]:
    """How the path of a file is planned ahead: by the frames once more, or by holding so many.

    Neither where it is not wanted. Decoding twice takes time and holding takes memory.
    """
    options, backend = processor.options, processor.backend
    path = reader.source.path  # None for a pipe, a camera, a URL
    asked = options.stabilize and options.motion_in is None and options.lookahead is None
    if not asked or path is None or not path.is_file():
        yield None, 0
    elif (most := _holdable(reader, options)) >= PLAN_AHEAD * reader.info.rate:
        yield None, most
    else:
        # A decoder holds a picture per thread; where the CPU runs networks, one is quick enough.
        slow = backend is not None and backend.device == "cpu"
        threads = 1 if slow and _depth(reader.info) == 1 else 0
        opened = partial(VideoReader, path, given=given, threads=threads, warn=logger.debug)
        with giving_way(opened) as second:  # it is far ahead
            yield _pictures(second), 0


def _holdable(reader: VideoReader, options: Options) -> int:
    """Frames whose pictures may wait in memory, beside a network or without one."""
    room = HELD_BESIDE_NETWORK if options.deblur else HELD
    return room // _picture_bytes(reader.info)


def _depth(info: VideoInfo) -> int:
    """Frames that one thread may be ahead of another."""
    return min(max(AHEAD // _picture_bytes(info), 1), DEPTH)


def _picture_bytes(info: VideoInfo) -> int:
    samples = info.width * info.height
    if info.format.planes > 1:
        samples += 2 * (samples >> (info.format.shift_x + info.format.shift_y))
    return samples * info.format.dtype.itemsize


def _pictures(reader: VideoReader) -> Iterator[Frame]:
    """Its frames alone."""
    for frame in reader:
        reader.packets.clear()
        yield frame


class _Run:
    """One call of `process`: what it counts and whom it tells."""

    def __init__(
        self, progress: Callable[[Progress], None] | None, warn: Callable[[str], None]
    ) -> None:
        self._progress, self._warn = progress, warn
        self._start = perf_counter()
        self._frames = 0
        self._warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Pass a warning on, and keep it for the summary."""
        self._warnings.append(message)
        self._warn(message)

    def copy(
        self,
        reader: VideoReader,
        writer: VideoWriter,
        processor: Processor,
        *,
        scout: Iterable[Frame] | None,
        held: int,
        keep: Callable[[], None],
    ) -> None:
        """Move all frames from the reader through the processor to the writer.

        `keep` is called behind the last one, before the file gets its name.
        """
        seconds, depth = processor.seconds, _depth(reader.info)
        # The order of `with` is the order of ending, from the inside out: both threads have ended
        # when the writer completes the file, or removes it because of an exception.
        with (
            timed_exit(writer, "encode", seconds),
            closing(
                processor.run(
                    decoded(iter(reader), seconds),
                    depth=depth,
                    release=reader.release,
                    scout=scout,
                    held=held,
                )
            ) as frames,
            Behind(_encoder(writer, seconds), depth=depth) as behind,
            _released(writer),
        ):
            for frame in frames:
                behind.put(frame)
                self._count(reader.info.frames, processor)
            if not self._frames:
                raise SourceError(f"{reader.source.name}: there is no frame that could be decoded")
            keep()

    def _count(self, total: int, processor: Processor) -> None:
        self._frames += 1
        if self._progress is not None:
            seconds = perf_counter() - self._start
            filtered = filtered_share(processor.clusters)
            self._progress(Progress(self._frames, total, seconds, filtered))

    def summary(self, reader: VideoReader, writer: VideoWriter, processor: Processor) -> Summary:
        """Everything that is known when the file is complete."""
        seconds = perf_counter() - self._start
        per_frame = 1000 / self._frames
        return Summary(
            source=reader.source.name,
            sink=writer.sink.name,
            width=reader.info.width,
            height=reader.info.height,
            frames=self._frames,
            seconds=seconds,
            fps=self._frames / seconds,
            milliseconds={stage: spent * per_frame for stage, spent in processor.seconds.items()},
            clusters=processor.clusters,
            filtered=filtered_share(processor.clusters),
            memory_mb=peak_memory(),
            backend=processor.backend.name if processor.backend else None,
            warnings=tuple(self._warnings),
        )


@contextmanager
def _released(writer: VideoWriter) -> Iterator[None]:
    """After an exception let no thread wait for the reader of a pipe."""
    try:
        yield
    except BaseException:
        writer.release()
        raise


@contextmanager
def timed_exit(writer: VideoWriter, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """The writer's `with`, its end measured: an encoder does much of its work when flushed."""
    with ExitStack() as stack, writer:
        yield
        stack.enter_context(measured(name, seconds))  # left after the writer is


def decoded(frames: Iterator[Frame], seconds: dict[str, float]) -> Iterator[Frame]:
    """The frames of a reader, and how long each takes it."""
    while True:
        with measured("decode", seconds):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _encoder(writer: VideoWriter, seconds: dict[str, float]) -> Callable[[Frame], None]:
    def encode(frame: Frame) -> None:
        with measured("encode", seconds):
            writer.write(frame)

    return encode


def filtered_share(clusters: Sequence[float]) -> float:
    """The share of all blocks that are not in the clear cluster, 0..1."""
    return 1 - clusters[0] if clusters else 0.0


def peak_memory() -> float:
    """In MB (10**6 bytes): the largest resident set that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
