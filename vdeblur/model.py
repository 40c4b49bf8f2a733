"""The network: a dense encoder at low resolution and one filter (decoder) per blurred cluster.

Plain 3x3 convolutions behind PixelUnshuffle, ReLU residual layers, no normalisation, no global
pooling (design: such nets run at full speed on CPUs and quantise well). Needs torch; only
training and the CUDA backend import it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import BLOCK, CONTEXT_STRIDE, HALO, SEAM


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """How deep one cluster's filter is."""

    fine: int
    """Channels at a quarter of the luma's resolution."""
    coarse: int
    """Channels at an eighth."""
    fine_layers: int
    coarse_layers: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network's dimensions; they travel in the bundle."""

    encoder_width: int = 48
    encoder_depth: int = 3
    """Residual layers at a sixteenth of the luma's resolution."""
    context_dim: int = 32
    latent_dim: int = 16
    filters: tuple[FilterConfig, ...] = (
        FilterConfig(fine=48, coarse=64, fine_layers=1, coarse_layers=0),
        FilterConfig(fine=48, coarse=64, fine_layers=1, coarse_layers=1),
        FilterConfig(fine=48, coarse=64, fine_layers=1, coarse_layers=3),
    )
    """One per blurred cluster, from mild to strong; cluster 0 is clear and has none."""
    stiffness: float = 4.0
    """Of the soft k-means: responsibilities are softmax(-stiffness * squared distance)."""

    @property
    def n_clusters(self) -> int:
        """The blurred clusters and the clear one."""
        return len(self.filters) + 1


def config_from(entries: dict[str, Any]) -> ModelConfig:
    """Read back what `dataclasses.asdict` made of a ModelConfig."""
    filters = tuple(FilterConfig(**each) for each in entries["filters"])
    return ModelConfig(**{**entries, "filters": filters})


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution with He initialisation: torch's default starves a net without norms."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2 if stride == 1 else 0)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Enter(nn.Module):
    """A net's first convolution, behind a fixed linear map that whitens its inputs.

    Neighbouring pixels, and the three frames, are nearly equal: what tells blurred from sharp is
    in their small differences. Whitened (principal components, each divided by its standard
    deviation), these weigh as much as the brightness, and training starts many times faster.
    `folded` gives the plain convolution that does both.
    """

    whitening: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.eye(inputs)[:, :, None, None])
        self.conv = conv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, H, W)."""
        out: Tensor = self.conv(functional.conv2d(x, self.whitening))
        return out

    def folded(self) -> nn.Conv2d:
        """One convolution with the same output."""
        plain = conv(self.whitening.shape[1], self.conv.out_channels)
        weight = torch.einsum("omhw,mi->oihw", self.conv.weight, self.whitening[:, :, 0, 0])
        with torch.no_grad():
            plain.weight.copy_(weight)
            assert plain.bias is not None
            assert self.conv.bias is not None
            plain.bias.copy_(self.conv.bias)
        return plain


class Residual(nn.Module):
    """x + conv(relu(conv(x))); the branch starts at a fifth, so that depth does not explode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = conv(width, width)
        with torch.no_grad():
            self.second.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        out: Tensor = x + self.second(functional.relu(self.first(x)))
        return out


def residuals(width: int, depth: int) -> nn.Sequential:
    """`depth` residual layers."""
    return nn.Sequential(*(Residual(width) for _ in range(depth)))


class Encoder(nn.Module):
    """Embeds every block of a frame at once, and gives the filters their context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.enter = Enter(64 + 2 * 16, width)
        self.fine = Residual(width)
        self.down = conv(width, 64, size=2, stride=2)
        self.coarse = residuals(64, config.encoder_depth)
        self.up = conv(64, width, size=1)
        self.leave = conv(width, config.context_dim)
        self.project = conv(64, 32, size=1)
        self.latent = nn.Linear(64, config.latent_dim)

    def forward(self, luma: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) uint8 -> context (N, C, H/8, W/8), latents (N, H/64, W/64, D).

        The three lumas are this frame and its neighbours aligned to it: t, t-1, t+1. H and W
        are multiples of the block.
        """
        x = self.fine(functional.relu(self.enter(self.unshuffle(luma))))
        deep = self.coarse(functional.relu(self.down(x)))
        x = x + functional.interpolate(self.up(deep), scale_factor=2.0, mode="nearest")
        return self.leave(functional.relu(x)), self.embed(deep)

    def unshuffle(self, luma: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 96, H/8, W/8): the frame, and its neighbours at half size."""
        scaled = luma.to(self.leave.weight.dtype) / 255 - 0.5
        current, around = scaled[:, :1], functional.avg_pool2d(scaled[:, 1:], 2)
        return torch.cat(
            [functional.pixel_unshuffle(current, 8), functional.pixel_unshuffle(around, 4)], dim=1
        )

    def embed(self, deep: Tensor) -> Tensor:
        """(N, 64, H/16, W/16) -> (N, H/64, W/64, D): each block's mean and largest feature."""
        features = functional.relu(self.project(deep))
        size = BLOCK // 16
        mean = functional.avg_pool2d(features, size)
        peak = functional.max_pool2d(features, size)
        latents: Tensor = self.latent(torch.cat([mean, peak], dim=1).permute(0, 2, 3, 1))
        return latents


