"""Hand a trained report experiment to the runtime: `vdeblur noisy.mp4 --model FOLDER`.

The runtime's blocks are 64 pixels wide, the report's 18: a bundle's graphs cut the small blocks
out of the large ones and merge them again. Whether a large block is blurred is said by the mean
latent of its small ones. The clear cluster's filter stays behind: what is clear is left alone.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, TILE
from vdeblur.bundle import write_config
from vdeblur.clusters import Clusters
from vdeblur_training.export import export_onnx, halve_weights

from . import soft_kmeans
from .blocks import rising
from .data import Pairs
from .evaluate import progress
from .scheme import Floats, Trained

EDGE = 18
"""Of the report's blocks."""
STEP = 16
"""From one of the encoder's small blocks to the next: a whole number lies in a large one."""
STIFFNESS = 4.0
TO_RGB = ((1.1644, 0.0, 1.596), (1.1644, -0.3918, -0.813), (1.1644, 2.0172, 0.0))
"""From Y - 16, Cb - 128, Cr - 128 (ITU-R BT.601, limited range)."""
TO_YUV = ((0.2568, 0.5041, 0.0979), (-0.1482, -0.291, 0.4392), (0.4392, -0.3678, -0.0714))


class Windows(nn.Module):
    """Cut maps into windows, and merge windows with weights that rise towards their centre.

    Both are convolutions with one-hot kernels, which every engine knows.
    """

    kernel: Tensor
    weights: Tensor

    def __init__(self, edge: int, step: int) -> None:
        super().__init__()
        self.edge, self.step = edge, step
        self.register_buffer("kernel", torch.eye(edge**2).reshape(edge**2, 1, edge, edge))
        self.register_buffer("weights", torch.from_numpy(rising(edge)).reshape(1, edge**2, 1, 1))

    def split(self, maps: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, E * E, rows, columns)."""
        return functional.conv2d(maps, self.kernel, stride=self.step)

    def merge(self, windows: Tensor) -> Tensor:
        """(N, E * E, rows, columns) -> (N, 1, H, W)."""
        weighted = windows * self.weights
        total = torch.ones_like(windows[:1]) * self.weights
        summed, weight = (
            functional.conv_transpose2d(x, self.kernel, stride=self.step) for x in (weighted, total)
        )
        return summed / weight


class RuntimeEncoder(nn.Module):
    """The report's encoder behind the inputs and outputs of `vdeblur.model.Encoder`.

    It sees the luma as a grey picture, and of the three frames only the present one.
    """

    axes: Tensor

    def __init__(self, encoder: nn.Module, axes: Floats, offset: float) -> None:
        """`axes` (L, 1) and `offset` turn mean latents into positions: clear < 0 < blurred."""
        super().__init__()
        self.encoder = encoder
        self.windows = Windows(EDGE, STEP)
        self.register_buffer("axes", torch.from_numpy(axes))
        self.offset = offset

    def forward(self, luma: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 1, H, W) uint8 -> a context that says nothing, latents (1, rows, columns, 1)."""
        latents = self.mean_latents(luma)
        context = functional.avg_pool2d(luma.float(), CONTEXT_STRIDE)
        return context, latents @ self.axes + self.offset

    def mean_latents(self, luma: Tensor) -> Tensor:
        """(1, 1, H, W) uint8 -> (1, rows, columns, L)."""
        grey = ((luma.float() - 16) / 219).clamp(0, 1)
        windows = self.windows.split(functional.pad(grey, (1, 1, 1, 1), mode="replicate"))
        rows, columns = windows.shape[2], windows.shape[3]
        blocks = windows.permute(0, 2, 3, 1).reshape(-1, 1, EDGE, EDGE).expand(-1, 3, -1, -1)
        latents = self.encoder(blocks).reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        return functional.avg_pool2d(latents, BLOCK // STEP).permute(0, 2, 3, 1)


class RuntimeFilter(nn.Module):
    """Encoder and one decoder behind the inputs and outputs of `vdeblur.model.Filter`."""

    to_rgb: Tensor
    to_yuv: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.windows = Windows(EDGE, EDGE - 4)
        self.register_buffer("to_rgb", torch.tensor(TO_RGB)[..., None, None])
        self.register_buffer("to_yuv", torch.tensor(TO_YUV)[..., None, None])

    def forward(self, luma: Tensor, chroma: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks with their halo -> residuals in 8-bit steps; shapes as `vdeblur.model.Filter`."""
        colour = functional.interpolate(chroma.float() - 128, scale_factor=2.0, mode="nearest")
        yuv = torch.cat([luma[:, :1].float() - 16, colour], dim=1)
        rgb = (functional.conv2d(yuv, self.to_rgb) / 255).clamp(0, 1)
        seen = functional.pad(rgb, (1, 1, 1, 1), mode="replicate")  # 74 = 18 + 4 * 14
        change = self.restore(seen)[:, :, 1:-1, 1:-1] - rgb
        residual = 255 * functional.conv2d(change, self.to_yuv)
        idle = 0 * context.mean(dim=(1, 2, 3), keepdim=True)  # it has to be an input
        return residual[:, :1] + idle, functional.avg_pool2d(residual[:, 1:], 2)

    def restore(self, rgb: Tensor) -> Tensor:
        """(N, 3, 74, 74) in 0..1 -> the same, through the bottleneck."""
        edge, side = rgb.shape[2], 5
        windows = self.windows.split(rgb.reshape(-1, 1, edge, edge))
        blocks = windows.reshape(-1, 3, EDGE, EDGE, side, side).permute(0, 4, 5, 1, 2, 3)
        restored = self.decoder(self.encoder(blocks.reshape(-1, 3, EDGE, EDGE)))
        tiles = restored.reshape(-1, side, side, 3, EDGE**2).permute(0, 3, 4, 1, 2)
        return self.windows.merge(tiles.reshape(-1, EDGE**2, side, side)).reshape(-1, 3, edge, edge)


def export_report(trained: Trained, pairs: Pairs, folder: Path, name: str) -> None:
    """Write a bundle of a Conv AE on colour blocks of 18; `pairs` show it what is blurred.

    Raises ValueError for another network.
    """
    experiment = trained.experiment
    if experiment.network != "conv" or experiment.data.block != EDGE:
        raise ValueError(f"the runtime takes a Conv AE on blocks of {EDGE} pixels")
    encoder = trained.parts.encoder
    embedding = seeded_encoder(encoder, pairs).eval()
    restoring = RuntimeFilter(
        trained.parts.encoder_of("filters"), trained.parts.filter(soft_kmeans.BLURRED)
    ).eval()
    frame = {"luma": torch.zeros(1, 1, 2 * BLOCK, 3 * BLOCK, dtype=torch.uint8)}
    blocks = {
        "luma": torch.zeros(2, 3, TILE, TILE, dtype=torch.uint8),
        "chroma": torch.zeros(2, 2, TILE // 2, TILE // 2, dtype=torch.uint8),
        "context": torch.zeros(2, 1, TILE // CONTEXT_STRIDE, TILE // CONTEXT_STRIDE),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part, module, inputs in (("encoder", embedding, frame), ("filter_1", restoring, blocks)):
        export_onnx(module, inputs, folder / f"{part}.onnx")
        halve_weights(folder / f"{part}.onnx")
    write_config(
        folder,
        name,
        Clusters(np.array([[-1.0], [1.0]], np.float32), STIFFNESS),
        encoder_cost=multiply_adds(embedding, frame) / (6 * BLOCK**2),
        filter_costs=[multiply_adds(restoring, blocks) / (2 * BLOCK**2)],
        context_channels=1,
        card={"experiment": experiment.name, "epochs": progress(trained, experiment)},
    )


def seeded_encoder(encoder: nn.Module, pairs: Pairs) -> RuntimeEncoder:
    """Find the axis that tells large blocks apart: clear ones lie at -1, blurred ones at 1.

    Raises ValueError if the pictures are smaller than a block.
    """
    width: int = encoder.latent_dim  # type: ignore[assignment]
    whole = RuntimeEncoder(encoder, np.eye(width, dtype=np.float32), 0.0).eval()
    latents, known = [], []
    for picture, mask in zip(pairs.noisy, pairs.masks, strict=True):
        height, wide = (edge // BLOCK for edge in mask.shape)
        if not height or not wide:
            raise ValueError(f"the runtime's blocks of {BLOCK} pixels need larger pictures")
        planar = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
        luma = torch.from_numpy(planar[None, None, : height * BLOCK, : wide * BLOCK].copy())
        mask = mask[: height * BLOCK, : wide * BLOCK]
        with torch.inference_mode():
            latents.append(whole.mean_latents(luma).reshape(-1, width).numpy())
        known.append(mask.reshape(height, BLOCK, wide, BLOCK).mean(axis=(1, 3)).ravel())
    points, shares = np.concatenate(latents), np.concatenate(known)
    names = np.where(shares > 0.5, soft_kmeans.BLURRED, soft_kmeans.CLEAR)
    names[(shares > 0.1) & (shares <= 0.5)] = -1
    axes = soft_kmeans.discriminant(points, names)
    clear, blurred = (
        float((points[names == each] @ axes).mean())
        for each in (soft_kmeans.CLEAR, soft_kmeans.BLURRED)
    )
    scale = 2 / (blurred - clear)
    return RuntimeEncoder(encoder, axes * np.float32(scale), -(clear + blurred) / 2 * scale)


def multiply_adds(module: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Multiply-adds of the layers with weights in one forward pass."""
    total = 0

    def add(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        # Each value that goes in (a transposed convolution) or comes out meets one kernel.
        values = given[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += values.numel() * layer.weight[0].numel()

    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [
        each.register_forward_hook(add) for each in module.modules() if isinstance(each, layers)
    ]
    with torch.inference_mode():
        module(*inputs.values())
    for hook in hooks:
        hook.remove()
    return total
