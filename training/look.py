"""Look at the training clips: a contact sheet, and how their blur and gradients are distributed."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .data import Clip

Bytes = NDArray[np.uint8]
LEVELS = (10, 25, 50, 75, 90)
"""The percentiles that are told."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """How the luma's differences between neighbouring pixels are distributed."""

    mean: float
    """Mean absolute difference in 8-bit steps."""
    large: float
    """Share of the differences above 16 steps: edges that are sharp."""
    kurtosis: float
    """Fourth moment over the squared second one, 3 for a Gaussian: heavy tails are sharp edges."""


def gradients(lumas: Sequence[Bytes]) -> Gradients:
    """Statistics over pictures (H, W), along both directions."""
    steps = np.concatenate(
        [np.diff(luma.astype(np.float32), axis=axis).ravel() for luma in lumas for axis in (0, 1)]
    )
    power = float(np.square(steps).mean())
    return Gradients(
        float(np.abs(steps).mean()),
        float((np.abs(steps) > 16).mean()),
        float((steps**4).mean()) / max(power**2, 1e-9),
    )


def blur_percentiles(clips: Sequence[Clip]) -> NDArray[np.float64]:
    """`LEVELS` of the streaks' lengths in pixels, over all cells of all frames."""
    lengths = np.concatenate([clip.blur.ravel() for clip in clips])
    return np.asarray(np.percentile(lengths, LEVELS), np.float64)


def sheet(clips: Sequence[Clip]) -> Bytes:
    """A row a clip: three consecutive frames and the truth of the middle one, BGR at 1:1."""
    rows = []
    for clip in clips:
        middle = len(clip.luma) // 2
        shown = [_colour(clip.luma[t], clip.chroma[t]) for t in (middle - 1, middle, middle + 1)]
        truth = _colour(clip.sharp_luma[middle], clip.sharp_chroma[middle])
        rows.append(np.concatenate([*shown, truth], axis=1))
    return np.concatenate(rows)


def _colour(luma: Bytes, chroma: Bytes) -> Bytes:
    planar = np.concatenate([luma, chroma.reshape(-1, luma.shape[1])])
    return cv2.cvtColor(planar, cv2.COLOR_YUV2BGR_I420).astype(np.uint8, copy=False)
