import numpy as np
import torch

from vdeblur.blocks import MOTION
from vdeblur.model import Filter, FilterConfig, ModelConfig, MultiFilter
from vdeblur_training.cutting import blocks_of, context_of
from vdeblur_training.patches import Patch
from vdeblur_training.waking import wake

SMALL = FilterConfig(8, 8, 1, 1)


def model_and_patch() -> tuple[MultiFilter, Patch]:
    torch.manual_seed(2)
    model = MultiFilter(ModelConfig(filters=(SMALL,)))
    model.centroids.data[0] = 100  # all blocks are near the other one
    noise = np.random.default_rng(2)

    def bytes_of(planes: int, edge: int) -> torch.Tensor:
        return torch.from_numpy(noise.integers(0, 256, (1, planes, edge, edge), np.uint8))

    patch = Patch(
        luma=bytes_of(3, 128),
        chroma=bytes_of(6, 64),
        around=bytes_of(2, 64),
        motion=torch.from_numpy(noise.normal(size=(1, MOTION, 16, 16)).astype(np.float32)),
        sharp_luma=bytes_of(1, 128),
        sharp_chroma=bytes_of(2, 64),
        blur=torch.ones(1, 2, 2),
    )
    return model, patch


def outputs(model: MultiFilter, patch: Patch) -> tuple[Filter, torch.Tensor]:
    context, _ = model.encoder(patch.luma[:, :1], patch.around, patch.motion)
    blocks = blocks_of(patch, model.config)
    net = model.filters[0]
    assert isinstance(net, Filter)
    return net, net(blocks.luma, blocks.chroma, context_of(context))[0]


def gradients(model: MultiFilter, patch: Patch) -> tuple[torch.Tensor, ...]:
    """Of the weights of what was killed."""
    net, luma = outputs(model, patch)
    model.zero_grad()
    luma.square().mean().backward()  # type: ignore[no-untyped-call]
    second = net.get_parameter("coarse.0.second.weight").grad
    leave = net.get_parameter("leave.weight").grad
    assert second is not None
    assert leave is not None
    return second[:, :5], leave[:, 2]


def test_dead_units_learn_again_and_change_nothing_at_first() -> None:
    model, patch = model_and_patch()
    net, _ = outputs(model, patch)
    hidden, shown = net.get_parameter("coarse.0.first.bias"), net.get_parameter("up.bias")
    with torch.no_grad():
        hidden[:5] = -1e4
        shown[8:12] = -1e4  # what `leave` sees as its channel 2
    before = outputs(model, patch)[1].detach()
    assert not any(each.any() for each in gradients(model, patch))
    dead = wake(model, [patch])
    assert dead == {
        "filters.0.before.0": 0,
        "filters.0.coarse.0": 5 / 8,
        "filters.0.leave": 1 / 8,
    }
    assert torch.allclose(outputs(model, patch)[1], before, atol=1e-4)
    assert all(each.abs().sum(dim=0).all() for each in gradients(model, patch))
    assert not any(wake(model, [patch]).values())


def test_a_filter_without_blocks_stays_as_it_is() -> None:
    model, patch = model_and_patch()
    model.centroids.data[0], model.centroids.data[1] = 0, 100
    assert wake(model, [patch]) == {}
