"""Measure the whole pipeline on this machine."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

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
