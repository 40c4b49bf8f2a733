"""How a frame is distorted: by its rolling shutter, or by other things that are to be undone."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complex128]
"""Places, x + iy in luma pixels."""


class Distortion(Protocol):
    """Where a frame shows what a better camera would have seen elsewhere."""

    def observed(self, places: Complex) -> Complex:
        """Places in the picture of the better camera -> where this frame shows them."""
        ...

    def true(self, places: Complex) -> Complex:
        """The inverse of `observed`."""
        ...

    @property
    def effect(self) -> float:
        """How far a pixel is moved at most, px."""
        ...


@dataclass(frozen=True, slots=True)
class Both:
    """Two distortions, one of what the other made."""

    first: Distortion
    then: Distortion

    def observed(self, places: Complex) -> Complex:
        """Places before both -> after both."""
        return self.then.observed(self.first.observed(places))

    def true(self, places: Complex) -> Complex:
        """The inverse of `observed`."""
        return self.first.true(self.then.true(places))

    @property
    def effect(self) -> float:
        """How far a pixel is moved at most, px."""
        return self.first.effect + self.then.effect


def distorted_by(first: Distortion | None, then: Distortion | None) -> Distortion | None:
    """Both, as far as there are any."""
    if first is None or then is None:
        return first or then
    return Both(first, then)


@dataclass(frozen=True, slots=True)
class Sway:
    """How the camera moved while the rows of a frame were read."""

    place: Complex
    """(K,): the picture's shift, as a polynomial in the row, 0 in the middle, -1/2 to 1/2."""
    turn: Complex
    """(K,): log scale + i angle, likewise; both begin with the linear term."""
    width: int
    height: int

    def observed(self, places: Complex) -> Complex:
        """Places in the picture of a global shutter -> where the rolling one put them."""
        centre = complex(self.width - 1, self.height - 1) / 2
        true, seen = places - centre, places - centre
        for _ in range(2):  # the row that saw a point is the one where it then was
            row = np.clip(seen.imag / self.height, -0.75, 0.75)
            seen = np.exp(_polynomial(self.turn, row)) * true + _polynomial(self.place, row)
        return np.asarray(seen + centre)

    def true(self, places: Complex) -> Complex:
        """The inverse of `observed`."""
        centre = complex(self.width - 1, self.height - 1) / 2
        seen = places - centre
        row = np.clip(seen.imag / self.height, -0.75, 0.75)
        true = (seen - _polynomial(self.place, row)) / np.exp(_polynomial(self.turn, row))
        return np.asarray(true + centre)

    @property
    def effect(self) -> float:
        """How far a pixel is moved at most, px."""
        ends = np.array([-0.5, 0.5])
        reach = abs(complex(self.width, self.height)) / 2
        moved = np.abs(_polynomial(self.place, ends)) + reach * np.abs(_polynomial(self.turn, ends))
        return float(moved.max())


def _polynomial(terms: Complex, x: NDArray[np.float64]) -> Complex:
    """terms[0] x + terms[1] x**2 + ..."""
    total = np.zeros(x.shape, complex)
    for term in terms[::-1]:
        total = (total + term) * x
    return total
