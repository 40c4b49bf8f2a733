"""Make a trained net narrower within its residual layers: its idle hidden units go.

A unit says as much as it lets through its ReLU, times what the second convolution makes of it
(like Molchanov et al., "Pruning convolutional neural networks for resource efficient inference",
2017, whose criterion is a gradient's). Those that say least go, as many as the narrower net has
no room for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vdeblur.model import MultiFilter, Residual

from .activity import Activities, watched
from .cutting import blocks_for
from .patches import Patch


def pruned(known: MultiFilter, model: MultiFilter, patches: Sequence[Patch]) -> dict[str, Tensor]:
    """The weights of `known` without the hidden units for which `model` has no room.

    `patches` are seen by `known` to find out which these are.
    """
    weights = dict(known.state_dict())
    room = _hidden(model)
    wide = {name: units for name, units in _hidden(known).items() if units > room.get(name, units)}
    if not wide:
        return weights
    seen = _activities(known, patches)
    for name in wide:
        second = weights[f"{name}.second.weight"]
        said = second.square().sum(dim=(0, 2, 3))
        if name in seen:  # not in a filter to which no block came
            said = said * seen[name].power
        kept = said.topk(room[name]).indices.sort().values
        for part in ("weight", "bias"):
            weights[f"{name}.first.{part}"] = weights[f"{name}.first.{part}"][kept]
        weights[f"{name}.second.weight"] = second[:, kept]
    return weights


def _hidden(model: MultiFilter) -> dict[str, int]:
    """How many hidden units each residual layer has, by its name."""
    return {
        name: each.first.out_channels
        for name, each in model.named_modules()
        if isinstance(each, Residual)
    }


@torch.no_grad()
def _activities(model: MultiFilter, patches: Sequence[Patch]) -> Activities:
    """Of all residual layers, by their names in the model."""
    seen = Activities()
    with watched(model.encoder) as found:
        given = [blocks_for(model, patch) for patch in patches]
    seen.update({f"encoder.{name}": each for name, each in found.items()})
    for cluster, net in enumerate(model.filters, start=1):
        with watched(net) as found:
            for each in given:
                if cluster in each:
                    net(*each[cluster])
        seen.update({f"filters.{cluster - 1}.{name}": each for name, each in found.items()})
    return seen
