"""What is kept of a frame to find its motion: small pictures, and how alike two of them are."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .refine import COARSE

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]
Points = NDArray[np.float32]
"""(N, 2): x and y in pixels of the small picture."""
Complex = NDArray[np.complex128]
"""(N,): x + iy in luma pixels. A similarity is then z -> a z + b, with complex a and b."""

SMALL = 640
"""The longer side of the picture that points are followed in."""
THUMB = 96
"""The longer side of the picture that scenes are compared in."""


@dataclass(frozen=True, slots=True)
class View:
    """What is kept of a frame: a small 8-bit picture, and two still smaller."""

    small: Picture
    coarse: NDArray[np.float32]
    """Slightly blurred, for motion that is refined."""
    thumb: NDArray[np.float32]
    scale: tuple[float, float]
    """Luma pixels in a small one, along x and y."""

    @staticmethod
    def of(luma: NDArray[Any], depth: int) -> "View":
        """See (H, W) luma of `depth` bits."""
        small = _eight_bit(_shrunk(luma, SMALL), depth)
        coarse = _shrunk(small, COARSE)
        height, width = small.shape
        return View(
            small=small,
            coarse=_soft(coarse),
            thumb=_shrunk(coarse, THUMB).astype(np.float32),
            scale=(luma.shape[1] / width, luma.shape[0] / height),
        )

    @property
    def coarsening(self) -> Floats:
        """(3, 3): from luma pixels to those of the coarse picture."""
        height, width = self.coarse.shape
        x = width / (self.scale[0] * self.small.shape[1])
        y = height / (self.scale[1] * self.small.shape[0])
        return np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in luma pixels."""
        height, width = self.small.shape
        return round(self.scale[0] * width), round(self.scale[1] * height)

    @property
    def flat(self) -> bool:
        """Whether there is nothing to see: black, white, or nothing but noise."""
        return float(self.thumb.std()) < 1.5

    def unscaled(self, points: Points) -> Complex:
        """(N, 2) small pixels -> (N,) luma pixels; a pixel's centre has integer coordinates."""
        x, y = ((points.astype(np.float64) + 0.5) * self.scale - 0.5).T
        return np.asarray(x + 1j * y)

    def repeats(self, other: "View") -> bool:
        """Whether this is the same picture again, but for traces of compression."""
        if cv2.norm(self.thumb, other.thumb, cv2.NORM_L1) > 0.5 * self.thumb.size:
            return False  # most frames are told apart by their thumbnails alone
        difference = _shrunk(cv2.absdiff(self.small, other.small).astype(np.float32), THUMB // 6)
        slope = cv2.absdiff(self.small[:, 1:], self.small[:, :-1]).mean()
        # A shift of d px changes grey values by d times the slope: 0.03 px pass for a repetition.
        return bool(difference.mean() <= 0.03 * slope + 0.01 and difference.max() <= 1.0)


def _shrunk(picture: NDArray[Any], longer: int) -> NDArray[Any]:
    """(H, W) -> the same, by area, with its longer side at most `longer`."""
    height, width = picture.shape
    factor = longer / max(height, width)
    if factor >= 1:
        return picture
    shape = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(picture, shape, interpolation=cv2.INTER_AREA))


def _eight_bit(picture: NDArray[Any], depth: int) -> Picture:
    """(H, W) of `depth` bits -> 8 bits; never the caller's own memory, which may be used again."""
    return np.asarray(cv2.convertScaleAbs(picture, alpha=1 / (1 << (depth - 8))), dtype=np.uint8)


def _soft(picture: Picture) -> NDArray[np.float32]:
    """(H, W) 8 bits -> the same without its finest detail."""
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.7), np.float32)


def _thumb_scale(view: View) -> float:
    """Small pixels in a pixel of the thumbnail."""
    return float(view.small.shape[1] / view.thumb.shape[1])


def _thumb_shift(before: View, view: View) -> Floats:
    """(2,) x and y: by how much one thumbnail is shifted against the other (phase correlation)."""
    height, width = view.thumb.shape
    if min(height, width) < 2:
        return np.zeros(2)  # OpenCV fails on a picture that is one line
    hann = cv2.createHanningWindow((width, height), cv2.CV_32F)
    # OpenCV windows its arguments in place.
    shift, _ = cv2.phaseCorrelate(before.thumb.copy(), view.thumb.copy(), hann)
    return np.asarray(shift)


def coarse_shift(before: View, view: View) -> NDArray[np.float32]:
    """(2,) x and y: a guess at the motion in small pixels, for moves too long to be followed."""
    return (_thumb_shift(before, view) * _thumb_scale(view)).astype(np.float32)


def likeness(before: View, view: View) -> float:
    """Correlation of the thumbnails, -1 to 1, unmoved or aligned by a shift: the better of both.

    It is blind to brightness and contrast: neither a flash nor a fade is another scene.
    """
    shift = np.rint(_thumb_shift(before, view)).astype(int)
    shifts = ((0, 0), (int(shift[0]), int(shift[1])))
    return max(_correlation(before.thumb, view.thumb, x, y) for x, y in shifts)


def _correlation(before: NDArray[np.float32], after: NDArray[np.float32], x: int, y: int) -> float:
    """Of what two thumbnails share when the second is shifted by (x, y); 0 if too little."""
    height, width = before.shape
    if max(0, height - abs(y)) * max(0, width - abs(x)) < 0.3 * before.size:
        return 0.0
    old = before[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    new = after[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
    old, new = np.asarray(cv2.blur(old, (3, 3))), np.asarray(cv2.blur(new, (3, 3)))
    spread = float(old.std() * new.std())
    return (
        float(((old - old.mean()) * (new - new.mean())).mean()) / spread if spread > 1e-3 else 0.0
    )


def relit(before: View, view: View) -> Picture:
    """The small picture of `before` at the brightness and contrast of `view`."""
    gain = float(np.clip(view.thumb.std() / before.thumb.std(), 0.25, 4))
    bias = float(view.thumb.mean() - gain * before.thumb.mean())
    lit = np.clip(before.small.astype(np.float32) * gain + bias, 0, 255)
    return np.asarray(lit, dtype=np.uint8)
