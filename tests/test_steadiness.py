"""How the stabiliser is measured: what is even in time is steady, and a cut is no shake."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.frame import Frame, Motion, PixelFormat
from vdeblur_training.lookaheads import shown
from vdeblur_training.steadiness import (
    Walk,
    acceleration,
    cuts,
    shake,
    steadiness,
    strayed,
    walked,
)

Luma = NDArray[np.uint8]


def texture(seed: int) -> Luma:
    """(240, 400): smooth noise."""
    noise = np.random.default_rng(seed).normal(0, 1, (240, 400)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), 3))
    return np.asarray(np.clip(128 + 50 * smooth / smooth.std(), 0, 255), np.uint8)


def window(picture: Luma, x: int) -> Luma:
    return np.ascontiguousarray(picture[40:200, x : x + 240])


def test_a_walk_that_is_even_in_time_has_no_acceleration() -> None:
    times = np.array([0, 0.03, 0.11, 0.13, 0.2, 0.26, 0.3])
    path = Walk(np.outer(times, (100.0, -40.0)), np.zeros(7), times)
    assert acceleration(path) == pytest.approx(0, abs=1e-9)
    by_frame = Walk(path.position, path.roll, np.arange(7) / 30)
    assert acceleration(by_frame) > 1


def test_a_scene_shakes_as_much_wherever_the_others_are() -> None:
    times = np.arange(120) / 60
    position = np.outer(20 * np.sin(2 * np.pi * 0.7 * times), (1.0, 0))
    alone = shake(Walk(position, np.zeros(120), times))
    twice = Walk(
        np.concatenate([position, position]),
        np.zeros(240),
        np.concatenate([times, times + 7]),
        cuts=(120,),
    )
    assert shake(twice) == pytest.approx(alone)
    assert acceleration(twice) == pytest.approx(acceleration(Walk(position, np.zeros(120), times)))


def test_a_jump_at_a_cut_does_not_count() -> None:
    times = np.arange(40) / 30
    position = np.zeros((40, 2))
    position[20:] = 300
    assert shake(Walk(position, np.zeros(40), times))[0] > 50
    split = Walk(position, np.zeros(40), times, cuts=(20,))
    assert shake(split) == pytest.approx((0, 0))
    assert acceleration(split) == pytest.approx(0)


def test_cuts_are_found_and_moves_are_none() -> None:
    first, second = texture(0), texture(1)
    places = [0, 9, 20, 34, 50, 40, 33]
    frames = [window(first, x) for x in places] + [window(second, x) for x in places]
    black = np.zeros((160, 240), np.uint8)
    assert cuts(frames) == (7,)
    assert cuts([*frames[:3], black, *frames[3:5]]) == (3, 4)


def test_the_walk_is_what_the_frames_did() -> None:
    places = [0, 4, 9, 15, 10, 3]
    frames = [window(texture(2), x) for x in places]
    path = walked(frames, np.arange(6) / 30)
    assert np.abs(path.position[:, 0] * 240 / 1280 - places).max() < 0.3
    result = steadiness(frames, frames, np.arange(6) / 30)
    assert result.crop == pytest.approx(1, abs=0.01)
    assert result.border == pytest.approx(0, abs=0.02)
    assert result.acceleration > 10


def test_against_an_ideal_camera_nothing_adds_up() -> None:
    picture = texture(3)
    pan = [10 + 2 * index for index in range(8)]
    off = [0, 5, -3, 4, 4, -6, 2, 0]
    ideal = [window(picture, x) for x in pan]
    shaken = [window(picture, x + more) for x, more in zip(pan, off, strict=True)]
    path = strayed(ideal, shaken, np.arange(8) / 30)
    assert path.position[:, 0] == pytest.approx(np.array(off) * -1280 / 240, abs=1)
    assert path.position[:, 1] == pytest.approx(0, abs=1)
    assert path.roll == pytest.approx(0, abs=0.2)
    black = [np.zeros_like(frame) for frame in shaken[:2]]
    unseen = strayed(ideal[:4], [*shaken[:2], *black], np.arange(4) / 30)
    assert unseen.position[3] == pytest.approx(unseen.position[1])


def test_what_a_path_corrects_is_not_seen() -> None:
    luma, steps = np.zeros((90, 160), np.uint8), [0.0, 5, -3, 4, 2]
    places = np.cumsum(steps)
    frames = [
        Frame((luma,), PixelFormat(8, 0, 0, planes=1), index, Fraction(1, 30), motion=moved(step))
        for index, step in enumerate(steps)
    ]
    assert shown(frames).position[:, 0] == pytest.approx(-places * 1280 / 160)
    held = [
        replace(frame, correction=moved(-place).transform)
        for frame, place in zip(frames, places, strict=True)
    ]
    assert shown(held).position == pytest.approx(0, abs=1e-9)


def moved(right: float) -> Motion:
    return Motion(np.array([[1, 0, right], [0, 1, 0.0]]))
