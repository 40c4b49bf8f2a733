"""Measure the stabiliser beside FFmpeg's vid.stab: python -m vdeblur_training.peers CLIP...

Every clip is stabilised by vid.stab with two settings, and by vdeblur with the zoom that each of
them needed, from a file's plan and with 15 frames of lookahead. All results are measured by
`steadiness`, which shares nothing with either. A clip may be the name of a scene that
`vdeblur.scenes` films: its results are held against what an ideal camera would have filmed on the
path that was intended. The cost is the CPU time, user and system, of whole programs that decode
720p and throw their pictures away.
"""

import resource
import shutil
import subprocess
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import click
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import VdeblurError
from vdeblur.options import DEFAULTS, MotionModel
from vdeblur.scenes import SCENES, render_scene
from vdeblur.video import VideoReader

from .steadiness import Luma, Steadiness, steadiness

SETTINGS = {"default": "", "smoothing=30, gauss": ":smoothing=30:optalgo=gauss"}
"""Of vid.stab's second pass."""
ENCODING = ("-preset", "ultrafast", "-crf", "10")
OWN_ENCODING = ("--preset", "ultrafast", "--crf", "10")
UPPER = {"parallax": 0.5}
"""The part of a scene's frames that shows only its backdrop."""
COLUMNS = ("high-pass", "acceleration", "roll", "ITF", "crop", "distortion", "border")


@dataclass(frozen=True, slots=True)
class Row:
    """One way to stabilise one clip, and what came out."""

    clip: str
    way: str
    result: Steadiness


def compared(clip: Path, folder: Path, *, motion: str = DEFAULTS.motion) -> list[Row]:
    """Stabilise `clip` in all ways, with the results in `folder`, and measure them.

    `motion` is the model of the motion that vdeblur steadies.
    """
    ideal, upper = None, UPPER.get(str(clip), 1.0)
    if str(clip) in SCENES:
        name, clip, truth = str(clip), folder / f"{clip}.mp4", folder / "truth.mp4"
        render_scene(name, clip, truth=truth, overwrite=True)
        ideal, _ = lumas(truth)
    before, times = lumas(clip)
    rows = [
        Row(clip.name, "as filmed", steadiness(before, before, times, ideal=ideal, upper=upper))
    ]

    def measured(way: str, fixed: Path) -> Steadiness:
        after, _ = lumas(fixed)
        if len(after) != len(before):
            raise VdeblurError(f"{way}: {len(after)} frames of {len(before)} came out")
        rows.append(Row(clip.name, way, steadiness(before, after, times, ideal=ideal, upper=upper)))
        return rows[-1].result

    for name, setting in SETTINGS.items():
        fixed = folder / "vidstab.mkv"
        for words in vidstab_words(clip, folder, setting):
            run(*words, *ENCODING, str(fixed))
        crop = measured(f"vid.stab {name}", fixed).crop
        for ahead in ((), ("--lookahead", "15")):
            fixed = folder / "vdeblur.mkv"
            zoom = f"{max(1.0, 1 / crop):.4f}"
            words = (str(clip), "-o", str(fixed), "-y", "--zoom", zoom, "--motion", motion, *ahead)
            run(*vdeblur_words(), *words, *OWN_ENCODING)
            measured(f"vdeblur {' '.join(ahead) or 'file'}, --zoom {zoom}", fixed)
    return rows


def costs(clip: Path, folder: Path, *, frames: int) -> dict[str, float]:
    """ms of CPU time a frame at 1280x720, of the first `frames` of `clip`, scaled."""
    scaled = folder / "scaled.mkv"
    run(*_ffmpeg(), "-i", str(clip), "-frames:v", str(frames), "-an",
         "-vf", "scale=1280:720,format=yuv420p", *ENCODING, str(scaled))  # fmt: skip
    count = len(lumas(scaled)[0])
    away = ("-f", "null", "-")
    raw = ("-o", "-", "--output-format", "rawvideo", "--interpolation", "bilinear")
    spent = {
        "vid.stab, both passes": sum(
            run(*words, *away) for words in vidstab_words(scaled, folder, SETTINGS["default"])
        ),
        "vdeblur file": run(*vdeblur_words(), str(scaled), *raw),
        "vdeblur --lookahead 15": run(*vdeblur_words(), str(scaled), *raw, "--lookahead", "15"),
    }
    return {way: 1000 * seconds / count for way, seconds in spent.items()}


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [f"| clip | way | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        values = " | ".join(f"{value:.3g}" for value in astuple(row.result))
        lines.append(f"| {row.clip} | {row.way} | {values} |")
    return "\n".join(lines)


def vidstab_words(clip: Path, folder: Path, setting: str) -> list[tuple[str, ...]]:
    """The two passes, each without its output."""
    motions = folder / "motions.trf"
    read = (*_ffmpeg(), "-i", str(clip), "-an", "-sn", "-dn", "-fps_mode", "passthrough", "-vf")
    second = f"vidstabtransform=input={motions}{setting}"
    return [(*read, f"vidstabdetect=result={motions}"), (*read, second)]


def _ffmpeg() -> tuple[str, ...]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise VdeblurError("the program ffmpeg, with vid.stab, is not here")
    return (program, "-v", "error", "-nostdin", "-y")


def vdeblur_words() -> tuple[str, ...]:
    """A program that only stabilises."""
    return (sys.executable, "-m", "vdeblur", "-q", "--no-deblur")


def run(*words: str) -> float:
    """Seconds of CPU time that a program took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise VdeblurError(f"{Path(words[0]).name} failed: {said[-1] if said else done.returncode}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def lumas(clip: Path) -> tuple[list[Luma], NDArray[np.float64]]:
    """The frames' luma, 8 bit, and (N,) s when each is shown."""
    with VideoReader(clip, warn=lambda line: None) as reader:
        shift = reader.info.format.depth - 8
        pictures, times = [], []
        for frame in reader:
            pictures.append(np.array(frame.planes[0] >> shift, np.uint8))
            times.append(float(frame.pts * frame.time_base))
        return pictures, np.array(times)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--frames", default=150, show_default=True, help="Whose CPU time is measured.")
@click.option(
    "--motion",
    type=click.Choice(get_args(MotionModel)),
    default=DEFAULTS.motion,
    show_default=True,
    help="What vdeblur steadies.",
)
def main(clips: tuple[Path, ...], frames: int, motion: str) -> None:
    """Stabilise CLIPS with vid.stab and vdeblur and print what came out, as Markdown.

    A name of a scene stands for the clip that `vdeblur demo --scene` makes.
    """
    with TemporaryDirectory(prefix="vdeblur-peers-") as name:
        folder = Path(name)
        try:
            rows = (row for clip in clips for row in compared(clip, folder, motion=motion))
            click.echo(table(list(rows)))
            if clips[0].exists():
                click.echo("\nCPU time a frame at 1280x720, ms:\n")
                for way, spent in costs(clips[0], folder, frames=frames).items():
                    click.echo(f"* {way}: {spent:.1f}")
        except VdeblurError as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
