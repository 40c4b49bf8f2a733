"""Other nets, trained as long on the same clips: python -m vdeblur_training.rivals PHOTOS POOL.

What do several filters gain over one, and neighbours over none? Each net here costs about as much
as `fast` does on the clips of the evaluation, and sees the same batches. All begin from nothing;
what begins where `fast` is as it ships is in `ablations`. None gets the previous frame as it was
restored, which would have to be made by each net on its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vdeblur.blocks import BLOCK, HALO, TILE
from vdeblur.cpu import this_cpu
from vdeblur.errors import VdeblurError
from vdeblur.model import (
    Description,
    Enter,
    Filter,
    FilterConfig,
    ModelConfig,
    Modulation,
    MultiFilter,
    Seen,
    conv,
    multiply_adds,
    residuals,
)

from .calibrate import whole
from .config import DECIBEL_WEIGHT, TrainConfig, load_recipe
from .cutting import Blocks, blocks_of, context_of, smoothness
from .data import Clip
from .evaluate import held_out_pairs
from .patches import Patch, batches, stack
from .train import (
    Average,
    all_errors,
    decibel_loss,
    learning_rate,
    restoration_loss,
    squared_error,
    train_step,
)
from .whitening import fit_whitening, vectors, whitening

FITTED = 40
"""Batches that the whitening is found from."""
EVERY = 3
"""Of so many frames one is measured."""
REPORTED = 500
"""Steps between two lines about how it goes."""

FROM_RGB = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
"""To Y, U and V (BT.601, full range; a net does not mind the range)."""
CUT_WEIGHT = 0.1


class UNet(nn.Module):
    """One net for all that it sees of one frame: residual layers at 1/4, 1/8 and 1/16 size.

    It sees the luma of `frames` and the colours of the first, in YUV 4:2:0 or, if `rgb`, as RGB,
    which it then restores. The motion it does not see in them, since they are aligned; it may be
    `told`.
    """

    def __init__(
        self,
        depths: tuple[int, int, int],
        *,
        frames: int = 1,
        told: bool = False,
        rgb: bool = False,
    ) -> None:
        super().__init__()
        self.frames, self.rgb = frames, rgb
        seen = [Seen(2 + frames, 4)] if rgb else [Seen(frames, 4), Seen(2, 2)]
        self.enter = Enter(seen, 48)
        self.fine = residuals(48, depths[0])
        self.down = conv(48, 64, size=2, stride=2, gain=0.3)
        self.description = Description()
        self.moving = Modulation(64) if told else None
        self.middle = residuals(64, depths[1])
        self.deeper = conv(64, 96, size=2, stride=2, gain=0.3)
        self.coarse = residuals(96, depths[2])
        self.rise = conv(96, 4 * 64, size=1, gain=0.1)
        self.up = conv(64, 4 * 48, size=1, gain=0.1)
        self.leave = conv(48, 3 * 16 if rgb else 16 + 2 * 4, gain=0.01)

    def forward(self, luma: Tensor, chroma: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F, H, W), (N, 2, H/2, W/2) uint8, (N, MOTION, H/8, W/8) -> the residuals of the first
        frame's luma and chroma, in 8-bit steps.
        """
        x = self.fine(functional.relu(self.enter(*self.pictures(luma, chroma))))
        y = self.down(x)
        if self.moving is not None:
            y = self.moving(y, self.description(motion))
        y = self.middle(y)
        y = y + functional.pixel_shuffle(self.rise(self.coarse(self.deeper(y))), 2)
        x = x + functional.pixel_shuffle(self.up(y), 2)
        out = 255 * self.leave(x)  # behind a ReLU here, this net died within 400 steps
        if not self.rgb:
            return functional.pixel_shuffle(out[:, :16], 4), functional.pixel_shuffle(
                out[:, 16:], 2
            )
        yuv = _mixed(functional.pixel_shuffle(out, 4), FROM_RGB)
        return yuv[:, :1], functional.avg_pool2d(yuv[:, 1:], 2)

    def pictures(self, luma: Tensor, chroma: Tensor) -> list[Tensor]:
        """What the net is shown of (N, F, H, W) luma and (N, 2, H/2, W/2) chroma."""
        return [in_rgb(luma, chroma)] if self.rgb else [luma, chroma]


class RgbFilter(Filter):
    """A filter that is shown the frame as RGB at the luma's size, and of others the luma alone."""

    def __init__(self, config: FilterConfig, context_dim: int) -> None:
        super().__init__(config, context_dim)
        self.enter = Enter([Seen(5, 4)], config.fine)

    def pictures(self, luma: Tensor, chroma: Tensor) -> list[Tensor]:
        """What `enter` sees of (N, 3, E, E) luma and (N, 2 * F, E/2, E/2) chroma."""
        return [in_rgb(luma, chroma[:, :2])]

    @property
    def more(self) -> float:
        """Multiply-adds a pixel that it needs beside what a filter in YUV does."""
        weight = self.enter.conv.weight
        return weight[:, : weight.shape[1] - 3 * 16 - 2 * 4].numel() / 16 * (TILE / BLOCK) ** 2


