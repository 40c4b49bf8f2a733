"""Train a model: render clips, teach encoder and filters together, hand over the routing.

Top to bottom: at first the strongest filter learns from all blocks, so that no step is lost on
filters that know nothing, and the latents learn to tell blur lengths apart; then the milder
filters inherit from it and every block goes to the nearest centroid, hard, as at run time, while
the routing loss moves latents and centroids to where each block is served best for its cost.
"""

import io
import logging
import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vdeblur.bundle import read_bundle
from vdeblur.cpu import this_cpu
from vdeblur.device import both_ways
from vdeblur.errors import ModelError
from vdeblur.model import ModelConfig, MultiFilter
from vdeblur.runtimes import torch_model, weights_of, whole_frame

from .config import DECIBEL_WEIGHT, TrainConfig
from .cutting import Blocks, blocks_of, context_of, detail
from .data import complete
from .grow import grow
from .patches import Patch, batches
from .pruning import pruned
from .report.losses import affinities, soft_normalized_cut
from .rounding import round_activations, rounded_weights
from .routing import labels_from_blur, naming_loss, routing_loss
from .waking import wake
from .whitening import fit_whitening

logger = logging.getLogger(__name__)

CHROMA_WEIGHT = 0.6
"""Of the absolute errors."""
CHROMA_SHOWN = 1.83
"""Of the squared errors, both planes' mean: what RGB shows (BT.601: 1.04 of U's and 0.79 of V's are
added to Y's)."""
SPECTRUM_WEIGHT = 0.03
CALM_WEIGHT = 1.5
ERROR_FLOOR = 1.0
"""Squared 8-bit steps; a patch with a smaller error is good enough."""
CLEANED = 0.8
"""A filter that leaves more than this share of a sharp block's squared error only cleans it."""
WATCHED = 30
"""Batches that tell which units are dead, or say least."""
EXPLORE = 0.15
"""Share of blocks that go to a filter next to their own, so that its gain stays known."""
DAMAGED = (RuntimeError, OSError, EOFError, LookupError, TypeError, pickle.UnpicklingError)
"""What torch raises for files that are cut off, empty or something else."""


def restoration_loss(luma: Tensor, chroma: Tensor, blocks: Blocks, rows: Tensor) -> Tensor:
    """Charbonnier on luma and chroma; L1 on spectra, and on the detail where the truth is smooth.

    Pixels count as much as they show once blocks fade into each other.

    The spectrum's share (Cho et al., "Rethinking coarse-to-fine", 2021, eq. 8) weighs the high
    frequencies that blur took away.
    """
    error = (luma - blocks.luma_target[rows]) / 255
    colour = (chroma - blocks.chroma_target[rows]) / 255
    spectrum = torch.fft.rfft2(blocks.weight * error, norm="ortho")
    loss: Tensor = (
        (blocks.weight * torch.sqrt(error.square() + 1e-6)).mean()
        + CHROMA_WEIGHT * (blocks.colour_weight * torch.sqrt(colour.square() + 1e-6)).mean()
        + SPECTRUM_WEIGHT * (spectrum.real.abs() + spectrum.imag.abs()).mean()
        + CALM_WEIGHT * (blocks.weight * blocks.smooth[rows] * detail(error).abs()).mean()
    )
    return loss


def squared_error(luma: Tensor, chroma: Tensor, blocks: Blocks, rows: Tensor) -> Tensor:
    """(M,): mean squared error of each block in 8-bit steps, chroma by `CHROMA_SHOWN`."""
    grey = blocks.weight * (luma - blocks.luma_target[rows]).square()
    colour = blocks.colour_weight * (chroma - blocks.chroma_target[rows]).square()
    return grey.mean(dim=(1, 2, 3)) + CHROMA_SHOWN * colour.mean(dim=(1, 2, 3))


def all_errors(model: MultiFilter, blocks: Blocks, context: Tensor) -> Tensor:
    """(M, K): what error each cluster would leave in each block."""
    everything = torch.arange(len(blocks.luma))
    zero = torch.zeros(())
    errors = [squared_error(zero, zero, blocks, everything)]
    for each in model.filters:
        luma, chroma = looked(model, each, blocks.luma, blocks.chroma, context)
        errors.append(squared_error(luma, chroma, blocks, everything))
    return torch.stack(errors, dim=1)


