"""Wake units of the filters that have died: a ReLU before which they are never positive.

No gradient reaches such a unit, so that it never learns again, and it costs as much as a live one
(Lu et al., "Dying ReLU and initialization", 2020). A net that begins from nothing learns first of
all to be silent, since what it says disturbs, and loses many.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vdeblur.model import Filter, MultiFilter, Residual, conv

from .cutting import blocks_of, context_of
from .patches import Patch

RARELY = 0.0002
"""A unit that is positive at less than this share of the places counts as dead."""

Inputs = tuple[Tensor, Tensor, Tensor]
"""Of a `Filter`."""


def wake(model: MultiFilter, patches: Sequence[Patch]) -> dict[str, float]:
    """Let the filters' dead units learn again; their share in each layer, by its name.

    At first they have nothing to say: what the filters compute stays as it is, but for what rarely
    positive units had added to it.
    """
    dead = dict[str, float]()
    with torch.no_grad():
        for cluster, net in enumerate(model.filters, start=1):
            assert isinstance(net, Filter)
            given = [each for patch in patches for each in _blocks_for(model, cluster, patch)]
            for name, share in _wake(net, given).items():
                dead[f"filters.{cluster - 1}.{name}"] = share
    return dead


def _blocks_for(model: MultiFilter, cluster: int, patch: Patch) -> list[Inputs]:
    """The blocks of a batch that come to a cluster's filter, if any do."""
    context, latents = model.encoder(patch.luma[:, :1], patch.around, patch.motion)
    labels = model.log_responsibilities(latents.flatten(0, 2)).argmax(dim=1)
    rows = torch.nonzero(labels == cluster).flatten()
    blocks = blocks_of(patch, model.config)
    given = blocks.luma[rows], blocks.chroma[rows], context_of(context)[rows]
    return [given] if len(rows) else []


def _wake(net: Filter, given: Sequence[Inputs]) -> dict[str, float]:
    if not given:
        return {}
    before = _before_relu(net, given)
    dead = {name: (x > 0).float().mean(dim=1) < RARELY for name, x in before.items()}
    for name, units in dead.items():
        if name == "leave":
            _shift(net, units, before[name].mean(dim=1))
        else:
            _replace(net.get_submodule(name), units)
    return {name: float(units.float().mean()) for name, units in dead.items()}


def _before_relu(net: Filter, given: Sequence[Inputs]) -> dict[str, Tensor]:
    """(units, places) before the ReLU of each residual layer, and before that of `leave`."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    stream = list[Tensor]()

    def watch(layer: nn.Module, name: str) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(
            lambda _layer, _inputs, x: seen[name].append(x.transpose(0, 1).flatten(1))
        )

    hooks = [
        watch(each.first, name) for name, each in net.named_modules() if isinstance(each, Residual)
    ]
    hooks.append(net.down.register_forward_pre_hook(lambda _layer, x: stream.append(x[0])))
    hooks.append(
        net.up.register_forward_hook(
            lambda _layer, _inputs, x: seen["leave"].append(
                (stream.pop() + functional.pixel_shuffle(x, 2)).transpose(0, 1).flatten(1)
            )
        )
    )
    for inputs in given:
        net(*inputs)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts, dim=1) for name, parts in seen.items()}


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
