"""Fit the ranges of an int8 graph's activations by what it is for.

A few places hold values twenty times as large as those of all others: a range that holds them,
too, is coarse for the others, and how often they are seen hangs on the clips. So each range in turn
is narrowed or widened as long as blocks and clusters come out better (Nahshan et al., "Loss aware
post-training quantization", 2021, who move all ranges at once).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.model import Limits, MultiFilter

from .train import CHROMA_SHOWN, ERROR_FLOOR, harm_loss

if TYPE_CHECKING:
    import openvino

HARM = 2.0
"""How much more it counts where a block gets worse than it came."""
STEP = 0.7
"""By which a range is narrowed, or the other way round widened."""
LEAST = 1e-5
"""What a change must gain."""
CONTEXT_WEIGHT = 0.1

Inputs = dict[str, NDArray[np.generic]]
"""Of a graph, by its names."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Blocks that a filter gets, and what it ought to make of them."""

    inputs: Inputs
    luma: Tensor
    """(M, 1, S, S): the residual that would make them sharp, in 8-bit steps."""
    chroma: Tensor
    """(M, 2, S/2, S/2)."""


Loss = Callable[["openvino.CompiledModel"], float]
"""Of a graph, compiled."""


def fit_ranges(graph: "openvino.Model", loss: Loss, passes: int = 2) -> tuple[float, float]:
    """Move each range of a quantised graph `passes` times, in place; the loss before and after."""
    first = best = _of(graph, loss)
    for _ in range(passes):
        for node in _ranges(graph):
            for factor in (STEP, 1 / STEP):
                found = _move(graph, node, factor, best, loss)
                if found < best:
                    best = found
                    break
    return first, best


def _move(
    graph: "openvino.Model", node: "openvino.Node", factor: float, best: float, loss: Loss
) -> float:
    """Change one range by `factor` as often as it helps; the loss that is reached."""
    while True:
        bounds = _bounds(node)
        _set(node, [factor * each for each in bounds])
        found = _of(graph, loss)
        if not found < best - LEAST:  # nor if it is not a number
            _set(node, bounds)
            return best
        best = found


def _of(graph: "openvino.Model", loss: Loss) -> float:
    import openvino

    return loss(openvino.compile_model(graph, "CPU"))


def _ranges(graph: "openvino.Model") -> list["openvino.Node"]:
    """Where activations are rounded: one range for all channels."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize" and all(each.size == 1 for each in _bounds(node))
    ]


def limits_of(graph: "openvino.Model") -> tuple[Limits, Limits]:
    """Where a filter's int8 graph cuts off what comes down to an eighth, and its context."""
    coarse = context = None
    for node in _ranges(graph):
        bounds = _bounds(node)
        limits = float(bounds[0].item()), float(bounds[1].item())
        rounded, used_by = node.input_value(0).get_node(), node.output(0).get_target_inputs()
        if rounded.get_friendly_name() == "/down/Conv":
            coarse = limits
        if any(each.get_node().get_friendly_name().startswith("/context/") for each in used_by):
            context = limits
    assert coarse is not None, "it is rounded"
    assert context is not None, "it is rounded"
    return coarse, context


def _bounds(node: "openvino.Node") -> list[NDArray[np.float32]]:
    """Lowest and highest before the rounding, and after it."""
    return [node.input_value(index).get_node().get_data() for index in range(1, 5)]


def _set(node: "openvino.Node", bounds: Sequence[NDArray[np.float32]]) -> None:
    from openvino import opset13

    for index, bound in enumerate(bounds, start=1):
        constant = opset13.constant(bound, dtype=np.float32)
        node.input(index).replace_source_output(constant.output(0))


def filter_loss(samples: Sequence[Sample]) -> Loss:
    """The mean logarithm of the share of the squared error that a filter leaves, and harm."""
    before = torch.cat([_squared(each.luma, each.chroma) for each in samples])

    def loss(graph: "openvino.CompiledModel") -> float:
        left = []
        for each in samples:
            luma, chroma = _run(graph, each.inputs)
            left.append(_squared(each.luma - luma, each.chroma - chroma))
        errors = torch.cat(left)
        share = torch.log((errors + ERROR_FLOOR) / (before + ERROR_FLOOR))
        return float(share.mean() + HARM * harm_loss(errors, before))

    return loss


def _squared(luma: Tensor, chroma: Tensor) -> Tensor:
    colour = chroma.square().mean(dim=(1, 2, 3))
    return luma.square().mean(dim=(1, 2, 3)) + CHROMA_SHOWN * colour


@torch.no_grad()
def encoder_loss(model: MultiFilter, frames: Sequence[Inputs]) -> Loss:
    """How far an encoder's clusters are from those in floating point, and its contexts.

    The first is the mean Kullback-Leibler divergence of the blocks' responsibilities, the second
    the share of the contexts' energy that is wrong.
    """
    exact = [model.encoder(*map(torch.from_numpy, frame.values())) for frame in frames]
    energy = [context.square().mean() for context, _ in exact]
    known = [model.log_responsibilities(latents) for _, latents in exact]

    @torch.no_grad()
    def loss(graph: "openvino.CompiledModel") -> float:
        total = 0.0
        for frame, (context, _), power, told in zip(frames, exact, energy, known, strict=True):
            ours, latents = _run(graph, frame)
            wrong = (ours - context).square().mean() / power
            apart = (told.exp() * (told - model.log_responsibilities(latents))).sum(dim=-1).mean()
            total += float(apart + CONTEXT_WEIGHT * torch.log1p(wrong))
        return total / len(frames)

    return loss


def _run(graph: "openvino.CompiledModel", inputs: Inputs) -> tuple[Tensor, Tensor]:
    first, second = (torch.from_numpy(each) for each in graph(inputs).to_tuple())
    return first, second
