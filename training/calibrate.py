"""Decide how sure a model must be before it filters a block: no frame shall get worse."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vdeblur.backend import Backend
from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, HALO
from vdeblur.clusters import CLEAR, Clusters
from vdeblur.model import MultiFilter

from .cutting import blocks_of, context_of
from .data import Clip
from .patches import Bytes, Patch, aligned, at_rest, block_blur, first_halo, haloed, stack
from .train import all_errors

LOSS = -1.0
"""Decibels that one frame in a hundred may lose: mostly to what moves on its own."""
SHARP, ALONE = 1.0, 0.95
"""Of the blocks whose streaks are shorter than so many pixels, this share is left alone."""
RESTING = 3
"""Of one clip in so many the truth is seen instead: it is left alone, too."""
BIASES = np.arange(0, 8.01, 0.5, dtype=np.float32)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trial:
    """What each cluster would make of each block of many frames."""

    latents: Floats
    """(F, B, D)."""
    errors: Floats
    """(F, B, K): squared error; cluster 0 leaves the block alone."""
    blur: Floats
    """(F, B): mean length of the streaks in pixels."""
    at_rest: NDArray[np.bool_]
    """(F,): frames of which nothing can be gained."""

    def gains(self, clusters: Clusters) -> Floats:
        """Decibels that each frame gains that is not at rest; seams do not count."""
        labels, errors = clusters.assign(self.latents[~self.at_rest]), self.errors[~self.at_rest]
        left = np.take_along_axis(errors, labels[..., None].astype(np.intp), axis=2)
        before, after = errors[..., 0].sum(axis=1), left.sum(axis=(1, 2))
        gains: Floats = 10 * np.log10((before + 1e-3) / (after + 1e-3))
        return gains

    def is_safe(self, clusters: Clusters) -> bool:
        """Whether what is sharp is left alone, and hardly a frame gets worse."""
        alone = clusters.assign(self.latents)[self.blur < SHARP] == CLEAR
        return bool(
            np.percentile(self.gains(clusters), 1) >= LOSS
            and (not alone.size or alone.mean() >= ALONE)
        )


def calibrated(model: MultiFilter, backend: Backend, clips: Iterable[Clip]) -> Clusters:
    """The model's clusters, with biases that gain most among those that hardly lose a frame.

    At first the smallest common one that is safe; then each cluster's own in turn. `backend`
    runs the model's bundle and gives the latents.
    """
    trial = _trial(model, backend, clips)
    plain = backend.bundle.clusters
    for bias in BIASES:
        best = _with(plain, np.full(len(plain), bias, np.float32))
        if trial.is_safe(best):
            break
    for _ in range(2):
        for cluster in range(1, len(plain)):
            for bias in BIASES:
                biases = best.biases.copy()
                biases[cluster] = bias
                other = _with(plain, biases)
                if trial.gains(other).mean() > trial.gains(best).mean() and trial.is_safe(other):
                    best = other
    return best


def _with(clusters: Clusters, biases: Floats) -> Clusters:
    biases[0] = 0
    return replace(clusters, biases=biases)


def _trial(model: MultiFilter, backend: Backend, clips: Iterable[Clip]) -> Trial:
    latents, errors, blur, at_rests = [], [], [], []
    for index, given in enumerate(clips):
        resting = index % RESTING == 1
        clip = at_rest(given) if resting else given
        for t in range(1, len(clip.luma) - 1):
            patch = stack([whole(clip, t)])
            with torch.inference_mode():
                seen = patch.own, patch.around, patch.motion
                context, _ = model.encoder(*seen)
                blocks = blocks_of(patch, model.config)
                left = all_errors(model, blocks, context_of(context))
            _, found = backend.embed(*(each[0].contiguous().numpy() for each in seen))
            latents.append(found.reshape(-1, found.shape[-1]).copy())
            errors.append(left.numpy())
            blur.append(patch.blur.numpy().ravel())
            at_rests.append(resting)
    return Trial(np.stack(latents), np.stack(errors), np.stack(blur), np.array(at_rests))


def whole(clip: Clip, t: int) -> Patch:
    """All whole blocks of a frame."""
    edge = clip.luma.shape[1] // BLOCK * BLOCK
    cells = edge // CONTEXT_STRIDE
    near = aligned(clip, t)

    def with_halo(field: Bytes, stride: int = 1) -> torch.Tensor:
        shown = slice(0, edge // stride)
        halo = HALO // stride
        return first_halo(torch.from_numpy(haloed(field, (shown, shown), halo)), halo)

    return Patch(
        luma=with_halo(near.luma),
        around=torch.from_numpy(near.around[:, : edge // 2, : edge // 2].copy()),
        motion=torch.from_numpy(near.motion[:, :cells, :cells].copy()),
        chroma=with_halo(near.chroma, 2),
        sharp_luma=with_halo(clip.sharp_luma[t][None]),
        sharp_chroma=with_halo(clip.sharp_chroma[t], 2),
        blur=torch.from_numpy(block_blur(clip.blur[t], 0, 0, edge)),
    )
