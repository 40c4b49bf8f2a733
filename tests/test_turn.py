from itertools import pairwise

import cv2
import numpy as np
import pytest

from vdeblur.lens import moved_by
from vdeblur.motion import MotionEstimator
from vdeblur.scenes import Stage, wide
from vdeblur.similarity import Similarity
from vdeblur.turn import LearntLens, Turn, fitted

WIDTH, HEIGHT = 480, 270
STRENGTH = (1 / 0.42) ** 2
"""Of the scene "wide"."""
POINTS = np.array([40 + 40j, 440 + 40j, 40 + 230j, 440 + 230j])
"""Near the corners."""
MIDDLE = complex(WIDTH - 1, HEIGHT - 1) / 2


def test_the_lens_is_learnt_from_the_video_and_corners_are_found_by_it() -> None:
    shot = wide(Stage(seconds=2, width=WIDTH, height=HEIGHT, amount=0.5))
    estimator, missed, without = MotionEstimator(), [], []
    motions = [
        estimator.estimate(np.asarray(cv2.cvtColor(shot.take(t), cv2.COLOR_RGB2GRAY), np.uint8))
        for t in range(len(shot))
    ]
    for index, (before, view) in enumerate(pairwise(shot.views(shot.times)), start=1):
        motion = motions[index]
        assert motion.homography is not None
        if index > 3:
            truth = moved_by(np.linalg.inv(view) @ before, POINTS)
            missed.append(abs(moved_by(motion.homography, POINTS) - truth).mean())
            flat = np.vstack([motion.transform, [0, 0, 1]])
            without.append(abs(moved_by(flat, POINTS) - truth).mean())
    assert np.mean(missed) < 0.3 * np.mean(without)


def test_a_turn_is_found_by_points_of_which_some_go_their_own_way() -> None:
    rng = np.random.default_rng(3)
    start = (rng.random(80) - 0.5) * WIDTH + 1j * (rng.random(80) - 0.5) * HEIGHT
    true = Turn(Similarity(1.01 + 0.02j, 14 - 9j), LearntLens(STRENGTH, 1.0))
    end = moved_by(true.homography(WIDTH, HEIGHT), start + MIDDLE) - MIDDLE
    end[:20] += 30j
    found = Turn(Similarity(), LearntLens())
    for _ in range(8):  # the lens is better known each time
        found = fitted(
            found.lens,
            start,
            end,
            np.ones(80),
            first=Similarity(1, 14 - 9j),
            tolerance=2.0,
            unit=1.0,
            width=WIDTH,
        )
    assert found.lens.strength == pytest.approx(STRENGTH, rel=0.05)
    places = moved_by(found.homography(WIDTH, HEIGHT), POINTS)
    np.testing.assert_allclose(places, moved_by(true.homography(WIDTH, HEIGHT), POINTS), atol=0.5)
    again = Turn(Similarity(), true.lens).moved_by(true.homography(WIDTH, HEIGHT), WIDTH, HEIGHT)
    assert abs(again.middle.shift - true.middle.shift) < 1e-9


def test_a_lens_is_known_by_large_turns_and_not_forgotten_in_stillness() -> None:
    told = LearntLens().learnt(1000.0, 500.0)
    assert told.strength == pytest.approx(2.0, rel=0.02)
    still = told
    for _ in range(1000):
        still = still.learnt(0.0, 0.001)
    assert still.strength == pytest.approx(told.strength, rel=0.02)
    assert LearntLens().learnt(-100.0, 10.0).strength == 0


def test_nothing_is_learnt_where_the_lens_does_not_matter() -> None:
    estimator = MotionEstimator(perspective=False)
    shot = wide(Stage(seconds=0.2, width=WIDTH, height=HEIGHT, amount=0.5))
    pictures = [
        np.asarray(cv2.cvtColor(shot.take(t), cv2.COLOR_RGB2GRAY), np.uint8) for t in (0, 1)
    ]
    assert all(estimator.estimate(each).homography is None for each in pictures)
