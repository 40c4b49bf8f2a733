"""The network: a dense encoder at low resolution and one filter (decoder) per blurred cluster.

Plain 3x3 convolutions behind PixelUnshuffle, ReLU residual layers, no normalisation, no global
pooling (design: such nets run at full speed on CPUs and quantise well). Needs torch; only
training and the CUDA backend import it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import BLOCK, CONTEXT_STRIDE, MOTION, TILE, TOLD

Limits = tuple[float, float]
"""The lowest and the highest value."""


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """How deep one cluster's filter is."""

    fine: int
    """Channels at a quarter of the luma's resolution."""
    coarse: int
    """Channels at an eighth."""
    fine_layers: int
    coarse_layers: int
    hidden: int | None = None
    """Channels within each residual layer at an eighth; None: as many as outside, `coarse`."""
    coarse_limits: Limits | None = None
    """Between which what comes down to an eighth is kept; None: as it is. A few blocks have values
    many times as large as all others, and what a filter makes of these does harm."""
    context_limits: Limits | None = None
    """The same of the encoder's context."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network's dimensions; they travel in the bundle."""

    encoder_width: int = 48
    encoder_depth: int = 3
    """Residual layers at a sixteenth of the luma's resolution, of 64 channels."""
    encoder_hidden: int | None = 32
    """Channels within each of these; None: 64, too."""
    context_dim: int = 32
    latent_dim: int = 16
    colour_frames: int = 1
    """Whose colours the filters see: 1, only t's; 3, also those of t-1, as restored, and of t+1."""
    second_stage: bool = False
    """Whether the filters also see t+1 and t as another model, the first stage, restored them."""
    both_ways: bool = False
    """Whether they look at each block also turned by half, and so do the first stage's at run time:
    see `vdeblur.filtering.both_ways`."""
    bidirectional: bool = False
    """Whether these also go backwards in time: see `vdeblur.backwards`."""
    filters: tuple[FilterConfig, ...] = (
        FilterConfig(fine=48, coarse=64, fine_layers=1, coarse_layers=0),
        FilterConfig(fine=48, coarse=64, fine_layers=1, coarse_layers=1, hidden=16),
        FilterConfig(fine=48, coarse=64, fine_layers=1, coarse_layers=3, hidden=16),
    )
    """One per blurred cluster, from mild to strong; cluster 0 is clear and has none."""
    stiffness: float = 4.0
    """Of the soft k-means: responsibilities are softmax(-stiffness * squared distance)."""

    def __post_init__(self) -> None:
        if self.second_stage and self.colour_frames != 3:
            raise ValueError("a second stage sees the colours of all frames: colour_frames 3")

    @property
    def context_channels(self) -> int:
        """What the encoder gives the filters for each cell: its context, and the motion."""
        return self.context_dim + TOLD

    @property
    def luma_planes(self) -> int:
        """Pictures whose luma the filters see."""
        return 5 if self.second_stage else 3

    @property
    def chroma_planes(self) -> int:
        """Planes of chroma that the filters see."""
        return 2 * self.colour_frames + (4 if self.second_stage else 0)

    @property
    def n_clusters(self) -> int:
        """The blurred clusters and the clear one."""
        return len(self.filters) + 1


def config_from(entries: dict[str, Any]) -> ModelConfig:
    """Read back what `dataclasses.asdict` made of a ModelConfig, or of an earlier one."""
    filters = tuple(
        FilterConfig(**{name: _unlisted(value) for name, value in each.items()})
        for each in entries["filters"]
    )
    return ModelConfig(**{"encoder_hidden": None, **entries, "filters": filters})


