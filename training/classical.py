"""The classical peers: what sharpens without a trained network, with the same aligned frames.

Each takes a luma in 8-bit steps and gives it back sharper; chroma stays as it was. Those that
need the blur get the true one, which no user has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .data import CELL, Clip
from .patches import aligned, as_filmed

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
TILE, MARGIN = 64, 32
"""The blur is taken as constant over a tile, which is restored with a margin around it."""


@dataclass(frozen=True, slots=True)
class View:
    """What a peer may use of a clip for one frame."""

    lumas: Bytes
    """(3, H, W): the frame and its neighbours t-1, t+1 laid over it by the runtime's estimate."""
    vectors: Floats
    """(H/16, W/16, 2): the true streak of each cell, x and y in pixels."""


Peer = Callable[[View], Floats]


def views(clip: Clip) -> list[View]:
    """One of each frame."""
    filmed = as_filmed(clip)
    return [View(aligned(filmed, t).luma, clip.vector[t]) for t in range(len(clip.luma))]


def unsharp(sigma: float, amount: float) -> Peer:
    """Add `amount` times what a Gaussian of `sigma` pixels takes away."""

    def sharpen(view: View) -> Floats:
        luma = view.lumas[0].astype(np.float32)
        smooth = np.asarray(cv2.GaussianBlur(luma, (0, 0), sigma), np.float32)
        return np.asarray(luma + amount * (luma - smooth), np.float32)

    return sharpen


def wiener(noise: float) -> Peer:
    """Wiener's deconvolution with the true vector; `noise` is the noise-to-signal power."""

    def restore(tile: Floats, kernel: Floats) -> Floats:
        spectrum = _spectrum(kernel, tile.shape)
        quotient = np.conj(spectrum) / (np.abs(spectrum) ** 2 + noise)
        mean = tile.mean()
        return np.asarray(
            np.fft.irfft2(np.fft.rfft2(tile - mean) * quotient, tile.shape) + mean, np.float32
        )

    return lambda view: _by_tiles(view, restore)


def richardson_lucy(steps: int) -> Peer:
    """Richardson (1972) and Lucy (1974) with the true vector, `steps` iterations."""

    def restore(tile: Floats, kernel: Floats) -> Floats:
        spectrum = _spectrum(kernel, tile.shape)
        seen = np.maximum(tile, 1)
        estimate = seen.copy()
        for _ in range(steps):
            blurred = np.fft.irfft2(np.fft.rfft2(estimate) * spectrum, tile.shape)
            ratio = seen / np.maximum(blurred, 1)
            estimate *= np.fft.irfft2(np.fft.rfft2(ratio) * np.conj(spectrum), tile.shape)
        return np.asarray(estimate, np.float32)

    return lambda view: _by_tiles(view, restore)


def burst_accumulation(power: float) -> Peer:
    """Delbracio & Sapiro (2015), "Removing camera shake via weighted Fourier burst accumulation".

    Each frequency is taken from the frames in which it is strongest: weights |F|**power.
    """

    def accumulate(view: View) -> Floats:
        spectra = np.fft.rfft2(view.lumas.astype(np.float32))
        sizes = np.abs(spectra)
        sizes = np.stack([cv2.GaussianBlur(each, (0, 0), 3.0) for each in sizes])
        weights = (sizes / sizes.max(axis=0)) ** power
        mixed = (spectra * weights).sum(axis=0) / weights.sum(axis=0)
        return np.asarray(np.fft.irfft2(mixed, view.lumas.shape[1:]), np.float32)

    return accumulate


PEERS: dict[str, Sequence[Peer]] = {
    "unsharp mask": [unsharp(1.0, 0.5), unsharp(2.0, 0.5), unsharp(2.0, 1.0)],
    "Wiener, true vector": [wiener(0.3), wiener(0.1), wiener(0.03)],
    "Richardson-Lucy, true vector": [
        richardson_lucy(2),
        richardson_lucy(5),
        richardson_lucy(15),
    ],
    "Fourier burst accumulation": [
        burst_accumulation(2),
        burst_accumulation(5),
        burst_accumulation(11),
    ],
}
"""Each with three settings, of which the best on the evaluated clips counts, in its favour."""


def line(x: float, y: float) -> Floats:
    """The kernel of a straight streak along (x, y) pixels, odd edge, sum 1."""
    reach = int(np.ceil(max(abs(x), abs(y)) / 2)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for share in np.linspace(-0.5, 0.5, 8 * reach):
        px, py = reach + share * x, reach + share * y
        left, top = int(np.floor(px)), int(np.floor(py))
        right, below = px - left, py - top
        kernel[top, left] += (1 - right) * (1 - below)
        kernel[top, left + 1] += right * (1 - below)
        kernel[top + 1, left] += (1 - right) * below
        kernel[top + 1, left + 1] += right * below
    return np.asarray(kernel / kernel.sum(), np.float32)


def _spectrum(kernel: Floats, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    padded = np.zeros(shape)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    reach = kernel.shape[0] // 2
    return np.fft.rfft2(np.roll(padded, (-reach, -reach), axis=(0, 1)))


def _by_tiles(view: View, restore: Callable[[Floats, Floats], Floats]) -> Floats:
    """Restore tile by tile, each with the vector of its middle; blurs below a pixel stay."""
    luma = view.lumas[0].astype(np.float32)
    height, width = luma.shape
    padded = np.pad(luma, MARGIN, mode="reflect")
    out: Floats = luma.copy()
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            cells = view.vectors[top // CELL : (top + TILE) // CELL]
            x, y = cells[:, left // CELL : (left + TILE) // CELL].mean(axis=(0, 1))
            if np.hypot(x, y) < 1 or max(abs(x), abs(y)) > TILE:
                continue
            tile = padded[top : top + TILE + 2 * MARGIN, left : left + TILE + 2 * MARGIN]
            restored = restore(tile, line(float(x), float(y)))
            part = out[top : top + TILE, left : left + TILE]
            part[:] = restored[MARGIN : MARGIN + part.shape[0], MARGIN : MARGIN + part.shape[1]]
    return out
