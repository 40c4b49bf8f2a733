from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur import direct
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.motion import MotionEstimator, MotionStage
from vdeblur.refine import refined
from vdeblur.view import View

WIDTH, HEIGHT = 640, 360


def scene(seed: int, width: int = 900, height: int = 600) -> NDArray[np.uint8]:
    """(height, width): clouds of four sizes, as a photograph has detail of all sizes."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width), np.float32)
    for size in (1.5, 4, 12, 40):
        noise = random.standard_normal((height, width)).astype(np.float32)
        clouds = cv2.GaussianBlur(noise, (0, 0), size)
        picture += clouds / clouds.std() * size**0.3
    picture = 128 + 40 * (picture - picture.mean()) / picture.std()
    return np.asarray(picture.clip(0, 255), np.uint8)


FOREST, TOWN = scene(1), scene(2)
BLACK = np.zeros((HEIGHT, WIDTH), np.uint8)


def window(
    picture: NDArray[Any], x: int, y: int, width: int = WIDTH, height: int = HEIGHT
) -> NDArray[Any]:
    return picture[y : y + height, x : x + width].copy()


def motions(frames: Iterable[NDArray[Any]], depth: int = 8) -> list[Motion]:
    estimator = MotionEstimator()
    return [estimator.estimate(frame, depth) for frame in frames]


def noisy(picture: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 2, picture.shape)
    return np.asarray((picture + noise).clip(0, 255), np.uint8)


def farthest(transform: NDArray[np.float64], truth: NDArray[np.float64], size: complex) -> float:
    """By how many pixels two transforms differ in a corner at most."""
    w, h = size.real, size.imag
    corners = np.array([[0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]])
    return float(np.hypot(*(transform @ corners - truth @ corners)).max())


@pytest.mark.parametrize(("width", "height"), [(640, 360), (1280, 720), (405, 720)])
def test_shift_turn_and_scale_are_found(width: int, height: int) -> None:
    random = np.random.default_rng(3)
    large = scene(4, width + 200, height + 200)
    middle = complex(width, height) / 2
    estimator = MotionEstimator()
    before = np.eye(3)
    for index in range(8):
        turn = np.exp(random.normal(0, 0.005) + 1j * random.normal(0, 0.01))
        shift = middle + complex(*random.normal(0, 8, 2)) - turn * (middle + 100 + 100j)
        placed = np.array(
            [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]]
        )
        frame = cv2.warpAffine(large, placed[:2], (width, height), flags=cv2.INTER_CUBIC)
        motion = estimator.estimate(np.asarray(frame))
        if index:
            truth = (placed @ np.linalg.inv(before))[:2]
            assert farthest(motion.transform, truth, complex(width, height)) < 0.15 * width / 640
            assert motion.confidence > 0.8
        before = placed


def test_a_scaled_down_picture_has_no_half_pixel_shift() -> None:
    large = cv2.resize(FOREST, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    _, motion = motions([window(large, x, 0, 2560, 1440) for x in (0, 12)])
    assert farthest(motion.transform, np.array([[1, 0, -12], [0, 1, 0]]), 2560 + 1440j) < 0.2


def test_ten_bits_move_as_eight_do() -> None:
    frames = [window(FOREST, 3 * i, i * i) for i in range(4)]
    deep = [frame.astype(np.uint16) * 4 for frame in frames]
    for eight, ten in zip(motions(frames), motions(deep, depth=10), strict=True):
        np.testing.assert_allclose(ten.transform, eight.transform, atol=1e-9)


def test_a_long_move_is_found() -> None:
    _, *found = motions(window(FOREST, x, 0) for x in (0, 80, 210, 60))
    assert [round(-motion.transform[0, 2]) for motion in found] == [80, 130, -150]


def test_a_cut_is_told() -> None:
    found = motions([window(FOREST, 0, 0), window(FOREST, 2, 1), window(TOWN, 0, 0)])
    assert [motion.cut for motion in found] == [False, False, True]
    assert (found[2].transform == np.eye(2, 3)).all()


def test_another_size_is_a_cut() -> None:
    found = motions([window(FOREST, 0, 0), window(FOREST, 0, 0, 320, 180)])
    assert [motion.cut for motion in found] == [False, True]


def test_a_flash_is_no_cut() -> None:
    frames = [window(FOREST, 2 * i, i) for i in range(5)]
    frames[2] = (frames[2] * 1.2 + 120).clip(0, 255).astype(np.uint8)
    assert not any(motion.cut for motion in motions(frames))


def test_a_fast_pan_is_no_cut() -> None:
    frames = (window(cv2.blur(FOREST, (31, 1)), x, 0) for x in (0, 60, 140, 200))
    assert not any(motion.cut for motion in motions(frames))


def test_black_is_neither_a_cut_nor_a_motion() -> None:
    found = motions([window(FOREST, 0, 0), BLACK, noisy(BLACK, 1), BLACK, window(FOREST, 8, 8)])
    assert all((motion.transform == np.eye(2, 3)).all() for motion in found)
    assert not any(motion.cut or motion.confidence for motion in found)


def test_black_hides_a_cut_but_does_not_undo_it() -> None:
    found = motions([window(FOREST, 0, 0), BLACK, BLACK, window(TOWN, 0, 0), window(TOWN, 4, 0)])
    assert [motion.cut for motion in found] == [False, False, False, True, False]
    assert round(found[-1].transform[0, 2]) == -4


def test_a_repeated_frame_is_told_and_the_next_one_is_not_lost() -> None:
    found = motions(window(FOREST, x, 0) for x in (0, 3, 3, 6))
    assert [motion.duplicate for motion in found] == [False, False, True, False]
    assert found[2].confidence == 1
    assert found[3].transform[0, 2] == pytest.approx(-3, abs=0.05)


def test_a_slow_move_is_no_repetition() -> None:
    smooth = cv2.GaussianBlur(FOREST, (0, 0), 6)
    step = np.array([[1, 0, -0.2], [0, 1, 0]])
    moved = np.asarray(cv2.warpAffine(smooth, step, smooth.shape[::-1], flags=cv2.INTER_LINEAR))
    assert not motions([window(smooth, 50, 50), window(moved, 50, 50)])[1].duplicate


def test_noise_does_not_move_a_camera_on_a_tripod() -> None:
    for motion in motions(noisy(window(FOREST, 0, 0), seed) for seed in range(5)):
        assert (motion.transform == np.eye(2, 3)).all()


@pytest.mark.parametrize("speed", [4, 9, -15])
def test_a_foreground_of_two_fifths_does_not_take_the_camera_along(speed: int) -> None:
    crowd = scene(5, 1400, 400)
    shake = [round(8 * np.sin(1.3 * i)) for i in range(12)]
    frames = []
    for index, x in enumerate(shake):
        frame = window(FOREST, 100 + x, 50)
        frame[:, 190:446] = window(crowd, 500 + speed * index, 0, 256)
        frames.append(frame)
    found = [motion.transform[0, 2] for motion in motions(frames)]
    np.testing.assert_allclose(found[1:], -np.diff(shake), atol=0.2)


def streaked(place: complex, streak: complex) -> NDArray[np.uint8]:
    """What a camera sees of the forest that moves by `streak` px about a place, shutter open."""
    instants = place + np.linspace(-0.5, 0.5, 41) * streak
    moves = [np.array([[1, 0, z.real], [0, 1, z.imag]]) for z in instants]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = [cv2.warpAffine(FOREST, move, (WIDTH, HEIGHT), flags=flags) for move in moves]
    return np.asarray(np.mean(seen, axis=0).round(), np.uint8)


STREAKS = [8 + 3j, 32 - 4j, 8 + 26j, -30 + 9j, 5 - 32j]
PLACES = np.array([120 + 110j, 138 + 100j, 121 + 121j, 108 + 90j, 122 + 70j])


def test_a_camera_is_followed_through_frames_whose_blur_changes() -> None:
    """No point's surroundings look alike in any two of them."""
    found = motions(map(streaked, PLACES, STREAKS))
    for motion, moved in zip(found[1:], np.diff(PLACES), strict=True):
        truth = np.array([[1, 0, -moved.real], [0, 1, -moved.imag]])
        assert motion.confidence >= 0.3
        assert farthest(motion.transform, truth, complex(WIDTH, HEIGHT)) < 4


