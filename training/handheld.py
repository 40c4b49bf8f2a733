"""Clips of another renderer than the one that made the training's, to measure a model on.

`vdeblur.scene` films the photo as a card in space through a lens, with a thing that passes in front
of it: what is seen, how it is blurred and the truth are worked out by code of their own. The hand's
tremor, the noise and the compression are those of the training's clips.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import SourceError
from vdeblur.frame import Frame, PixelFormat
from vdeblur.render import Shake, hand_shake, to_linear
from vdeblur.scene import Card, Shot
from vdeblur.scene import Path as CameraPath
from vdeblur.scenes import Stage, hand

from .data import Bytes, compress, split_yuv, to_yuv
from .evaluate import SEED, Pair

RATE = 30


@dataclass(frozen=True, slots=True)
class Handheld:
    """How the clips are filmed; ranges are (low, high)."""

    width: int = 640
    height: int = 360
    frames: int = 24
    streak: tuple[float, float] = (4.0, 12.0)
    """Median length of a clip's streaks in its middle, in pixels, log-uniform; single frames have
    from a quarter to thrice as much."""
    shutter: tuple[float, float] = (0.5, 0.95)
    """Share of the frame interval."""
    noise: tuple[float, float] = (1e-5, 5e-4)
    """As in `data.ClipConfig`."""
    crf: tuple[int, int] = (16, 26)
    samples: int = 32
    """Instants whose mean a blurred frame is."""


def handheld_pairs(photos: Sequence[Path], config: Handheld | None = None) -> Iterator[Pair]:
    """One clip of each photo, with a part of another one passing by."""
    for index, path in enumerate(photos):
        rng = np.random.default_rng([SEED, index])
        other = photos[(index + len(photos) // 3 + 1) % len(photos)]
        yield _pair(path, other, config or Handheld(), rng)


def _pair(path: Path, other: Path, config: Handheld, rng: np.random.Generator) -> Pair:
    shot = _shot(path, other, config, rng)
    still = replace(shot, shutter=0.0, noise=(0.0, 0.0))
    crf = float(rng.integers(*config.crf, endpoint=True))
    luma, chroma = compress([to_yuv(shot.take(t)) for t in range(len(shot))], crf)
    truth = [split_yuv(to_yuv(still.take(t))) for t in range(len(shot))]
    return Pair(path.stem, _frames(list(zip(luma, chroma, strict=True))), _frames(truth))


def _frames(planes: Sequence[tuple[Bytes, Bytes]]) -> list[Frame]:
    return [
        Frame((y, u, v), PixelFormat(), index, Fraction(1, RATE))
        for index, (y, (u, v)) in enumerate(planes)
    ]


def _shot(path: Path, other: Path, config: Handheld, rng: np.random.Generator) -> Shot:
    stage = Stage(
        seconds=config.frames / RATE,
        width=config.width,
        height=config.height,
        rate=RATE,
        picture=_read(path),
    )
    shot = hand(stage)
    shutter = float(rng.uniform(*config.shutter)) / RATE
    shot = replace(
        shot,
        cards=(*shot.cards, _passer(_read(other), config, rng)),
        intended=CameraPath(),
        shutter=shutter,
        samples=config.samples,
        noise=(float(np.exp(rng.uniform(*np.log(config.noise)))), 1e-3),
        seed=int(rng.integers(1 << 30)),
    )
    tremor = hand_shake(rng, amplitude=0.02, roll=0.6, drift=float(rng.choice([0, 0.05, 0.1])))
    wanted = float(np.exp(rng.uniform(*np.log(config.streak))))
    for _ in range(6):  # the streaks are nearly proportional to the tremor
        shot = replace(shot, shake=CameraPath((tremor,)))
        tremor = _scaled(tremor, wanted / float(np.median(_streaks(shot))))
    return shot


def _streaks(shot: Shot) -> NDArray[np.float64]:
    """(T,): the way of the frame's middle over the backdrop while the shutter is open, pixels."""
    middle = np.array([shot.camera.width / 2, shot.camera.height / 2, 1.0])
    lengths = []
    for time in shot.times:
        seen = shot.views(time + np.linspace(-0.5, 0.5, 9) * shot.shutter) @ middle
        places = seen[:, :2] / seen[:, 2:]
        lengths.append(sum(float(np.hypot(*(b - a))) for a, b in pairwise(places)))
    return np.array(lengths)


def _scaled(shake: Shake, factor: float) -> Shake:
    return replace(shake, amplitudes=shake.amplitudes * factor, drift=shake.drift * factor)


def _passer(picture: Bytes, config: Handheld, rng: np.random.Generator) -> Card:
    """A disk of another photo that moves from left to right."""
    edge = int(config.height * rng.uniform(0.35, 0.6))
    small = cv2.resize(picture, (edge, edge), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[-1 : 1 : edge * 1j, -1 : 1 : edge * 1j]
    alpha = np.clip((1 - np.hypot(x, y)) * 12, 0, 1).astype(np.float32)
    return Card(
        to_linear(np.asarray(small, np.uint8)) * alpha[..., None],
        alpha,
        place=(
            float(rng.uniform(-0.4, 0) * config.width),
            float(rng.uniform(-0.2, 0.2) * config.height),
        ),
        velocity=(float(rng.uniform(0.1, 0.5) * config.width), 0.0),
    )


def _read(path: Path) -> Bytes:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SourceError(f"cannot read the picture {path}")
    return np.asarray(picture, np.uint8)
