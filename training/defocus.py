"""Lay other pictures of the same clips before the network: out of focus, or at rest.

What is soft for another reason than motion has to come back as it was, and what is sharp, too. A
clip that was rendered and compressed once gives such examples at the price of a filter: the same
defocus on what was seen and on its truth leaves only the motion's blur to be undone.
"""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .data import Clip

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SIGMA = (0.7, 6.0)
"""Standard deviation of the defocus in luma pixels, log-uniform."""
DISK = 2.0
"""A disk's radius over its standard deviation along one axis."""
PARTIAL = 0.4
"""Share of the defocused clips of which only a part is out of focus."""
GRAIN = (0.3, 3.0)
"""Standard deviation of the noise that replaces what the defocus took away, in 8-bit steps."""
BY_FRAME = Clip.__slots__


def around(clip: Clip, t: int) -> tuple[Clip, int]:
    """Frame t with its neighbours alone, and where t now is."""
    first = max(t - 1, 0)
    shown = slice(first, t + 2)
    return replace(clip, **{name: getattr(clip, name)[shown] for name in BY_FRAME}), t - first


def at_rest(clip: Clip) -> Clip:
    """The truth as if it had been filmed: nothing to undo."""
    return replace(
        clip,
        luma=clip.sharp_luma,
        restored=clip.sharp_luma,
        chroma=clip.sharp_chroma,
        blur=np.zeros_like(clip.blur),
        vector=np.zeros_like(clip.vector),
    )


def defocused(clip: Clip, rng: np.random.Generator) -> Clip:
    """Filmed out of focus, as a whole or in part; the truth is as soft, and free of noise."""
    sigma = float(np.exp(rng.uniform(*np.log(SIGMA))))
    disk = bool(rng.random() < 0.6)
    edge = clip.luma.shape[-1]
    amount = _part(edge, rng) if rng.random() < PARTIAL else np.ones((edge, edge), np.float32)
    half: Floats = cv2.resize(  # type: ignore[assignment]
        amount, (edge // 2, edge // 2), interpolation=cv2.INTER_AREA
    )
    grain = float(np.exp(rng.uniform(*np.log(GRAIN)))) if rng.random() < 0.7 else 0.0
    noise = grain * rng.standard_normal(clip.luma.shape, np.float32)
    return replace(
        clip,
        luma=_rounded(_softened(clip.luma, sigma, amount, disk=disk) + noise),
        restored=_rounded(_softened(clip.restored, sigma, amount, disk=disk) + noise),
        chroma=_rounded(_softened(clip.chroma, sigma / 2, half, disk=disk)),
        sharp_luma=_rounded(_softened(clip.sharp_luma, sigma, amount, disk=disk)),
        sharp_chroma=_rounded(_softened(clip.sharp_chroma, sigma / 2, half, disk=disk)),
    )


def _part(edge: int, rng: np.random.Generator) -> Floats:
    """(E, E) in 0..1: a smooth random region."""
    coarse = rng.random((4, 4), np.float32)
    smooth = cv2.resize(coarse, (edge, edge), interpolation=cv2.INTER_CUBIC)
    region: Floats = np.clip((smooth - 0.5) * 6 + 0.5, 0, 1)
    return region


def _softened(planes: Bytes, sigma: float, amount: Floats, *, disk: bool) -> Floats:
    """(..., E, E) -> the same, each plane blurred where `amount` is 1."""
    soft = np.empty(planes.shape, np.float32)
    kernel = _disk(DISK * sigma)
    for index in np.ndindex(planes.shape[:-2]):
        plane = planes[index].astype(np.float32)
        if disk:
            blurred = cv2.filter2D(plane, -1, kernel)
        else:
            blurred = cv2.GaussianBlur(plane, (0, 0), sigma)
        soft[index] = plane + amount * (blurred - plane)
    return soft


def _disk(radius: float) -> Floats:
    """A disk with a soft rim that sums to 1."""
    reach = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1).astype(np.float32)
    kernel: Floats = disk / disk.sum()
    return kernel


def _rounded(planes: Floats) -> Bytes:
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)