def _unlisted(value: Any) -> Any:
    """What JSON made a list of."""
    return tuple(value) if isinstance(value, list) else value


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, gain: float = 1) -> nn.Conv2d:
    """A convolution with `gain` times He's initialisation: torch's starves a net without norms."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2 if stride == 1 else 0)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    with torch.no_grad():
        layer.weight.mul_(gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Enter(nn.Module):
    """A net's first convolution, behind a fixed linear map that whitens its inputs.

    Neighbouring pixels, and the three frames, are nearly equal: what tells blurred from sharp is
    in their small differences. Whitened (principal components, each divided by its standard
    deviation), these weigh as much as the brightness, and training starts many times faster.
    `Folded` and `Strided` do the same in other ways.
    """

    whitening: Tensor

    def __init__(self, pictures: Sequence["Seen"], outputs: int) -> None:
        """`pictures` tells how each that is given is seen, in their order."""
        super().__init__()
        self.pictures = tuple(pictures)
        inputs = sum(seen.channels * seen.side**2 for seen in self.pictures)
        self.register_buffer("whitening", torch.eye(inputs)[:, :, None, None])
        self.conv = conv(inputs, outputs)

    def forward(self, *pictures: Tensor) -> Tensor:
        """Each (N, C, side * H, side * W), in 8-bit steps -> (N, outputs, H, W)."""
        out: Tensor = self.conv(functional.conv2d(self.cells(*pictures), self.whitening))
        return out

    def cells(self, *pictures: Tensor) -> Tensor:
        """The pixels of each cell as channels, black -0.5 and white 0.5."""
        kind = self.conv.weight.dtype
        parts = [
            functional.pixel_unshuffle(picture.to(kind), seen.side)  # TensorRT does not cut bytes
            for picture, seen in zip(pictures, self.pictures, strict=True)
        ]
        return torch.cat(parts, dim=1) / 255 - 0.5


class Seen(NamedTuple):
    """How an `Enter` sees a picture."""

    channels: int
    side: int
    """Of a cell, in the picture's pixels."""


class Folded(Enter):
    """An `Enter` whose whitening is a part of its convolution: one operation less."""

    def __init__(self, enter: Enter) -> None:
        super().__init__(enter.pictures, enter.conv.out_channels)
        weight = torch.einsum("omhw,mi->oihw", enter.conv.weight, enter.whitening[:, :, 0, 0])
        with torch.no_grad():
            self.conv.weight.copy_(weight)
        self.conv.bias = enter.conv.bias

    def forward(self, *pictures: Tensor) -> Tensor:
        """Each (N, C, side * H, side * W), in 8-bit steps -> (N, outputs, H, W)."""
        out: Tensor = self.conv(self.cells(*pictures))
        return out


class Strided(nn.Module):
    """An `Enter` that whitens by a strided convolution of each picture.

    That saves moving the pixels about, and the larger convolution behind it can be rounded.
    """

    def __init__(self, enter: Enter) -> None:
        super().__init__()
        self.pictures = enter.pictures
        self.conv = enter.conv
        self.whiten = nn.ModuleList()
        whitening, used = enter.whitening[:, :, 0, 0] / 255, 0
        for channels, side in enter.pictures:
            part = whitening[:, used : used + channels * side * side]
            used += part.shape[1]
            layer = nn.Conv2d(channels, len(whitening), side, stride=side, bias=False)
            with torch.no_grad():
                layer.weight.copy_(part.reshape(layer.weight.shape))
            self.whiten.append(layer)
        self.register_buffer("black", -0.5 * 255 * whitening.sum(dim=1)[None, :, None, None])

    def forward(self, *pictures: Tensor) -> Tensor:
        """Each (N, C, side * H, side * W), in 8-bit steps -> (N, outputs, H, W)."""
        kind = self.conv.weight.dtype
        parts = [
            layer(picture.to(kind)) for layer, picture in zip(self.whiten, pictures, strict=True)
        ]
        out: Tensor = self.conv(sum(parts[1:], parts[0] + self.black))
        return out


class Residual(nn.Module):
    """x + conv(relu(conv(x))); the branch starts at a fifth, so that depth does not explode."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or width
        self.first = conv(width, hidden)
        self.second = conv(hidden, width, gain=0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        out: Tensor = x + self.second(functional.relu(self.first(x)))
        return out


def residuals(width: int, depth: int, hidden: int | None = None) -> nn.Sequential:
    """`depth` residual layers."""
    return nn.Sequential(*(Residual(width, hidden) for _ in range(depth)))


class Modulation(nn.Module):
    """Scales and shifts features by how the picture moves there (FiLM, Perez et al. 2018).

    A blur's direction follows from the motion, and its length but for the shutter; without being
    told, a small net spends itself on finding them out. At first it changes nothing.
    """

    def __init__(self, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.width = width
        self.hidden = conv(TOLD, hidden, size=1)
        self.leave = conv(hidden, 2 * width, size=1, gain=0)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(N, width, h, w), (N, TOLD, h, w) -> (N, width, h, w)."""
        found = self.leave(functional.relu(self.hidden(told)))
        out: Tensor = x * (1 + found[:, : self.width]) + found[:, self.width :]
        return out


