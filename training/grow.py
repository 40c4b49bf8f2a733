"""Begin a net with the weights of a smaller one: at first it computes the same, and then learns on.

New channels begin at random, and what listens to them at nought; new residual layers add nothing
yet (Chen, Goodfellow & Shlens, "Net2Net: accelerating learning via knowledge transfer", 2016).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vdeblur.model import MultiFilter

Weights = Mapping[str, Tensor]


def grow(model: MultiFilter, known: Weights) -> None:
    """Take over, in place, the weights of a net that is nowhere larger.

    `model` has its own whitening, and may see more pictures than the smaller net did, after those
    that it saw. Raises ValueError where the smaller net is larger.
    """
    own = model.state_dict()
    known = {name: value.to(torch.float32) for name, value in known.items()}
    for name, value in own.items():
        if name in known:
            value.copy_(_grown(name, value, own, known))
        elif name.endswith((".second.weight", ".second.bias")):
            value.zero_()


def _grown(name: str, value: Tensor, own: Weights, known: Weights) -> Tensor:
    smaller = known[name]
    if name.endswith("enter.whitening"):
        return smaller if smaller.shape == value.shape else value
    if name.endswith("enter.conv.weight"):
        return _entering(name.removesuffix("conv.weight"), own, known)
    if name.endswith((".moving.leave.weight", ".moving.leave.bias")):  # scales, then shifts
        halves = zip(value.chunk(2), smaller.chunk(2), strict=True)
        return torch.cat([_cornered(larger, each) for larger, each in halves])
    return _cornered(value, smaller)


def _cornered(larger: Tensor, smaller: Tensor) -> Tensor:
    """The larger one with the smaller one in its corner; the known outputs ignore new inputs."""
    if smaller.dim() != larger.dim() or any(
        few > many for few, many in zip(smaller.shape, larger.shape, strict=True)
    ):
        raise ValueError(f"weights {tuple(smaller.shape)} do not fit into {tuple(larger.shape)}")
    grown = larger.clone()
    if smaller.dim() > 1:
        grown[: len(smaller)] = 0
    grown[tuple(slice(0, edge) for edge in smaller.shape)] = smaller
    return grown


def _entering(enter: str, own: Weights, known: Weights) -> Tensor:
    """The first convolution: behind a wider whitening it sees the same pictures, and new ones."""
    conv, smaller = (each[f"{enter}conv.weight"].double() for each in (own, known))
    now, before = (each[f"{enter}whitening"][..., 0, 0].double() for each in (own, known))
    if now.shape == before.shape:  # it is taken over
        return _cornered(conv, smaller).float()
    seen, smaller = (
        torch.einsum("omhw,mi->oihw", *each) for each in ((conv, now), (smaller, before))
    )
    return torch.einsum("oihw,im->omhw", _cornered(seen, smaller), torch.linalg.inv(now)).float()
