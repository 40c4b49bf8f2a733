"""The commands beside the main one: demo, doctor, bench."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from .options import DEFAULTS, Scene
from .parameters import SETTINGS, Number, width_height

if TYPE_CHECKING:
    from .bench import PipeTiming


@click.command(context_settings=SETTINGS)
@click.argument("sink", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--seconds", type=Number(0, 600, min_open=True), default=6.0)
@click.option(
    "--size", type=width_height, metavar="WIDTHxHEIGHT", default="640x360", help="Of the frames."
)
@click.option("--seed", type=click.IntRange(0), default=7, help="Another seed, another shake.")
@click.option(
    "--blur",
    type=Number(0),
    metavar="PIXELS",
    help="Median length of the streaks, up to width/64; 0 gives a sharp clip.  [default: 5, or "
    "what the size allows]",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write here what a camera without blur and noise would have seen, with --scene a steady "
    "one.",
)
@click.option(
    "--scene",
    type=click.Choice(get_args(Scene)),
    help="Film one thing that troubles stabilisers; --blur does not count then.",
)
@click.option("-y", "--overwrite", is_flag=True, help="Replace what is there.")
def demo(
    sink: Path,
    *,
    seconds: float,
    size: tuple[int, int],
    seed: int,
    blur: float | None,
    truth: Path | None,
    scene: Scene | None,
    overwrite: bool,
) -> None:
    """Render a shaky, blurred clip to try things on."""
    from .demo import Demo, render_demo
    from .scenes import Stage, render_scene

    if truth is not None and truth.resolve() == sink.resolve():
        raise click.UsageError(f"{sink} and its truth need names of their own")
    try:
        if scene:
            stage = Stage(seconds=seconds, width=size[0], height=size[1], seed=seed)
            frames = render_scene(scene, sink, stage=stage, truth=truth, overwrite=overwrite)
            click.echo(f"{sink}: {frames} frames of {size[0]}x{size[1]}")
            return
        if blur is None:
            blur = min(Demo().blur, max(size) / 64)
        wanted = Demo(seconds=seconds, width=size[0], height=size[1], seed=seed, blur=blur)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    frames = render_demo(sink, demo=wanted, truth=truth, overwrite=overwrite)
    click.echo(f"{sink}: {frames} frames of {size[0]}x{size[1]}")


@click.command(context_settings=SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print it as a JSON object.")
def doctor(*, as_json: bool) -> None:
    """Say what this machine has and what would be used."""
    from .doctor import examine, in_words

    report = examine()
    click.echo(json.dumps(asdict(report), indent=2) if as_json else in_words(report))


@click.command(context_settings=SETTINGS)
@click.argument("source", metavar="[INPUT]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--size",
    type=width_height,
    metavar="WIDTHxHEIGHT",
    default="1280x720",
    help="Of a rendered clip.",
)
@click.option(
    "--frames", type=click.IntRange(2, 3000), default=60, help="Length of a rendered clip."
)
@click.option("--repeats", type=click.IntRange(1, 100), default=3, help="Take the median of these.")
@click.option("--deblur/--no-deblur", default=DEFAULTS.deblur)
@click.option("--stabilize/--no-stabilize", default=DEFAULTS.stabilize)
@click.option(
    "--blurred",
    type=Number(0, 1),
    metavar="SHARE",
    help="Filter this share of the blocks, the most blurred ones, whatever the model decides.",
)
@click.option("--model", default=str(DEFAULTS.model), show_default=True, metavar="NAME|PATH")
@click.option("--peer", is_flag=True, help="Time ffmpeg's vid.stab, deshake and nlmeans, too.")
@click.option("--pipe", is_flag=True, help="Compare Y4M pipes from and to ffmpeg with the files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object.")
def bench(
    source: Path | None,
    *,
    size: tuple[int, int],
    frames: int,
    repeats: int,
    deblur: bool,
    stabilize: bool,
    model: str,
    blurred: float | None,
    peer: bool,
    pipe: bool,
    as_json: bool,
) -> None:
    """Measure how fast this machine is, on INPUT or on a rendered clip."""
    from .bench import in_words, measure, measure_pipe

    if pipe:
        if source is None:
            raise click.UsageError("--pipe needs an INPUT")
        piped = measure_pipe(source, repeats=repeats, deblur=deblur)
        told = asdict(piped) | {"overhead": piped.overhead, "cpu_overhead": piped.cpu_overhead}
        click.echo(json.dumps(told, indent=2) if as_json else _pipe_words(piped))
        return
    timing = measure(
        source,
        width=size[0],
        height=size[1],
        frames=frames,
        repeats=repeats,
        blurred=blurred,
        deblur=deblur,
        stabilize=stabilize,
        model=model,
        peers=peer,
    )
    click.echo(json.dumps(asdict(timing), indent=2) if as_json else in_words(timing))


def _pipe_words(timing: "PipeTiming") -> str:
    return (
        f"files {timing.direct.seconds:.2f} s ({timing.direct.cpu_seconds:.2f} s of CPU), "
        f"Y4M pipes {timing.piped.seconds:.2f} s ({timing.piped.cpu_seconds:.2f} s): "
        f"{timing.overhead:+.1%} time, {timing.cpu_overhead:+.1%} CPU, median of {timing.repeats}"
    )
