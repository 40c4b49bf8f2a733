"""Fit the fixed linear maps behind which the networks see their inputs."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vdeblur.model import Encoder, Filter, MultiFilter

from .patches import Patch

NOISE = 8.0 / 255
"""Directions of a standard deviation below it are not blown up to the others' size: edges are
rare and large there, and would drown everything."""
SCALE = 0.2
"""Standard deviation after whitening, about that of a picture before it."""


def fit_whitening(model: MultiFilter, patches: Iterable[Patch]) -> None:
    """Set the whitening of the encoder and of all filters from some batches, in place."""
    encoder_seen, filter_seen = [], []
    first = model.filters[0]
    assert isinstance(first, Filter)
    assert isinstance(model.encoder, Encoder)
    for patch in patches:
        luma = patch.luma[:, : model.config.luma_planes]
        colours = patch.chroma[:, : model.config.chroma_planes]
        encoder_seen.append(vectors(model.encoder.enter.cells(patch.own, patch.around)))
        filter_seen.append(vectors(first.enter.cells(*first.pictures(luma, colours))))
    model.encoder.enter.whitening.copy_(whitening(torch.cat(encoder_seen)))
    for each in model.filters:
        assert isinstance(each, Filter)
        each.enter.whitening.copy_(whitening(torch.cat(filter_seen)))


def vectors(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C)."""
    return x.movedim(1, -1).flatten(0, -2)


def whitening(vectors: Tensor) -> Tensor:
    """(N, C) -> (C, C, 1, 1): principal components over their standard deviations, about 0."""
    covariance = vectors.double().T @ vectors.double() / len(vectors)
    variances, directions = torch.linalg.eigh(covariance)
    scaled = SCALE * directions / torch.sqrt(variances.clamp(min=0) + NOISE**2)
    turned: Tensor = scaled.T.float()[:, :, None, None]
    return turned