def shifted(move: complex) -> NDArray[np.float64]:
    return np.array([[1, 0, move.real], [0, 1, move.imag], [0, 0, 1]])


def test_pictures_that_are_equally_blurred_match_better() -> None:
    moves = [30 + 0j, 4 + 28j, 30 - 8j, -24 + 4j, 20 + 20j, 3 + 3j, 30 + 30j]
    missed: list[float] = []
    still_missed: list[float] = []
    for last, move in pairwise(moves):
        before = View.of(streaked(120 + 110j, direct.EXPOSED * (last + move) / 2), 8)
        view = View.of(streaked(120 + 110j - move, direct.EXPOSED * move), 8)
        found = direct.found(before, view, [shifted(move + 3 - 2j)])
        assert found is not None
        settled = direct.settled(before, view, found, last=shifted(last))
        for errors, way in ((missed, found), (still_missed, settled)):
            errors.append(farthest(way, shifted(move), complex(WIDTH, HEIGHT)))
    assert max(missed) < 0.2
    assert sum(still_missed) < 0.7 * sum(missed)


def test_a_motion_is_replaced_only_by_a_better_one() -> None:
    view = View.of(window(FOREST, 100, 100), 8)
    moved = View.of(window(FOREST, 94, 103), 8)
    way = direct.better(view, moved, shifted(4 - 1j))
    assert farthest(way, shifted(6 - 3j), complex(WIDTH, HEIGHT)) < 0.1
    flat = View.of(np.full((HEIGHT, WIDTH), 90, np.uint8), 8)
    known = shifted(4 - 1j)
    assert direct.better(flat, flat, known) is known


