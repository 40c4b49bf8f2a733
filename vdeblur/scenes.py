"""Scenes to measure a stabiliser on: each shows one thing that a real camera does to it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path as FilePath

import cv2
import numpy as np

from .demo import Clip, picture_of_demo
from .render import Bytes, Camera, Floats, Shake, hand_shake, to_linear
from .scene import STILL, Card, Path, Shot, Times, ideals, takes, uneven_times, walking_bob

BACKDROP = 1.7
"""The backdrop's size, in units of the frame's."""
READOUT = 0.7
"""Part of the frame interval in which a phone's sensor is read."""

TICKS = Fraction(1, 90_000)
"""s: what the frames' times are counted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all scenes have in common."""

    seconds: float = 6.0
    width: int = 640
    height: int = 360
    rate: float = 30.0
    seed: int = 7
    amount: float = 1.0
    """How strong the shake is; 1 moves the picture by some 2 % of its width."""
    picture: Bytes = field(default_factory=picture_of_demo)
    """(H, W, 3) sRGB of the backdrop."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if min(self.width, self.height) < 16 or self.width % 2 or self.height % 2:
            raise ValueError(f"size must be even and 16 at least, got {self.width}x{self.height}")

    @property
    def rng(self) -> np.random.Generator:
        """The same numbers at each call."""
        return np.random.default_rng(self.seed)

    @property
    def times(self) -> Times:
        """(frames,) s."""
        return np.arange(max(2, round(self.seconds * self.rate))) / self.rate

    def backdrop(self, size: float = BACKDROP, *, mirrored: bool = False) -> Card:
        """The picture, filling `size` times the frame."""
        light = _covering(self.picture, size * self.width, size * self.height)
        return Card(np.ascontiguousarray(light[:, ::-1]) if mirrored else light)


def hand(stage: Stage) -> Shot:
    """A hand's 1/f tremor on a slow pan to and fro; the base of most others."""
    camera = Camera(stage.width, stage.height, focal=0.9 * max(stage.width, stage.height))
    wave = np.array([[0.12, 0.02, 0.0]])
    pan = Shake(np.array([1 / 12]), wave, np.array([[-np.pi / 2, 0.0, 0.0]]), np.zeros(3))
    tremor = hand_shake(stage.rng, amplitude=0.02 * stage.amount, roll=0.6)
    return Shot(
        cards=(stage.backdrop(),),
        camera=camera,
        intended=Path((pan,)),
        shake=Path((tremor,)),
        times=stage.times,
        seed=stage.seed,
    )


def walk(stage: Stage) -> Shot:
    """A walker's steps, going forward."""
    shot = hand(stage)
    forward = replace(STILL, drift=np.array([0.0, 0.0, 0.015]))
    return replace(
        shot,
        intended=shot.intended + Path(moving=(forward,)),
        shake=Path((hand_shake(stage.rng, amplitude=0.008 * stage.amount),))
        + walking_bob(stage.rng, size=stage.amount),
    )


def parallax(stage: Stage) -> Shot:
    """Two depths: a hedge in the lower third at half the backdrop's distance; the camera moves."""
    shot = walk(stage)
    sideways = replace(STILL, drift=np.array([0.02, 0.0, 0.0]))
    return replace(
        shot,
        cards=(*shot.cards, _hedge(stage)),
        intended=shot.intended + Path(moving=(sideways,)),
    )


def crossing(stage: Stage) -> Shot:
    """Somebody who covers up to 40 % of the frame walks through the picture from left to right."""
    # The sky alone would leave nothing to follow behind the passer-by.
    shot = hand(replace(stage, picture=_stones(stage.picture)))
    reach = 0.5 * stage.width + 0.5 * _PASSER_WIDTH * stage.width
    passer = _passer(stage, start=-reach, velocity=2 * reach / max(stage.seconds, 1e-3))
    return replace(shot, cards=(*shot.cards, passer))


def rolling_shutter(stage: Stage) -> Shot:
    """The rows are read one after the other within 0.7 of the frame interval."""
    return replace(hand(stage), readout=READOUT / stage.rate)


def wide(stage: Stage) -> Shot:
    """A lens of 100 degrees: turning the camera bends the picture as no similarity does."""
    shot = hand(stage)
    camera = Camera(stage.width, stage.height, focal=0.42 * stage.width)
    tremor = hand_shake(stage.rng, amplitude=0.05 * stage.amount, roll=0.4)
    return replace(
        shot, cards=(stage.backdrop(2.6),), camera=camera, shake=Path((tremor,)), intended=Path()
    )


def vfr(stage: Stage) -> Shot:
    """Uneven intervals and missing frames."""
    times = uneven_times(stage.rng, seconds=stage.seconds, rate=stage.rate)
    return replace(hand(stage), times=times)


