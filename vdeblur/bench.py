"""Measure on this machine: each stage alone, the whole pipeline, other backends, and peers."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import exp
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, cast

import numpy as np

from .backend import GPU_BACKENDS, Backend, available_backends, chosen_model, open_backend
from .bundle import Bundle, read_bundle
from .change import ALONE, BEFORE_ANOTHER, Cascade, Labels, change_of
from .clusters import CLEAR, Clusters
from .cpu import this_cpu
from .errors import DeviceError, VdeblurError
from .found import Floats, Found
from .frame import Frame, Motion, through
from .motion import MotionStage
from .options import DEFAULTS, BackendName, Device, Options
from .peers import Cost, compared, ffmpeg_peers, reason, timed
from .pipeline import decoded, filtered_share, timed_exit
from .processor import Processor
from .restore import Restorer
from .timing import measured
from .video import VideoReader, VideoWriter

NETWORK = ("embed", "filter")
"""What a backend does begins so."""
RESTORE = ("align", "embed", "assign", "lay", "gather", "filter", "merge")
"""What the restore stage does begins so."""
COMPARED = 12
"""Frames that the backends are compared on."""
LEARNT = 60
"""Frames from which it is learnt where to draw the line for a wanted share."""


@dataclass(frozen=True, slots=True)
class Alone:
    """Stages run one after the other, networks on all cores, as in the pipeline."""

    milliseconds: dict[str, float]
    """Per frame."""
    device: str
    """'cpu' or 'cuda'."""
    filtered: float
    """Share of the blocks that were filtered, 0..1."""
    multiply_adds: float
    """Of the networks, per luma pixel."""

    @property
    def restore(self) -> float:
        """Milliseconds a frame of the restore stage."""
        return _sum(self.milliseconds, RESTORE)

    @property
    def network(self) -> float:
        """Milliseconds a frame of the backend."""
        return _sum(self.milliseconds, NETWORK)


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over several runs."""

    width: int
    height: int
    frames: int
    repeats: int
    machine: str
    cores: int
    device: str
    backend: str | None
    fps: float
    """From opening the source to the complete file, loading the model included."""
    overhead: float
    """The pipeline's time a frame over that of its slowest resource: the busiest thread by itself,
    or all cores fully used; start-up counts as the pipeline's."""
    first_frame: float
    """Seconds from starting the program to the first frame in a pipe."""
    filtered: float
    """Share of the blocks that were filtered, 0..1."""
    memory_mb: float
    """The most of one run, by itself in a process."""
    milliseconds: dict[str, float]
    """Per frame, of each stage in the pipeline, waiting for a core included."""
    alone: Alone
    shares: dict[str, Alone]
    """With no block filtered and with all of them."""
    backends: dict[str, Alone]
    peers: dict[str, Cost]


def measure(
    source: Path | None = None,
    *,
    width: int = 1280,
    height: int = 720,
    frames: int = 60,
    repeats: int = 3,
    blurred: float | None = None,
    deblur: bool = DEFAULTS.deblur,
    stabilize: bool = DEFAULTS.stabilize,
    model: str | Path = DEFAULTS.model,
    peers: bool = False,
) -> Timing:
    """Measure on `source`, or on a rendered clip of `frames` frames.

    `blurred` is the share of the blocks, 0..1, that is filtered: those that the model takes for
    the most blurred, however blurred they are. `None` lets the model decide.
    """
    with TemporaryDirectory(prefix="vdeblur-bench-") as name:
        folder = Path(name)
        clip = source or _rendered(folder / "clip.mp4", width, height, frames)
        options = Options(deblur=deblur, stabilize=stabilize, model=model)
        if deblur and blurred is not None:
            options = with_share(options, clip, blurred, folder / "model")
        return _measured(clip, options, folder, repeats, peers=peers)


def _measured(clip: Path, options: Options, folder: Path, repeats: int, *, peers: bool) -> Timing:
    own = _command(clip, options)
    runs = [_run([*own, "-o", str(folder / "fixed.mp4"), "-y", "--json"]) for _ in range(repeats)]
    summaries = [summary for summary, _ in runs]
    first = summaries[0]
    alone = _median_alone(clip, options, folder, repeats)
    fps = median(each["fps"] for each in summaries)
    cpu_seconds = median(cost.cpu_seconds for _, cost in runs) / first["frames"]
    return Timing(
        width=first["width"],
        height=first["height"],
        frames=first["frames"],
        repeats=repeats,
        machine=this_cpu().name,
        cores=this_cpu().cores,
        device=alone.device,
        backend=first["backend"],
        fps=fps,
        overhead=1 / fps / max(_busiest(alone.milliseconds), cpu_seconds / this_cpu().cores),
        first_frame=median(_first_frame(own) for _ in range(repeats)),
        filtered=first["filtered"],
        memory_mb=max(each["memory_mb"] for each in summaries),
        milliseconds={
            stage: median(each["milliseconds"].get(stage, 0.0) for each in summaries)
            for stage in first["milliseconds"]
        },
        alone=alone,
        shares=_shares(clip, options, folder, repeats) if options.deblur else {},
        backends=_backends(clip, options, folder) if options.deblur else {},
        peers=_peers(clip, options, folder, repeats) if peers else {},
    )


