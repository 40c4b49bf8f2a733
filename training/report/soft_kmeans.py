"""Soft k-means in the latent space, and which of two clusters is the blurred one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CLEAR, BLURRED = 0, 1
"""The clusters' numbers after they have been named."""


@dataclass(frozen=True, slots=True)
class SoftKMeans:
    """Centroids and stiffness (MacKay 2003, chapter 22: soft k-means, version 1)."""

    centroids: Floats
    """(K, D)."""
    stiffness: float
    """Responsibilities are softmax(-stiffness * squared distance / variance); towards infinity
    this is k-means."""
    variance: float
    """Mean squared distance of the fitted latents from their mean."""
    axes: Floats | None = None
    """(L, D): the directions of the latent space in which distances are taken; None is all."""

    def responsibilities(self, latents: Floats) -> Floats:
        """(N, L) -> (N, K), rows sum to 1."""
        seen = latents if self.axes is None else latents @ self.axes
        return responsibilities(seen, self.centroids, self.stiffness / self.variance)

    def assign(self, latents: Floats) -> NDArray[np.int64]:
        """(N, D) -> (N,): the cluster with the largest responsibility, the nearest one."""
        labels: NDArray[np.int64] = self.responsibilities(latents).argmax(axis=1)
        return labels


def responsibilities(latents: Floats, centroids: Floats, stiffness: float) -> Floats:
    """(N, D), (K, D) -> (N, K): softmax of -`stiffness` times the squared distances."""
    distances = (
        np.square(latents).sum(axis=1)[:, None]
        - 2 * latents @ centroids.T
        + np.square(centroids).sum(axis=1)
    )
    logits = -stiffness * (distances - distances.min(axis=1, keepdims=True))
    weights = np.exp(logits)
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares


def fit(
    latents: Floats,
    n_clusters: int = 2,
    *,
    stiffness: float = 8.0,
    start: Floats | None = None,
    seed: int = 0,
    iterations: int = 200,
) -> SoftKMeans:
    """Find centroids of (N, D) latents: assignment and update in turns until they rest.

    `start` (K, D) are the first centroids, otherwise they are drawn as by k-means++ (Arthur and
    Vassilvitskii 2007). Raises ValueError for fewer latents than clusters.
    """
    if len(latents) < n_clusters:
        raise ValueError(f"{len(latents)} latents are too few for {n_clusters} clusters")
    variance = max(float(latents.var(axis=0).sum()), 1e-12)
    generator = np.random.default_rng(seed)
    centroids = spread(latents, n_clusters, generator) if start is None else start
    for _ in range(iterations):
        shares = responsibilities(latents, centroids, stiffness / variance)
        moved = (shares.T @ latents / np.maximum(shares.sum(axis=0), 1e-12)[:, None]).astype(
            np.float32
        )
        rest = np.square(moved - centroids).sum() <= 1e-10 * variance
        centroids = moved
        if rest:
            break
    return SoftKMeans(centroids, stiffness, variance)


def discriminant(latents: Floats, known: NDArray[np.int64]) -> Floats:
    """(N, L), (N,) -> (L, 1): Fisher's linear discriminant of the known clear and blurred blocks.

    Unsupervised clusters follow what latents vary most in, which is brightness; along this axis
    they follow the blur. `known` (N,) is -1 where nothing is known. Raises ValueError if there
    are not both kinds.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows = known >= 0
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(latents[rows], known[rows])
    return np.asarray(model.coef_, np.float32).T


def spread(latents: Floats, n_clusters: int, rng: np.random.Generator) -> Floats:
    """Draw first centroids far from each other."""
    chosen = [latents[rng.integers(len(latents))]]
    while len(chosen) < n_clusters:
        nearest = np.min([np.square(latents - each).sum(axis=1) for each in chosen], axis=0)
        total = nearest.sum()
        weights = nearest / total if total > 0 else None
        chosen.append(latents[rng.choice(len(latents), p=weights)])
    return np.stack(chosen)


def named(labels: NDArray[np.int64], known: NDArray[np.int64], n_clusters: int) -> list[int]:
    """Which cluster is which: entry k is the name (`CLEAR` first) of cluster k.

    Semi-supervised: `known` (N,) holds the truth of a few blocks and -1 for all others. The
    cluster with the smallest share of known blurred blocks becomes `CLEAR`, and so on upwards.
    """
    shares = [
        float((known[(labels == k) & (known >= 0)] == BLURRED).mean())
        if ((labels == k) & (known >= 0)).any()
        else 0.5
        for k in range(n_clusters)
    ]
    order = np.argsort(shares, kind="stable")
    names = np.empty(n_clusters, int)
    names[order] = np.arange(n_clusters)
    return [int(name) for name in names]
