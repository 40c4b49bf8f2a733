"""Measure the whole pipeline on this machine."""

import resource
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from .errors import VdeblurError
from .options import DEFAULTS
from .pipeline import Summary, process


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over several runs."""

    width: int
    height: int
    frames: int
    repeats: int
    backend: str | None
    fps: float
    """From opening the source to the complete file, loading the model included."""
    milliseconds: dict[str, float]
    """Per frame, of each stage; stages run side by side."""
    filtered: float
    """Share of the blocks that were filtered, 0..1."""
    memory_mb: float


def measure(
    source: Path | None = None,
    *,
    width: int = 1280,
    height: int = 720,
    frames: int = 60,
    repeats: int = 3,
    deblur: bool = DEFAULTS.deblur,
    stabilize: bool = DEFAULTS.stabilize,
) -> Timing:
    """Run `source`, or a rendered clip of `frames` frames, `repeats` times."""
    with TemporaryDirectory(prefix="vdeblur-bench-") as name:
        folder = Path(name)
        clip = source or _rendered(folder / "clip.mp4", width, height, frames)
        sink = folder / f"fixed{clip.suffix}"
        runs = [
            process(clip, sink, deblur=deblur, stabilize=stabilize, overwrite=True)
            for _ in range(repeats)
        ]
    return _medians(runs)


def _rendered(clip: Path, width: int, height: int, frames: int) -> Path:
    """Render in another process, so that this one's peak memory is the pipeline's."""
    command = [sys.executable, "-m", "vdeblur", "demo", str(clip)]
    options = {
        "--seconds": frames / 30,
        "--size": f"{width}x{height}",
        "--blur": width / 128,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise VdeblurError(f"cannot render a clip: {done.stderr.strip() or done.returncode}")
    return clip


def _medians(runs: list[Summary]) -> Timing:
    first = runs[0]
    return Timing(
        width=first.width,
        height=first.height,
        frames=first.frames,
        repeats=len(runs),
        backend=first.backend,
        fps=median(run.fps for run in runs),
        milliseconds={
            stage: median(run.milliseconds[stage] for run in runs) for stage in first.milliseconds
        },
        filtered=first.filtered,
        memory_mb=max(run.memory_mb for run in runs),
    )


@dataclass(frozen=True, slots=True)
class PipeTiming:
    """The same clip from file to file, and through Y4M pipes between two ffmpeg programs."""

    repeats: int
    direct_seconds: float
    """Median, from starting the program to its end."""
    piped_seconds: float
    direct_cpu: float
    """Seconds of all cores, in user and system mode; medians too."""
    piped_cpu: float

    @property
    def overhead(self) -> float:
        """What the pipes cost of the time: 0.1 is a tenth more."""
        return self.piped_seconds / self.direct_seconds - 1

    @property
    def cpu_overhead(self) -> float:
        """The same of the CPU's time, which other programs disturb less."""
        return self.piped_cpu / self.direct_cpu - 1


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
        runs = [(_timed(direct), _timed(piped)) for _ in range(repeats)]
    (direct_seconds, direct_cpu), (piped_seconds, piped_cpu) = (
        (median(seconds for seconds, _ in each), median(cpu for _, cpu in each))
        for each in zip(*runs, strict=True)
    )
    return PipeTiming(repeats, direct_seconds, piped_seconds, direct_cpu, piped_cpu)


def _timed(command: str) -> tuple[float, float]:
    """Run a shell's command; seconds by the clock, and of the CPU with all children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    seconds, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise VdeblurError(f"cannot measure: {done.stderr.strip() or done.returncode}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
