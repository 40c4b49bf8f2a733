import torch
from torch import nn

from vdeblur.blocks import CONTEXT_STRIDE, TILE
from vdeblur.model import Filter, FilterConfig, ModelConfig, MultiFilter
from vdeblur_training.rounding import LEVELS, Rounded, round_activations, rounded_weights

CONFIG = ModelConfig(
    encoder_width=16,
    encoder_depth=1,
    context_dim=8,
    latent_dim=4,
    filters=(FilterConfig(fine=16, coarse=16, fine_layers=1, coarse_layers=1),),
)


def largest(values: object) -> float:
    return max(values)  # type: ignore[call-overload, no-any-return]


def filter_of(model: MultiFilter) -> Filter:
    (only,) = model.filters
    assert isinstance(only, Filter)
    return only


def seen(model: MultiFilter, blocks: int = 4) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    cells = TILE // CONTEXT_STRIDE
    return (
        torch.randint(0, 256, (blocks, 3, TILE, TILE), dtype=torch.uint8),
        torch.randint(0, 256, (blocks, 2, TILE // 2, TILE // 2), dtype=torch.uint8),
        torch.randn(blocks, model.config.context_channels, cells, cells),
    )


def test_what_passes_is_rounded_to_256_values_and_clipped() -> None:
    place = Rounded(largest)
    x = torch.linspace(-1, 3, 5000)[None]
    assert LEVELS - 1 <= len(place(x).unique()) <= LEVELS + 1
    assert float((place(x) - x).abs().max()) <= 4 / LEVELS / 2 + 1e-6
    assert not place(torch.zeros(1, 3)).any()
    with torch.no_grad():  # filters that are only compared see blocks of other clusters
        for _ in range(5):
            assert float(place(torch.full((1, 1), 9.0)).max()) < 3.1


def test_the_gradient_passes_but_for_what_is_clipped() -> None:
    place = Rounded(largest)
    place(torch.linspace(-1, 1, 100)[None])
    x = torch.tensor([[-5.0, 0.3, 0.7, 5.0]], requires_grad=True)
    place(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 0]]


def test_a_net_learns_through_its_rounding_and_keeps_its_names() -> None:
    torch.manual_seed(1)
    model = MultiFilter(CONFIG)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    inputs, names = seen(model), set(model.state_dict())
    exact = filter_of(model)(*inputs)[0].detach()
    before = {name: value.clone() for name, value in model.named_parameters()}
    round_activations(model)
    with rounded_weights(model):
        assert not torch.equal(filter_of(model).leave.weight, before["filters.0.leave.weight"])
        luma, chroma = filter_of(model)(*inputs)
        (luma.square().mean() + chroma.square().mean()).backward()
    assert set(model.state_dict()) == names
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name
    error = float((luma.detach() - exact).square().mean() / exact.square().mean()) ** 0.5
    assert 0.001 < error < 0.1
    learning = filter_of(model).named_parameters()
    assert all(p.grad is not None and p.grad.any() for n, p in learning if "moving.hidden" not in n)


def test_each_output_channel_has_its_own_range() -> None:
    model = MultiFilter(CONFIG)
    weight = filter_of(model).leave.weight
    with torch.no_grad():
        weight[0].mul_(1000)
    exact = weight.detach().clone()
    with rounded_weights(model):
        error = (weight.detach() - exact).abs().amax(dim=(1, 2, 3))
    assert (error <= exact.abs().amax(dim=(1, 2, 3)) / (LEVELS - 1) + 1e-9).all()
