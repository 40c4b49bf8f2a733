"""How a turning camera sees again what it saw before: exactly, and not as a similarity.

A camera that turns sees the edges of its picture move further than the middle, in proportion to
(width / focal length)**2. That number is the lens's and does not change from frame to frame: it is
learnt from the points that are followed, by least squares over the whole video.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .similarity import Similarity, about_middle
from .sway import Complex

Floats = NDArray[np.float64]

WIDEST = 6.0
"""(width / f)**2 of 100 degrees; wider lenses are not rectilinear any more."""
ENOUGH = 500.0
"""About what a second of shaking tells of the lens."""
WIDE = (3, 2, 1)
"""So many times the tolerance is looked at, each time less: the lens shows at the edges."""


@dataclass(frozen=True, slots=True)
class LearntLens:
    """What points told so far: least squares' numerator and denominator.

    They are in px**2 of the picture that points are followed in: large turns tell more.
    """

    told: float = 0.5 * 4
    weight: float = 4.0
    """To begin with a lens of 39 degrees, which is given up for what a few frames tell."""

    @property
    def strength(self) -> float:
        """(width / f)**2: 0 of an infinitely long lens, 4 of one that sees 90 degrees."""
        return min(max(self.told / self.weight, 0.0), WIDEST)

    def learnt(self, told: float, weight: float) -> "LearntLens":
        """What the next frame tells is added; of more than `ENOUGH` the oldest fades."""
        total = self.weight + weight
        share = min(1.0, ENOUGH / total)
        return LearntLens(share * (self.told + told), share * total)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a camera did, by what that does to the middle of its picture."""

    middle: Similarity
    lens: LearntLens
    """What is known of the lens, this turn included."""

    def homography(self, width: int, height: int) -> Floats:
        """(3, 3): takes pixels of the frame before to this one.

        In pixels from the middle z goes to (turn z + shift) / (1 - (z . shift / turn) / f**2):
        exact but for terms of the turn's square, which `lens.turned` has.
        """
        turn, shift = self.middle.turn, self.middle.shift
        pan = shift / turn * self.lens.strength / width**2
        moved = np.array(
            [
                [turn.real, -turn.imag, shift.real],
                [turn.imag, turn.real, shift.imag],
                [-pan.real, -pan.imag, 1],
            ]
        )
        centre = about_middle(width, height)
        whole = centre @ moved @ np.linalg.inv(centre)
        return np.asarray(whole / whole[2, 2])

    def moved_by(self, homography: Floats, width: int, height: int) -> "Turn":
        """The turn that has another (3, 3) `homography`, by the same lens."""
        centre = about_middle(width, height)
        moved = np.linalg.inv(centre) @ homography @ centre
        (a, b, x), (c, d, y) = moved[:2] / moved[2, 2]
        return Turn(Similarity(complex(a + d, c - b) / 2, complex(x, y)), self.lens)


def fitted(
    lens: LearntLens,
    start: Complex,
    end: Complex,
    trust: Floats,
    *,
    first: Similarity,
    tolerance: float,
    unit: float,
    width: int,
) -> Turn:
    """The turn that took points, px from the middle, from `start` to `end`, both (N,).

    `first` is a similarity near it, `unit` the size in px of what points are followed in. Points
    beyond the `tolerance`, px, do not count (Tukey's weights, reweighted least squares).
    """
    middle, learnt = first, lens
    for wide in WIDE:
        # By how much a lens of strength 1 brings each end nearer to the middle, as a share.
        bend = (start * (middle.shift / middle.turn).conjugate()).real / width**2
        seen = (middle.turn * start + middle.shift) / (1 - learnt.strength * bend)
        miss = abs(seen - end) / (wide * tolerance)
        weights = np.where(miss < 1, (1 - miss**2) ** 2, 0)
        if (weights > 0.1).sum() < 8:
            break
        told, weight = _told(start, end, bend * end, weights * (0.1 + trust))
        learnt = lens.learnt(told / unit**2, weight / unit**2)
        middle = Similarity(*least_squares(start, end * (1 - learnt.strength * bend), weights))
    return Turn(middle, learnt)


def least_squares(start: Complex, end: Complex, weights: Floats) -> tuple[complex, complex]:
    """The similarity (turn, shift) with the least weighted squared error over (N,) pairs."""
    total = weights.sum()
    middle, middle_end = (weights @ start) / total, (weights @ end) / total
    around = start - middle
    power = float(weights @ (abs(around) ** 2))
    if power < 1e-9 * total:
        return 1, complex(middle_end - middle)
    turn = (weights * around.conj()) @ (end - middle_end) / power
    return complex(turn), complex(middle_end - turn * middle)


def _told(start: Complex, end: Complex, bent: Complex, weights: Floats) -> tuple[float, float]:
    """What (N,) pairs tell of the lens: least squares' numerator and denominator.

    `bent` is by how much a lens of strength 1 moves each end; what of it a similarity could do
    tells nothing.
    """
    turn, shift = least_squares(start, bent, weights)
    bent = bent - (turn * start + shift)
    return float(weights @ (bent.conj() * end).real), float(weights @ abs(bent) ** 2)