def test_what_alone_is_sharp_is_not_taken_for_the_scene() -> None:
    """Such as a bird, or what is painted over the picture: it has all the corners."""
    frames = [streaked(place, streak) for place, streak in zip(PLACES, STREAKS, strict=True)]
    for frame in frames:
        frame[40:120, 60:200] = TOWN[40:120, 60:200]
        frame[220:300, 420:540] = TOWN[220:300, 420:540]
    for motion, moved in zip(motions(frames)[1:], np.diff(PLACES), strict=True):
        truth = np.array([[1, 0, -moved.real], [0, 1, -moved.imag]])
        assert farthest(motion.transform, truth, complex(WIDTH, HEIGHT)) < 0.4 * abs(moved)


def test_a_cut_between_strongly_blurred_frames_is_told() -> None:
    frames = [streaked(place, streak) for place, streak in zip(PLACES[:2], STREAKS, strict=False)]
    blurred = cv2.blur(window(TOWN, 100, 100), (51, 1))
    assert [motion.cut for motion in motions([*frames, np.asarray(blurred, np.uint8)])] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("seed", range(20, 32))
def test_bars_do_not_lead_over_a_cut(seed: int) -> None:
    """They match under any shift along them."""
    frames = [window(scene(seed + other), 90, 90, 320, 180) for other in (0, 100)]
    for frame in frames:
        frame[:24] = frame[-24:] = 16
    assert motions(frames)[1].confidence < 0.15


@pytest.mark.parametrize(
    ("width", "height"),
    [(16, 16), (17, 33), (16, 480), (8, 640), (640, 8), (4000, 16), (64, 64), (7680, 4320)],
)
def test_no_size_is_too_small_or_too_large(width: int, height: int) -> None:
    large = cv2.resize(FOREST, (width + 4, height), interpolation=cv2.INTER_LINEAR)
    for motion in motions(window(large, x, 0, width, height) for x in (0, 1, 3)):
        assert 0 <= motion.confidence <= 1
        assert np.isfinite(motion.transform).all()


@pytest.mark.parametrize(("width", "height"), [(2000, 3), (3, 2000), (100, 1)])
def test_a_picture_that_is_a_line_when_it_is_made_smaller_stands_still(
    width: int, height: int
) -> None:
    large = cv2.resize(FOREST, (width + 4, height), interpolation=cv2.INTER_LINEAR)
    for motion in motions(window(large, x, 0, width, height) for x in (0, 1, 3)):
        assert np.isfinite(motion.transform).all()


def test_the_stage_gives_each_frame_its_motion_and_forgets_it_after_the_end() -> None:
    stage = MotionStage()
    frames = [
        Frame((window(FOREST, 5 * i, 0),), PixelFormat(planes=1), 7 * i, Fraction(1, 90))
        for i in range(3)
    ]
    for _ in range(2):
        done = list(through(stage, frames))
        assert [frame.pts for frame in done] == [0, 7, 14]
        moved = [frame.motion.transform[0, 2] for frame in done if frame.motion]
        assert moved == pytest.approx([0, -5, -5], abs=0.05)


def coarse(x: float, y: float) -> NDArray[np.float32]:
    """A small picture of the forest, moved by (x, y) px of its own."""
    step = np.array([[0.25, 0, x - 20], [0, 0.25, y - 10]])
    soft = cv2.GaussianBlur(FOREST, (0, 0), 3)
    flags = cv2.INTER_AREA | cv2.INTER_LINEAR
    return np.asarray(cv2.warpAffine(soft, step, (160, 90), flags=flags), np.float32)


def test_refinement_finds_what_is_missing_of_a_motion() -> None:
    everywhere = np.ones((90, 160), np.float32)
    found = refined(coarse(0, 0), coarse(0.6, -0.4), np.eye(3), everywhere)
    assert found is not None
    np.testing.assert_allclose(found[:2], [[1, 0, 0.6], [0, 1, -0.4]], atol=0.03)


def test_refinement_looks_only_where_it_shall() -> None:
    after, interest = coarse(0.6, -0.4), np.ones((90, 160), np.float32)
    after[:, 50:110] = coarse(-0.8, 0)[:, 50:110]  # does not go with the camera
    interest[:, 45:115] = 0
    found = refined(coarse(0, 0), after, np.eye(3), interest)
    assert found is not None
    np.testing.assert_allclose(found[:2, 2], [0.6, -0.4], atol=0.06)


def test_refinement_leaves_what_is_too_small_alone() -> None:
    tiny = coarse(0, 0)[:12, :12]
    assert refined(tiny, tiny, np.eye(3), np.ones_like(tiny)) is None
