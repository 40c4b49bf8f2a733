"""Move a picture: every plane is resampled once, at its own depth."""

from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Frame, PixelFormat, Plane

Border = Literal["replicate", "black", "reflect"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]

BORDERS: dict[Border, int] = {
    "replicate": cv2.BORDER_REPLICATE,
    "black": cv2.BORDER_CONSTANT,
    "reflect": cv2.BORDER_REFLECT_101,
}
INTERPOLATIONS: dict[Interpolation, int] = {
    "bicubic": cv2.INTER_CUBIC,
    "bilinear": cv2.INTER_LINEAR,
    "lanczos": cv2.INTER_LANCZOS4,
}


def warp(
    frame: Frame,
    transform: NDArray[np.float64],
    *,
    border: Border = "replicate",
    interpolation: Interpolation = "bicubic",
) -> Frame:
    """The frame with its pixels moved by a (2, 3) transform of luma pixels."""
    planes = tuple(
        _warp_plane(plane, index, frame.format, transform, border, interpolation)
        for index, plane in enumerate(frame.planes)
    )
    return replace(frame, planes=planes)


def chroma_transform(transform: NDArray[np.float64], format: PixelFormat) -> NDArray[np.float64]:
    """(2, 3) of luma pixels -> of chroma pixels.

    A chroma sample is taken to lie, as in MPEG-2 and H.264 by default, at the left of the luma
    samples that share it and halfway down.
    """
    to_luma = np.diag([1 << format.shift_x, 1 << format.shift_y, 1]).astype(np.float64)
    to_luma[1, 2] = ((1 << format.shift_y) - 1) / 2
    full = np.vstack([transform, [0, 0, 1]])
    return np.asarray((np.linalg.inv(to_luma) @ full @ to_luma)[:2])


def _warp_plane(
    plane: Plane,
    index: int,
    format: PixelFormat,
    transform: NDArray[np.float64],
    border: Border,
    interpolation: Interpolation,
) -> NDArray[Any]:
    """One plane, (H, W) -> (H, W)."""
    black = (128 if index else 16) << (format.depth - 8)
    warped = cv2.warpAffine(
        plane,
        chroma_transform(transform, format) if index else transform,
        (plane.shape[1], plane.shape[0]),
        flags=INTERPOLATIONS[interpolation],
        borderMode=BORDERS[border],
        borderValue=black,
    )
    if 8 < format.depth < 16 and interpolation != "bilinear":
        # A bicubic overshoots at edges; cv2 clips to what the type holds, not to the depth.
        warped = np.minimum(warped, format.peak, dtype=warped.dtype)
    return np.asarray(warped)
