"""What each part of `fast` is worth: python -m vdeblur_training.ablations PHOTOS POOL.

The shipped model learns on as it is, and with one thing changed, for as long and from the same
batches. Each is then measured as `vdeblur evaluate` measures, through the runtime, in fp32.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import click
import torch
from torch import nn
from torch.nn import functional

from vdeblur.bundle import Bundle, read_bundle
from vdeblur.cpu import this_cpu
from vdeblur.errors import VdeblurError
from vdeblur.model import Filter, FilterConfig, MultiFilter, multiply_adds
from vdeblur.runtimes import TorchBackend, torch_model

from .config import TrainConfig, load_recipe
from .evaluate import Pair, Report, evaluate, held_out_pairs
from .patches import Patch, batches
from .rivals import CUT_WEIGHT, FITTED, RgbFilter, descend
from .train import train_step
from .whitening import vectors, whitening

RATE = 2e-4
"""At which they learn on, at first."""
PRINTED = "| | gain, dB | blurriest third | SSIM | k multiply-adds a pixel | ms a frame |"

Shown = Callable[[Patch], Patch]


@dataclass(frozen=True, slots=True)
class Variant:
    """The shipped model with one thing changed."""

    model: MultiFilter
    costs: tuple[float, ...]
    """Multiply-adds a pixel of each filter."""
    shown: Shown = lambda patch: patch
    """What it is shown of a batch."""
    neighbours: bool = True
    cut_weight: float = 0.0


def as_it_is() -> Variant:
    """What the others are compared with."""
    model = torch_model(read_bundle("fast"))
    return Variant(model, tuple(multiply_adds(model.config)[1]))


def one_frame() -> Variant:
    """No neighbours, neither now nor at run time."""
    return replace(as_it_is(), shown=by_itself, neighbours=False)


def by_itself(patch: Patch) -> Patch:
    """What the runtime shows of a frame that has no neighbours: itself in their places, at rest."""
    own = patch.luma[:, :1]
    half = (functional.avg_pool2d(patch.own.float(), 2) + 0.5).to(own.dtype)
    return replace(
        patch,
        luma=own.expand_as(patch.luma),
        around=half.expand_as(patch.around),
        motion=torch.zeros_like(patch.motion),
    )


def one_filter() -> Variant:
    """The strong filter serves all blurred clusters."""
    known = as_it_is()
    count = len(known.costs)
    known.model.filters = nn.ModuleList([known.model.filters[-1]] * count)
    return replace(known, costs=(known.costs[-1],) * count)


def with_cut() -> Variant:
    """Clusters are told to part the blocks where they are unlike each other."""
    return replace(as_it_is(), cut_weight=CUT_WEIGHT)


@torch.no_grad()
def in_rgb(patches: list[Patch]) -> Variant:
    """Filters see RGB: a first layer that finds in `patches`, by least squares, what theirs found
    in YUV, and all other layers as they are.
    """
    known = as_it_is()
    config = known.model.config
    learnt_in_yuv = [each for each in known.model.filters if isinstance(each, Filter)]
    filters = [
        _shown_rgb(each, shape, config.context_dim)
        for each, shape in zip(learnt_in_yuv, config.filters, strict=True)
    ]
    enters = [each.enter for each in filters]
    shown = [filters[0].pictures(each.luma, each.chroma[:, :2]) for each in patches]
    cells = [enters[0].cells(*each) for each in shown]
    white = whitening(torch.cat([vectors(each) for each in cells]))
    square, product = torch.zeros(()), torch.zeros(())
    for patch, each in zip(patches, cells, strict=True):
        around = functional.unfold(functional.conv2d(each, white), 3).movedim(1, -1).flatten(0, -2)
        inputs = torch.cat([around, torch.ones(len(around), 1)], dim=1)
        wanted = [
            vectors(one.enter(patch.luma, patch.chroma[:, :2])[..., 1:-1, 1:-1])
            for one in learnt_in_yuv
        ]
        square = square + inputs.T @ inputs / len(inputs)
        product = product + inputs.T @ torch.cat(wanted, dim=1) / len(inputs)
    square = square + 1e-5 * len(patches) * torch.eye(len(square))
    found = torch.linalg.solve(square, product).chunk(len(enters), dim=1)
    for enter, each in zip(enters, found, strict=True):
        enter.whitening.copy_(white)
        enter.conv.weight.copy_(each[:-1].T.reshape(enter.conv.weight.shape))
        assert enter.conv.bias is not None
        enter.conv.bias.copy_(each[-1])
    known.model.filters = nn.ModuleList(filters)
    more = zip(known.costs, filters, strict=True)
    return replace(known, costs=tuple(cost + each.more for cost, each in more))


def _shown_rgb(known: Filter, shape: FilterConfig, context_dim: int) -> RgbFilter:
    """The filter, behind another first layer that has learnt nothing yet."""
    made = RgbFilter(shape, context_dim)
    others = {k: v for k, v in known.state_dict().items() if not k.startswith("enter.")}
    made.load_state_dict(others, strict=False)
    return made


def learnt(variant: Variant, pool: Path, config: TrainConfig, steps: int, name: str) -> None:
    """Let it learn on from the pool's clips; the averaged weights remain."""
    source = batches(pool, config, config.seed)

    def loss(patch: Patch, step: int) -> torch.Tensor:
        return train_step(
            variant.model,
            variant.shown(patch),
            warming=False,
            judge=step % 4 == 0,
            decibel_weight=config.decibel_weight,
            harm_weight=config.harm_weight,
            cut_weight=variant.cut_weight,
        )[0]

    try:
        descend(variant.model, loss, source, config, steps, name)
    finally:
        source.close()  # type: ignore[attr-defined]


