"""How active the units of a net are: what comes to their ReLU, over many places."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vdeblur.model import Filter, Residual


@dataclass(slots=True)
class Activity:
    """Of the units of one layer, sums over the places that were seen."""

    places: int
    positive: Tensor
    """(units,): at how many places each was."""
    sums: Tensor
    """(units,): of what came to the ReLU."""
    squares: Tensor
    """(units,): of what it let through."""

    @property
    def share(self) -> Tensor:
        """(units,) in 0..1: of the places at which the unit is positive."""
        return self.positive / self.places

    @property
    def mean(self) -> Tensor:
        """(units,): of what comes to the ReLU."""
        return self.sums / self.places

    @property
    def power(self) -> Tensor:
        """(units,): mean square of what it lets through."""
        return self.squares / self.places


Activities = dict[str, Activity]
"""By the layer's name."""


@contextmanager
def watched(net: nn.Module) -> Iterator[Activities]:
    """Within, what runs through a net is counted: in its residual layers, and before `leave`
    of a filter.
    """
    seen = Activities()
    stream = list[Tensor]()

    def watch(layer: nn.Module, name: str) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda _layer, _inputs, x: _add(seen, name, x))

    hooks = [
        watch(each.first, name) for name, each in net.named_modules() if isinstance(each, Residual)
    ]
    if isinstance(net, Filter):
        hooks.append(net.down.register_forward_pre_hook(lambda _layer, x: stream.append(x[0])))
        hooks.append(
            net.up.register_forward_hook(
                lambda _layer, _inputs, x: _add(
                    seen, "leave", stream.pop() + functional.pixel_shuffle(x, 2)
                )
            )
        )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _add(seen: Activities, name: str, x: Tensor) -> None:
    """Count (N, units, H, W) in."""
    x = x.detach().transpose(0, 1).flatten(1)
    now = x.shape[1], (x > 0).sum(dim=1), x.sum(dim=1), x.clamp(min=0).square().sum(dim=1)
    if name in seen:
        before = seen[name]
        before.places += now[0]
        before.positive += now[1]
        before.sums += now[2]
        before.squares += now[3]
    else:
        seen[name] = Activity(*now)
