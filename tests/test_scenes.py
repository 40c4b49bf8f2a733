from dataclasses import replace
from pathlib import Path
from typing import get_args

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.cli import main
from vdeblur.options import Scene
from vdeblur.render import Bytes, Floats
from vdeblur.scene import Shot, takes, uneven_times
from vdeblur.scenes import SCENES, Stage, filmed

STAGE = Stage(seconds=1.0, width=320, height=180)


def only(name: str, stage: Stage = STAGE) -> Shot:
    (shot,) = filmed(name, stage)
    assert isinstance(shot, Shot)
    return shot


def through(view: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
    seen = view @ np.array([x, y, 1.0])
    return np.asarray(seen[:2] / seen[2])


def grey(picture: Bytes) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)


def test_every_name_has_a_scene() -> None:
    assert set(SCENES) == set(get_args(Scene))


@pytest.mark.parametrize("name", get_args(Scene))
def test_a_scene_films_the_same_twice(name: str) -> None:
    for (time, picture), (again_time, again) in zip(
        *(takes([s.part(0, 3) for s in filmed(name, STAGE) if isinstance(s, Shot)]) for _ in "ab"),
        strict=True,
    ):
        assert time == again_time
        assert picture.shape == (180, 320, 3)
        assert (picture == again).all()


@pytest.mark.parametrize("name", ["hand", "walk", "wide"])
def test_the_known_path_is_the_filmed_one(name: str) -> None:
    """The ideal frame, moved by the two known views, is the frame that was taken."""
    shot = only(name)
    index = 20
    time = shot.times[index : index + 1]
    change = np.linalg.inv(shot.views(time, intended=True)[0]) @ shot.views(time)[0]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(shot.ideal(index), change, (320, 180), flags=flags)
    inner = np.s_[40:-40, 40:-40]
    taken = grey(shot.take(index))[inner]
    assert np.abs(taken - grey(np.asarray(moved, np.uint8))[inner]).mean() < 1.5
    assert np.abs(taken - grey(shot.ideal(index))[inner]).mean() > 6


def test_a_nearer_card_moves_more_when_the_camera_moves() -> None:
    shot = only("parallax")
    first, last = shot.views(shot.times[[0, -1]], card=0)
    far = through(np.linalg.inv(last) @ first, 160, 150) - (160, 150)
    first, last = shot.views(shot.times[[0, -1]], card=1)
    near = through(np.linalg.inv(last) @ first, 160, 150) - (160, 150)
    # 0.02 of the backdrop's distance to the side, at a focal length of 288 px.
    assert far[0] - near[0] == pytest.approx(0.02 * 288 * 29 / 30, rel=0.4)


def test_the_passer_by_covers_two_fifths_at_most() -> None:
    shot = only("crossing", replace(STAGE, seconds=4))
    backdrop, passer = shot.cards
    assert passer.alpha is not None
    white: Floats = np.repeat(passer.alpha[..., None], 3, axis=2)
    cards = replace(backdrop, light=np.zeros_like(backdrop.light)), replace(passer, light=white)
    mask = replace(shot, cards=cards)
    covered = [float((mask.take(index) > 128).mean()) for index in range(0, 120, 10)]
    assert covered[0] < 0.1
    assert 0.35 < max(covered) <= 0.42


def test_a_rolling_shutter_leans_what_a_pan_sweeps_past() -> None:
    """Rows are taken in turn: the top is where the camera was, the bottom where it will be."""
    shot = only("rolling-shutter")
    index = int(np.abs(np.gradient(shot.views(shot.times)[:, 0, 2])).argmax())
    time, height = float(shot.times[index]), shot.camera.height
    plain = replace(shot, readout=0.0)
    for row in (20, height // 2, height - 21):
        then = time + shot.readout * (row / (height - 1) - 0.5)
        at_once = replace(plain, times=np.array([then])).take(0)
        assert (at_once[row] == shot.take(index)[row]).mean() > 0.98
    assert (plain.take(index)[20] == shot.take(index)[20]).mean() < 0.7


def test_a_repeated_frame_is_the_same_picture_shown_later() -> None:
    shot = replace(only("duplicates"), noise=(0.004, 0.01))
    assert (shot.take(3) == shot.take(4)).all()
    assert not (shot.take(4) == shot.take(5)).all()
    assert np.allclose(np.diff(shot.pts), 1 / 30)


def test_times_are_uneven_and_grow() -> None:
    steps = np.diff(only("vfr", replace(STAGE, seconds=6)).pts) * 30
    assert 0 < steps.min() < 0.9
    assert 1.8 < steps.max() < 5


def test_a_black_pause_lasts_three_seconds() -> None:
    shots = [s.part(0, 2) if isinstance(s, Shot) else s for s in filmed("black", STAGE)]
    frames = list(takes(shots))
    assert len(frames) == 2 + 90 + 2
    assert [bool(picture.any()) for _, picture in frames] == [True] * 2 + [False] * 90 + [True] * 2
    assert np.allclose(np.diff([time for time, _ in frames]), 1 / 30)


def test_a_scene_is_written_with_its_times_and_its_truth(tmp_path: Path) -> None:
    clip, truth = tmp_path / "clip.mp4", tmp_path / "truth.mp4"
    words = f"demo {clip} --scene vfr --seconds 1 --size 160x96 --truth {truth}"
    assert main(words.split()) == 0
    expected = only("vfr", Stage(seconds=1, width=160, height=96)).pts
    for path in (clip, truth):
        with av.open(str(path)) as container:
            times = [float(frame.time or 0) for frame in container.decode(video=0)]
        np.testing.assert_allclose(times, expected, atol=1e-4)


@pytest.mark.parametrize("wrong", ["--size 63x48", "--scene none", "--seconds 0"])
def test_nonsense_is_a_wrong_usage(tmp_path: Path, wrong: str) -> None:
    words = f"demo {tmp_path / 'clip.mp4'} --scene hand --size 64x48 {wrong}"
    assert main(words.split()) == 2
    assert not list(tmp_path.iterdir())


def test_uneven_times_have_a_first_one() -> None:
    assert list(uneven_times(np.random.default_rng(0), seconds=0.01, rate=30)) == [0]
