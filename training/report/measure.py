"""How close restored pictures come to the truth: PSNR, SSIM, UQI and the regional PSNR."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

WINDOW = 8
"""Edge of the windows of the quality index."""


@dataclass(frozen=True, slots=True)
class Score:
    """One restored picture against its truth."""

    psnr: float
    ssim: float
    uqi: float
    """Wang and Bovik's universal quality index, as published."""
    uqi_means: float
    """The same formula with window means where it has sums; see `quality_index`."""
    regional_psnr: float
    """PSNR of the degraded part alone."""


METRICS = tuple(Score.__dataclass_fields__)


def score(restored: Bytes, clean: Bytes, mask: NDArray[np.bool_]) -> Score:
    """(H, W, C) twice in 8 bits, (H, W) -> all measures."""
    everywhere = np.ones(mask.shape, bool)
    return Score(
        psnr(restored, clean, everywhere),
        ssim(restored, clean),
        quality_index(restored, clean),
        quality_index(restored, clean, means=True),
        psnr(restored, clean, mask if mask.any() else everywhere),
    )


def psnr(restored: Bytes, clean: Bytes, mask: NDArray[np.bool_]) -> float:
    """Decibels over the masked pixels; 99 if they are equal."""
    error = float(np.square(restored[mask].astype(np.float32) - clean[mask]).mean())
    return 99.0 if error == 0 else min(99.0, float(10 * np.log10(255**2 / error)))


def ssim(restored: Bytes, clean: Bytes) -> float:
    """Structural similarity, mean over the channels (Wang et al. 2004: Gaussian, sigma 1.5)."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            restored,
            clean,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def quality_index(restored: Bytes, clean: Bytes, *, means: bool = False) -> float:
    """Universal quality index (Wang and Bovik 2002): mean over all windows of 8 x 8 and channels.

    4 cov(x, y) mean(x) mean(y) / ((var(x) + var(y)) (mean(x)^2 + mean(y)^2)). A window in which
    nothing varies scores by its means alone.

    `means` computes what a well-known Python package does: it puts means into the form of the
    formula that is written for sums, which makes the index one of brightness more than of
    structure, and much higher. The report's UQI lie above its SSIM, which speaks for that form.
    """
    x, y = (np.atleast_3d(each).astype(np.float64) for each in (restored, clean))
    mean_x, mean_y = _mean(x), _mean(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    count = WINDOW**2 if means else 1
    covariance = count * _mean(x * y) - product
    variance = count * (_mean(x * x) + _mean(y * y)) - squares
    luminance = np.where(squares > 1e-9, 2 * product / np.maximum(squares, 1e-9), 1.0)
    structure = np.where(variance > 1e-6, 2 * covariance / np.maximum(variance, 1e-6), 1.0)
    return float((luminance * structure).mean())


def _mean(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, C) -> means of the windows that lie inside."""
    means = np.asarray(cv2.blur(plane, (WINDOW, WINDOW), anchor=(0, 0)), np.float64)
    inside = means.reshape(plane.shape)
    return inside[: 1 - WINDOW, : 1 - WINDOW]
