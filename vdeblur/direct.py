"""Find the camera's motion from all pixels at once, where points cannot be followed.

What lies around a point looks different in two strongly blurred pictures, and whatever is sharp
between them (it goes with the camera, or stands before it) is followed instead of the scene. Small
pictures as wholes still match: a guess (phase correlation; the motion before) is refined, and what
is found says itself how well the pictures agree.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from .refine import refined
from .view import View, coarse_shift

Floats = NDArray[np.float64]
Picture = NDArray[np.float32]

ROUNDS = 3
"""Of refinement: each finds what is about a tenth of the picture away."""
LARGEST = 12.0
"""Grey values: what moves on its own, or is covered, differs by no more."""
EDGE = 2
"""px of the coarse picture that do not count along its edges."""
ENOUGH = 0.5
"""Share of the coarse picture that both must show."""
ALIKE, TELLING = 1.0, 0.1
"""Grey values: what differs by less without any motion (bars, a logo, the sky) says nothing of it;
so large a share of the coarse picture must differ by more."""
EXPOSED = 0.5
"""Share of the frame interval that the shutter is taken to be open."""
SHORTEST = 0.5
"""px of the coarse picture: shorter streaks are none."""


def mismatch(before: View, view: View, motion: Floats) -> float:
    """By how much the views differ if (3, 3) `motion`, luma px, lies between them: grey values.

    The mean over the coarse picture, with a change of the light taken away; `LARGEST` where too
    little is shown by both.
    """
    left = _differences(before, view, motion, every=2)
    shown = np.isfinite(left)
    return float(left[shown].mean()) if _share(shown) >= ENOUGH else LARGEST


def share_left(
    before: View, view: View, motion: Floats, known: Floats, *, unmoved: bool = True
) -> float:
    """What share of the difference that (3, 3) `known` leaves `motion` leaves; both in luma px.

    Of what both show; without the `unmoved`, of what differs without any motion. Infinite where
    that is too little.
    """
    left, left_by_known = (_differences(before, view, each) for each in (motion, known))
    shown = np.isfinite(left) & np.isfinite(left_by_known)
    telling = shown
    if not unmoved:
        telling = shown & (_inner(np.abs(view.coarse - before.coarse)) >= ALIKE)
    if _share(shown) < ENOUGH or _share(telling) < TELLING:
        return float("inf")
    return float(left[telling].mean() / max(left_by_known[telling].mean(), 1e-6))


def _differences(before: View, view: View, motion: Floats, *, every: int = 1) -> Picture:
    """(h, w) of the coarse picture within its edges, 0 to `LARGEST`; NaN where not both show.

    Of `every` so many rows and columns.
    """
    way = view.coarsening @ motion @ np.linalg.inv(view.coarsening)
    seen = cv2.warpPerspective(
        view.coarse,
        way,
        before.coarse.shape[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )
    rarely = np.s_[::every, ::every]
    difference = _inner(np.asarray(seen, np.float32))[rarely] - _inner(before.coarse)[rarely]
    shown = np.isfinite(difference)
    if shown.any():
        difference = difference - np.median(difference[shown])
    return np.asarray(np.minimum(np.abs(difference), LARGEST), np.float32)


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else 0.0


def _inner(picture: Picture) -> Picture:
    return picture[EDGE:-EDGE, EDGE:-EDGE]


def guessed(before: View, view: View) -> Floats:
    """(3, 3), luma px: the shift that the thumbnails' phases tell."""
    x, y = coarse_shift(before, view) * view.scale
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def found(before: View, view: View, starts: Iterable[Floats]) -> Floats | None:
    """The (3, 3) motion, luma px, that matches best.

    It differs by a similarity from one of the `starts`; None if nothing is found from any.
    """
    best: Floats | None = None
    least = float("inf")
    for start in starts:
        way = _refined(before, view, start)
        if way is not None and (missed := mismatch(before, view, way)) < least:
            best, least = way, missed
    return best


def better(before: View, view: View, motion: Floats) -> Floats:
    """The (3, 3) `motion`, luma px, refined, if the views agree better so."""
    again = _refined(before, view, motion)
    if again is None:
        return motion
    missed, still_missed = (mismatch(before, view, each) for each in (motion, again))
    return again if still_missed < missed else motion


def settled(before: View, view: View, motion: Floats, *, last: Floats) -> Floats:
    """The (3, 3) `motion`, luma px, that is found when both pictures are equally blurred.

    Each is blurred as the other one is, which leaves the same streaks in both (as Cho, Wang & Lee
    match sharp patches with blurred ones: "Video deblurring for hand-held cameras using patch-based
    synthesis", 2012): what differs moves a picture, too. The streaks are guessed from the motion
    and from the one before it, `last`.
    """
    moved, moved_before = (_middle_moved(each, view) for each in (motion, last))
    closer = _refined(
        replace(before, coarse=_streaked(before.coarse, EXPOSED * moved)),
        replace(view, coarse=_streaked(view.coarse, EXPOSED * (moved + moved_before) / 2)),
        motion,
    )
    return motion if closer is None else closer


def _refined(before: View, view: View, motion: Floats) -> Floats | None:
    """The (3, 3) `motion`, luma px, by all pixels; None where there is too little to see."""
    to_coarse = view.coarsening
    back = np.linalg.inv(to_coarse)
    everywhere = np.ones(before.coarse.shape, np.float32)
    way = to_coarse @ motion @ back
    for _ in range(ROUNDS):
        closer = refined(before.coarse, view.coarse, way, everywhere)
        if closer is None:
            return None
        way = closer
    return np.asarray(back @ way @ to_coarse)


def _middle_moved(motion: Floats, view: View) -> NDArray[np.float64]:
    """(2,) x and y: by how much the middle of the coarse picture moves, in its px."""
    way = view.coarsening @ motion @ np.linalg.inv(view.coarsening)
    height, width = view.coarse.shape
    middle = np.array([(width - 1) / 2, (height - 1) / 2, 1])
    x, y, w = way @ middle
    return np.asarray(np.array([x, y]) / w - middle[:2])


def _streaked(picture: Picture, streak: NDArray[np.float64]) -> Picture:
    """(h, w) blurred along a `streak` (2,), x and y in px."""
    length = float(np.hypot(*streak))
    if length < SHORTEST:
        return picture
    edge = 2 * ceil(length / 2) + 1
    pixels = np.arange(edge) - edge // 2
    along = np.linspace(-0.5, 0.5, 4 * edge + 1)[:, None]
    x, y = (np.maximum(0, 1 - abs(along * side - pixels)) for side in streak)  # bilinear
    kernel = y.T @ x
    kernel /= kernel.sum()
    blurred = cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)
