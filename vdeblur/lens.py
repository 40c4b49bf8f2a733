"""How a picture moves when a camera with a wide lens turns: not shifted, but seen at an angle.

A camera that turns by an angle moves the middle of its picture by f tan(angle), f the focal length
in px, and the edges further: by 1 + (x / f)**2 times as much at x. To shift such pictures against
each other leaves the edges wobbling; to turn them does not.
"""

from math import hypot, radians, tan

import numpy as np
from numpy.typing import NDArray

from .similarity import Similarity, about_middle
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
    centre = about_middle(width, height)
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


def _rotation(x: float, y: float) -> Floats:
    """(3, 3): takes (0, 0, 1) to the direction of (x, y, 1), by the shortest way (Rodrigues)."""
    length = hypot(x, y)
    if length < 1e-12:
        return np.eye(3)
    cosine = 1 / hypot(length, 1)
    sine = length * cosine
    axis = np.array([[0, 0, x], [0, 0, y], [-x, -y, 0]]) / length
    return np.asarray(np.eye(3) + sine * axis + (1 - cosine) * axis @ axis)
