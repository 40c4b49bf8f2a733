from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.lens import focal_length, moved_by, turned
from vdeblur.path import Budget
from vdeblur.scene import Shot
from vdeblur.scenes import Stage, wide
from vdeblur.similarity import Similarity
from vdeblur.stabilize import Stabilizer

WIDTH, HEIGHT = 480, 270
FOV = float(2 * np.degrees(np.arctan(0.5 / 0.42)))
"""Degrees: of the scene "wide"."""

POINTS = np.array([40 + 40j, 440 + 40j, 40 + 230j, 440 + 230j, 240 + 135j])
"""Near the corners, and the middle."""


def filmed() -> tuple[Shot, list[Frame]]:
    """A wide lens on a shaking hand, and its known motion in the middle of the picture."""
    shot = wide(Stage(seconds=2, width=WIDTH, height=HEIGHT, amount=0.5))
    views = shot.views(shot.times)
    motions = [Motion.none()]
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1])
    for before, after in pairwise(views):
        change = np.linalg.inv(after) @ before
        around = np.array([[-9, 0, 0], [9, 0, 0], [0, -9, 0], [0, 9, 0]])
        ends = [change @ (centre + each) for each in around]
        left, right, up, down = (end[:2] / end[2] for end in ends)
        linear = np.stack([(right - left) / 18, (down - up) / 18], axis=1)
        shift = (left + right + up + down) / 4 - linear @ centre[:2]
        motions.append(Motion(np.column_stack([linear, shift])))
    frames = []
    for index, motion in enumerate(motions):
        grey = np.asarray(cv2.cvtColor(shot.take(index), cv2.COLOR_RGB2GRAY), np.uint8)
        frames.append(Frame((grey,), PixelFormat(planes=1), index, Fraction(1, 30), motion=motion))
    return shot, frames


SHOT, FRAMES = filmed()


def wobble(field_of_view: float | None) -> float:
    """px RMS: how far the picture's corners still shake against its middle."""
    stabilizer = Stabilizer(
        zoom="none", max_crop=0.25, interpolation="bilinear", field_of_view=field_of_view
    )
    focal = None if field_of_view is None else focal_length(field_of_view, WIDTH)
    views, tracks = SHOT.views(SHOT.times), []
    for done, view in zip(through(stabilizer, FRAMES), views, strict=True):
        correction = Similarity()
        if done.correction is not None:
            correction = Similarity.of(done.correction, WIDTH, HEIGHT)
        if focal is None:
            moved = np.vstack([correction.matrix(WIDTH, HEIGHT), [0, 0, 1]])
        else:
            moved = turned(correction, WIDTH, HEIGHT, focal)
        points = moved_by(
            views[0], np.array([40 + 40j, 440 + 40j, 40 + 230j, 440 + 230j, 240 + 135j])
        )
        tracks.append(moved_by(moved @ np.linalg.inv(view), points))
    away = np.array(tracks)
    away = away[:, :4] - away[:, 4:]
    rough = np.diff(away, 2, axis=0)
    return float(np.sqrt((np.abs(rough) ** 2).mean()))


def test_turning_takes_the_wobble_of_a_wide_lens_out() -> None:
    flat, true = wobble(None), wobble(FOV)
    assert flat > 0.7
    assert true < 0.15 * flat


@pytest.mark.parametrize("zoom", ["adaptive", "static"])
def test_no_border_shows_with_a_wide_lens(zoom: str) -> None:
    white = [replace(frame, planes=(np.full((HEIGHT, WIDTH), 255, np.uint8),)) for frame in FRAMES]
    stabilizer = Stabilizer(
        zoom=zoom,  # type: ignore[arg-type]
        border="black",
        interpolation="bilinear",
        field_of_view=FOV,
    )
    assert min(int(done.planes[0].min()) for done in through(stabilizer, white)) >= 254


def test_turning_moves_the_middle_as_the_shift_says_and_long_lenses_as_a_shift() -> None:
    correction = Similarity(1.05 * np.exp(0.02j), 12 - 7j)
    middle = np.array([complex(WIDTH - 1, HEIGHT - 1) / 2])
    (there,) = moved_by(turned(correction, WIDTH, HEIGHT, 200.0), middle)
    assert abs(there - middle[0] - correction.shift) < 1e-9
    long = turned(correction, WIDTH, HEIGHT, 1e6)
    np.testing.assert_allclose(long[:2], correction.matrix(WIDTH, HEIGHT), atol=1e-2)


def test_the_budget_holds_for_a_turned_frame() -> None:
    focal = focal_length(FOV, WIDTH)
    budget = Budget(WIDTH, HEIGHT, 0.12, focal)
    room = budget.room(0, 0.12)
    corner = budget.half
    for sign in (1, -1, 1j, -1j):
        shift = complex(room.real * (sign.real or 1), room.imag * (sign.imag or 1))
        homography = turned(Similarity(1, shift), WIDTH, HEIGHT, focal)
        inverse = np.asarray(np.linalg.inv(homography), np.float64)
        along = np.linspace(-1, 1, 21)
        edge = np.concatenate([along * corner.real + 1j * s * corner.imag for s in (1, -1)])
        back = moved_by(inverse, np.asarray(0.88 * edge + corner, np.complex128)) - corner
        assert (np.abs(back.real) <= corner.real).all()
        assert (np.abs(back.imag) <= corner.imag).all()


@pytest.mark.parametrize("wrong", [0.0, 180.0, -5.0, float("nan")])
def test_nonsense_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="field_of_view must be above 0"):
        Stabilizer(field_of_view=wrong)


def test_chroma_follows_luma_and_ten_bits_stay() -> None:
    ramp = np.linspace(200, 800, WIDTH)[None].repeat(HEIGHT, axis=0)
    luma, chroma = ramp.astype(np.uint16), ramp[::2, ::2].astype(np.uint16)
    motion = Motion(np.array([[1, 0, 6.0], [0, 1, 2.0]]))
    frame = Frame((luma, chroma, chroma.copy()), PixelFormat(10), 0, Fraction(1, 30), motion=motion)
    given = replace(frame, correction=Similarity(1, 15 + 6j).matrix(WIDTH, HEIGHT))
    (done,) = through(Stabilizer(field_of_view=FOV), [given])
    off: NDArray[np.int32] = done.planes[1][20:-20, 20:-20].astype(np.int32)
    off -= done.planes[0][::2, ::2][20:-20, 20:-20]
    assert np.abs(off).max() <= 3
    assert done.planes[0].dtype == np.uint16
