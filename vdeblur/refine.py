"""Refine a camera's motion with all pixels of a small picture at once.

Points tell where corners went, and blur moves corners; all pixels together are moved less.
Gauss-Newton steps on the differences of the two pictures, with the mean of both gradients
(Benhimane and Malis, "Real-time image-based tracking of planes using efficient second-order
minimization", 2004), a gain and a bias for the light, and Tukey's weights against what moves on
its own.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Picture = NDArray[np.float32]

COARSE = 160
"""The longer side of the pictures that are compared."""
STEPS = 2
"""Each leaves about a fifth of what was missing. With one, `handheld.avi` shakes by 6 % more."""
MARGIN = 4
"""px of the coarse picture that are not looked at along its edges."""
OUTSIDE = -1e6
"""What stands for pixels that the other picture does not show. Where even a little of it was mixed
into a pixel, the slope tells."""
STEEPEST = 512
"""Grey values, and those a pixel: no picture has more."""
SOFTEST = 0.3
"""Grey values: differences have a scale of at least so much."""
REJECT = 4.5
"""Differences beyond so many standard deviations do not count."""
EVERY = 2
"""Of so many rows one is looked at: neighbours tell nearly the same."""
FEW = 4
"""Of so many differences one is looked at to find their scale."""
ENOUGH = 200
"""Pixels without which nothing is refined."""


def refined(before: Picture, after: Picture, motion: Floats, interest: Picture) -> Floats | None:
    """(h, w) grey values, twice, and the (3, 3) motion from one to the other -> a better one.

    It differs by a similarity from the one that is given.

    `interest`, (h, w) 0 to 1, weighs the pixels of `before`. None where there is too little to see.
    """
    height, width = before.shape
    if min(height, width) <= 4 * MARGIN:
        return None
    inner = np.s_[MARGIN:-MARGIN:EVERY, MARGIN:-MARGIN]
    middle = complex(width - 1, height - 1) / 2
    y, x = np.ogrid[MARGIN : height - MARGIN : EVERY, MARGIN : width - MARGIN]
    x, y = (
        (x - middle.real).astype(np.float32) / width,
        (y - middle.imag).astype(np.float32) / width,
    )
    known, slopes, interest = before[inner], _slopes(before), interest[inner].ravel()
    terms = np.empty((6, known.size), np.float32)
    terms[4], terms[5] = 1, known.ravel() / 100
    planes = terms.reshape(6, *known.shape)
    for _ in range(STEPS):
        seen = _looked_up(after, motion)
        for plane, old, new in zip(planes, slopes, _slopes(seen), strict=False):
            np.add(old, new, out=plane)
        planes[2] = planes[0] * x + planes[1] * y
        planes[3] = planes[1] * x - planes[0] * y
        difference = (seen[inner] - known).ravel()
        shown = (np.abs(planes[:2]) < STEEPEST).all(axis=0) & (seen[inner] > -STEEPEST)
        weights = _weights(difference, (shown.ravel() & (interest > 0)))
        if weights is None:
            return None
        weighted = terms * (weights * interest)
        square = weighted @ terms.T + 1e-3 * np.eye(6)
        step = -np.linalg.solve(
            square.astype(np.float64), (weighted @ difference).astype(np.float64)
        )
        motion = motion @ _small_motion(step, middle, width)
    return motion


def _looked_up(picture: Picture, motion: Floats) -> Picture:
    """(h, w): what `picture` shows where (3, 3) `motion` takes each pixel, or `OUTSIDE`."""
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, picture.shape[::-1]
    seen = cv2.warpPerspective(
        picture,
        motion,
        size,
        flags=flags,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=OUTSIDE,
    )
    return np.asarray(seen, np.float32)


def _slopes(picture: Picture) -> tuple[Picture, Picture]:
    """Half of the gradient along x and y, inside of the margin: the sum of two is their mean."""
    inner = np.s_[MARGIN:-MARGIN:EVERY, MARGIN:-MARGIN]
    return tuple(  # type: ignore[return-value]
        cv2.Sobel(picture, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 16)[inner]
        for dx, dy in ((1, 0), (0, 1))
    )


def _weights(difference: Picture, shown: NDArray[np.bool_]) -> Picture | None:
    """(N,): Tukey's weights, 0 for what only one of the pictures shows."""
    sizes = difference[shown]
    if len(sizes) < ENOUGH:
        return None
    sizes = np.abs(sizes[::FEW])
    middle = len(sizes) // 2
    scale = 1.4826 * float(np.partition(sizes, middle)[middle]) + SOFTEST
    square = np.square(difference / (REJECT * scale))
    np.minimum(square, 1, out=square)
    square[~shown] = 1
    return np.asarray(np.square(1 - square))


def _small_motion(step: Floats, middle: complex, width: int) -> Floats:
    """(3, 3): moved by the first two of the step, px, zoomed and turned about the middle."""
    turn = 1 + complex(step[2], step[3]) / width
    shift = complex(step[0], step[1]) + middle - turn * middle
    return np.array(
        [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]]
    )