class Parted(nn.Module):
    """A `Modulation` that finds its scales and shifts apart: nothing is cut, and copied."""

    def __init__(self, whole: Modulation) -> None:
        super().__init__()
        self.hidden = whole.hidden
        hidden, width = whole.hidden.out_channels, whole.width
        self.scale, self.shift = nn.Conv2d(hidden, width, 1), nn.Conv2d(hidden, width, 1)
        weights, biases = whole.leave.weight.chunk(2), _bias(whole.leave).chunk(2)
        with torch.no_grad():
            self.scale.weight.copy_(weights[0])
            _bias(self.scale).copy_(1 + biases[0])
            self.shift.weight.copy_(weights[1])
            _bias(self.shift).copy_(biases[1])

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(N, width, h, w), (N, TOLD, h, w) -> (N, width, h, w)."""
        found = functional.relu(self.hidden(told))
        out: Tensor = x * self.scale(found) + self.shift(found)
        return out


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class Description(nn.Module):
    """The motion in more words: also the speed, its logarithm and its axis.

    A streak looks the same from both ends, so that its axis counts: the doubled angle. Nothing is
    learnt here; as a module it has a name in the graphs, by which it is kept from being rounded.
    """

    def forward(self, motion: Tensor) -> Tensor:
        """(N, MOTION, h, w) -> (N, TOLD, h, w)."""
        x, y = motion[:, :1], motion[:, 1:2]
        speed = torch.sqrt(x * x + y * y + 1e-4)
        axis = [(x * x - y * y) / speed, 2 * x * y / speed]
        return torch.cat([motion, speed, 0.25 * torch.log(speed) + 0.5, *axis], dim=1)


class Encoder(nn.Module):
    """Embeds every block of a frame at once, and gives the filters their context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.enter = Enter([Seen(1, 8), Seen(2, 4)], width)
        self.description = Description()
        self.moving = Modulation(width)
        self.fine = Residual(width)
        self.down = conv(width, 64, size=2, stride=2, gain=0.3)
        self.coarse = residuals(64, config.encoder_depth, config.encoder_hidden)
        self.up = conv(64, width, size=1, gain=0.3)
        self.leave = conv(width, config.context_dim, gain=0.5)
        self.project = conv(64, 32, size=1)
        self.latent = nn.Linear(64, config.latent_dim)

    def forward(self, luma: Tensor, around: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, H, W), (N, 2, H/2, W/2) uint8, (N, MOTION, H/8, W/8) -> context and latents.

        `luma` is the frame's, `around` shows its neighbours t-1 and t+1 aligned to it, at half
        size; the motion is as from `vdeblur.align.motion_of`. H and W are multiples of the block.
        The context is (N, C + TOLD, H/8, W/8), what is told of the motion last; the latents are
        (N, H/64, W/64, D).
        """
        entered = self.enter(luma, around)
        told = self.description(motion.to(self.leave.weight.dtype))
        x = self.fine(functional.relu(self.moving(entered, told)))
        # No ReLU on the residual layers' stream: in one all of whose inputs are negative nothing
        # that lies before it learns any more.
        deep = self.coarse(self.down(x))
        x = x + functional.interpolate(self.up(deep), scale_factor=2.0, mode="nearest")
        return torch.cat([self.leave(x), told], dim=1), self.embed(deep)

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

    def __init__(
        self,
        config: FilterConfig,
        context_dim: int,
        colour_frames: int = 1,
        *,
        second_stage: bool = False,
    ) -> None:
        super().__init__()
        seen = [Seen(3, 4), Seen(2 * colour_frames, 2)]
        self.enter = Enter([*seen, Seen(2, 4), Seen(4, 2)] if second_stage else seen, config.fine)
        self.before = residuals(config.fine, config.fine_layers)
        self.down = conv(config.fine, config.coarse, size=2, stride=2, gain=0.3)
        self.context = conv(context_dim, config.coarse, size=1, gain=0.3)
        self.moving = Modulation(config.coarse)
        self.coarse = residuals(config.coarse, config.coarse_layers, config.hidden)
        self.up = conv(config.coarse, 4 * config.fine, size=1, gain=0.1)
        self.leave = conv(config.fine, 16 + 2 * 4, gain=0.01)
        self.coarse_limits, self.context_limits = config.coarse_limits, config.context_limits

    def forward(self, luma: Tensor, chroma: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks with their halo -> the residual of all of it, in 8-bit steps.

        luma (N, 3, E, E) uint8 (t, t-1 as it was restored, t+1), chroma (N, 2 * F, E/2, E/2) uint8
        of the first F of them, both with two more pictures for a second stage (t+1 and t as the
        first one restored them), context (N, C + TOLD, E/8, E/8) with E = TILE
        -> luma (N, 1, E, E), chroma (N, 2, E/2, E/2).
        """
        x = self.before(functional.relu(self.enter(*self.pictures(luma, chroma))))
        context, told = context[:, :-TOLD], context[:, -TOLD:]
        context = self.context(within(context, self.context_limits))
        deep = self.moving(within(self.down(x), self.coarse_limits) + context, told)
        x = x + functional.pixel_shuffle(self.up(self.coarse(deep)), 2)
        out = 255 * self.leave(functional.relu(x))
        return functional.pixel_shuffle(out[:, :16], 4), functional.pixel_shuffle(out[:, 16:], 2)

    def pictures(self, luma: Tensor, chroma: Tensor) -> list[Tensor]:
        """What `enter` sees of a filter's inputs: what the first stage made of them comes last."""
        if len(self.enter.pictures) == 2:
            return [luma, chroma]
        kind = self.enter.conv.weight.dtype
        luma, chroma = luma.to(kind), chroma.to(kind)  # TensorRT does not cut bytes
        return [luma[:, :3], chroma[:, :-4], luma[:, 3:], chroma[:, -4:]]


