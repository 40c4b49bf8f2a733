from dataclasses import replace
from fractions import Fraction
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.motion import MotionStage
from vdeblur.options import Options
from vdeblur.processor import Processor
from vdeblur.rolling import RollingShutter
from vdeblur.scene import Shot
from vdeblur.scenes import Stage, hand
from vdeblur.stabilize import Stabilizer
from vdeblur.sway import Distortion, Sway
from vdeblur.warp import bend, warp

STAGE = Stage(seconds=2.5, width=480, height=270, amount=1.5)


def shot(readout: float) -> Shot:
    return replace(hand(STAGE), readout=readout / STAGE.rate)


@cache
def filmed(readout: float) -> list[Frame]:
    """Frames with their measured motion."""
    camera = shot(readout)
    greys = [cv2.cvtColor(camera.take(i), cv2.COLOR_RGB2GRAY) for i in range(len(camera))]
    form = PixelFormat(planes=1)
    frames = [Frame((np.asarray(grey),), form, i, Fraction(1, 30)) for i, grey in enumerate(greys)]
    return list(through(MotionStage(), frames))


def rubber(camera: Shot, index: int, sway: Distortion | None) -> float:
    """px RMS: how far points are from where a global shutter would have put them, but for a shift
    of all."""
    x, y = np.meshgrid(np.linspace(20, 460, 7), np.linspace(10, 260, 9))
    height = camera.camera.height
    time = camera.times[index]
    rows = camera.views((time + camera.readout * (y / (height - 1) - 0.5)).ravel())
    seen = np.einsum("nij,nj->ni", rows, np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1))
    back = np.linalg.inv(camera.views(np.array([time]))[0]) @ seen.T
    true = (back[0] + 1j * back[1]) / back[2]
    places = (x + 1j * y).ravel()
    off = (places if sway is None else sway.true(places)) - true
    return float(np.sqrt((np.abs(off - off.mean()) ** 2).mean()))


def middle(readout: float, wanted: object) -> tuple[float, float]:
    """Mean rubber before and after."""
    camera = shot(readout)
    done = list(through(RollingShutter(wanted), filmed(readout)))  # type: ignore[arg-type]
    indices = range(30, len(done) - 3)
    before = np.mean([rubber(camera, i, None) for i in indices])
    return float(before), float(np.mean([rubber(camera, i, done[i].sway) for i in indices]))


def test_a_known_readout_takes_the_rubber_out() -> None:
    before, after = middle(0.7, 0.7)
    assert before > 0.7
    assert after < 0.3 * before


def test_an_unknown_readout_is_found() -> None:
    before, after = middle(0.7, "auto")
    assert after < 0.4 * before


def test_a_global_shutter_is_found_out_and_left_alone() -> None:
    stage = RollingShutter("auto")
    assert all(frame.sway is None for frame in through(stage, filmed(0.0)))


def test_straight_lines_are_straight_again_in_the_output() -> None:
    """The picture, not only the numbers: compared with a global shutter's at the same time."""
    camera, plain = shot(0.7), shot(0.0)
    rolled = list(through(RollingShutter(0.7), filmed(0.7)))
    index = max(range(10, 60), key=lambda i: rubber(camera, i, None))
    frame = rolled[index]
    assert frame.sway is not None
    inner = np.s_[30:-30, 30:-30]
    truth = cv2.cvtColor(plain.take(index), cv2.COLOR_RGB2GRAY)[inner].astype(float)
    undone = bend(frame, frame.sway.observed).planes[0][inner]
    before = np.abs(frame.planes[0][inner] - truth).mean()
    assert np.abs(undone - truth).mean() < 0.5 * before


def test_bending_by_nothing_or_by_a_shift_is_what_warping_does() -> None:
    frame = filmed(0.0)[3]
    same = bend(frame, lambda places: places)
    assert (same.planes[0] == frame.planes[0]).all()
    shifted = bend(frame, lambda places: places - (3.25 - 1.5j))
    expected = warp(frame, np.array([[1, 0, 3.25], [0, 1, -1.5]]))
    off = shifted.planes[0].astype(int) - expected.planes[0]
    assert np.abs(off).max() <= 3


def test_observed_and_true_undo_each_other() -> None:
    sway = Sway(np.array([6 + 3j, -1.0]), np.array([0.004 - 0.01j, 0]), 320, 180)
    places = np.array([0, 319 + 179j, 150 + 20j, 10 + 170j])
    np.testing.assert_allclose(sway.observed(sway.true(places)), places, atol=0.02)


def test_a_cut_and_black_frames_are_no_trouble() -> None:
    frames = filmed(0.7)[:20]
    frames[8] = replace(frames[8], motion=Motion.none(cut=True))
    frames[14:17] = [replace(frame, motion=Motion.none()) for frame in frames[14:17]]
    done = list(through(RollingShutter(0.7), frames))
    assert [frame.pts for frame in done] == [frame.pts for frame in frames]
    assert done[8].motion is not None
    assert done[8].motion.cut


@pytest.mark.parametrize("wanted", [-0.1, 1.1, float("nan")])
def test_nonsense_is_refused(wanted: float) -> None:
    with pytest.raises(ValueError, match=r"must be 0\.\.1 or 'auto'"):
        RollingShutter(wanted)
    with pytest.raises(ValueError, match=r"must be 0\.\.1 or 'auto'"):
        Options(rolling_shutter=wanted)


def test_the_delay_is_what_it_says() -> None:
    options = Options(deblur=False, lookahead=4, rolling_shutter="auto")
    with Processor(options) as processor:
        held = [len(processor.push(replace(f, motion=None))) for f in filmed(0.7)[:12]]
        assert held == [0] * processor.delay + [1] * (12 - processor.delay)
        assert len(processor.flush()) == processor.delay


def test_ten_bits_and_black_borders_survive() -> None:
    deep = [
        replace(f, planes=(f.planes[0].astype(np.uint16) * 4,), format=PixelFormat(10, planes=1))
        for f in filmed(0.7)[:15]
    ]
    stages: NDArray[np.uint16] | None = None
    for done in through(Stabilizer(lookahead=5, border="black", zoom="none"),
                        through(RollingShutter(0.7), deep)):  # fmt: skip
        stages = done.planes[0]
        assert stages.dtype == np.uint16
        assert stages.max() <= 1023
    assert stages is not None
    assert len(np.unique(stages)) > 256
