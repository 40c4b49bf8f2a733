"""A net without its idle hidden units computes what it computed with them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vdeblur.model import MultiFilter
from vdeblur_training.activity import watched
from vdeblur_training.cutting import blocks_for
from vdeblur_training.patches import Patch
from vdeblur_training.pruning import pruned

KEPT = [0, 2, 5, 7]
"""Of eight hidden units of the filter."""


Given = tuple[MultiFilter, Patch]


@pytest.fixture
def idle(small_model: Given) -> Given:
    """A model most of whose hidden units say nothing, or next to it."""
    model, patch = small_model
    rest = [unit for unit in range(8) if unit not in KEPT]
    encoder = model.encoder.coarse[0]
    with torch.no_grad():
        model.filters[0].get_parameter("coarse.0.first.bias")[rest[:2]] = -1e4  # never positive
        model.filters[0].get_parameter("coarse.0.second.weight")[:, rest[2:]] *= 1e-6
        encoder.get_parameter("second.weight")[:, 1::2] *= 1e-6
    return model, patch


def residual(model: MultiFilter, patch: Patch) -> Tensor:
    luma: Tensor = model.filters[0](*blocks_for(model, patch)[1])[0]
    return luma


def narrower(model: MultiFilter) -> MultiFilter:
    filters = tuple(replace(each, hidden=len(KEPT)) for each in model.config.filters)
    return MultiFilter(replace(model.config, encoder_hidden=16, filters=filters))


def test_what_says_nothing_goes(idle: Given) -> None:
    model, patch = idle
    lean = narrower(model)
    weights = pruned(model, lean, [patch])
    lean.load_state_dict(weights)
    whole = model.filters[0].get_parameter("coarse.0.first.weight")
    assert torch.equal(weights["filters.0.coarse.0.first.weight"], whole[KEPT])
    found, expected = (residual(each, patch) for each in (lean, model))
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(found, expected, atol=0.02, rtol=1e-3)


def test_a_net_that_is_no_wider_stays_as_it_is(small_model: Given) -> None:
    model, patch = small_model
    weights = pruned(model, MultiFilter(model.config), [patch])
    assert all(torch.equal(weights[name], each) for name, each in model.state_dict().items())


def test_a_filter_to_which_no_block_came_is_pruned_by_its_weights(idle: Given) -> None:
    model, patch = idle
    model.centroids.data[0], model.centroids.data[1] = 0, 100
    with torch.no_grad():
        model.filters[0].get_parameter("coarse.0.second.weight")[:, [1, 3]] *= 1e-6
    weights = pruned(model, narrower(model), [patch])
    whole = model.filters[0].get_parameter("coarse.0.first.weight")
    assert torch.equal(weights["filters.0.coarse.0.first.weight"], whole[KEPT])


@pytest.mark.parametrize("runs", [1, 3])
def test_activity_is_that_of_all_that_ran(runs: int, small_model: Given) -> None:
    model, _ = small_model
    layer = model.encoder.fine
    pictures = [torch.randn(2, 48, 8, 8) for _ in range(runs)]
    with watched(model.encoder) as seen:
        for each in pictures:
            layer(each)
    layer(pictures[0])  # no longer watched
    before: Tensor = torch.cat([layer.first(each) for each in pictures]).transpose(0, 1).flatten(1)
    found = seen["fine"]
    torch.testing.assert_close(found.share, (before > 0).float().mean(dim=1))
    torch.testing.assert_close(found.mean, before.mean(dim=1))
    torch.testing.assert_close(found.power, before.clamp(min=0).square().mean(dim=1))
