import torch

from vdeblur.model import Filter, MultiFilter
from vdeblur_training.cutting import blocks_of, context_of
from vdeblur_training.patches import Patch
from vdeblur_training.waking import wake


def outputs(model: MultiFilter, patch: Patch) -> tuple[Filter, torch.Tensor]:
    context, _ = model.encoder(patch.own, patch.around, patch.motion)
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


def test_dead_units_learn_again_and_change_nothing_at_first(
    small_model: tuple[MultiFilter, Patch],
) -> None:
    model, patch = small_model
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


def test_a_filter_without_blocks_stays_as_it_is(
    small_model: tuple[MultiFilter, Patch],
) -> None:
    model, patch = small_model
    model.centroids.data[0], model.centroids.data[1] = 0, 100
    assert wake(model, [patch]) == {}