def within(x: Tensor, limits: Limits | None) -> Tensor:
    """What lies between the limits; what lies beyond becomes the nearer one."""
    return x if limits is None else x.clamp(*limits)


class MultiFilter(nn.Module):
    """The whole: encoder, centroids in its latent space, and the filters."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.encoder = Encoder(self.config)
        self.filters = nn.ModuleList(
            Filter(
                each,
                self.config.context_dim,
                self.config.colour_frames,
                second_stage=self.config.second_stage,
            )
            for each in self.config.filters
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
    luma = torch.zeros(1, 1, BLOCK, BLOCK, dtype=torch.uint8)
    around = torch.zeros(1, 2, BLOCK // 2, BLOCK // 2, dtype=torch.uint8)
    motion = torch.zeros(1, MOTION, BLOCK // CONTEXT_STRIDE, BLOCK // CONTEXT_STRIDE)
    encoder = _count(plain(model.encoder), (luma, around, motion)) / BLOCK**2
    block = (
        torch.zeros(1, config.luma_planes, TILE, TILE, dtype=torch.uint8),
        torch.zeros(1, config.chroma_planes, TILE // 2, TILE // 2, dtype=torch.uint8),
        torch.zeros(1, config.context_channels, TILE // CONTEXT_STRIDE, TILE // CONTEXT_STRIDE),
    )
    return encoder, [_count(plain(each), block) / BLOCK**2 for each in model.filters]


def plain(module: nn.Module, way: Callable[[Enter], nn.Module] = Folded) -> nn.Module:
    """A copy of an encoder or filter that runs faster, with another `way` to do what its `Enter`
    does.
    """
    copied = copy.deepcopy(module)
    assert isinstance(copied.enter, Enter)
    assert isinstance(copied.moving, Modulation)
    copied.enter = way(copied.enter)
    copied.moving = Parted(copied.moving)
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
