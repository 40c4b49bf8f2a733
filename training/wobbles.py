"""Measure how the parts of a picture still shake: python -m vdeblur_training.wobbles CLIP...

Each clip, or scene that `vdeblur.scenes` films, is stabilised with each model of its motion, and by
FFmpeg's vid.stab at about the same zoom. The parts are followed by dense flow, which the stabiliser
does not use.
"""

from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import click
import numpy as np

from vdeblur.errors import VdeblurError
from vdeblur.options import MotionModel
from vdeblur.scenes import SCENES, render_scene

from .peers import ENCODING, OWN_ENCODING, SETTINGS, lumas, run, vdeblur_words, vidstab_words
from .steadiness import moved_parts, wobble

ZOOM = 1.1
SECONDS_SHOWN = 4
"""From the middle of a clip, in the plot."""


def fixed(clip: Path, folder: Path) -> dict[str, Path]:
    """The clip as it is, and stabilised in each way; the results lie in `folder`."""
    found = {"as filmed": clip}
    for name, setting in SETTINGS.items():
        found[f"vid.stab {name}"] = folder / f"vidstab-{len(found)}.mkv"
        for words in vidstab_words(clip, folder, setting):
            run(*words, *ENCODING, str(found[f"vid.stab {name}"]))
    for model in get_args(MotionModel):
        found[model] = folder / f"{model}.mkv"
        words = (str(clip), "-o", str(found[model]), "-y", "--zoom", str(ZOOM), "--motion", model)
        run(*vdeblur_words(), *words, *OWN_ENCODING)
    return found


def draw(found: dict[str, Path], picture: Path) -> None:
    """Plot how far the part that shakes most with a similarity moves up and down, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = {}
    for way in get_args(MotionModel):
        pictures, times = lumas(found[way])
        paths[way] = np.cumsum(moved_parts(pictures)[0], axis=0)
    shakes = (np.diff(paths["similarity"], 2, axis=0) ** 2).sum(axis=(0, 3))
    row, column = np.unravel_index(shakes.argmax(), shakes.shape)
    figure = Figure(figsize=(9, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    middle, half = times.mean(), SECONDS_SHOWN / 2
    shown = np.abs(times[1:] - middle) < half
    for way, path in paths.items():
        axis.plot(times[1:][shown], path[shown, row, column, 1], label=way, linewidth=1)
    axis.set(xlabel="s", ylabel="down, px at 1280", title=f"row {row + 1}, column {column + 1}")
    axis.legend()
    figure.savefig(picture, dpi=90)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="PNG of the last clip's worst part.")
def main(clips: tuple[Path, ...], plot: Path | None) -> None:
    """Stabilise CLIPS, or scenes by their names, and print how their parts shake, as Markdown."""
    click.echo("| clip | way | acceleration | of the median part | high-pass |")
    click.echo("|---|---|---|---|---|")
    with TemporaryDirectory(prefix="vdeblur-wobbles-") as name:
        folder = Path(name)
        for clip in clips:
            try:
                if str(clip) in SCENES:
                    render_scene(str(clip), folder / "clip.mp4", overwrite=True)
                    found = fixed(folder / "clip.mp4", folder)
                else:
                    found = fixed(clip, folder)
                for way, path in found.items():
                    values = " | ".join(f"{each:.3g}" for each in astuple(wobble(lumas(path)[0])))
                    click.echo(f"| {clip.name} | {way} | {values} |")
                if plot is not None:
                    draw(found, plot)
            except VdeblurError as error:
                raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