def looked(
    model: MultiFilter, one: nn.Module, luma: Tensor, chroma: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """The residuals of blocks by `one` of the model's filters, as the runtime has them."""
    if model.config.both_ways:
        return both_ways(one, luma, chroma, context)
    found: tuple[Tensor, Tensor] = one(luma, chroma, context)
    return found


def decibel_loss(left: Tensor, patches: int) -> Tensor:
    """(M,) squared errors of the blocks of `patches` patches -> scalar: the mean log error.

    It is proportional to the PSNR of the patches (Chen et al., HINet, 2021): a mildly blurred
    patch weighs as much as a strongly blurred one.
    """
    loss: Tensor = torch.log(left.reshape(patches, -1).mean(dim=1) + ERROR_FLOOR).mean()
    return loss


def harm_loss(left: Tensor, before: Tensor) -> Tensor:
    """(M,), (M,) squared errors of blocks -> scalar: the mean log of how much worse they got.

    A block that gains hides no other that loses: nothing shall be worse than it came.
    """
    lost: Tensor = torch.log((left + ERROR_FLOOR) / (before + ERROR_FLOOR))
    return lost.clamp(min=0).mean()


def leave_sharp(errors: Tensor, known: Tensor) -> Tensor:
    """(M, K), (M,) -> (M, K): filters that only clean a sharp block of noise count as harmful.

    What is sharp shall stay as it is. A block that a filter makes much better moves on its own,
    and is blurred though the camera stood still.
    """
    cleaned = (known == 0) & (errors[:, 1:].amin(dim=1) > CLEANED * errors[:, 0])
    return torch.where(cleaned[:, None], errors[:, :1] * _penalty(errors), errors)


def _penalty(errors: Tensor) -> Tensor:
    penalty = torch.full_like(errors[:1], 1 / CLEANED)
    penalty[:, 0] = 1
    return penalty


def explore(labels: Tensor, n_clusters: int) -> Tensor:
    """Send some blocks to the next milder or stronger filter, some clear ones to the mildest."""
    moved = (labels + torch.randint_like(labels, 0, 2) * 2 - 1).clamp(0, n_clusters - 1)
    return torch.where(torch.rand(labels.shape, device=labels.device) < EXPLORE, moved, labels)


def learning_rate(config: TrainConfig, progress: float, step: int) -> float:
    """A short rise, then half a cosine down to the recipe's smallest rate."""
    low, high = config.min_learning_rate, config.learning_rate
    return min(1.0, (step + 1) / 300) * (
        low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
    )


def train_step(
    model: MultiFilter,
    patch: Patch,
    *,
    warming: bool,
    judge: bool,
    decibel_weight: float = DECIBEL_WEIGHT,
    harm_weight: float = 0.0,
    cut_weight: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """One batch's loss; `judge` runs all filters on all blocks to teach the routing.

    `cut_weight` is that of a soft normalised cut between the clusters, which training does without.
    """
    n_clusters = model.config.n_clusters
    context, latents = model.encoder(patch.own, patch.around, patch.motion)
    responsibilities = model.log_responsibilities(latents.flatten(0, 2))
    blocks = blocks_of(patch, model.config)
    context = context_of(context)
    known = labels_from_blur(patch.blur, n_clusters).flatten()
    if warming:
        sampled = (known > 0) | (torch.rand(known.shape, device=known.device) < EXPLORE)
        visited = torch.where(sampled, n_clusters - 1, 0)
    else:
        visited = explore(responsibilities.argmax(dim=1), n_clusters)
    # So that a batch without blurred blocks has a gradient, too, be the encoder's given or not.
    loss = 0 * latents.sum() + 0 * next(model.filters.parameters()).sum()
    zero = torch.zeros(())
    before = left = squared_error(zero, zero, blocks, torch.arange(len(visited)))
    for cluster, each in enumerate(model.filters, start=1):
        rows = torch.nonzero(visited == cluster).flatten()
        if len(rows):
            given = blocks.luma[rows], blocks.chroma[rows], context[rows]
            luma, chroma = looked(model, each, *given)
            share = len(rows) / len(visited)
            loss = loss + share * restoration_loss(luma, chroma, blocks, rows)
            left = left.index_put((rows,), squared_error(luma, chroma, blocks, rows))
    shown = {"restoration": float(loss.detach())}
    decibels = decibel_loss(left, len(patch.luma))
    shown["decibels"] = 10 / math.log(10) * float(decibels.detach())
    harm = harm_loss(left, before)
    shown["harm"] = 10 / math.log(10) * float(harm.detach())
    loss = loss + decibel_weight * decibels + harm_weight * harm
    if warming:
        loss = loss + 0.15 * functional.nll_loss(responsibilities, known)
    else:
        loss = loss + 0.02 * naming_loss(responsibilities, known)
    if cut_weight:
        flat = latents.flatten(0, 2).float()
        parted = soft_normalized_cut(responsibilities.float().exp(), affinities(flat))
        loss = loss + cut_weight * parted
        shown["cut"] = float(parted.detach())
    if judge:
        with torch.no_grad():
            errors = leave_sharp(all_errors(model, blocks, context.detach()), known)
        routing = routing_loss(responsibilities, errors)
        loss = loss + 0.15 * routing
        shown["routing"] = float(routing.detach())
    return loss, shown


class Average:
    """An exponential moving average of a model's weights; what is evaluated and shipped."""

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.decay = decay

    def begin_anew(self, model: nn.Module, prefix: str) -> None:
        """Take the weights whose names begin so as they are, and forget the former ones."""
        for name, value in model.state_dict().items():
            if name.startswith(prefix):
                self.weights[name].copy_(value)

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the newest weights; young averages forget faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def idle_layers(model: MultiFilter) -> list[str]:
    """The weights of which the last batch's gradient is nought: what they feed has died."""
    return [
        name
        for name, weight in model.named_parameters()
        if name.endswith(".weight") and weight.grad is not None and not weight.grad.any()
    ]


def save_checkpoint(
    path: Path, model: MultiFilter, average: Average, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write everything that is needed to go on, complete or not at all."""
    partial = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "average": average.weights,
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    whole = io.BytesIO()  # torch's own writer does not say what is wrong with a disk
    torch.save(state, whole)
    with complete(path, partial):
        partial.write_bytes(whole.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; ModelError if it is damaged."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        return {name: state[name] for name in ("model", "average", "optimizer", "step")}
    except PermissionError as error:
        raise ModelError(f"{path} may not be read: permission denied") from error
    except DAMAGED as error:
        raise ModelError(f"{path} is damaged: remove it, and the run begins anew") from error


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """ModelError where a checkpoint's weights have no place in the recipe's nets."""
    try:
        yield
    except RuntimeError as error:
        raise ModelError(
            f"{path} is of a recipe with other nets: choose another folder, or remove it"
        ) from error


def load_average(checkpoint: Path, config: ModelConfig) -> tuple[MultiFilter, int]:
    """The averaged weights of a checkpoint, ready to run, and the steps that they have behind.

    Raises ModelError if it is damaged or its nets are not those of `config`.
    """
    model = MultiFilter(config)
    state = read_checkpoint(checkpoint)
    with _fitting(checkpoint):
        model.load_state_dict(state["average"])
    return model.eval(), state["step"]


def train(
    config: TrainConfig,
    pool: Path,
    out: Path,
    *,
    minutes: float = math.inf,
    begin: Path | None = None,
    device: str = "cpu",
    readers: int = 1,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train from the clips in `pool`; yield (step, losses). Goes on from `out`/checkpoint.pt.

    A new run begins with the weights of the bundle `begin`, whose nets may be smaller, or wider
    within their residual layers: the units that say most are kept. A second stage takes the
    encoder and the clusters of its first one, and learns nothing but filters; so does a run of
    `filters_only`, of the bundle that it begins with.
    `device` is 'cpu' or 'cuda'; `readers` processes draw the patches. Where the device is made
    for it, the nets run in bfloat16; weights, losses and averages stay in 32 bits.
    The learning rate falls with the share of the steps, or of `minutes`, whichever is ahead.
    """
    torch.manual_seed(config.seed)
    model = MultiFilter(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=1e-4, fused=True
    )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, first = out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = read_checkpoint(checkpoint)
        with _fitting(checkpoint):
            model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights = {name: value.to(device) for name, value in state["average"].items()}
        first = state["step"]
    source = batches(pool, config, config.seed + first, readers=readers, device=device)
    if first == 0:
        fit_whitening(model, islice(source, 40))
        if begin is not None:
            known = torch_model(read_bundle(begin)).to(device)
            grow(model, pruned(known, model, list(islice(source, WATCHED))))
        if config.shared:
            given = weights_of(read_bundle(str(config.first or begin)))
            model.load_state_dict(whole_frame(given), strict=False)
        if begin is not None:
            _wake(model, source)
        average = Average(model)
    if config.shared:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith("filters."))
    in_bfloat16 = device == "cuda" or this_cpu().bfloat16
    began = time.monotonic()
    step, rounding = first, False
    while True:
        spent = (time.monotonic() - began) / 60 / minutes
        progress = max(step / config.steps, spent)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, progress, step)
        warming = step < config.warmup_steps
        if 0 < step == config.warmup_steps:
            _wake(model, source)
            model.inherit()
            average.begin_anew(model, "filters.")
        judge = step % 4 == 0 and not warming and not config.shared
        if not rounding and config.rounded_from is not None and step >= config.rounded_from:
            rounding = True
            round_activations(model)
        harm_weight = config.harm_weight if step >= config.harm_from else 0.0
        optimizer.zero_grad(set_to_none=True)
        with rounded_weights(model) if rounding else nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=in_bfloat16):
                loss, shown = train_step(
                    model,
                    next(source),
                    warming=warming,
                    judge=judge,
                    decibel_weight=config.decibel_weight,
                    harm_weight=harm_weight,
                )
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        step += 1
        if step % 500 == 0:
            if idle := idle_layers(model):
                logger.warning("step %d: no gradient reaches %s", step, ", ".join(idle))
            save_checkpoint(checkpoint, model, average, optimizer, step)
        yield step, shown
    save_checkpoint(checkpoint, model, average, optimizer, step)


def _wake(model: MultiFilter, source: Iterator[Patch]) -> None:
    for name, share in wake(model, list(islice(source, WATCHED))).items():
        logger.info("%s: %.0f %% of its units were dead", name, 100 * share)
