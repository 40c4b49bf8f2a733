"""Find the camera's motion from all pixels at once, where points cannot be followed.

What lies around a point looks different in two strongly blurred pictures, and whatever is sharp
between them (it goes with the camera, or stands before it) is followed instead of the scene. Small
pictures as wholes still match: a guess (phase correlation; the motion before) is refined, and what
is found says itself how well the pictures agree.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from .refine import refined
from .view import View, coarse_shift

Floats = NDArray[np.float64]

ROUNDS = 3
"""Of refinement: each finds what is about a tenth of the picture away."""
LARGEST = 12.0
"""Grey values: what moves on its own, or is covered, differs by no more."""
EDGE = 2
"""px of the coarse picture that do not count along its edges."""
ENOUGH = 0.15
"""Share of the coarse picture that both must show."""


def mismatch(before: View, view: View, motion: Floats) -> float:
    """By how much the views differ if (3, 3) `motion`, luma px, lies between them: grey values.

    The mean over the coarse picture, with a change of the light taken away; `LARGEST` where too
    little is shown by both.
    """
    way = view.coarsening @ motion @ np.linalg.inv(view.coarsening)
    height, width = before.coarse.shape
    seen = cv2.warpPerspective(
        view.coarse,
        way,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )
    difference = (seen - before.coarse)[EDGE:-EDGE, EDGE:-EDGE]
    difference = difference[np.isfinite(difference)]
    if difference.size < ENOUGH * before.coarse.size:
        return LARGEST
    difference -= np.median(difference)
    return float(np.minimum(np.abs(difference), LARGEST).mean())


def guessed(before: View, view: View) -> Floats:
    """(3, 3), luma px: the shift that the thumbnails' phases tell."""
    x, y = coarse_shift(before, view) * view.scale
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def found(before: View, view: View, starts: Iterable[Floats]) -> tuple[Floats, float] | None:
    """The (3, 3) motion, luma px, that matches best, and its mismatch.

    It differs by a similarity from one of the `starts`; None if nothing is found from any.
    """
    to_coarse = view.coarsening
    back = np.linalg.inv(to_coarse)
    everywhere = np.ones(before.coarse.shape, np.float32)
    best: tuple[Floats, float] | None = None
    for start in starts:
        motion = to_coarse @ start @ back
        for _ in range(ROUNDS):
            better = refined(before.coarse, view.coarse, motion, everywhere)
            if better is None:
                break
            motion = better
        else:
            way = np.asarray(back @ motion @ to_coarse)
            missed = mismatch(before, view, way)
            if best is None or missed < best[1]:
                best = way, missed
    return best
