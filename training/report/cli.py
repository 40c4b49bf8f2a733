"""`vdeblur train report`: the report's experiments."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.errors import ModelError, SourceError
from vdeblur.parameters import SETTINGS

if TYPE_CHECKING:
    from .evaluate import Result
    from .recipe import Experiment
    from .scheme import Epoch, Trained

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings=SETTINGS)
@click.argument("experiments", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All experiments of the report.")
@click.option("--data", type=FOLDER, help="Folder with the data sets that the recipes name.")
@click.option("--out", type=FOLDER, required=True, help="Runs; an interrupted one goes on.")
@click.option("--epochs", type=click.IntRange(1), help="At most so many in each phase.")
@click.option("--filter-epochs", type=click.IntRange(1), help="The same, of the filters alone.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after so long.")
@click.option("--threads", type=click.IntRange(1), help="Of the training.")
@click.option(
    "--vgg16",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Weights of VGG16 (.safetensors).  [default: from scratch]",
)
@click.option("--export", "bundle", type=FOLDER, help="Write the one experiment as a bundle.")
@click.option("--docs", type=FOLDER, help="Bring report.md, its figures and results up to date.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="For --docs: a picture to show noisy, restored and as it was.",
)
def report(
    experiments: tuple[str, ...],
    *,
    everything: bool,
    data: Path | None,
    out: Path,
    epochs: int | None,
    filter_epochs: int | None,
    minutes: float | None,
    threads: int | None,
    vgg16: Path | None,
    bundle: Path | None,
    docs: Path | None,
    picture: Path | None,
) -> None:
    """Train and measure EXPERIMENTS (recipes' names or YAML files) of the report, or --all."""
    import math
    import time

    import torch

    from .document import ROWS
    from .recipe import load_experiment
    from .scheme import shortened

    names: Sequence[str] = [row.name for row in ROWS] if everything else experiments
    if not names and docs is None:
        raise click.UsageError("name experiments, or give --all")
    if names and data is None:
        raise click.UsageError("--data is needed to train")
    if bundle is not None and len(names) != 1:
        raise click.UsageError("--export takes one experiment")
    if threads:
        torch.set_num_threads(threads)
    deadline = time.monotonic() + 60 * (minutes or math.inf)
    for name in names:
        try:
            experiment = load_experiment(name)
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            raise SourceError(f"experiment {name}: {error}") from error
        assert data is not None
        short = shortened(experiment, epochs, filter_epochs)
        if not _run(experiment, short, data, out / experiment.name, deadline, vgg16):
            click.echo(f"{experiment.name}: out of time; run again to go on", err=True)
            break
        if bundle is not None:
            _export(experiment, data, out / experiment.name, bundle)
    if docs is not None:
        _document(out, docs, picture)


def _run(
    experiment: "Experiment",
    short: "Experiment",
    data: Path,
    out: Path,
    deadline: float,
    vgg16: Path | None,
) -> bool:
    """Train one experiment and save its result; whether there was time for it."""
    from .data import check_noise, load_pairs
    from .evaluate import evaluate
    from .scheme import Run, adopt

    training, validation = load_pairs(data, experiment.data, experiment.noise, experiment.seed)
    check_noise(training, experiment.noise_psnr)
    weights, notes = _vgg16(experiment, vgg16)
    if experiment.encoder_of:
        adopt(short, out.parent / experiment.encoder_of, out)
    try:
        run = Run(short, training, out, vgg16=weights)
    except ValueError as error:
        raise ModelError(f"{vgg16}: {error}") from error
    try:
        for epoch in run.epochs(deadline):
            click.echo(f"{experiment.name}: {_words(epoch)}", err=True)
    except TimeoutError:
        return False
    result = evaluate(run.finish(), training, validation, experiment, notes)
    result.save(out / "result.json")
    click.echo(_summary(result))
    return True


def _export(experiment: "Experiment", data: Path, run: Path, bundle: Path) -> None:
    """A bundle for `vdeblur --model`."""
    from .data import load_pairs
    from .export import export_report
    from .scheme import load_trained

    training, _ = load_pairs(data, experiment.data, experiment.noise, experiment.seed)
    try:
        export_report(load_trained(experiment, run), training, bundle, bundle.name)
    except ValueError as error:
        raise ModelError(f"{experiment.name}: {error}") from error
    click.echo(bundle)


def _vgg16(experiment: "Experiment", path: Path | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The weights, and what the table says of them."""
    if experiment.network != "vgg16-vae":
        return None, []
    if path is None:
        return None, ["VGG16 from scratch"]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path), [f"VGG16 from {path.name}"]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the weights {path}: {error}") from error


def _words(epoch: "Epoch") -> str:
    losses = ", ".join(f"{key} {value:.5f}" for key, value in epoch.losses.items())
    return f"{epoch.phase} {epoch.number}/{epoch.of}, {epoch.seconds:.0f} s: {losses}"


def _summary(result: "Result") -> str:
    return (
        f"{result.title}: noisy {result.noisy['psnr']:.2f} dB, single filter "
        f"{result.single['psnr']:.2f} dB, multi-filter {result.multi['psnr']:.2f} dB, better on "
        f"{100 * result.shares['psnr']:.1f} % of {result.pictures} pictures; "
        f"silhouette {result.silhouette:.3f}"
    )


def _document(out: Path, docs: Path, picture: Path | None) -> None:
    from .document import ROWS, write_document
    from .evaluate import Result

    kept = docs / "report"
    kept.mkdir(parents=True, exist_ok=True)
    results = {}
    for row in ROWS:
        # Rows that were trained elsewhere stay, with what their figures are drawn from.
        for path in (out / row.name / "result.json", kept / f"{row.name}.json"):
            if path.is_file():
                results[row.name] = Result.load(path)
                results[row.name].save(kept / f"{row.name}.json")
                break
    if picture is not None and (out / "conv-ae" / "checkpoint.pt").is_file():
        _show(out / "conv-ae", picture, docs)
    shown = (kept / "pictures.png").is_file()
    remarks = docs / "report-remarks.md"
    text = remarks.read_text() if remarks.is_file() else ""
    click.echo(write_document(results, docs, remarks=text, pictures=shown))


def _show(run: Path, picture: Path, docs: Path) -> None:
    """Noisy, by the single filter, by the multi-filter, and the truth."""
    import numpy as np

    from .data import make_pairs, read_pictures
    from .evaluate import picture_bytes
    from .figures import side_by_side
    from .scheme import embed

    trained = _finished(run)
    experiment = trained.experiment
    pictures = read_pictures(picture, experiment.data.edge)
    rng = np.random.default_rng([experiment.seed, 3])
    pairs = make_pairs(pictures, experiment.data.tiling(), experiment.noise, rng)
    blocks = pairs.blocks()[0]
    labels = trained.assign(embed(trained.parts.encoder, blocks))
    single, multi = (picture_bytes(pairs, trained.restore(blocks, by))[0] for by in (None, labels))
    (docs / "report").mkdir(parents=True, exist_ok=True)
    side_by_side([pairs.noisy[0], single, multi, pictures[0]], docs / "report" / "pictures.png")


def _finished(run: Path) -> "Trained":
    from .recipe import load_experiment
    from .scheme import load_trained

    return load_trained(load_experiment(run.name), run)
