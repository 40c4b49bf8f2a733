"""Film a scene of flat cards with a camera whose true and whose intended path are known.

The cards stand at different distances (parallax) and may move (a passer-by); the camera turns and
moves; its sensor is read row by row (rolling shutter), gathers light for a while (blur) and is
noisy. `Shot.take` is what such a camera records, `Shot.ideal` what a steady one would have.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .render import Bytes, Camera, Floats, Shake, add_noise, to_srgb

Times = NDArray[np.float64]
"""(T,) seconds."""
Views = NDArray[np.float64]
"""(T, 3, 3): homographies from the pixels of the frame to those of a card."""

STILL = Shake(np.zeros(1), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3))
"""No motion."""


@dataclass(frozen=True, slots=True)
class Card:
    """A flat picture that stands in the scene and faces the camera."""

    light: Floats
    """(h, w, 3) linear light, already multiplied by `alpha`."""
    alpha: Floats | None = None
    """(h, w) 0..1; without it the card is opaque and mirrored beyond its edges."""
    depth: float = 1.0
    """Its distance, in units of the backdrop's."""
    place: tuple[float, float] = (0.0, 0.0)
    """Where its middle is seen at time 0 by a camera that looks straight ahead: px from the middle
    of the frame. A pixel of the card is then a pixel of the frame."""
    velocity: tuple[float, float] = (0.0, 0.0)
    """px/s, of the same kind."""

    def __post_init__(self) -> None:
        if not self.depth > 0:
            raise ValueError(f"depth must be above 0, got {self.depth}")


@dataclass(frozen=True, slots=True)
class Path:
    """How a camera turns and moves: the sum of what each of its parts does."""

    turning: tuple[Shake, ...] = ()
    """Radians: yaw, pitch, roll."""
    moving: tuple[Shake, ...] = ()
    """x, y and z (forward), in units of the backdrop's distance."""

    def __add__(self, other: "Path") -> "Path":
        return Path(self.turning + other.turning, self.moving + other.moving)

    def angles(self, times: Times) -> NDArray[np.float64]:
        """(T,) seconds -> (T, 3) radians."""
        return sum((part.angles(times) for part in self.turning), np.zeros((len(times), 3)))

    def places(self, times: Times) -> NDArray[np.float64]:
        """(T,) seconds -> (T, 3)."""
        return sum((part.angles(times) for part in self.moving), np.zeros((len(times), 3)))


def walking_bob(rng: np.random.Generator, *, size: float = 1.0) -> Path:
    """A walker's steps: up and down with each, to the side and rolling with every second.

    At `size` 1 the camera rises by 1 % of the backdrop's distance and nods by 0.4 degrees; a hand
    held before the chest does about so.
    """
    pace = rng.uniform(1.7, 2.0)
    frequencies = np.array([pace / 2, pace, 2 * pace])
    moving = np.array([[0.008, 0, 0], [0, 0.010, 0.003], [0, 0.003, 0]])
    turning = np.array([[0.008, 0, 0.012], [0, 0.007, 0], [0.001, 0.003, 0.002]])
    phases = rng.uniform(0, 2 * np.pi, (3, 3))
    return Path(
        (Shake(frequencies, size * turning, phases, np.zeros(3)),),
        (Shake(frequencies, size * moving, phases + 0.7, np.zeros(3)),),
    )


def uneven_times(rng: np.random.Generator, *, seconds: float, rate: float) -> Times:
    """Frames as a phone in poor light or a screen recorder gives them.

    Intervals vary by a fifth and about every seventh frame is missing.
    """
    regular = np.arange(max(1, round(seconds * rate))) / rate
    jittered = regular + rng.uniform(-0.2, 0.2, len(regular)) / rate
    kept = rng.random(len(regular)) > 0.15
    kept[:1] = True
    times: Times = jittered[kept] - jittered[0]
    return times


