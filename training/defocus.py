"""Put a clip out of focus, as a whole or in part.

What is soft for another reason than motion has to come back as soft: the same defocus on what the
sensor gathers and on the truth leaves only the motion's blur to be undone. Noise and compression
come after it, as in a camera.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIGMA = (0.7, 6.0)
"""Standard deviation of the defocus in luma pixels, log-uniform."""
DISKS = 0.6
"""Share of the lenses that make a disk of a point; the others make a Gaussian of it."""
DISK = 2.0
"""A disk's radius over its standard deviation along one axis."""
PARTIAL = 0.4
"""Share of the defocused clips of which only a part is out of focus."""


@dataclass(frozen=True, slots=True)
class Defocus:
    """How a lens softens a picture."""

    sigma: float
    """Standard deviation in pixels."""
    disk: bool
    amount: Floats
    """(H, W) in 0..1: where the picture is out of focus."""

    def of(self, picture: Floats) -> Floats:
        """(H, W, 3) linear light -> the same, softened."""
        if self.disk:
            blurred = cv2.filter2D(picture, -1, _disk(DISK * self.sigma))
        else:
            blurred = cv2.GaussianBlur(picture, (0, 0), self.sigma)
        soft: Floats = picture + self.amount[..., None] * (blurred - picture)
        return soft


def random_defocus(edge: int, rng: np.random.Generator) -> Defocus:
    """For square pictures of `edge` pixels."""
    sigma = float(np.exp(rng.uniform(*np.log(SIGMA))))
    disk = bool(rng.random() < DISKS)
    whole = rng.random() >= PARTIAL
    return Defocus(sigma, disk, np.ones((edge, edge), np.float32) if whole else _part(edge, rng))


def _part(edge: int, rng: np.random.Generator) -> Floats:
    """(E, E) in 0..1: a smooth random region."""
    coarse = rng.random((4, 4), np.float32)
    smooth = cv2.resize(coarse, (edge, edge), interpolation=cv2.INTER_CUBIC)
    region: Floats = np.clip((smooth - 0.5) * 6 + 0.5, 0, 1)
    return region


def _disk(radius: float) -> Floats:
    """A disk with a soft rim that sums to 1."""
    reach = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1).astype(np.float32)
    kernel: Floats = disk / disk.sum()
    return kernel
