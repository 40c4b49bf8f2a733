"""The report's networks: encoders that embed blocks, and the filters that decode latents.

Blocks are (N, C, E, E) in 0..1, latents (N, D). Where Keras pads "same", a padding of 1 gives
the same sizes and parameters; at stride 2 on an even size Keras pads below and right only, so
its windows lie one pixel further on.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

UPSAMPLING = {18: (3, 2, 3), 16: (4, 2, 2), 14: (7, 2, 1)}
"""Of a `ConvFilter`, by the block's edge: edge of its first map, strides of the two enlargements;
18 is the report's, the others have the same layers."""

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of the convolutions of VGG16 (Simonyan and Zisserman 2014); 0 is a 2 x 2 pooling. The
last pooling is left out: blocks of 16 are one pixel wide before it."""


def parameters(module: nn.Module) -> int:
    """Parameters as Keras counts them: the running statistics of batch norms are among them."""
    running = [b for name, b in module.named_buffers() if name.endswith(("_mean", "_var"))]
    return sum(each.numel() for each in [*module.parameters(), *running])


def begin_as_keras(module: nn.Module) -> None:
    """Draw first weights as Keras does: Glorot and Bengio's uniform ones, biases 0.

    torch's own are smaller: behind thirteen layers without norms little of the block is left.
    """
    for each in module.modules():
        if isinstance(each, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_uniform_(each.weight)
            if each.bias is not None:
                nn.init.zeros_(each.bias)


def conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution with "same" padding: E -> ceil(E / stride)."""
    return nn.Conv2d(before, after, 3, stride, padding=1)


def transposed(before: int, after: int, stride: int = 1) -> nn.ConvTranspose2d:
    """A 3 x 3 transposed convolution with "same" padding: E -> E * stride, strides 1 to 3."""
    if stride == 3:
        return nn.ConvTranspose2d(before, after, 3, 3)
    return nn.ConvTranspose2d(before, after, 3, stride, padding=1, output_padding=stride - 1)


class ConvEncoder(nn.Module):
    """Sections 2.1 and 3.2.1: five convolutions and two dense layers, 446,836 parameters."""

    def __init__(self, block: int = 18, channels: int = 3, latent_dim: int = 60) -> None:
        super().__init__()
        edge = math.ceil(math.ceil(block / 2) / 2)
        self.latent_dim = latent_dim
        self.convolutions = nn.Sequential(
            conv(channels, 16),
            nn.ReLU(),
            conv(16, 32, 2),
            nn.ReLU(),
            conv(32, 48),
            nn.ReLU(),
            conv(48, 72, 2),
            nn.ReLU(),
            conv(72, 128),
            nn.ReLU(),
            nn.BatchNorm2d(128),
        )
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * edge**2, 96),
            nn.ReLU(),
            nn.Linear(96, latent_dim),
        )

    def forward(self, blocks: Tensor) -> Tensor:
        """(N, C, E, E) -> (N, D)."""
        latents: Tensor = self.dense(self.convolutions(blocks))
        return latents


class ConvFilter(nn.Module):
    """Section 3.2.1: a dense layer and six transposed convolutions, 378,155 parameters."""

    def __init__(self, block: int = 18, channels: int = 3, latent_dim: int = 60) -> None:
        super().__init__()
        if block not in UPSAMPLING:
            raise ValueError(f"block must be one of {sorted(UPSAMPLING)}, got {block}")
        edge, first, second = UPSAMPLING[block]
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 144 * edge**2),
            nn.ReLU(),
            nn.Unflatten(1, (144, edge, edge)),
            transposed(144, 128),
            nn.ReLU(),
            transposed(128, 72, first),
            nn.ReLU(),
            transposed(72, 48),
            nn.ReLU(),
            transposed(48, 32, second),
            nn.ReLU(),
            transposed(32, 16),
            nn.ReLU(),
            transposed(16, channels),
            nn.Sigmoid(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(N, D) -> (N, C, E, E) in 0..1."""
        blocks: Tensor = self.layers(latents)
        return blocks


class MirrorFilter(nn.Module):
    """The decoder of the networks on 16 x 16 blocks, whose shape the report does not give.

    It mirrors the VAE's encoder: dense to 4 x 4 x 64, then transposed convolutions 64 and 32
    with stride 2 and one to the channels.
    """

    def __init__(self, channels: int = 3, latent_dim: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 1024),
            nn.ReLU(),
            nn.Unflatten(1, (64, 4, 4)),
            transposed(64, 64, 2),
            nn.ReLU(),
            transposed(64, 32, 2),
            nn.ReLU(),
            transposed(32, channels),
            nn.Sigmoid(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(N, D) -> (N, C, 16, 16) in 0..1."""
        blocks: Tensor = self.layers(latents)
        return blocks


class VaeFeatures(nn.Module):
    """Section 3.2.4: two strided convolutions with batch norms, dense 16."""

    width = 16

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(channels, 32, 2),
            nn.ReLU(),
            nn.BatchNorm2d(32),
            conv(32, 64, 2),
            nn.ReLU(),
            nn.BatchNorm2d(64),
            nn.Flatten(),
            nn.Linear(1024, self.width),
            nn.ReLU(),
        )

    def forward(self, blocks: Tensor) -> Tensor:
        """(N, C, 16, 16) -> (N, 16)."""
        features: Tensor = self.layers(blocks)
        return features