@dataclass(frozen=True, slots=True)
class Shot:
    """What is filmed without a cut, and how."""

    cards: tuple[Card, ...]
    """From far to near; the first is the backdrop."""
    camera: Camera
    intended: Path
    """The path that was wanted."""
    shake: Path
    """What the hand adds to it."""
    times: Times
    """(frames,) s: the middle of each exposure; a time that comes twice is a repeated frame."""
    shown: Times | None = None
    """(frames,) s: when each frame is shown; without it at `times`."""
    shutter: float = 0.0
    """s for which each row gathers light."""
    readout: float = 0.0
    """s from the first row's exposure to the last one's."""
    noise: tuple[float, float] = (0.0, 0.0)
    """Shot and read noise, as `add_noise` takes them."""
    seed: int = 0
    """Of the noise."""
    samples: int = 8
    """Instants whose mean a blurred frame is."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def pts(self) -> Times:
        """(frames,) s: when each frame is shown."""
        return self.times if self.shown is None else self.shown

    def part(self, start: int, end: int) -> Self:
        """The frames from `start` to before `end`."""
        shown = None if self.shown is None else self.shown[start:end]
        return replace(self, times=self.times[start:end], shown=shown)

    def views(self, times: Times, card: int = 0, *, intended: bool = False) -> Views:
        """(T,) s -> (T, 3, 3): from frame pixels to pixels of a card, as of the middle row."""
        path = self.intended if intended else self.intended + self.shake
        return _views(self.camera, path, self.cards[card], times)

    def take(self, index: int) -> Bytes:
        """(H, W, 3) sRGB: the frame as it is recorded."""
        time = float(self.times[index])
        offsets = np.zeros(1)
        if self.shutter:
            offsets = ((np.arange(self.samples) + 0.5) / self.samples - 0.5) * self.shutter
        path = self.intended + self.shake
        total = np.zeros((self.camera.height, self.camera.width, 3), np.float32)
        for offset in offsets:
            total += self._seen(path, time + float(offset), self.readout)
        light = total / np.float32(len(offsets))
        if any(self.noise):
            # The noise of a repeated frame is repeated too: it is the same recording.
            rng = np.random.default_rng([self.seed, round(time * 1e6) & 0xFFFFFFFF])
            light = add_noise(light, rng, shot=self.noise[0], read=self.noise[1])
        return to_srgb(light)

    def ideal(self, index: int) -> Bytes:
        """(H, W, 3) sRGB: the frame of a steady camera with an ideal sensor on the wanted path."""
        return to_srgb(self._seen(self.intended, float(self.times[index]), 0.0))

    def _seen(self, path: Path, time: float, readout: float) -> Floats:
        """(H, W, 3) linear light: all cards, the rows spread over `readout` around `time`."""
        height = self.camera.height
        rows = np.array([time])
        if readout:
            rows = time + readout * (np.arange(height) / max(1, height - 1) - 0.5)
        frame = np.zeros((height, self.camera.width, 3), np.float32)
        for card in self.cards:
            views = _views(self.camera, path, card, rows)
            frame = _over(frame, card, views, self.camera)
        return frame


def takes(shots: Sequence[Shot | int]) -> Iterator[tuple[float, Bytes]]:
    """(s, (H, W, 3) sRGB) frame by frame; a number stands for so many black frames.

    Each shot goes on where the one before ended, a mean frame interval later.
    """
    return _pictures(shots, Shot.take)


def ideals(shots: Sequence[Shot | int]) -> Iterator[tuple[float, Bytes]]:
    """As `takes`, by an ideal camera on the wanted path."""
    return _pictures(shots, Shot.ideal)


def _pictures(
    shots: Sequence[Shot | int], picture: Callable[[Shot, int], Bytes]
) -> Iterator[tuple[float, Bytes]]:
    first = next(shot for shot in shots if isinstance(shot, Shot))
    interval = _interval(first)
    black = np.zeros((first.camera.height, first.camera.width, 3), np.uint8)
    now = 0.0
    for shot in shots:
        if isinstance(shot, int):
            yield from ((now + interval * index, black) for index in range(shot))
            now += interval * shot
        else:
            start = float(shot.pts[0])
            for index, pts in enumerate(shot.pts):
                yield now + float(pts) - start, picture(shot, index)
            now += float(shot.pts[-1]) - start + interval


def _interval(shot: Shot) -> float:
    """s: the mean distance of two frames."""
    return float(shot.pts[-1] - shot.pts[0]) / max(1, len(shot) - 1) or 1 / 30


def _views(camera: Camera, path: Path, card: Card, times: Times) -> Views:
    """(T,) s -> (T, 3, 3): frame pixels to card pixels."""
    rays = camera.views(path.angles(times), np.zeros((1, 1, 3), np.float32))  # focal * x/z, from 0
    x, y, z = path.places(times).T
    nearer = (card.depth - z) / card.depth
    if (nearer <= 0).any():
        raise ValueError("the camera moves through a card")
    seen = np.zeros((len(times), 3, 3))
    seen[:, 0, 0] = seen[:, 1, 1] = nearer
    seen[:, 0, 2] = camera.focal * x / card.depth
    seen[:, 1, 2] = camera.focal * y / card.depth
    seen[:, 2, 2] = 1
    height, width = card.light.shape[:2]
    seen[:, 0, 2] += (width - 1) / 2 - card.place[0] - card.velocity[0] * times
    seen[:, 1, 2] += (height - 1) / 2 - card.place[1] - card.velocity[1] * times
    return np.asarray(seen @ rays)


def _over(frame: Floats, card: Card, views: Views, camera: Camera) -> Floats:
    """Lay a card over (H, W, 3) linear light; one view, or one of each row."""
    sampled = card.light
    if card.alpha is not None:
        sampled = np.dstack([card.light, card.alpha])
    size = (camera.width, camera.height)
    border = cv2.BORDER_REFLECT_101 if card.alpha is None else cv2.BORDER_CONSTANT
    if len(views) == 1:
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        seen = cv2.warpPerspective(sampled, views[0], size, flags=flags, borderMode=border)
    else:
        x, y = _row_maps(views, camera.width)
        seen = cv2.remap(sampled, x, y, cv2.INTER_CUBIC, borderMode=border)
    seen = np.clip(seen, 0, None)
    if card.alpha is None:
        return np.asarray(seen, np.float32)
    return np.asarray(frame * (1 - np.minimum(seen[..., 3:], 1)) + seen[..., :3], np.float32)


def _row_maps(views: Views, width: int) -> tuple[Floats, Floats]:
    """(H, 3, 3) -> (H, W) x and y: where each pixel looks, each row through its own view."""
    columns = np.arange(width)
    rows = np.arange(len(views))
    at_row = views[:, :, 1] * rows[:, None] + views[:, :, 2]
    x, y, z = (views[:, k, 0, None] * columns + at_row[:, k, None] for k in range(3))
    return (x / z).astype(np.float32), (y / z).astype(np.float32)
