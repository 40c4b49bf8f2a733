"""Wake units of the filters that have died: a ReLU before which they are never positive.

No gradient reaches such a unit, so that it never learns again, and it costs as much as a live one
(Lu et al., "Dying ReLU and initialization", 2020). A net that begins from nothing learns first of
all to be silent, since what it says disturbs, and loses many.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vdeblur.model import Filter, MultiFilter, Residual, conv

from .activity import watched
from .cutting import FilterInputs, blocks_for
from .patches import Patch

RARELY = 0.0002
"""A unit that is positive at less than this share of the places counts as dead."""


@torch.no_grad()
def wake(model: MultiFilter, patches: Sequence[Patch]) -> dict[str, float]:
    """Let the filters' dead units learn again; their share in each layer, by its name.

    At first they have nothing to say: what the filters compute stays as it is, but for what rarely
    positive units had added to it.
    """
    given = [blocks_for(model, patch) for patch in patches]
    dead = dict[str, float]()
    for cluster, net in enumerate(model.filters, start=1):
        assert isinstance(net, Filter)
        for name, share in _wake(net, [each[cluster] for each in given if cluster in each]).items():
            dead[f"filters.{cluster - 1}.{name}"] = share
    return dead


def _wake(net: Filter, given: Sequence[FilterInputs]) -> dict[str, float]:
    with watched(net) as seen:
        for inputs in given:
            net(*inputs)
    dead = {name: each.share < RARELY for name, each in seen.items()}
    for name, units in dead.items():
        if name == "leave":
            _shift(net, units, seen[name].mean)
        else:
            _replace(net.get_submodule(name), units)
    return {name: float(units.float().mean()) for name, units in dead.items()}


def _replace(layer: nn.Module, units: Tensor) -> None:
    """Give a residual layer new hidden units, to which its second convolution does not listen."""
    assert isinstance(layer, Residual)
    fresh = conv(layer.first.in_channels, layer.first.out_channels).to(layer.first.weight.device)
    layer.first.weight[units] = fresh.weight[units]
    assert layer.first.bias is not None
    layer.first.bias[units] = 0
    layer.second.weight[:, units] = 0


def _shift(net: Filter, units: Tensor, mean: Tensor) -> None:
    """Move what `leave` sees of such channels to where it is positive half of the time."""
    assert net.up.bias is not None
    net.up.bias -= torch.where(units, mean, 0).repeat_interleave(4)
    net.leave.weight[:, units] = 0
