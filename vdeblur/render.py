"""Render shaky, motion-blurred video with a known truth from one still picture.

A virtual hand-held camera looks at a flat picture and turns about its three axes
(Whyte et al., "Non-uniform deblurring for shaken images", 2010: hand shake is rotation). While
its shutter is open the picture sweeps over the sensor; the mean of many sharp views in linear
light is the blurred frame, the view in the middle of the exposure is its truth. `vdeblur demo`
makes the example clip with it and the training package makes its pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_CODES = np.arange(4096, dtype=np.float64) / 4095
_TO_LINEAR = np.where(
    np.arange(256) / 255 <= 0.04045,
    np.arange(256) / 255 / 12.92,
    ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4,
).astype(np.float32)
_TO_SRGB = (
    255 * np.where(_CODES <= 0.0031308, 12.92 * _CODES, 1.055 * _CODES ** (1 / 2.4) - 0.055)
).astype(np.float32)


def to_linear(picture: Bytes) -> Floats:
    """(H, W, 3) sRGB bytes -> linear light, 0..1."""
    return _TO_LINEAR[picture]


def to_srgb(light: Floats) -> Bytes:
    """(H, W, 3) linear light -> sRGB bytes; above 1 is clipped, as a sensor does."""
    codes = np.clip(light * 4095 + 0.5, 0, 4095).astype(np.uint16)
    picture: Bytes = (_TO_SRGB[codes] + 0.5).astype(np.uint8)
    return picture


@dataclass(frozen=True, slots=True)
class Shake:
    """A smooth random rotation: sinusoids whose amplitude falls with frequency, and a drift."""

    frequencies: NDArray[np.float64]
    """(F,) Hz."""
    amplitudes: NDArray[np.float64]
    """(F, 3) radians: yaw, pitch, roll."""
    phases: NDArray[np.float64]
    """(F, 3) radians."""
    drift: NDArray[np.float64]
    """(3,) radians a second: the intended pan."""
    origin: float = 0.0
    """The time in seconds at which the camera looks straight at the picture."""

    def angles(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """(T,) seconds -> (T, 3) radians."""
        here, start = self._tremor(times), self._tremor(np.array([self.origin]))
        return here - start + (times[:, None] - self.origin) * self.drift[None]

    def _tremor(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        turns = 2 * np.pi * times[:, None, None] * self.frequencies[None, :, None]
        waves = np.sin(turns + self.phases[None]) * self.amplitudes[None]
        summed: NDArray[np.float64] = waves.sum(axis=1)
        return summed


def hand_shake(
    rng: np.random.Generator, *, amplitude: float, roll: float = 0.4, drift: float = 0.0
) -> Shake:
    """A hand's tremor: 0.4-12 Hz falling as 1/f, so that speed is about white.

    `amplitude` (radians) is that of the slowest wave; `roll` is the roll's share of it.
    """
    frequencies = np.geomspace(0.4, 12, 14) * rng.uniform(0.85, 1.15, 14)
    amplitudes = amplitude * (frequencies[0] / frequencies)[:, None] * rng.normal(0, 1, (14, 3))
    amplitudes[:, 2] *= roll
    heading = rng.uniform(0, 2 * np.pi)
    pan = drift * np.array([np.cos(heading), 0.4 * np.sin(heading), 0.0])
    return Shake(frequencies, amplitudes, rng.uniform(0, 2 * np.pi, (14, 3)), pan)


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera looking at the middle of a picture."""

    width: int
    height: int
    focal: float
    """In pixels of the frame; a phone's main camera has about 0.8-1 times the width."""

    def views(self, angles: NDArray[np.float64], picture: Floats) -> NDArray[np.float64]:
        """(T, 3) angles -> (T, 3, 3) homographies from frame pixels to `picture`'s pixels."""
        yaw, pitch, roll = angles.T
        zero, one = np.zeros_like(yaw), np.ones_like(yaw)
        about_y = _stack(
            [np.cos(yaw), zero, np.sin(yaw)], [zero, one, zero], [-np.sin(yaw), zero, np.cos(yaw)]
        )
        about_x = _stack(
            [one, zero, zero],
            [zero, np.cos(pitch), -np.sin(pitch)],
            [zero, np.sin(pitch), np.cos(pitch)],
        )
        about_z = _stack(
            [np.cos(roll), -np.sin(roll), zero],
            [np.sin(roll), np.cos(roll), zero],
            [zero, zero, one],
        )
        lens = self._lens((self.width - 1) / 2, (self.height - 1) / 2)
        plane = self._lens((picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2)
        return plane @ about_y @ about_x @ about_z @ np.linalg.inv(lens)

    def _lens(self, x: float, y: float) -> NDArray[np.float64]:
        return np.array([[self.focal, 0, x], [0, self.focal, y], [0, 0, 1.0]])


def _stack(*rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.moveaxis(np.array([list(row) for row in rows]), 2, 0)


@dataclass(frozen=True, slots=True)
class Layer:
    """A cut-out that moves in front of the picture on a straight line."""

    light: Floats
    """(h, w, 3) linear light, already multiplied by `alpha`."""
    alpha: Floats
    """(h, w) 0..1."""
    start: tuple[float, float]
    """Its top left corner (x, y) in frame pixels at time 0."""
    velocity: tuple[float, float]
    """Pixels a second."""


def look(picture: Floats, view: NDArray[np.float64], camera: Camera) -> Floats:
    """(H, W, 3) linear light: the picture as one instant of the camera sees it."""
    size = (camera.width, camera.height)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = cv2.warpPerspective(picture, view, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return seen.astype(np.float32, copy=False)


def _cover(frame: Floats, layers: Sequence[Layer], time: float) -> Floats:
    """Lay the cut-outs over `frame`, where they are at `time`."""
    size = (frame.shape[1], frame.shape[0])
    for layer in layers:
        x = layer.start[0] + layer.velocity[0] * time
        y = layer.start[1] + layer.velocity[1] * time
        place = np.array([[1, 0, x], [0, 1, y]])
        alpha = cv2.warpAffine(layer.alpha, place, size)[..., None]
        frame = frame * (1 - alpha) + cv2.warpAffine(layer.light, place, size)
    return frame


@dataclass(frozen=True, slots=True)
class Exposure:
    """One frame as the sensor gathered it, before noise and gamma."""

    blurred: Floats
    """(H, W, 3) linear light."""
    sharp: Floats
    """(H, W, 3) linear light at mid-exposure: the truth."""
    transforms: NDArray[np.float64]
    """(T, 3, 3): where the pixels at mid-exposure lie at each instant of the exposure."""
    view: NDArray[np.float64]
    """(3, 3): frame pixels to picture pixels at mid-exposure."""

    def blur_vector(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) pixels (x, y) -> (N, 2): from where its streak begins to where it ends, pixels."""
        rays = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        ends = np.einsum("tij,nj->tni", self.transforms[[0, -1]], rays)
        ends = ends[..., :2] / ends[..., 2:]
        vector: NDArray[np.float64] = ends[1] - ends[0]
        return vector

    def blur_length(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) pixels (x, y) -> (N,): the extent of each one's streak, in pixels."""
        rays = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        swept = np.einsum("tij,nj->tni", self.transforms, rays)
        swept = swept[..., :2] / swept[..., 2:]
        extent: NDArray[np.float64] = np.linalg.norm(swept.max(axis=0) - swept.min(axis=0), axis=1)
        return extent


def expose(
    picture: Floats,
    camera: Camera,
    shake: Shake,
    time: float,
    *,
    shutter: float,
    layers: Sequence[Layer] = (),
    max_views: int = 48,
) -> Exposure:
    """Gather light from `time` - `shutter`/2 to `time` + `shutter`/2 (seconds)."""
    ends = np.linspace(time - shutter / 2, time + shutter / 2, 5)
    swept = camera.views(shake.angles(ends), picture)
    corner = np.array([camera.width * 0.9, camera.height * 0.9, 1.0])
    path = swept @ corner
    length = np.abs(np.diff(path[:, :2] / path[:, 2:], axis=0)).sum()
    length = max([length, *(shutter * np.hypot(*layer.velocity) for layer in layers)])
    # One view a pixel of the longest streak: no gap between the copies of an edge shows.
    times = np.linspace(ends[0], ends[-1], int(np.clip(np.ceil(length) + 1, 3, max_views)))
    views = camera.views(shake.angles(times), picture)
    total = np.zeros((camera.height, camera.width, 3), np.float32)
    for view, instant in zip(views, times, strict=True):
        cv2.accumulate(_cover(look(picture, view, camera), layers, float(instant)), total)
    middle = camera.views(shake.angles(np.array([time])), picture)[0]
    return Exposure(
        blurred=total / np.float32(len(times)),
        sharp=_cover(look(picture, middle, camera), layers, time),
        transforms=np.linalg.inv(views) @ middle,
        view=middle,
    )


def add_noise(light: Floats, rng: np.random.Generator, *, shot: float, read: float) -> Floats:
    """Poisson-Gaussian noise of a sensor: variance `shot` * light + `read`**2, linear light."""
    spread = np.sqrt(np.maximum(light, 0) * shot + read * read)
    noise = rng.standard_normal(light.shape, np.float32)
    return (light + spread * noise).astype(np.float32)


RATE = Fraction(30)
"""Frames a second of what `vdeblur demo` renders."""