class ResNetFeatures(nn.Module):
    """Section 3.2.3: one residual stage with a strided shortcut, dense 16."""

    width = 16

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv(channels, 32, 2), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 32)
        )
        self.shortcut = conv(channels, 32, 2)
        self.dense = nn.Linear(2048, self.width)

    def forward(self, blocks: Tensor) -> Tensor:
        """(N, C, 16, 16) -> (N, 16); not rectified, since it also serves as a latent."""
        summed = torch.relu(self.residual(blocks) + self.shortcut(blocks))
        features: Tensor = self.dense(summed.flatten(1))
        return features


class ResNetEncoder(ResNetFeatures):
    """The plain encoder of "ResNet + N-cut": the 16 features are the latent."""

    latent_dim = ResNetFeatures.width


class VggFeatures(nn.Module):
    """Section 3.2.2: the thirteen convolutions of VGG16, 14,714,688 parameters."""

    width = 512

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in VGG16:
            if channels:
                layers += [conv(before, channels), nn.ReLU()]
                before = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        begin_as_keras(self.features)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take a state of VGG16 with the usual names, features.0.weight and so on.

        Raises ValueError if one of them is missing or has another shape.
        """
        needed = self.state_dict()
        try:
            self.load_state_dict({name: weights[name] for name in needed})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are not weights of VGG16: {error}") from error

    def forward(self, blocks: Tensor) -> Tensor:
        """(N, 3, E, E) -> (N, 512): mean over the map, which is one pixel for E = 16."""
        maps: Tensor = self.features(blocks)
        return maps.mean(dim=(2, 3))


class VariationalEncoder(nn.Module):
    """Features, then mean and log variance of a Gaussian latent (sections 3.2.2 to 3.2.4)."""

    def __init__(self, features: nn.Module, latent_dim: int = 2, *, hidden: int = 0) -> None:
        """`features` has a `width`; `hidden` puts a dense layer behind it, as VGG16 needs one."""
        super().__init__()
        width: int = features.width  # type: ignore[assignment]
        self.latent_dim = latent_dim
        self.features = (
            nn.Sequential(features, nn.Linear(width, hidden), nn.ReLU()) if hidden else features
        )
        self.mean = nn.Linear(hidden or width, latent_dim)
        self.log_variance = nn.Linear(hidden or width, latent_dim)

    def distribution(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, E, E) -> mean and log variance, (N, D) each."""
        features = self.features(blocks)
        # Beyond these the exponential leaves fp32 before training has had a say.
        return self.mean(features), self.log_variance(features).clamp(-20, 20)

    def forward(self, blocks: Tensor) -> Tensor:
        """(N, C, E, E) -> (N, D): the mean, which is what is decoded after training."""
        return self.distribution(blocks)[0]


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Draw latents so that gradients flow (Kingma and Welling 2013, section 2.4)."""
    return mean + torch.exp(log_variance / 2) * torch.randn_like(mean)


class ClusterHead(nn.Module):
    """Section 3.2.5: one ReLU layer and a softmax over the clusters."""

    def __init__(self, latent_dim: int, n_clusters: int = 2, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, n_clusters)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(N, D) -> (N, K): responsibilities, which sum to 1; the cluster is their argmax."""
        responsibilities: Tensor = self.layers(latents).softmax(dim=1)
        return responsibilities
