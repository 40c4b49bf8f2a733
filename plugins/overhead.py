"""Measure what a way through a plugin or a pipe costs beside the command line, on one clip.

    python -m vdeblur_plugins.overhead clip.mp4

Every way decodes, works and does not compress; the loops leave OpenCV the threads that it takes by
itself. Each run is a process of its own; the ways take turns. Processor time counts all processes
and threads of a way: it is the steadier number on a machine that has other work, and what a busy
machine pays.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import click
import cv2

from vdeblur import VideoReader

from .ffmpeg.cli import build, chain, parse
from .opencv import Stabilizer, VideoCapture


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one run."""

    wall: float
    processor: float


def capture(clip: str, options: str) -> None:
    """Read the clip as a program with OpenCV does."""
    source = VideoCapture(clip, options=parse(options), chroma="420")
    while source.read()[0]:
        pass
    source.release()


def loop(clip: str, options: str) -> None:
    """Push each picture that OpenCV reads."""
    source = cv2.VideoCapture(clip)
    with Stabilizer(parse(options), chroma="420") as stabilizer:
        while (found := source.read())[0]:
            stabilizer.apply(found[1])
        stabilizer.flush()


LOOPS: dict[str, Callable[[str, str], None]] = {"VideoCapture": capture, "Stabilizer": loop}
"""Ways that are a loop of this program's."""


@click.command()
@click.argument("clip", type=click.Path(exists=True, dir_okay=False))
@click.option("--options", default="", help="Of vdeblur, as one word.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--way", "chosen", multiple=True, help="Beside the command line; all if not said.")
@click.option("--loop", "name", type=click.Choice(list(LOOPS)), hidden=True)
def main(clip: str, options: str, repeats: int, chosen: tuple[str, ...], name: str | None) -> None:
    """Print milliseconds a frame of each way, and how much more than the command line it takes."""
    if name:
        LOOPS[name](clip, options)
        return
    with TemporaryDirectory(prefix="vdeblur-overhead-") as folder:
        ways = _ways(clip, options, Path(folder))
        if unknown := set(chosen) - set(ways):
            raise click.BadParameter(f"no way {', '.join(unknown)}: there are {', '.join(ways)}")
        ways = {way: ways[way] for way in ways if way in ("command line", *(chosen or ways))}
        costs: dict[str, list[Cost]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, words in ways.items():
                costs[way].append(_cost(words, Path(folder)))
    _print(costs, int(cv2.VideoCapture(clip).get(cv2.CAP_PROP_FRAME_COUNT)))


def _ways(clip: str, options: str, folder: Path) -> dict[str, list[str]]:
    """The command of each way."""
    build(folder / "vdeblur.so")
    with VideoReader(clip) as reader:
        graph = chain(parse(options), reader.info)
    program = [sys.executable, "-m", "vdeblur", "-q", *shlex.split(options)]
    this = [sys.executable, "-m", "vdeblur_plugins.overhead", clip, "--options", options]
    pipe = (
        f"ffmpeg -v error -i {shlex.quote(clip)} -f yuv4mpegpipe - | {shlex.join(program)} - -o -"
        " | ffmpeg -v error -i - -f null -"
    )
    fixed = str(folder / "fixed.nut")
    return {
        "command line": [*program, clip, "-o", fixed, "-y", "--codec", "rawvideo"],
        "y4m pipes": ["sh", "-c", pipe],
        **{name: [*this, "--loop", name] for name in LOOPS},
        "ffmpeg, frei0r": ["ffmpeg", "-v", "error", "-i", clip, "-vf", graph, "-f", "null", "-"],
    }


def _cost(words: list[str], folder: Path) -> Cost:
    environment = {**os.environ, "FREI0R_PATH": str(folder), "VDEBLUR_PYTHON": sys.executable}
    before, start = getrusage(RUSAGE_CHILDREN), perf_counter()
    subprocess.run(words, env=environment, check=True)
    wall, after = perf_counter() - start, getrusage(RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(wall, spent)


def _print(costs: dict[str, list[Cost]], frames: int) -> None:
    base = _medians(costs["command line"])
    for way, runs in costs.items():
        here = _medians(runs)
        click.echo(f"{way:14}" + _compared("wall", here.wall, base.wall, frames), nl=False)
        click.echo(_compared("processor", here.processor, base.processor, frames))


def _medians(runs: list[Cost]) -> Cost:
    return Cost(median(run.wall for run in runs), median(run.processor for run in runs))


def _compared(name: str, here: float, base: float, frames: int) -> str:
    per_frame = 1000 / frames
    return (
        f"  {name}{here * per_frame:7.1f} ms a frame,{(here - base) * per_frame:+6.1f} ms,"
        f"{100 * (here / base - 1):+6.1f} %"
    )


if __name__ == "__main__":
    main()