def in_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """(N, F, H, W), (N, 2, H/2, W/2) -> (N, 2 + F, H, W): the first frame's R, G and B, then the
    luma of the others.
    """
    colours = functional.interpolate(chroma.float() - 128, scale_factor=2.0, mode="bilinear")
    rgb = _mixed(torch.cat([luma[:, :1].float(), colours], dim=1), torch.inverse(FROM_RGB))
    return torch.cat([rgb, luma[:, 1:].float()], dim=1)


def _mixed(picture: Tensor, matrix: Tensor) -> Tensor:
    """(N, 3, H, W) by a (3, 3) matrix of its channels."""
    return functional.conv2d(picture, matrix[:, :, None, None].to(picture.dtype))


@dataclass(frozen=True, slots=True)
class Result:
    """What a net made of one frame."""

    before: float
    """Mean squared error, 8-bit steps, chroma as far as RGB shows it."""
    after: float
    cost: float
    """Multiply-adds a pixel."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A net, how it learns and how it is measured."""

    name: str
    net: nn.Module
    fit: Callable[[Sequence[Patch]], None]
    """Sets the whitening."""
    loss: Callable[[Patch, int], Tensor]
    """Of a batch, at a step."""
    look: Callable[[Patch], Result]
    """At a whole frame."""


def routed(
    name: str, config: ModelConfig, steps: int, *, cut_weight: float = 0.0, rgb: bool = False
) -> Rival:
    """The product's own net, with the filters of `config`, which may be shown `rgb`."""
    model = MultiFilter(config)
    if rgb:
        model.filters = nn.ModuleList(
            RgbFilter(each, config.context_dim) for each in config.filters
        )
    warm = steps // 4

    def loss(patch: Patch, step: int) -> Tensor:
        if step == warm:
            model.inherit()
        judge = step % 4 == 0 and step >= warm
        warming = step < warm
        return train_step(model, patch, warming=warming, judge=judge, cut_weight=cut_weight)[0]

    def fit(patches: Sequence[Patch]) -> None:
        fit_whitening(model, patches)

    return Rival(name, model, fit, loss, _routed_look(model))


def _routed_look(model: MultiFilter) -> Callable[[Patch], Result]:
    """Measures the model on a frame, each block with its nearest cluster."""
    encoder_cost, filter_costs = multiply_adds(model.config)
    more = [each.more if isinstance(each, RgbFilter) else 0.0 for each in model.filters]
    costs = torch.tensor([0.0, *np.add(filter_costs, more)])

    def look(patch: Patch) -> Result:
        context, latents = model.encoder(patch.own, patch.around, patch.motion)
        errors = all_errors(model, blocks_of(patch, model.config), context_of(context))
        labels = model.log_responsibilities(latents.flatten(0, 2)).argmax(dim=1)
        left = errors.gather(1, labels[:, None])
        spent = encoder_cost + float(costs[labels].mean())
        return Result(float(errors[:, 0].mean()), float(left.mean()), spent)

    return look


def alone(
    name: str,
    depths: tuple[int, int, int],
    *,
    frames: int = 1,
    told: bool = False,
    rgb: bool = False,
) -> Rival:
    """A net that sees all of a frame at once, and `frames` - 1 neighbours."""
    net = UNet(depths, frames=frames, told=told, rgb=rgb)
    cost = net_cost(net)

    def restored(patch: Patch) -> tuple[Tensor, Tensor, Blocks, Tensor]:
        luma, sharp_luma = (each[..., HALO:, HALO:] for each in (patch.luma, patch.sharp_luma))
        half = HALO // 2
        own, sharp = (each[:, :2, half:, half:] for each in (patch.chroma, patch.sharp_chroma))
        seen = Blocks(
            luma=luma[:, :frames],
            chroma=own,
            luma_target=sharp_luma.float() - patch.own.float(),
            chroma_target=sharp.float() - own.float(),
            smooth=smoothness(sharp_luma.float()),
            weight=torch.ones(1),
            colour_weight=torch.ones(1),
        )
        return *net(seen.luma, seen.chroma, patch.motion), seen, torch.arange(len(seen.luma))

    def loss(patch: Patch, _step: int) -> Tensor:
        found = restored(patch)
        decibels = decibel_loss(squared_error(*found), len(patch.luma))
        return restoration_loss(*found) + DECIBEL_WEIGHT * decibels

    def look(patch: Patch) -> Result:
        found = restored(patch)
        zero = torch.zeros(())
        before = squared_error(zero, zero, *found[2:])
        return Result(float(before.mean()), float(squared_error(*found).mean()), cost)

    def fit(patches: Sequence[Patch]) -> None:
        cells = [
            vectors(net.enter.cells(*net.pictures(each.luma[:, :frames], each.chroma[:, :2])))
            for each in patches
        ]
        net.enter.whitening.copy_(whitening(torch.cat(cells)))

    return Rival(name, net, fit, loss, look)


