"""How well the runtime lays neighbours over a frame: python -m vdeblur_training.alignment PHOTOS.

Renders the clips of the evaluation, whose cameras are known, and tells by how much a place of the
backdrop is missed in the frame before: by the similarity that the stabiliser smooths, by the
homography of a camera that turned, and by the best similarity that there is.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import VdeblurError
from vdeblur.lens import moved_by
from vdeblur.motion import MotionEstimator
from vdeblur.turn import least_squares

from .config import load_recipe
from .data import Clip
from .evaluate import held_out_pairs

Floats = NDArray[np.float64]
STEP = 8
"""Pixels between the places that are looked at."""
TRUSTED = 0.3
"""A motion of less confidence is not used."""
LONG = 8.0
"""Pixels: frames whose median streak is longer are told of apart."""


def misses(clip: Clip) -> Iterator[tuple[float, dict[str, Floats]]]:
    """Each frame's median streak, px, and each way's errors at all places, px."""
    estimator = MotionEstimator()
    along = np.arange(STEP / 2, clip.luma.shape[1], STEP)
    places = (along + 1j * along[:, None]).ravel()
    for t, luma in enumerate(clip.luma):
        motion = estimator.estimate(luma)
        if t == 0 or motion.cut or motion.confidence < TRUSTED:
            continue
        truth = moved_by(np.linalg.inv(clip.views[t]) @ clip.views[t - 1], places)
        turn, shift = least_squares(places, truth, np.ones(len(places)))
        found = {
            "the stabiliser's similarity": moved_by(
                np.vstack([motion.transform, [0, 0, 1]]), places
            ),
            "a turning camera": moved_by(motion.way, places),
            "the best similarity": turn * places + shift,
        }
        streak = float(np.median(clip.blur[t]))
        yield streak, {way: np.abs(seen - truth) for way, seen in found.items()}


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--recipe", default="fast", show_default=True, help="Names the held-out photos.")
def main(photos: Path, recipe: str) -> None:
    """Print the median and the worst tenth of the errors, in pixels, as Markdown."""
    kept: dict[tuple[str, str], list[Floats]] = defaultdict(list)
    try:
        for pair in held_out_pairs(photos, load_recipe(recipe)):
            assert pair.clip is not None
            for streak, errors in misses(pair.clip):
                for way, each in errors.items():
                    kept["all frames", way].append(each)
                    if streak > LONG:
                        kept[f"streaks above {LONG:g} px", way].append(each)
    except VdeblurError as error:
        raise click.ClickException(str(error)) from error
    click.echo("| frames | way | median | worst tenth |\n|---|---|---|---|")
    for (frames, way), errors_of in sorted(kept.items()):
        middle, far = np.percentile(np.concatenate(errors_of), [50, 90])
        click.echo(f"| {frames} | {way} | {middle:.2f} | {far:.2f} |")


if __name__ == "__main__":
    main()
