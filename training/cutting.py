"""Cut batches of patches into blocks, as a frame is cut at run time."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vdeblur.blocks import BLOCK, CLEAR_SIDE, CONTEXT_STRIDE, HALO, TILE, fade_weights
from vdeblur.model import ModelConfig, MultiFilter

from .patches import Patch

CALM = 1.5
"""Mean contrast in 8-bit steps up to which the truth is smooth: any pattern would show there."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a batch, as the filters see them."""

    luma: Tensor
    """(M, P, E, E) uint8, with `ModelConfig.luma_planes`."""
    chroma: Tensor
    """(M, Q, E/2, E/2) uint8, with `ModelConfig.chroma_planes`."""
    luma_target: Tensor
    """(M, 1, E, E): the residual that would make the block sharp, in 8-bit steps."""
    chroma_target: Tensor
    """(M, 2, E/2, E/2)."""
    smooth: Tensor
    """(M, 1, E, E): see `smoothness`."""
    weight: Tensor
    """(1, 1, E, E): by which errors of the luma count, see `fading`."""
    colour_weight: Tensor
    """(1, 1, E/2, E/2)."""


def cut(x: Tensor, *, stride: int = 1) -> Tensor:
    """(N, C, h, w) -> (N * rows * columns, C, e, e): blocks with their halo, as `x` has one.

    `stride` is how many luma pixels one pixel covers.
    """
    edge, block = TILE // stride, BLOCK // stride
    windows = x.unfold(2, edge, block).unfold(3, edge, block)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], edge, edge)


def fading(*, stride: int = 1) -> Tensor:
    """(1, 1, E, E): how much of a picture each pixel of a block and its halo is, 1 in the mean.

    Where blocks meet they fade into each other.
    """
    halo = HALO // stride
    rising, falling = fade_weights(halo)
    within = np.ones(TILE // stride - 2 * halo, np.float32)
    along = torch.from_numpy(np.concatenate([rising[CLEAR_SIDE], within, falling[0]]))
    weight = along[:, None] * along
    return (weight / weight.mean())[None, None]


def blocks_of(patch: Patch, config: ModelConfig) -> Blocks:
    """Cut a batch of patches as `vdeblur.blocks` cuts a frame."""
    own, colours = patch.chroma[:, :2], patch.chroma[:, : config.chroma_planes]
    truth = cut(patch.sharp_luma.float())
    return Blocks(
        luma=cut(patch.luma[:, : config.luma_planes]),
        chroma=cut(colours, stride=2),
        luma_target=truth - cut(patch.luma[:, :1].float()),
        chroma_target=cut(patch.sharp_chroma.float() - own.float(), stride=2),
        smooth=smoothness(truth),
        weight=fading().to(truth.device),
        colour_weight=fading(stride=2).to(truth.device),
    )


def context_of(context: Tensor) -> Tensor:
    """(N, C, H/8, W/8) -> each block's share of the context, with its halo, edges repeated."""
    halo = HALO // CONTEXT_STRIDE
    padded = functional.pad(context, (halo, 0, halo, 0), mode="replicate")
    return cut(padded, stride=CONTEXT_STRIDE)


FilterInputs = tuple[Tensor, Tensor, Tensor]
"""Luma, chroma and context of blocks, as a filter is given them."""


def blocks_for(model: MultiFilter, patch: Patch) -> dict[int, FilterInputs]:
    """What each filter is given of a batch's blocks, by its cluster; who gets none is not there."""
    context, latents = model.encoder(patch.own, patch.around, patch.motion)
    labels = model.log_responsibilities(latents.flatten(0, 2)).argmax(dim=1)
    blocks, context = blocks_of(patch, model.config), context_of(context)
    return {
        cluster: (blocks.luma[rows], blocks.chroma[rows], context[rows])
        for cluster in range(1, model.config.n_clusters)
        if len(rows := torch.nonzero(labels == cluster).flatten())
    }


def detail(x: Tensor) -> Tensor:
    """(M, 1, E, E) -> the same less the mean of each square of four by four pixels."""
    return x - _enlarged(functional.avg_pool2d(x, 4))


def smoothness(truth: Tensor) -> Tensor:
    """(M, 1, E, E) in 8-bit steps -> in 0..1: 1 where nothing is to be seen.

    An error shows where it has no structure to hide in (Chou & Li, "A perceptually tuned subband
    image coder", 1995, on texture masking).
    """
    contrast = functional.avg_pool2d(detail(truth).abs(), 4)
    return _enlarged(torch.exp(-contrast / CALM))


def _enlarged(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=4.0, mode="nearest")