class Filter(nn.Module):
    """One cluster's decoder: from a block's pixels and context to what must be added to it."""

    def __init__(self, config: FilterConfig, context_dim: int) -> None:
        super().__init__()
        self.enter = Enter(3 * 16 + 2 * 4, config.fine)
        self.before = residuals(config.fine, config.fine_layers)
        self.down = conv(config.fine, config.coarse, size=2, stride=2)
        self.context = conv(context_dim, config.coarse, size=1)
        self.coarse = residuals(config.coarse, config.coarse_layers)
        self.up = conv(config.coarse, 4 * config.fine, size=1)
        self.leave = conv(config.fine, 16 + 2 * 4)
        with torch.no_grad():
            self.leave.weight.mul_(0.01)

    def forward(self, luma: Tensor, chroma: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks with their halo -> the residual of the block and its seam, in 8-bit steps.

        luma (N, 3, E, E) uint8 (t, t-1, t+1), chroma (N, 2, E/2, E/2) uint8,
        context (N, C, E/8, E/8) with E = BLOCK + 2 * HALO
        -> luma (N, 1, S, S), chroma (N, 2, S/2, S/2) with S = BLOCK + 2 * SEAM.
        """
        x = self.before(functional.relu(self.enter(self.unshuffle(luma, chroma))))
        deep = functional.relu(self.down(x) + self.context(context))
        x = x + functional.pixel_shuffle(self.up(self.coarse(deep)), 2)
        out = 255 * self.leave(functional.relu(x))
        return (
            _trim(functional.pixel_shuffle(out[:, :16], 4), HALO - SEAM),
            _trim(functional.pixel_shuffle(out[:, 16:], 2), (HALO - SEAM) // 2),
        )

    def unshuffle(self, luma: Tensor, chroma: Tensor) -> Tensor:
        """(N, 3, E, E), (N, 2, E/2, E/2) uint8 -> (N, 56, E/4, E/4)."""
        kind = self.leave.weight.dtype
        fine = functional.pixel_unshuffle(luma.to(kind) / 255 - 0.5, 4)
        colour = functional.pixel_unshuffle(chroma.to(kind) / 255 - 0.5, 2)
        return torch.cat([fine, colour], dim=1)


def _trim(x: Tensor, margin: int) -> Tensor:
    return x[:, :, margin:-margin, margin:-margin] if margin else x


class MultiFilter(nn.Module):
    """The whole: encoder, centroids in its latent space, and the filters."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.encoder = Encoder(self.config)
        self.filters = nn.ModuleList(
            Filter(filter_config, self.config.context_dim) for filter_config in self.config.filters
        )
        self.centroids = nn.Parameter(
            torch.randn(self.config.n_clusters, self.config.latent_dim) * 0.5
        )

    def inherit(self) -> None:
        """Give the milder filters what the strongest has learnt, as far as their shapes agree."""
        learnt = self.filters[-1].state_dict()
        for each in self.filters[:-1]:
            own = each.state_dict()
            shared = {k: v for k, v in learnt.items() if k in own and own[k].shape == v.shape}
            each.load_state_dict(shared, strict=False)

    def log_responsibilities(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., K): the logarithm of the soft membership of each block."""
        distances = (latents[..., None, :] - self.centroids).square().sum(dim=-1)
        return functional.log_softmax(-self.config.stiffness * distances, dim=-1)


def multiply_adds(config: ModelConfig) -> tuple[float, list[float]]:
    """Multiply-adds of (the encoder, each filter) per luma pixel of the blocks that they see."""
    model = MultiFilter(config)
    edge = BLOCK + 2 * HALO
    luma = torch.zeros(1, 3, BLOCK, BLOCK, dtype=torch.uint8)
    encoder = _count(plain(model.encoder), (luma,)) / BLOCK**2
    block = (
        torch.zeros(1, 3, edge, edge, dtype=torch.uint8),
        torch.zeros(1, 2, edge // 2, edge // 2, dtype=torch.uint8),
        torch.zeros(1, config.context_dim, edge // CONTEXT_STRIDE, edge // CONTEXT_STRIDE),
    )
    return encoder, [_count(plain(each), block) / BLOCK**2 for each in model.filters]


def plain(module: nn.Module) -> nn.Module:
    """A copy of an encoder or filter whose `Enter` is folded into one convolution."""
    copied = copy.deepcopy(module)
    assert isinstance(copied.enter, Enter)
    copied.enter = copied.enter.folded()
    return copied


def _count(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Multiply-adds of the convolutions in one forward pass."""
    total = 0

    def add(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += output.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(add)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return total
