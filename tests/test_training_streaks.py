"""Detail along and across the motion."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from vdeblur.cli import main as vdeblur
from vdeblur.frame import Frame, Motion, PixelFormat
from vdeblur_training.streaks import along_over_across, detail, main

NOISE = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (240, 320)).astype(np.float32), (0, 0), 1.0
)
PICTURE = np.clip((NOISE - 128) * 3 + 128, 0, 255).astype(np.uint8)
RIGHT, DOWN = np.array([4.0, 0.0]), np.array([0.0, 4.0])


@pytest.mark.parametrize("direction", [RIGHT, DOWN, RIGHT + DOWN])
def test_what_is_sharp_or_out_of_focus_is_the_same_all_ways(direction: np.ndarray) -> None:
    assert along_over_across(PICTURE, direction) == pytest.approx(1, abs=0.02)
    soft = cv2.GaussianBlur(PICTURE, (0, 0), 2.0)
    assert along_over_across(soft, direction) == pytest.approx(1, abs=0.04)


def test_a_streak_takes_detail_along_itself() -> None:
    streaked = cv2.blur(PICTURE, (5, 1))
    assert along_over_across(streaked, RIGHT) < 0.9
    assert along_over_across(streaked, DOWN) > 1.1


def test_a_flat_picture_says_nothing() -> None:
    assert along_over_across(np.full((64, 64), 99, np.uint8), RIGHT) is None


def test_frames_count_whose_motion_is_trusted() -> None:
    frame = Frame((PICTURE,), PixelFormat(planes=1), 0, Fraction(1, 30))
    right = np.array([[1.0, 0, 3], [0, 1, 4]])
    motions = [None, Motion.none(cut=True), Motion(right, confidence=0.1), Motion(right)]
    (found,) = detail([replace(frame, motion=motion) for motion in motions])
    assert found.speed == pytest.approx(5)
    assert found.ratio == pytest.approx(1, abs=0.02)


def test_a_blurred_video_shows_it(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    assert vdeblur(["demo", str(clip), "--size", "320x240", "--seconds", "1", "--blur", "5"]) == 0
    done = CliRunner().invoke(main, [str(clip), "--frames", "30"])
    assert done.exit_code == 0, done.output
    fastest = done.output.splitlines()[-1]
    assert float(fastest.split("|")[3].split("±")[0]) < 0.95