def measured(variant: Variant, pairs: list[Pair], strength: float = 0.5) -> Report:
    """Through the runtime, sure of its clusters as the shipped model has to be; on all cores."""
    shipped = read_bundle("fast")
    model = copy.deepcopy(variant.model)
    clusters = replace(shipped.clusters, centroids=model.centroids.detach().numpy())
    bundle: Bundle = replace(shipped, clusters=clusters, filter_costs=variant.costs)
    backend = TorchBackend(bundle, "cpu", model=model)
    threads = torch.get_num_threads()
    torch.set_num_threads(this_cpu().cores)
    try:
        return evaluate(backend, pairs, strength=strength, neighbours=variant.neighbours)[0]
    finally:
        torch.set_num_threads(threads)


def row(name: str, report: Report) -> str:
    """Of the table."""
    return (
        f"| {name} | {report.gain:+.2f} | {report.gain_blurriest:+.2f} | {report.ssim_gain:+.4f} "
        f"| {report.multiply_adds / 1000:.1f} | {report.milliseconds:.0f} |"
    )


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--recipe", default="fast", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=2500, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the training.")
def main(photos: Path, pool: Path, recipe: str, steps: int, threads: int | None) -> None:
    """Let variants of `fast` learn on from the clips of a run's POOL, as that run restored them,
    and print what each gains on clips of other PHOTOS, as Markdown.
    """
    if threads:
        torch.set_num_threads(threads)
    config = replace(load_recipe(recipe), learning_rate=RATE)
    pairs = list(held_out_pairs(photos, config))
    first = batches(pool, config, config.seed)
    fitted = list(islice(first, FITTED))
    first.close()  # type: ignore[attr-defined]
    variants: dict[str, Callable[[], Variant]] = {
        "as it is": as_it_is,
        "one frame": one_frame,
        "one filter": one_filter,
        "with an N-cut": with_cut,
        "RGB": lambda: in_rgb(fitted),
    }
    click.echo(f"{PRINTED}\n|---|---|---|---|---|---|")
    for name, make in variants.items():
        torch.manual_seed(config.seed)
        variant = make()
        learnt(variant, pool, config, steps, name)
        click.echo(row(name, measured(variant, pairs)))
        if make is as_it_is:
            click.echo(row("all blocks filtered", measured(variant, pairs, strength=1)))


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:
        raise SystemExit(str(error)) from error
