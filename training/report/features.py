"""A cluster's label vector: what its blocks are like in space, spectrum and time (section 2.2)."""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LabelVector:
    """Means over a cluster's blocks; all in units of values 0..1."""

    contrast: float
    """Spatial: standard deviation inside a block."""
    gradient: float
    """Spatial: mean absolute difference of neighbouring pixels."""
    low: float
    """Spectral: share of a block's energy, its mean apart, in the lowest third of frequencies."""
    middle: float
    high: float
    change: float
    """Temporal: mean absolute difference from the same block of the frame before; 0 for stills."""

    def vector(self) -> Floats:
        """(6,)."""
        return np.array(astuple(self), np.float32)


def label_vector(blocks: Floats, previous: Floats | None = None) -> LabelVector:
    """(N, E, E, C) in 0..1, and of the frame before -> their label vector; ValueError if empty."""
    if not len(blocks):
        raise ValueError("a cluster without blocks has no label vector")
    luma = blocks.mean(axis=3)
    steps = [np.abs(np.diff(luma, axis=axis)).mean() for axis in (1, 2)]
    low, middle, high = spectrum(luma)
    change = 0.0 if previous is None else float(np.abs(blocks - previous).mean())
    return LabelVector(
        float(luma.std(axis=(1, 2)).mean()), float(np.mean(steps)), low, middle, high, change
    )


def spectrum(luma: Floats) -> tuple[float, float, float]:
    """(N, E, E) -> shares of energy in three equal bands of radial frequency, the mean apart."""
    edge = luma.shape[1]
    centred = luma - luma.mean(axis=(1, 2), keepdims=True)
    energy = np.square(np.abs(np.fft.fft2(centred))).mean(axis=0)
    axis = np.abs(np.fft.fftfreq(edge))
    radius = np.hypot(axis[:, None], axis) / np.hypot(0.5, 0.5)
    total = max(float(energy.sum()), 1e-12)
    bands = [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01)]
    low, middle, high = (
        float(energy[(start <= radius) & (radius < end)].sum()) / total for start, end in bands
    )
    return low, middle, high
