"""Measure a trained experiment on validation pictures: multi-filter against single-filter."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Pairs
from .features import label_vector
from .measure import METRICS, Score, psnr, score
from .recipe import Experiment
from .scheme import Trained, embed
from .soft_kmeans import BLURRED, CLEAR

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

POINTS = 1500
"""Latents that the silhouette and the scatter plot are made of."""
FITTED = 20000
"""Blocks that principal components are fitted to."""


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table, and what its figures are drawn from."""

    name: str
    title: str
    epochs: dict[str, list[int]]
    """Done and planned, of encoder and filters."""
    pictures: int
    noisy: dict[str, float]
    """Mean over the validation pictures, by metric."""
    single: dict[str, float]
    multi: dict[str, float]
    shares: dict[str, float]
    """Of the pictures on which the multi-filter beats the single one, by metric."""
    squared_error: float
    """Of the multi-filter, mean over the pictures."""
    silhouette: float
    """Of the latents under their clusters, -1..1; 0 if all lie in one cluster."""
    purity: float
    """Share of the blocks, wholly clear or wholly degraded, that the clusters tell rightly."""
    linear_bound: float
    """What a bottleneck of this width costs: mean PSNR of the clean pictures through the principal
    components of the clean training blocks, as many as the latent has dimensions."""
    label_vectors: dict[str, dict[str, float]]
    curves: dict[str, list[dict[str, float]]]
    points: list[list[float]]
    """(N, 3): latents by PCA in 2-D, and their cluster."""
    minutes: float
    notes: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def evaluate(
    trained: Trained,
    training: Pairs,
    pairs: Pairs,
    planned: Experiment,
    notes: Sequence[str] = (),
) -> Result:
    """Restore every validation picture by the filters and by the control.

    `planned` is the recipe, of which `trained` may have had fewer epochs.
    """
    noisy_blocks, _ = pairs.blocks()
    latents = embed(trained.parts.encoder, noisy_blocks)
    labels = trained.assign(latents)
    single, multi = (
        picture_bytes(pairs, trained.restore(noisy_blocks, by)) for by in (None, labels)
    )
    scores = {
        key: [score(*each) for each in zip(pictures, pairs.clean, pairs.masks, strict=True)]
        for key, pictures in (("noisy", pairs.noisy), ("single", single), ("multi", multi))
    }
    experiment = trained.experiment
    error = np.square(multi.astype(np.float32) / 255 - pairs.clean / np.float32(255)).mean()
    return Result(
        name=experiment.name,
        title=experiment.title,
        epochs=progress(trained, planned),
        pictures=len(pairs.clean),
        noisy=means(scores["noisy"]),
        single=means(scores["single"]),
        multi=means(scores["multi"]),
        shares=wins(scores["multi"], scores["single"]),
        squared_error=float(error),
        silhouette=separability(latents, labels),
        purity=purity(labels, pairs.degraded_share()),
        linear_bound=linear_bound(training, pairs, latents.shape[1]),
        label_vectors=label_vectors(noisy_blocks, labels),
        curves=trained.curves,
        points=scatter(latents, labels),
        minutes=trained.seconds / 60,
        notes=list(notes),
    )


def picture_bytes(pairs: Pairs, blocks: Floats) -> Bytes:
    """Blocks in 0..1 -> pictures in 8 bits."""
    merged = 255 * pairs.tiling.merge(blocks).clip(0, 1)
    pictures: Bytes = np.rint(merged).astype(np.uint8)
    return pictures


def means(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each metric."""
    return {key: float(np.mean([getattr(each, key) for each in scores])) for key in METRICS}


def wins(multi: Sequence[Score], single: Sequence[Score]) -> dict[str, float]:
    """By metric, the share of pictures on which the first is better."""
    return {
        key: float(
            np.mean([getattr(a, key) > getattr(b, key) for a, b in zip(multi, single, strict=True)])
        )
        for key in METRICS
    }


def progress(trained: Trained, planned: Experiment) -> dict[str, list[int]]:
    """Epochs done and planned; of the filters the fewest."""
    curves = trained.curves
    done = min(len(curves.get(phase, [])) for phase in planned.restoring)
    return {
        "encoder": [len(curves.get("encoder", [])), planned.epochs],
        "filters": [done, planned.restoring_epochs],
    }


def linear_bound(training: Pairs, pairs: Pairs, latent_dim: int) -> float:
    """Clean validation pictures, coded by the training blocks' principal components: mean PSNR."""
    from sklearn.decomposition import PCA

    _, known = training.blocks()
    rows = np.random.default_rng(0).permutation(len(known))[:FITTED]
    flat = known[rows].reshape(len(rows), -1).astype(np.float32) / np.float32(255)
    components: Any = PCA(min(latent_dim, len(rows)), random_state=0).fit(flat)
    _, blocks = pairs.blocks()
    coded = components.inverse_transform(
        components.transform(blocks.reshape(len(blocks), -1).astype(np.float32) / np.float32(255))
    )
    restored = picture_bytes(pairs, coded.astype(np.float32).reshape(blocks.shape))
    everywhere = np.ones(pairs.masks.shape[1:], bool)
    each = [psnr(a, b, everywhere) for a, b in zip(restored, pairs.clean, strict=True)]
    return float(np.mean(each))


def chosen(count: int) -> NDArray[np.intp]:
    """The same `POINTS` of `count` latents each time."""
    return np.random.default_rng(0).permutation(count)[:POINTS]


def separability(latents: Floats, labels: NDArray[np.int64]) -> float:
    """Silhouette (Rousseeuw 1987) of some of the latents under their clusters."""
    from sklearn.metrics import silhouette_score

    rows = chosen(len(latents))
    if len(np.unique(labels[rows])) < 2:
        return 0.0
    return float(silhouette_score(latents[rows], labels[rows]))


def purity(labels: NDArray[np.int64], degraded: Floats) -> float:
    """(N,), (N,) -> how many of the blocks that are all clear or all degraded are named so."""
    sure = (degraded < 0.01) | (degraded > 0.99)
    if not sure.any():
        return 0.0
    truth = np.where(degraded > 0.5, BLURRED, CLEAR)
    return float((np.minimum(labels, BLURRED) == truth)[sure].mean())


def label_vectors(blocks: Bytes, labels: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Each cluster's, of at most 4096 of its blocks."""
    vectors: dict[str, dict[str, float]] = {}
    for cluster in np.unique(labels):
        rows = np.flatnonzero(labels == cluster)[:: max(1, int((labels == cluster).sum()) // 4096)]
        name = "clear" if cluster == CLEAR else "blurred"
        key = name if cluster <= BLURRED else f"{name} {cluster}"
        vectors[key] = asdict(label_vector(blocks[rows].astype(np.float32) / np.float32(255)))
    return vectors


def scatter(latents: Floats, labels: NDArray[np.int64]) -> list[list[float]]:
    """Some latents on their two principal axes, each with its cluster."""
    from sklearn.decomposition import PCA

    rows = chosen(len(latents))
    flat: Any = PCA(2).fit_transform(latents[rows])
    return [
        [round(float(x), 4), round(float(y), 4), float(label)]
        for (x, y), label in zip(flat, labels[rows], strict=True)
    ]
