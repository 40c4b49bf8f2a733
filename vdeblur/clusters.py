"""Soft k-means in the latent space: which cluster a block belongs to, and whether it is blurred."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CLEAR = 0
"""The cluster that is left alone; all others are blurred and have a filter each."""
HYSTERESIS = np.float32(0.1)
"""How much larger the share of another cluster must be for a block to leave its own."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """The centroids that training found."""

    centroids: NDArray[np.float32]
    """(K, D); row 0 is the clear cluster's."""
    stiffness: float
    """Responsibilities are softmax(-stiffness * squared distance)."""
    biases: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    """(K,), or (1,) for all: taken from each cluster's logit; how sure the model must be that
    its filter helps. The clear cluster's is 0."""

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or len(self.centroids) < 2:
            raise ValueError(f"centroids must be (K >= 2, D), got {self.centroids.shape}")
        if self.biases.shape not in ((1,), (len(self.centroids),)):
            raise ValueError(f"biases must be (K,), got {self.biases.shape}")

    def __len__(self) -> int:
        return len(self.centroids)

    def responsibilities(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., D) -> (..., K): the soft membership of each block; sums to 1."""
        distances = np.square(latents[..., None, :] - self.centroids).sum(axis=-1)
        logits = -self.stiffness * distances - self.biases
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: NDArray[np.float32] = weights / weights.sum(axis=-1, keepdims=True)
        return shares

    def assign(
        self,
        latents: NDArray[np.float32],
        *,
        strength: float = 0.5,
        before: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """(..., D) -> (...): the cluster of each block.

        A block counts as blurred if the blurred clusters' share of it exceeds 1 - `strength`:
        0 leaves every block alone, 1 filters every block. Among the blurred clusters the one
        with the largest share wins. `before` (...) are the labels of the frame before: a block
        leaves its cluster only for one whose share is larger by `HYSTERESIS`.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be 0..1, got {strength}")
        shares = self.responsibilities(latents)
        needed: NDArray[np.float32] = np.full((), strength, np.float32)
        if before is not None and 0 < strength < 1:
            kept = np.arange(len(self)) == before[..., None]
            needed = needed + np.where(before == CLEAR, -HYSTERESIS, HYSTERESIS)
            best = 1 + (shares + HYSTERESIS * kept)[..., 1:].argmax(axis=-1)
        else:
            best = 1 + shares[..., 1:].argmax(axis=-1)
        blurred = (shares[..., CLEAR] < needed) | (strength >= 1)
        return np.where(blurred, best, CLEAR).astype(np.uint8)
