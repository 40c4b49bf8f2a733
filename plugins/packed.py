"""Between packed pictures, as OpenCV and the hosts of plugins have them, and a frame's planes."""

from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur import PixelFormat
from vdeblur.pixels import from_packed

Packed = NDArray[Any]
"""(H, W, 3) BGR, (H, W, 4) BGRA or (H, W) grey; uint8, or uint16 for more than 8 bits."""

Chroma = Literal["444", "420"]
"""Whether the planes keep all of a picture's colour, or a quarter of its samples, as most video."""

KR, KB = 0.2126, 0.0722
"""BT.709, which the reader too takes for RGB: a command line run on the same pictures sees the
same planes. Only 4:2:0 of 8 bits is BT.601, and a chroma sample that of one pixel: OpenCV has a
quick way for that, and repeats the samples when it reads 4:2:0."""


def planes_of(
    picture: Packed, depth: int, chroma: Chroma = "444"
) -> tuple[tuple[Packed, ...], PixelFormat]:
    """Copy a picture of `depth` bits into planes: Y, U and V, or grey alone.

    Raises ValueError or TypeError for what is no such picture.
    """
    _check(picture, depth)
    if picture.ndim == 2:
        return (picture.copy(),), PixelFormat(depth, 0, 0, planes=1)
    if chroma == "420" and depth == 8:
        return _halved(picture), PixelFormat(8)
    bgr = np.ascontiguousarray(picture)
    # FFmpeg's scaler is a hundredth of the range off for some colours of more than 8 bits.
    planes = from_packed(bgr) if depth == 8 else _deep(bgr[:, :, :3], depth)
    if chroma == "444":
        return planes, PixelFormat(depth, 0, 0)
    format = PixelFormat(depth)
    return (planes[0], *(_resized(plane, format, half=True) for plane in planes[1:])), format


def packed_of(planes: tuple[Packed, ...], format: PixelFormat) -> Packed:
    """Put planes together: a new BGR or grey picture."""
    if format.planes == 1:
        return planes[0].copy()
    height, width = planes[0].shape
    if format == PixelFormat(8):
        sheet, parts = _sheet(height, width)
        for part, plane in zip(parts, planes, strict=True):
            np.copyto(part, plane)
        return np.ascontiguousarray(cv2.cvtColor(sheet, cv2.COLOR_YUV2BGR_I420)[:height, :width])
    if format.shift_x:
        large = [_resized(plane, format, half=False) for plane in planes[1:]]
        planes = (planes[0], *(plane[:height, :width] for plane in large))
    picture = cv2.transform(cv2.merge(planes), _to_bgr(format.depth))
    if 8 < format.depth < 16:
        # cv2 clips to what the type holds, not to the depth.
        np.minimum(picture, format.peak, out=picture, dtype=picture.dtype)
    return np.asarray(picture)


def _halved(picture: Packed) -> tuple[Packed, ...]:
    """(H, W, 3) BGR or (H, W, 4) BGRA of 8 bits -> planes of 4:2:0."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    sheet, parts = _sheet(height, width)
    way = cv2.COLOR_BGR2YUV_I420 if picture.shape[2] == 3 else cv2.COLOR_BGRA2YUV_I420
    cv2.cvtColor(picture, way, dst=sheet)
    return parts


def _sheet(height: int, width: int) -> tuple[Packed, tuple[Packed, ...]]:
    """Room for 4:2:0 of 8 bits as OpenCV lays it out, and its three planes."""
    rows, columns = -(-height // 2), -(-width // 2)
    sheet = np.empty((3 * rows, 2 * columns), np.uint8)
    chroma = sheet[2 * rows :].reshape(2, rows, columns)
    return sheet, (sheet[:height, :width], *chroma)


def _deep(bgr: Packed, depth: int) -> tuple[Packed, ...]:
    return tuple(cv2.split(cv2.transform(np.ascontiguousarray(bgr), _to_yuv(depth))))


def _resized(plane: Packed, format: PixelFormat, *, half: bool) -> Packed:
    """A chroma plane of 4:4:4 as one of 4:2:0 (sides rounded up), or the way back."""
    height, width = plane.shape
    if not half:
        size = (2 * width, 2 * height)
        return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR))
    if height % 2 or width % 2:
        right, bottom = width % 2, height % 2
        plane = cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    rows, columns = format.chroma_shape(height, width)
    return np.asarray(cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA))


def _check(picture: Packed, depth: int) -> None:
    if not isinstance(picture, np.ndarray) or picture.dtype not in (np.uint8, np.uint16):
        kind = getattr(picture, "dtype", type(picture).__name__)
        raise TypeError(f"a picture must be an array of uint8 or uint16, got {kind}")
    if not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
        raise ValueError(f"a picture must be (H, W, 3) BGR or (H, W) grey, got {picture.shape}")
    if 0 in picture.shape:
        raise ValueError(f"a picture must have pixels, got {picture.shape}")
    if (picture.dtype == np.uint8) != (depth == 8):
        raise TypeError(f"a picture of {depth} bits cannot be of {picture.dtype}")
    if 8 < depth < 16 and (most := int(picture.max())) >> depth:
        raise ValueError(f"a sample of {most} has more than {depth} bits: say depth=16")


@cache
def _to_yuv(depth: int) -> NDArray[np.float32]:
    """(3, 4): takes (B, G, R, 1) to (Y, U, V) of limited range."""
    luma = np.array([KB, 1 - KR - KB, KR])
    matrix = np.array(
        [luma, ([1, 0, 0] - luma) / (2 * (1 - KB)), ([0, 0, 1] - luma) / (2 * (1 - KR))]
    )
    step = 1 << (depth - 8)
    matrix *= np.array([[219], [224], [224]]) * step / ((1 << depth) - 1)
    offset = np.array([16, 128, 128]) * step
    return np.column_stack([matrix, offset]).astype(np.float32)


@cache
def _to_bgr(depth: int) -> NDArray[np.float32]:
    """(3, 4): the way back, from (Y, U, V, 1) to (B, G, R)."""
    matrix, offset = np.hsplit(_to_yuv(depth).astype(np.float64), [3])
    back = np.linalg.inv(matrix)
    return np.hstack([back, -back @ offset]).astype(np.float32)
