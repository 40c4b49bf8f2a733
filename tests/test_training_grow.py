"""A net that begins with a smaller one's weights begins by computing the same."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vdeblur.blocks import TOLD
from vdeblur.bundle import read_bundle
from vdeblur.model import FilterConfig, ModelConfig, MultiFilter
from vdeblur_training.config import load_recipe
from vdeblur_training.grow import grow

SMALL = ModelConfig(
    encoder_width=12,
    encoder_depth=1,
    context_dim=6,
    filters=(FilterConfig(12, 16, 1, 0), FilterConfig(12, 16, 1, 1)),
)
LARGE = ModelConfig(
    encoder_width=20,
    encoder_depth=2,
    context_dim=6,
    colour_frames=3,
    filters=(FilterConfig(16, 20, 2, 0), FilterConfig(16, 20, 1, 3)),
)


def trained(config: ModelConfig) -> MultiFilter:
    """A net none of whose weights is nought, and whose whitening is not the identity."""
    torch.manual_seed(0)
    model = MultiFilter(config)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(0.05 * torch.randn_like(value))
    return model


def pictures(count: int, channels: int, edge: int) -> Tensor:
    generator = torch.Generator().manual_seed(channels * edge)
    shape = (count, channels, edge, edge)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def test_a_larger_net_begins_by_computing_the_same() -> None:
    small, large = trained(SMALL), trained(LARGE)
    grow(large, small.state_dict())
    whole = pictures(1, 1, 128), pictures(1, 2, 64), torch.randn(1, 5, 16, 16)
    for found, expected in zip(large.encoder(*whole), small.encoder(*whole), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    luma, chroma = pictures(3, 3, 80), pictures(3, 6, 40)
    context = torch.randn(3, 6 + TOLD, 10, 10)
    for few, many in zip(small.filters, large.filters, strict=True):
        residuals = few(luma, chroma[:, :2], context), many(luma, chroma, context)
        for expected, found in zip(*residuals, strict=True):
            assert expected.abs().max() > 1
            torch.testing.assert_close(found, expected, atol=0.02, rtol=1e-4)
    assert (large.centroids == small.centroids).all()


def test_what_is_new_learns() -> None:
    small, large = trained(SMALL), trained(LARGE)
    grow(large, small.state_dict())
    block = pictures(2, 3, 80), pictures(2, 6, 40), torch.randn(2, 6 + TOLD, 10, 10)
    for each in large.filters:
        sum(part.square().sum() for part in each(*block)).backward()
        for name, weight in each.named_parameters():
            assert weight.grad is not None
            # Behind the last layer of a new residual layer nothing has been learnt yet.
            if not (name.endswith(("first.weight", "first.bias")) and not weight.grad.any()):
                assert weight.grad.any(), name


def test_a_smaller_net_cannot_begin_with_a_larger_one() -> None:
    with pytest.raises(ValueError, match="do not fit into"):
        grow(trained(SMALL), trained(replace(SMALL, encoder_width=20)).state_dict())


def test_a_recipe_begins_with_a_model_that_fits() -> None:
    recipe = load_recipe("best")
    assert recipe.begin is not None
    known = load_file(read_bundle(recipe.begin).folder / "weights.safetensors")
    model = MultiFilter(recipe.model)
    grow(model, known)
    assert torch.equal(model.centroids, known["centroids"].float())
    assert set(known) <= set(model.state_dict())
