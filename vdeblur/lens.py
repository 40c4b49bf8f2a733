"""How a picture moves when a camera with a wide lens turns: not shifted, but seen at an angle.

A camera that turns by an angle moves the middle of its picture by f tan(angle), f the focal length
in px, and the edges further: by 1 + (x / f)**2 times as much at x. To shift such pictures against
each other leaves the edges wobbling; to turn them does not. How strongly the lens does so is learnt
from the video: `Lens`.
"""

from dataclasses import dataclass
from math import hypot, radians, tan

import numpy as np
from numpy.typing import NDArray

from .path import Similarity
from .sway import Complex

Floats = NDArray[np.float64]


def focal_length(field_of_view: float, width: int) -> float:
    """px: of a lens that sees so many degrees from the left edge to the right one."""
    if not 0 < field_of_view < 175:
        raise ValueError(f"field_of_view must be above 0 and below 175, got {field_of_view}")
    return width / 2 / tan(radians(field_of_view) / 2)


def turned(correction: Similarity, width: int, height: int, focal: float) -> Floats:
    """(3, 3): the homography that does to the middle of a frame what `correction` does.

    Its shift becomes the shortest turn of the camera that takes the middle there.
    """
    aim = correction.shift / correction.turn
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    zoom_roll = np.array(
        [
            [correction.turn.real, -correction.turn.imag, 0],
            [correction.turn.imag, correction.turn.real, 0],
            [0, 0, 1],
        ]
    )
    lens = np.diag([focal, focal, 1.0])
    rotation = _rotation(aim.real / focal, aim.imag / focal)
    moved = centre @ zoom_roll @ lens @ rotation @ np.linalg.inv(lens) @ np.linalg.inv(centre)
    return np.asarray(moved / moved[2, 2])


def moved_by(homography: Floats, places: Complex) -> Complex:
    """Places, x + iy, under a (3, 3) homography."""
    x, y = places.real, places.imag
    rows = [row[0] * x + row[1] * y + row[2] for row in homography]
    return np.asarray((rows[0] + 1j * rows[1]) / rows[2])


@dataclass(frozen=True, slots=True)
class Lens:
    """What points told so far of the lens: the square of a frame's width over the focal length.

    It has least squares' numerator and denominator in px of the picture that points are followed
    in, so that what large turns told weighs more.
    """

    told: float = 0.5 * 4
    weight: float = 4.0
    """To begin with a lens of 39 degrees, which is given up for what a few frames tell."""

    @property
    def strength(self) -> float:
        """(width / f)**2: 0 of an infinitely long lens, 4 of one that sees 90 degrees."""
        return min(max(self.told / self.weight, 0.0), WIDEST)

    def learnt(self, told: float, weight: float) -> "Lens":
        """What the next frame tells is added; of more than `ENOUGH` the oldest fades."""
        total = self.weight + weight
        share = min(1.0, ENOUGH / total)
        return Lens(share * (self.told + told), share * total)


WIDEST = 6.0
"""Of 100 degrees; wider ones are not rectilinear any more."""
ENOUGH = 500.0
"""About what a second of shaking tells."""


def turned_by(similarity: Similarity, lens: float, width: int, height: int) -> Floats:
    """(3, 3): the homography of a turning camera to which `similarity` is the nearest one.

    `lens` is (width / f)**2; the homography takes pixels.
    """
    return homography(_inner(similarity, lens, width, height), lens, width, height)


def homography(inner: Similarity, lens: float, width: int, height: int) -> Floats:
    """(3, 3): of a camera whose turn does `inner` to the middle of a frame.

    In pixels from there it takes z to (turn z + shift) / (1 - (z . shift / turn) / f**2).
    """
    turn, shift = inner.turn, inner.shift
    pan = shift / turn * lens / width**2
    moved = np.array(
        [
            [turn.real, -turn.imag, shift.real],
            [turn.imag, turn.real, shift.imag],
            [-pan.real, -pan.imag, 1],
        ]
    )
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    return np.asarray(centre @ moved @ np.linalg.inv(centre))


def middle_of(homography: Floats, width: int, height: int) -> Similarity:
    """What a (3, 3) homography of pixels does to the middle of a frame."""
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    moved = np.linalg.inv(centre) @ homography @ centre
    (a, b, x), (c, d, y) = moved[:2] / moved[2, 2]
    return Similarity(complex(a + d, c - b) / 2, complex(x, y))


def nearest(inner: Similarity, lens: float, width: int, height: int) -> Similarity:
    """The similarity that misses a turning camera's homography least over a whole frame.

    `inner` has the turn and the shift of that homography in the frame's middle. To first order in
    the lens: (z . s) (turn z + shift), s = shift / turn, projected onto 1 and z.
    """
    bend = _bend(inner, lens, width, height)
    return Similarity(inner.turn + bend.turn, inner.shift + bend.shift)


def _inner(outer: Similarity, lens: float, width: int, height: int) -> Similarity:
    """What `nearest` makes `outer` of."""
    inner = outer
    for _ in range(3):
        bend = _bend(inner, lens, width, height)
        inner = Similarity(outer.turn - bend.turn, outer.shift - bend.shift)
    return inner


def _bend(inner: Similarity, lens: float, width: int, height: int) -> Similarity:
    pan = inner.shift / inner.turn * lens / width**2
    across, down = width**2 / 12, height**2 / 12
    crooked = complex(pan.real * across, -pan.imag * down) / (across + down)
    return Similarity(
        inner.shift * crooked, inner.turn * complex(pan.real * across, pan.imag * down)
    )


def _rotation(x: float, y: float) -> Floats:
    """(3, 3): takes (0, 0, 1) to the direction of (x, y, 1), by the shortest way (Rodrigues)."""
    length = hypot(x, y)
    if length < 1e-12:
        return np.eye(3)
    cosine = 1 / hypot(length, 1)
    sine = length * cosine
    axis = np.array([[0, 0, x], [0, 0, y], [-x, -y, 0]]) / length
    return np.asarray(np.eye(3) + sine * axis + (1 - cosine) * axis @ axis)