def duplicates(stage: Stage) -> Shot:
    """24 frames a second in 30: every fifth frame is shown twice."""
    shown = stage.times
    index = np.arange(len(shown))
    exposed = np.asarray(1.25 / stage.rate * (index - (index + 1) // 5), np.float64)
    return replace(hand(stage), times=exposed, shown=shown)


def noise(stage: Stage) -> Shot:
    """A dark room."""
    return replace(hand(stage), noise=(0.004, 0.01))


def blur(stage: Stage) -> Shot:
    """The shutter is open for 0.8 of the frame interval."""
    return replace(hand(stage), shutter=0.8 / stage.rate)


def cut(stage: Stage) -> tuple[Shot | int, ...]:
    """Another scene begins after half of the time."""
    return _halves(stage, black=0)


def black(stage: Stage) -> tuple[Shot | int, ...]:
    """Three seconds of black between two scenes."""
    return _halves(stage, black=round(3 * stage.rate))


SCENES: dict[str, Callable[[Stage], Shot | tuple[Shot | int, ...]]] = {
    "hand": hand,
    "walk": walk,
    "parallax": parallax,
    "crossing": crossing,
    "rolling-shutter": rolling_shutter,
    "wide": wide,
    "vfr": vfr,
    "duplicates": duplicates,
    "noise": noise,
    "blur": blur,
    "cut": cut,
    "black": black,
}
"""By name."""


def filmed(name: str, stage: Stage | None = None) -> tuple[Shot | int, ...]:
    """The shots of a scene; a number stands for so many black frames."""
    scene = SCENES[name](stage or Stage())
    return scene if isinstance(scene, tuple) else (scene,)


def render_scene(
    name: str,
    sink: FilePath,
    *,
    stage: Stage | None = None,
    truth: FilePath | None = None,
    overwrite: bool = False,
) -> int:
    """Write a scene to `sink`, and to `truth` what an ideal camera on the wanted path records.

    Returns the number of frames. The files have no sound; each frame has its own time.
    """
    stage = stage or Stage()
    shots, size = filmed(name, stage), (stage.width, stage.height)
    for path, frames in ((truth, ideals), (sink, takes)):
        if path is not None:
            with Clip(path, size, crf=10, overwrite=overwrite, ticks=TICKS) as clip:
                for time, picture in frames(shots):
                    clip.write(picture, time)
    return sum(shot if isinstance(shot, int) else len(shot) for shot in shots)


_PASSER_WIDTH = 0.45
"""Of the passer-by, in widths of the frame."""


def _halves(stage: Stage, *, black: int) -> tuple[Shot | int, ...]:
    first = hand(stage)
    other = replace(hand(replace(stage, seed=stage.seed + 1)), cards=(_another(stage),))
    middle = len(first) // 2
    shots = first.part(0, middle), other.part(0, len(first) - middle)
    return (shots[0], black, shots[1]) if black else shots


def _another(stage: Stage) -> Card:
    """A backdrop that nobody takes for the first one: mirrored, upside down and a negative."""
    card = stage.backdrop()
    return replace(card, light=np.ascontiguousarray(1 - card.light[::-1, ::-1]))


def _hedge(stage: Stage) -> Card:
    """Detail in the lower third, with an uneven upper edge."""
    width, height = round(1.8 * stage.width), round(0.9 * stage.height)
    light = _covering(_stones(stage.picture), width, height)
    edge = _bumps(stage.rng, width) * 0.12 * stage.height + 0.1 * height
    alpha = np.clip(np.arange(height)[:, None] - edge[None], 0, 1).astype(np.float32)
    below = 0.03 * stage.height + height / 2
    return Card(light * alpha[..., None], alpha, depth=0.5, place=(0, below))


def _passer(stage: Stage, *, start: float, velocity: float) -> Card:
    """A textured shape that covers 40 % of the frame when it is inside."""
    width, height = round(_PASSER_WIDTH * stage.width), round(1.3 * stage.height)
    light = _covering(_stones(stage.picture)[:, ::-1], width, height)
    x = np.abs(np.linspace(-1, 1, width))[None]
    y = np.linspace(0, 1, height)[:, None]
    outline = np.minimum(1, 0.62 + 0.4 * np.sqrt(y))  # narrower at the head
    alpha = np.clip((outline - x) * width / 2, 0, 1).astype(np.float32)
    return Card(
        light * alpha[..., None], alpha, depth=0.4, place=(start, 0), velocity=(velocity, 0)
    )


def _stones(picture: Bytes) -> Bytes:
    """The part of the package's photograph that is not sky."""
    return picture[picture.shape[0] // 3 :, : picture.shape[1] * 3 // 5]


def _bumps(rng: np.random.Generator, width: int) -> Floats:
    """(width,) 0 to 1: a skyline."""
    rough = rng.standard_normal((1, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), width / 60)[0]
    return np.asarray((smooth - smooth.min()) / np.ptp(smooth))


def _covering(picture: Bytes, width: float, height: float) -> Floats:
    """(height, width, 3) linear light: the picture scaled to cover, its middle cut out."""
    wanted_x, wanted_y = int(np.ceil(width)), int(np.ceil(height))
    scale = max(wanted_x / picture.shape[1], wanted_y / picture.shape[0])
    size = (
        max(wanted_x, round(picture.shape[1] * scale)),
        max(wanted_y, round(picture.shape[0] * scale)),
    )
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    light = np.clip(cv2.resize(to_linear(picture), size, interpolation=method), 0, 1)
    left, top = (size[0] - wanted_x) // 2, (size[1] - wanted_y) // 2
    return np.ascontiguousarray(light[top : top + wanted_y, left : left + wanted_x])
