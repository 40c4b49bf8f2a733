"""`vdeblur train` and `vdeblur evaluate`."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.errors import SinkError, SourceError
from vdeblur.parameters import SETTINGS, Number

from .report.cli import report

if TYPE_CHECKING:
    from .config import TrainConfig
    from .evaluate import Pair, Report
    from .processes import Helper

MIN_POOL = 24
"""Clips that must be there before training begins."""


class TrainCommand(click.Command):
    """`train RECIPE`, and `train report`, which is a command with options of its own."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Hand over to the report's command if it is the first word."""
        if args[:1] == ["report"]:
            return report.make_context(f"{info_name} report", args[1:], *rest, **extra)
        return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command whose context it is."""
        try:
            return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("the same command goes on with what is in --out") from stop


@click.command(cls=TrainCommand, context_settings=SETTINGS)
@click.argument("recipe", default="fast")
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with sharp photographs; the recipe names those that are held out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Run folder: clips, checkpoint and finished bundle. An interrupted run goes on from it.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after so long.")
@click.option("--threads", type=click.IntRange(1), help="Of the training itself.")
@click.option("--name", help="Of the bundle.  [default: the recipe's]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that render clips, as many that restore them, and for a GPU that read them.",
)
@click.option(
    "--begin",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a bundle whose weights a new run begins with, instead of the recipe's.",
)
def train(
    recipe: str,
    *,
    photos: Path,
    out: Path,
    minutes: float | None,
    threads: int | None,
    name: str | None,
    device: str,
    workers: int,
    begin: Path | None,
) -> None:
    """Train a model by RECIPE (a shipped one's name or a YAML file) and write its bundle.

    `vdeblur train report` runs the experiments of the report instead: see its --help.
    """
    import torch

    from vdeblur.bundle import read_bundle

    from .train import load_average
    from .train import train as train_steps

    config = _recipe(recipe)
    if threads:
        torch.set_num_threads(threads)
    if begin is None and config.begin is not None:
        begin = read_bundle(config.begin).folder
    if config.filters_only and begin is None:
        raise SourceError(f"recipe {recipe}: filters_only needs a bundle to begin with")
    pictures = _training_photos(photos, config)
    pool, checkpoint = out / "pool", out / "checkpoint.pt"
    if checkpoint.exists():
        load_average(checkpoint, config.model)  # else it would be known only after the rendering
    _make(out, pool)
    helpers: list[Helper] = []
    try:
        helpers += _helpers(config, pictures, pool, checkpoint, workers)
        _wait_for(pool, config, helpers)
        readers = workers if device == "cuda" else 1
        steps = train_steps(
            config,
            pool,
            out,
            minutes=minutes or math.inf,
            begin=begin,
            device=device,
            readers=readers,
        )
        _report(_watched(steps, helpers), config.steps)
        kept = begin if config.filters_only else None
        bundle = _export(config, pool, out, name or config.name, encoder_of=kept)
    finally:
        for helper in helpers:
            helper.stop()
    click.echo(f"{bundle}: try it with vdeblur INPUT -o OUTPUT --model {bundle}")


def _training_photos(folder: Path, config: "TrainConfig") -> list[Path]:
    """The pictures of `folder` that the recipe does not hold out; SourceError if there are none."""
    from .data import photos_in

    pictures, held_out = photos_in(folder, config.held_out)
    if not pictures:
        raise SourceError(f"the recipe holds out all pictures of {folder}: none is left")
    if config.held_out and not held_out:
        click.echo(
            f"vdeblur: warning: {folder} holds none of the recipe's held-out pictures: "
            "all are trained on",
            err=True,
        )
    return pictures


def _make(*folders: Path) -> None:
    """Make the folders if they are not there; SinkError where nothing can be written to them."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot make the folder {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise SinkError(f"the folder {folder} may not be written to: permission denied")


def _helpers(
    config: "TrainConfig", photos: list[Path], pool: Path, checkpoint: Path, workers: int
) -> "Iterator[Helper]":
    """Start those that render the clips of the pool, and those that restore them."""
    from .carried import keep_restored
    from .data import fill_pool
    from .processes import Helper

    for first in range(workers):
        part = range(first, config.pool, workers)
        rendering = (photos, config.clips, config.seed, pool, part)
        yield Helper("rendering the training clips", fill_pool, *rendering)
        restoring = (pool, checkpoint, config, first, workers)
        yield Helper("restoring the training clips", keep_restored, *restoring)


def _wait_for(pool: Path, config: "TrainConfig", helpers: "Sequence[Helper]") -> None:
    """Until there are enough clips to begin with, as far as the model must know them."""
    from .data import clips_in

    count = min(MIN_POOL, config.pool)
    while len(clips_in(pool, previewed=config.model.second_stage)) < count:
        for helper in helpers:
            helper.check()
        time.sleep(0.2)


def _watched(
    steps: Iterable[tuple[int, dict[str, float]]], helpers: "Sequence[Helper]"
) -> Iterator[tuple[int, dict[str, float]]]:
    """The steps, as long as no process fails that makes or restores the clips."""
    for each in steps:
        for helper in helpers:
            helper.check()
        yield each


def _report(steps: Iterable[tuple[int, dict[str, float]]], total: int) -> None:
    """Run the training and tell its losses, means over the last hundred steps."""
    losses: dict[str, list[float]] = defaultdict(list)
    began = time.monotonic()
    for step, shown in steps:
        for key, value in shown.items():
            losses[key].append(value)
        if step % 100 == 0 or step == total:
            means = ", ".join(f"{key} {sum(v) / len(v):.5f}" for key, v in losses.items())
            spent = (time.monotonic() - began) / 60
            click.echo(f"step {step}/{total}, {spent:.1f} min: {means}", err=True)
            losses.clear()


def _export(
    config: "TrainConfig", pool: Path, out: Path, name: str, *, encoder_of: Path | None
) -> Path:
    from .data import Clip, clips_in
    from .export import export_bundle
    from .train import load_average

    files = clips_in(pool, previewed=config.model.second_stage)[:160]
    bundle = out / "bundle"
    model, _ = load_average(out / "checkpoint.pt", config.model)
    calibration = [Clip.load(path) for path in files]
    try:
        export_bundle(
            model,
            bundle,
            name,
            calibration=calibration,
            card={"recipe": asdict(config)},
            first=config.first,
            readier=config.readier,
            min_change=config.min_change,
            range_passes=config.range_passes,
            encoder_of=encoder_of,
        )
    except OSError as error:
        raise SinkError(f"cannot write {bundle}: {error.strerror or error}") from error
    return bundle


@click.command(context_settings=SETTINGS)
@click.argument("recipe", default="fast")
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with sharp photographs.",
)
@click.option("--count", type=click.IntRange(1, 500), default=8, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG: three frames | truth, 1:1.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace the sheet if it exists.")
@click.option(
    "--beside", type=click.Path(path_type=Path, dir_okay=False), help="A real video to compare."
)
def clips(
    recipe: str,
    *,
    photos: Path,
    count: int,
    sheet: Path | None,
    overwrite: bool,
    beside: Path | None,
) -> None:
    """Show what the training clips of RECIPE look like: a contact sheet and statistics."""
    import cv2
    import numpy as np

    from vdeblur.found import to_bytes
    from vdeblur.video import VideoReader

    from . import look
    from .data import make_clip

    _check_sheet(sheet, beside, overwrite=overwrite)
    config = _recipe(recipe)
    pictures = _training_photos(photos, config)
    made = [
        make_clip(pictures, config.clips, np.random.default_rng([config.seed, index]))
        for index in range(count)
    ]
    if sheet is not None and not cv2.imwrite(str(sheet), look.sheet(made)):
        raise SinkError(f"cannot write the sheet {sheet}")
    lengths = look.blur_percentiles(made)
    told = ", ".join(f"p{p} {x:.1f}" for p, x in zip(look.LEVELS, lengths, strict=True))
    click.echo(f"streaks in pixels: {told}")
    shown = {
        "blurred": [luma for clip in made for luma in clip.luma],
        "truth": [luma for clip in made for luma in clip.sharp_luma],
    }
    if beside is not None:
        with VideoReader(beside) as reader:
            frames = [to_bytes(f.planes[0], f.format.depth) for f in reader][::10]
        shown[beside.name] = frames
    for name, lumas in shown.items():
        found = look.gradients(lumas)
        click.echo(
            f"{name}: mean gradient {found.mean:.2f} steps, "
            f"{100 * found.large:.1f} % above 16, kurtosis {found.kurtosis:.0f}"
        )


@click.command(context_settings=SETTINGS)
@click.argument("blurred", type=click.Path(path_type=Path), required=False)
@click.argument("sharp", type=click.Path(path_type=Path), required=False)
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False),
    help="Instead of BLURRED and SHARP: render clips of the recipe's held-out photos.",
)
@click.option("--recipe", default="fast", show_default=True, help="Names the held-out photos.")
@click.option(
    "--renderer",
    type=click.Choice(["training", "scene"]),
    help="With --photos: the one that makes the training clips (the default), or another one.",
)
@click.option("--model", default="fast", show_default=True, help="Name or folder of a bundle.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--strength", type=Number(0, 1), default=0.5, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG: before | after | truth, 1:1.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace the sheet if it exists.")
@click.option("--peers", is_flag=True, help="With --photos: measure classical peers beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print report and all frames as JSON.")
def evaluate(
    blurred: Path | None,
    sharp: Path | None,
    *,
    photos: Path | None,
    recipe: str,
    renderer: str | None,
    model: str,
    backend: str,
    strength: float,
    sheet: Path | None,
    overwrite: bool,
    peers: bool,
    as_json: bool,
) -> None:
    """Measure how much sharper BLURRED becomes, against the truth SHARP.

    Both are videos or pictures, or folders with videos, pictures, or clips as folders of pictures.
    """
    from vdeblur.backend import open_backend

    from .data import held_out_in
    from .evaluate import evaluate as measure
    from .evaluate import evaluate_peers, file_pairs, held_out_pairs
    from .handheld import handheld_pairs

    _check_sheet(sheet, blurred, sharp, overwrite=overwrite)
    if renderer is not None and photos is None:
        raise click.UsageError("--renderer needs --photos: clips that are there are not rendered")
    if peers and (photos is None or renderer == "scene"):
        raise click.UsageError(
            "--peers needs --photos and the training's renderer: it uses the true blur"
        )
    if photos is not None and renderer == "scene":
        pairs = list(handheld_pairs(held_out_in(photos, _recipe(recipe).held_out)))
    elif photos is not None:
        pairs = list(held_out_pairs(photos, _recipe(recipe)))
    elif blurred is not None and sharp is not None:
        pairs = list(file_pairs(blurred, sharp))
    else:
        raise click.UsageError("give BLURRED and SHARP, or --photos")
    opened = open_backend(model, backend=backend)
    report, scores = measure(opened, pairs, strength=strength)
    beside = evaluate_peers(pairs, scores) if peers else []
    if sheet is not None:
        _write_sheet(sheet, model, backend, strength, pairs)
    if as_json:
        rows = [{**asdict(score), "gain": score.gain} for score in scores]
        whole = {"report": asdict(report), "peers": [asdict(p) for p in beside], "frames": rows}
        click.echo(json.dumps(whole, indent=1))
    else:
        click.echo(_words(report))
        for peer in beside:
            click.echo(
                f"{peer.name:30}{peer.gain:+.2f} dB mean, "
                f"{peer.gain_blurriest:+.2f} blurriest third, {peer.worst:+.2f} worst"
            )


def _recipe(name: str) -> "TrainConfig":
    from .config import load_recipe

    try:
        return load_recipe(name)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise SourceError(f"recipe {name}: {error}") from error


def _check_sheet(sheet: Path | None, *sources: Path | None, overwrite: bool) -> None:
    """Say before anything is done why the sheet, if one is asked for, cannot be written."""
    from vdeblur.sinks import checked

    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise click.UsageError(f"the sheet is a PNG: {sheet} does not end so")
    for source in sources:
        checked(sheet, source, overwrite=overwrite)


def _write_sheet(
    path: Path, model: str, backend: str, strength: float, pairs: "list[Pair]"
) -> None:
    import cv2
    import numpy as np

    from vdeblur.backend import open_backend
    from vdeblur.frame import through
    from vdeblur.motion import MotionStage
    from vdeblur.restore import Restorer

    from .evaluate import contact_sheet

    opened = open_backend(model, backend=backend)
    sheets = []
    for pair in pairs[:6]:
        restorer = Restorer(opened, strength=strength)
        restored = list(through(restorer, through(MotionStage(), pair.blurred)))
        sheets.append(contact_sheet(pair, restored))
    if not cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(sheets), cv2.COLOR_RGB2BGR)):
        raise SinkError(f"cannot write the sheet {path}")


def _words(report: "Report") -> str:
    shares = " ".join(f"{100 * share:.0f}" for share in report.clusters)
    return "\n".join(
        [
            f"{report.frames} frames, {report.backend}, input {report.psnr_before:.2f} dB (RGB)",
            f"gain              {report.gain:+.2f} dB mean",
            f"  blurriest third {report.gain_blurriest:+.2f} dB",
            f"  sharpest third  {report.gain_sharpest:+.2f} dB",
            f"  worst frame     {report.worst:+.2f} dB",
            f"SSIM              {report.ssim_gain:+.4f} mean, "
            f"{report.ssim_gain_worst:+.4f} worst clip",
            f"flicker           {report.flicker_before:.3f} -> {report.flicker_after:.3f}",
            f"sharp to itself   {report.sharp_psnr:.1f} dB mean, "
            f"{report.sharp_psnr_worst:.1f} dB worst frame, "
            f"{100 * report.sharp_filtered:.0f} % of blocks filtered",
            f"clusters          {shares} % (the first is left alone), "
            f"{100 * report.changes:.1f} % change from frame to frame",
            f"cost              {report.multiply_adds / 1000:.1f} k multiply-adds a pixel, "
            f"{report.milliseconds:.1f} ms a frame",
        ]
    )
