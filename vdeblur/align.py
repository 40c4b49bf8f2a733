"""Lay the neighbours of a frame over it, by the motion that the stabiliser estimated."""

import cv2
import numpy as np

from .frame import Motion, Plane

MIN_CONFIDENCE = 0.3
"""Below it a neighbour is not trusted and the frame itself stands in for it."""


def align_previous(previous: Plane, current: Plane, motion: Motion | None) -> Plane:
    """(H, W), (H, W) -> (H, W): `previous` as seen from `current`; `motion` is current's own."""
    return _align(previous, current, motion, cv2.INTER_LINEAR)


def align_next(following: Plane, current: Plane, motion: Motion | None) -> Plane:
    """(H, W), (H, W) -> (H, W): `following` as seen from `current`; `motion` is following's."""
    return _align(following, current, motion, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _align(neighbour: Plane, current: Plane, motion: Motion | None, flags: int) -> Plane:
    if motion is None or motion.cut or motion.confidence < MIN_CONFIDENCE:
        return current
    if np.array_equal(motion.transform, np.eye(2, 3)):
        return neighbour
    height, width = current.shape
    # Where the neighbour does not reach, the frame itself shines through.
    return cv2.warpAffine(
        neighbour,
        motion.transform,
        (width, height),
        dst=current.copy(),
        flags=flags,
        borderMode=cv2.BORDER_TRANSPARENT,
    )
