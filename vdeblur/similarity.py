"""A shift, a turn and a zoom of a picture about its middle."""

from dataclasses import dataclass
from math import atan2, log

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def about_middle(width: int, height: int) -> Floats:
    """(3, 3): from places counted from a frame's middle to its pixels."""
    return np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])


@dataclass(frozen=True, slots=True)
class Similarity:
    """z -> turn z + shift, in pixels from the centre of the frame."""

    turn: complex = 1
    shift: complex = 0

    @staticmethod
    def of(transform: Floats, width: int, height: int) -> "Similarity":
        """The similarity nearest to a (2, 3) transform of a frame's pixels."""
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        linear = transform[:, :2]
        moved = linear @ centre + transform[:, 2] - centre
        turn = complex(linear[0, 0] + linear[1, 1], linear[1, 0] - linear[0, 1]) / 2
        return Similarity(turn, complex(*moved))

    def matrix(self, width: int, height: int) -> Floats:
        """(2, 3): the transform of a frame's pixels."""
        centre = complex((width - 1) / 2, (height - 1) / 2)
        turn, shift = self.turn, centre + self.shift - self.turn * centre
        return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])

    def __call__(self, z: complex) -> complex:
        """Where z goes."""
        return self.turn * z + self.shift

    def __matmul__(self, first: "Similarity") -> "Similarity":
        """This after `first`."""
        return Similarity(self.turn * first.turn, self(first.shift))

    @property
    def inverse(self) -> "Similarity":
        """What undoes it."""
        return Similarity(1 / self.turn, -self.shift / self.turn)

    def mixed(self, other: "Similarity", share: float) -> "Similarity":
        """With so much of another one, 0..1."""
        return Similarity(
            (1 - share) * self.turn + share * other.turn,
            (1 - share) * self.shift + share * other.shift,
        )

    def effect(self, width: int, height: int) -> float:
        """How far a pixel of the frame moves at most, px."""
        return abs(self.turn - 1) * abs(complex(width, height)) / 2 + abs(self.shift)

    @property
    def log_turn(self) -> complex:
        """log scale + i angle."""
        return complex(log(abs(self.turn)), atan2(self.turn.imag, self.turn.real))