def net_cost(net: UNet) -> float:
    """Multiply-adds a pixel, the whitening folded into the first convolution."""
    strides = {"enter": 4, "fine": 4, "leave": 4, "coarse": 16, "deeper": 16, "rise": 16}
    return sum(
        layer.weight.numel() / strides.get(name.partition(".")[0], 8) ** 2
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d)
    )


def learn(rival: Rival, source: Iterator[Patch], config: TrainConfig, steps: int) -> None:
    """Train from nothing for so many steps; the averaged weights remain."""
    rival.fit([next(source) for _ in range(FITTED)])
    descend(rival.net, rival.loss, source, config, steps, rival.name)


def descend(
    net: nn.Module,
    loss_of: Callable[[Patch, int], Tensor],
    source: Iterator[Patch],
    config: TrainConfig,
    steps: int,
    name: str,
) -> None:
    """Train a net that is called `name` by the loss of a batch at a step, as `train` does."""
    average = Average(net)
    optimizer = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=1e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step / steps, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=this_cpu().bfloat16):
            loss = loss_of(next(source), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update(net, step)
        if (step + 1) % REPORTED == 0:
            click.echo(f"{name}: step {step + 1}/{steps}, {loss.item():.5f}", err=True)
    net.load_state_dict(average.weights)


def looked_at(clip: Clip) -> range:
    """The frames of a clip that nets are measured on; they have two neighbours."""
    return range(1, len(clip.luma) - 1, EVERY)


def measured(rival: Rival, clips: Sequence[Clip]) -> tuple[NDArray[np.float64], float]:
    """(N,) dB that frames of the clips gain, every `EVERY`th but the first, and the mean cost."""
    with torch.inference_mode():
        seen = [rival.look(stack([whole(clip, t)])) for clip in clips for t in looked_at(clip)]
    gains = np.array([10 * np.log10(each.before / each.after) for each in seen])
    return gains, float(np.mean([each.cost for each in seen]))


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--recipe", default="fast", show_default=True)
@click.option("--steps", type=click.IntRange(4), default=3000, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the training.")
@click.option("--only", multiple=True, metavar="NAME", help="Of the nets, as the table names them.")
def main(
    photos: Path, pool: Path, recipe: str, steps: int, threads: int | None, only: tuple[str, ...]
) -> None:
    """Train the nets on the clips of a run's POOL and print what each gains, as Markdown."""
    if threads:
        torch.set_num_threads(threads)
    config = load_recipe(recipe)
    clips = [pair.clip for pair in held_out_pairs(photos, config) if pair.clip is not None]
    streaks = np.array([clip.blur[t].mean() for clip in clips for t in looked_at(clip)])
    blurriest = np.argsort(streaks)[-len(streaks) // 3 :]
    one = replace(config.model, filters=(FilterConfig(48, 64, 1, 2),))
    rivals = {
        "three filters, three frames": partial(routed, config=config.model, steps=steps),
        "the same with an N-cut": partial(
            routed, config=config.model, steps=steps, cut_weight=CUT_WEIGHT
        ),
        "one filter, three frames": partial(routed, config=one, steps=steps),
        "one filter, three frames, RGB": partial(routed, config=one, steps=steps, rgb=True),
        "one net, three frames": partial(alone, depths=(1, 4, 4), frames=3),
        "one net, three frames, RGB": partial(alone, depths=(1, 4, 4), frames=3, rgb=True),
        "the same, told the motion": partial(alone, depths=(1, 4, 4), frames=3, told=True),
        "the same, told the motion, RGB": partial(
            alone, depths=(1, 4, 4), frames=3, told=True, rgb=True
        ),
        "one net, one frame": partial(alone, depths=(1, 4, 4)),
    }
    if unknown := set(only) - set(rivals):
        raise click.UsageError(f"there is no net called {unknown.pop()!r}")
    click.echo(f"| {steps} steps | gain, dB | blurriest third | k multiply-adds a pixel |")
    click.echo("|---|---|---|---|")
    for name in only or rivals:
        torch.manual_seed(config.seed)
        rival = rivals[name](name)
        source = batches(pool, config, config.seed, recurrent=False)
        learn(rival, source, config, steps)
        source.close()  # type: ignore[attr-defined]
        gains, cost = measured(rival, clips)
        click.echo(
            f"| {rival.name} | {gains.mean():+.2f} | {gains[blurriest].mean():+.2f} "
            f"| {cost / 1000:.1f} |"
        )


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:
        raise SystemExit(str(error)) from error
