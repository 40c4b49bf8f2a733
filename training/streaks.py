"""Is a real clip blurred by motion? Its pictures are then less sharp along it: no truth is needed.

    python -m vdeblur_training.streaks VIDEO

A streak takes fine detail away in its own direction alone; a lens out of focus, a denoiser and
compression take it from all. So the detail along the motion is compared with that across it, frames
sorted by how fast the picture moves.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import VdeblurError
from vdeblur.found import to_bytes
from vdeblur.frame import Frame, through
from vdeblur.motion import MotionStage
from vdeblur.video import VideoReader

SPEEDS = (0.0, 1.0, 2.0, 3.0, 5.0, 9.0, 1e9)
"""px a frame, between which frames are counted together."""
TRUSTED = 0.5
"""A motion of less confidence is not looked at."""
SMOOTHED = 0.7
"""px: of a Gaussian that keeps noise from being taken for detail."""


@dataclass(frozen=True, slots=True)
class Detail:
    """How sharp one frame is."""

    speed: float
    """px from the frame before, at its middle."""
    ratio: float
    """Detail along that motion over detail across it; 1 where it leaves no streaks."""


def detail(frames: Iterable[Frame]) -> Iterator[Detail]:
    """Of each frame whose `motion` is known and trusted."""
    for frame in frames:
        motion = frame.motion
        if motion is None or motion.cut or motion.confidence < TRUSTED:
            continue
        middle = np.array([frame.width / 2, frame.height / 2, 1])
        there = motion.way @ middle
        moved = there[:2] / there[2] - middle[:2]
        speed = float(np.hypot(*moved))
        ratio = along_over_across(to_bytes(frame.planes[0], frame.format.depth), moved)
        if speed > 0 and ratio is not None:
            yield Detail(speed, ratio)


def along_over_across(luma: NDArray[np.uint8], direction: NDArray[np.float64]) -> float | None:
    """(H, W), (2,) -> the detail along the direction over that across; None of a flat picture.

    Detail is the RMS of second derivatives over that of first ones, which tells how short the
    edges are, whatever their contrast and however many lie that way.
    """
    smooth = cv2.GaussianBlur(luma.astype(np.float32), (0, 0), SMOOTHED)
    x, y, xx, yy, xy = (
        cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3)
        for order in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
    )
    u, v = direction / max(float(np.hypot(*direction)), 1e-9)
    along, across = (
        (a * a * xx + 2 * a * b * xy + b * b * yy, a * x + b * y) for a, b in ((u, v), (-v, u))
    )
    if not (along[1].any() and across[1].any() and across[0].any()):
        return None
    return _rms_ratio(*along) / _rms_ratio(*across)


def _rms_ratio(second: NDArray[np.floating], first: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(second).mean() / np.square(first).mean()))


@click.command()
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--frames", type=click.IntRange(2), default=240, show_default=True)
def main(video: Path, frames: int) -> None:
    """Print, by speed, how much detail VIDEO has along its motion beside that across it."""
    with VideoReader(video) as reader:
        found = list(detail(through(MotionStage(), islice(iter(reader), frames))))
    click.echo("| px a frame | frames | along over across |")
    click.echo("|---|---|---|")
    for low, high in pairwise(SPEEDS):
        ratios = [each.ratio for each in found if low <= each.speed < high]
        if len(ratios) > 2:
            error = np.std(ratios) / np.sqrt(len(ratios))
            name = f"{low:g}-{high:g}" if high < SPEEDS[-1] else f"above {low:g}"
            click.echo(f"| {name} | {len(ratios)} | {np.mean(ratios):.3f} ± {error:.3f} |")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:
        raise SystemExit(str(error)) from error
