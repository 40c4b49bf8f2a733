"""Decide how sure a model must be before it filters a block: no frame shall get worse."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from vdeblur.blocks import BLOCK
from vdeblur.model import MultiFilter

from .data import Clip
from .patches import Patch, aligned_lumas, stack
from .train import all_errors, blocks_of, context_of

LOSS = -0.1
"""Decibels that one frame in a hundred may lose."""
BIASES = np.arange(0, 8.01, 0.25)


def clear_bias(model: MultiFilter, clips: Iterable[Clip]) -> float:
    """The smallest addition to the clear cluster's logit with which hardly a frame gets worse.

    Measured over the blocks of each frame as they are at run time, but for the seams.
    """
    frames = [_margins(model, clip, t) for clip in clips for t in range(1, len(clip.luma) - 1)]
    for bias in BIASES:
        if np.percentile([_gain(frame, float(bias)) for frame in frames], 1) >= LOSS:
            return float(bias)
    return float(BIASES[-1])


Margins = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Of each block: the logit of being blurred, the error unfiltered, and filtered."""


def _gain(frame: Margins, bias: float) -> float:
    """Decibels that the frame gains if blocks are filtered whose margin exceeds `bias`."""
    margin, untouched, filtered = frame
    left = np.where(margin > bias, filtered, untouched)
    return float(10 * np.log10((untouched.sum() + 1e-3) / (left.sum() + 1e-3)))


def _margins(model: MultiFilter, clip: Clip, t: int) -> Margins:
    patch = stack([_whole(clip, t)])
    with torch.inference_mode():
        context, latents = model.encoder(patch.luma)
        errors = all_errors(model, blocks_of(patch), context_of(context))
        shares = model.log_responsibilities(latents.flatten(0, 2))
        margin = torch.logsumexp(shares[:, 1:], dim=1) - shares[:, 0]
        best = 1 + shares[:, 1:].argmax(dim=1)
    chosen = errors.gather(1, best[:, None])[:, 0]
    return margin.double().numpy(), errors[:, 0].double().numpy(), chosen.double().numpy()


def _whole(clip: Clip, t: int) -> Patch:
    """All whole blocks of a frame."""
    edge = clip.luma.shape[1] // BLOCK * BLOCK
    parts = (
        aligned_lumas(clip, t)[:, :edge, :edge],
        clip.chroma[t][:, : edge // 2, : edge // 2],
        clip.sharp_luma[t][None, :edge, :edge],
        clip.sharp_chroma[t][:, : edge // 2, : edge // 2],
    )
    luma, chroma, sharp_luma, sharp_chroma = (
        torch.from_numpy(np.ascontiguousarray(part)) for part in parts
    )
    blocks = edge // BLOCK
    return Patch(luma, chroma, sharp_luma, sharp_chroma, torch.zeros(blocks, blocks))