def _rendered(clip: Path, width: int, height: int, frames: int) -> Path:
    """Render in another process, so that this one's memory stays small."""
    command = [sys.executable, "-m", "vdeblur", "demo", str(clip)]
    options = {
        "--seconds": frames / 30,
        "--size": f"{width}x{height}",
        "--blur": width / 128,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise VdeblurError(f"cannot render a clip: {reason(done)}")
    return clip


def with_share(options: Options, clip: Path, share: float, folder: Path) -> Options:
    """Options with which that share of the clip's blocks is filtered.

    0 and 1 are strengths. Between them, a copy of the model draws the line elsewhere.
    """
    if share in (0, 1):
        return replace(options, strength=float(share))
    bundle = read_bundle(chosen_model(options.model))
    shutil.copytree(bundle.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= _line(bundle, clip, options, share)
    if bundle.first is not None:  # it may lie beside the folder
        config["first"] = str(bundle.first.folder.resolve())
    (folder / "config.json").write_text(json.dumps(config))
    return replace(options, model=folder)


def _line(bundle: Bundle, clip: Path, options: Options, share: float) -> dict[str, Any]:
    """What a bundle's config.json must say for that share of the blocks to be filtered.

    What a blurred cluster's share of a block must be for it to be filtered is moved until so many
    are, and then, where a first stage tries them, by how much it must change what passes.
    """
    trying = _Trying(open_backend(options.model), strength=1.0)
    with VideoReader(clip) as reader:  # none of the first frames' blocks is taken for clear
        for _ in through(trying, through(MotionStage(), islice(reader, LEARNT))):
            pass
    alone = bundle.first is None

    def given(clusters: Clusters) -> list[tuple[Labels, Labels, Floats]]:
        labels = _labels(clusters, trying.latents, options)
        doubted = max(options.strength, (ALONE if alone else BEFORE_ANOTHER).doubted)
        suited = [clusters.assign(each, strength=doubted) for each in trying.latents]
        return list(zip(labels, suited, trying.changes, strict=True))

    def filtered(bias: float) -> float:
        clusters = _biased(bundle.clusters, bias)
        if alone and bundle.min_change is not None:
            return _filtered(_passed(bundle.min_change, given(clusters), alone=True))
        return _filtered(_labels(clusters, trying.latents, options))

    clusters = _biased(bundle.clusters, _bisected(filtered, share, (-100.0, 100.0)))
    line: dict[str, Any] = {"biases": clusters.biases.tolist()}
    if not alone and bundle.min_change is not None:
        seen = given(clusters)
        least = _bisected(lambda log: _filtered(_passed(exp(log), seen)), share, (-20.0, 10.0))
        line["min_change"] = exp(least)
    return line


def _bisected(share_of: Callable[[float], float], share: float, ends: tuple[float, float]) -> float:
    """Where a share that falls between the `ends` is as wanted."""
    low, high = ends
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if share_of(middle) > share else (low, middle)
    return high


def _biased(clusters: Clusters, more: float) -> Clusters:
    """The same clusters, but the blurred ones need so much more, in their logits."""
    biases = np.broadcast_to(clusters.biases, len(clusters)).astype(np.float32)
    biases[CLEAR + 1 :] += np.float32(more)
    return replace(clusters, biases=biases)


def _labels(clusters: Clusters, latents: Sequence[Floats], options: Options) -> list[Labels]:
    """Of the blocks of frames (rows, columns, D), one after the other."""
    labels: list[Labels] = []
    for each in latents:
        before = labels[-1] if labels else None
        labels.append(clusters.assign(each, strength=options.strength, before=before))
    return labels


def _passed(
    least: float, given: Iterable[tuple[Labels, Labels, Floats]], *, alone: bool = False
) -> list[Labels]:
    """What passes of frames' labels, what suits their blocks and what the first stage changed.

    A stage `alone` asks only what it is in doubt about how much it has changed.
    """
    cascade, passed = Cascade(least, ALONE if alone else BEFORE_ANOTHER), list[Labels]()
    for labels, suited, change in given:
        asked = np.where(labels == CLEAR, change, np.inf) if alone else change
        passed.append(cascade.passed(cascade.tried(labels, suited), asked))
    return passed


def _filtered(labels: Sequence[Labels]) -> float:
    """The share of the blocks that are not clear."""
    return sum(map(np.count_nonzero, labels)) / sum(each.size for each in labels)


class _Trying(Restorer):
    """Keeps what is found out about all blocks, and restores no further than that needs."""

    def __init__(self, backend: Backend, *, strength: float) -> None:
        super().__init__(backend, strength=strength)
        self.latents: list[Floats] = []
        self.changes: list[Floats] = []

    def _assign(self, latents: Floats, motion: Motion | None) -> Labels:
        self.latents.append(latents.copy())
        return super()._assign(latents, motion)

    def _restored(self, found: Found) -> list[Frame]:
        if self._cascade is not None and not found.stands_still:
            self.changes.append(change_of(found.frame, self._filters.restored(found)))
        return []


def _command(clip: Path, options: Options) -> list[str]:
    """The program as a user calls it, without its output."""
    words = [sys.executable, "-m", "vdeblur", "-q", str(clip), "--strength", str(options.strength)]
    words += ["--model", str(options.model)]
    words += [] if options.deblur else ["--no-deblur"]
    return words + ([] if options.stabilize else ["--no-stabilize"])


def _run(command: list[str]) -> tuple[dict[str, Any], Cost]:
    """What the program says of its run, and what it took."""
    with TemporaryDirectory(prefix="vdeblur-bench-") as name:
        told = Path(name) / "summary.json"
        cost = timed(f"{shlex.join(command)} > {shlex.quote(str(told))}")
        return json.loads(told.read_text()), cost


def _first_frame(command: list[str]) -> float:
    """Seconds until the first whole frame comes out of the program, started anew."""
    start = perf_counter()
    program = subprocess.Popen(
        [*command, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert program.stdout is not None
    with program, program.stdout as stream:
        header = stream.readline().split()
        width, height = (int(word[1:]) for word in header[1:3])
        stream.read(len(b"FRAME\n") + width * height)
        seconds = perf_counter() - start
        program.kill()
    return seconds


def _median_alone(clip: Path, options: Options, folder: Path, repeats: int) -> Alone:
    runs = [_alone(clip, options, folder) for _ in range(repeats)]
    stages = {
        stage: median(run.milliseconds.get(stage, 0.0) for run in runs)
        for stage in runs[0].milliseconds
    }
    return replace(runs[0], milliseconds=stages)


def _alone(clip: Path, options: Options, folder: Path, *, frames: int | None = None) -> Alone:
    """Run the stages on the first `frames`, one stage after the other."""
    with (
        VideoReader(clip) as reader,
        Processor(options) as processor,
    ):
        seconds = processor.seconds
        writer = VideoWriter(folder / "alone.mp4", reader, overwrite=True)
        with timed_exit(writer, "encode", seconds):
            count = _pass(islice(reader, frames), processor, writer)
        backend, clusters = processor.backend, processor.clusters
        cost = 0.0 if backend is None else backend.bundle.multiply_adds(processor.shares)
    milliseconds = {stage: 1000 * spent / count for stage, spent in seconds.items()}
    device = "cpu" if backend is None else backend.device
    return Alone(milliseconds, device, filtered_share(clusters), cost)


def _pass(frames: Iterator[Frame], processor: Processor, writer: VideoWriter) -> int:
    """Move all frames through, after the networks have had one to warm up; return their number."""
    count, seconds = 0, processor.seconds
    for frame in decoded(frames, seconds):
        if not count:
            processor.warm_up(frame)
            seconds.clear()
        count += 1
        _write(processor.push(frame), writer, seconds)
    _write(processor.flush(), writer, seconds)
    return count


def _write(frames: list[Frame], writer: VideoWriter, seconds: dict[str, float]) -> None:
    for frame in frames:
        with measured("encode", seconds):
            writer.write(frame)


def _busiest(milliseconds: dict[str, float]) -> float:
    """Seconds a frame of the thread that has most to do, alone."""
    threads = [
        ("decode", "motion", "rolling", "plan"),
        ("align", "embed", "assign"),
        ("lay", "gather", "filter", "merge"),
        ("overlay", "warp"),
        ("encode",),
    ]
    return max(_sum(milliseconds, names) for names in threads) / 1000


def _sum(milliseconds: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(spent for stage, spent in milliseconds.items() if stage.split()[0] in names)


def _shares(clip: Path, options: Options, folder: Path, repeats: int) -> dict[str, Alone]:
    """The same with nothing to filter and with everything."""
    return {
        name: _median_alone(clip, replace(options, strength=strength), folder, repeats)
        for name, strength in (("none", 0.0), ("all", 1.0))
    }


def _backends(clip: Path, options: Options, folder: Path) -> dict[str, Alone]:
    """The backends that are here, on the clip's first frames."""
    found = {}
    for each in available_backends():
        if not each.available:
            continue
        device: Device = "cuda" if each.name in ("torch", *GPU_BACKENDS) else "cpu"
        chosen = replace(
            options, backend=cast(BackendName, each.name), device=device, stabilize=False
        )
        try:
            found[each.name] = _alone(clip, chosen, folder, frames=COMPARED)
        except DeviceError:  # there is no GPU
            continue
    return found


def _peers(clip: Path, options: Options, folder: Path, repeats: int) -> dict[str, Cost]:
    """Whole commands of others beside ours, in turn."""
    ending = ["-o", str(folder / "own.mp4"), "-y"]
    own = {
        "vdeblur": shlex.join([*_command(clip, options), *ending]),
        "vdeblur --no-deblur": shlex.join(
            [*_command(clip, replace(options, deblur=False)), *ending]
        ),
    }
    return compared(ffmpeg_peers(clip, folder) | own, repeats=repeats)


def in_words(timing: Timing) -> str:
    """A page in Markdown."""
    return "\n".join(
        [
            f"{timing.width}x{timing.height}, {timing.frames} frames, median of {timing.repeats}, "
            f"{timing.backend or 'no filters'} on {timing.device}; {timing.machine}, "
            f"{timing.cores} cores",
            "",
            *_table(
                ("pipeline", ""),
                [
                    ("frames/s, from opening to complete file", f"{timing.fps:.1f}"),
                    ("of its slowest resource's time a frame", f"{timing.overhead:.2f}"),
                    ("blocks filtered", f"{timing.filtered:.0%}"),
                    ("multiply-adds a pixel", f"{timing.alone.multiply_adds / 1000:.1f} k"),
                    ("first frame after", f"{timing.first_frame:.2f} s"),
                    ("memory at most", f"{timing.memory_mb:.0f} MB"),
                ],
            ),
            *_table(
                ("stage", "alone, ms a frame", "in the pipeline"),
                [
                    (
                        stage,
                        _number(timing.alone.milliseconds.get(stage)),
                        _number(timing.milliseconds.get(stage)),
                    )
                    for stage in {**timing.milliseconds, **timing.alone.milliseconds}
                ],
            ),
            *_table(
                ("restore", "blocks filtered", "ms a frame"),
                [
                    (name, f"{each.filtered:.0%}", f"{each.restore:.1f}")
                    for name, each in {"as above": timing.alone, **timing.shares}.items()
                    if timing.shares
                ],
            ),
            *_table(
                ("backend", "blocks filtered", "encoder and filters, ms a frame"),
                [
                    (name, f"{each.filtered:.0%}", f"{each.network:.1f}")
                    for name, each in timing.backends.items()
                ],
            ),
            *_table(
                ("whole command", "time", "CPU"),
                [
                    (name, f"{cost.seconds:.2f} s", f"{cost.cpu_seconds:.2f} s")
                    for name, cost in timing.peers.items()
                ],
            ),
        ]
    ).rstrip()


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ("---",) * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@dataclass(frozen=True, slots=True)
class PipeTiming:
    """The same clip from file to file, and through Y4M pipes between two ffmpeg programs."""

    repeats: int
    direct: Cost
    piped: Cost

    @property
    def overhead(self) -> float:
        """What the pipes cost of the time: 0.1 is a tenth more."""
        return self.piped.seconds / self.direct.seconds - 1

    @property
    def cpu_overhead(self) -> float:
        """The same of the CPU's time, which other programs disturb less."""
        return self.piped.cpu_seconds / self.direct.cpu_seconds - 1


def measure_pipe(source: Path, *, repeats: int = 3, deblur: bool = True) -> PipeTiming:
    """Compare `vdeblur A -o B` with `ffmpeg | vdeblur - -o - | ffmpeg`, encoded alike."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise VdeblurError("the pipes are measured with the program ffmpeg, which is not here")
    with TemporaryDirectory(prefix="vdeblur-bench-") as name:
        sink = str(Path(name) / "fixed.mp4")
        own = [sys.executable, "-m", "vdeblur", "-q", *(() if deblur else ("--no-deblur",))]
        quiet = [ffmpeg, "-v", "error", "-nostdin", "-y"]
        direct = shlex.join([*own, str(source), "-o", sink, "-y"])
        piped = " | ".join(
            [
                shlex.join([*quiet, "-i", str(source), "-f", "yuv4mpegpipe", "-strict", "-1", "-"]),
                shlex.join([*own, "-", "-o", "-"]),
                shlex.join([*quiet, "-i", "-", "-preset", "veryfast", "-crf", "18", sink]),
            ]
        )
        costs = compared({"direct": direct, "piped": piped}, repeats=repeats)
    return PipeTiming(repeats, costs["direct"], costs["piped"])
