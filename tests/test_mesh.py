from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from vdeblur.cli import main
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.mesh import NODES, LocalPaths, Mesh, beside, local_motion, nodes
from vdeblur.options import MESH_DELAY, MotionModel, Options
from vdeblur.pipeline import process
from vdeblur.processor import Processor
from vdeblur.scenes import Stage, render_scene
from vdeblur.stabilize import Stabilizer, laid_bare
from vdeblur.sway import Both, Sway
from vdeblur_training.peers import lumas
from vdeblur_training.steadiness import wobble

WIDTH, HEIGHT = 320, 180
RANDOM = np.random.default_rng(3)
WAVE = 3 * np.exp(1j * np.linspace(0, 5, NODES * NODES)).reshape(NODES, NODES)


def frames_of(motions: Sequence[Motion], luma: object = None) -> list[Frame]:
    plane = np.zeros((HEIGHT, WIDTH), np.uint8) if luma is None else np.asarray(luma)
    form = PixelFormat(planes=1)
    return [
        Frame((plane,), form, i, Fraction(1, 30), motion=motion) for i, motion in enumerate(motions)
    ]


def strayed(frame: Frame) -> np.ndarray:
    """(R, C): how far a frame's nodes are from where they should be."""
    places = nodes(WIDTH, HEIGHT)
    return places * 0 if frame.sway is None else frame.sway.observed(places) - places


def local(parts: np.ndarray) -> Motion:
    return Motion(np.eye(2, 3), local=parts)


@pytest.mark.parametrize(
    ("scene", "model", "most"),
    [("wide", "homography", 0.4), ("wide", "mesh", 0.4), ("parallax", "mesh", 0.6)],
)
def test_the_parts_of_a_picture_shake_less(
    scene: str, model: MotionModel, most: float, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    render_scene(scene, clip, stage=Stage(seconds=3, width=480, height=270))
    left = {}
    ways: tuple[MotionModel, ...] = ("similarity", model)
    for each in ways:
        process(clip, tmp_path / f"{each}.mkv", deblur=False, motion=each, zoom=1.1, codec="ffv1")
        left[each] = wobble(lumas(tmp_path / f"{each}.mkv")[0])
    assert left[model].acceleration < most * left["similarity"].acceleration
    assert left[model].high_pass < 0.75 * left["similarity"].high_pass


def test_a_mesh_is_undone() -> None:
    mesh = Mesh(WAVE, WIDTH, HEIGHT)
    x, y = np.meshgrid(np.linspace(5, 315, 12), np.linspace(5, 175, 7))
    places = x + 1j * y
    assert abs(mesh.observed(places) - places).max() > 2
    assert abs(mesh.true(mesh.observed(places)) - places).max() < 0.02
    assert mesh.effect == pytest.approx(3)
    sway = Sway(np.array([4 + 2j]), np.array([0.01j]), WIDTH, HEIGHT)
    both = Both(mesh, sway)
    assert abs(both.true(both.observed(places)) - places).max() < 0.05


def test_the_mesh_is_known_at_its_nodes_and_between_them() -> None:
    mesh = Mesh(WAVE, WIDTH, HEIGHT)
    at = mesh.observed(nodes(WIDTH, HEIGHT)) - nodes(WIDTH, HEIGHT)
    np.testing.assert_allclose(at, WAVE, atol=1e-5)
    between = (nodes(WIDTH, HEIGHT)[2, 3] + nodes(WIDTH, HEIGHT)[2, 4]) / 2
    (told,) = mesh.observed(np.array([between])) - between
    assert abs(told - (WAVE[2, 3] + WAVE[2, 4]) / 2) < 0.05  # OpenCV looks at 32nds of a cell


def test_nodes_follow_what_most_points_around_them_do() -> None:
    start = RANDOM.uniform(0, WIDTH, 150) + 1j * RANDOM.uniform(0, HEIGHT, 150)
    near = start.imag > HEIGHT / 2
    end = start + np.where(near, 5 + 0j, 2 + 0j)
    end[::5] += 30j  # a fifth goes its own way
    way = np.array([[1, 0, 2], [0, 1, 0], [0, 0, 1.0]])
    told = local_motion(start, end, way, WIDTH, HEIGHT)
    assert abs(told[0]).max() < 1e-6
    assert abs(told[-1] - 3).max() < 1e-6
    assert not local_motion(start[:0], end[:0], way, WIDTH, HEIGHT).any()


def test_a_homography_says_how_the_edges_move() -> None:
    way = np.array([[1, 0, 4], [0, 1, 0], [1e-4, 0, 1]])
    told = beside(way, np.array([[1, 0, 4], [0, 1, 0.0]]), WIDTH, HEIGHT)
    assert abs(told[:, 0]).max() < 1e-3
    assert told[NODES // 2, -1].real == pytest.approx((WIDTH + 3) / (1 + 1e-4 * 319) - WIDTH - 3)


def test_what_is_fast_goes_and_what_is_slow_stays() -> None:
    shaking = np.zeros((90, NODES, NODES), complex)
    shaking[:, :, -1] = RANDOM.normal(0, 0.3, (90, 1)) + 0.2  # shakes and drifts
    path = np.cumsum(shaking, axis=0)[:, 0, -1]
    done = list(through(LocalPaths(), frames_of([local(each) for each in shaking])))
    assert [frame.pts for frame in done] == list(range(90))
    undone = path - np.array([strayed(frame)[0, -1] for frame in done])
    assert np.abs(np.diff(undone, 2)).max() < 0.1 * np.abs(np.diff(path, 2)).max()
    assert abs(undone - path).mean() < 1.5  # it is followed
    assert max(abs(strayed(frame)[:, :-1]).max() for frame in done) < 1e-6


@pytest.mark.parametrize("drift", [0.0, 0.7])
def test_what_drifts_evenly_is_left_alone(drift: float) -> None:
    done = through(LocalPaths(), frames_of([local(np.full((NODES, NODES), drift + 0j))] * 50))
    assert all(frame.sway is None for frame in done)


def test_a_cut_begins_anew() -> None:
    still = np.zeros((NODES, NODES), complex)
    far = local(np.full((NODES, NODES), 5 + 0j))
    motions = [*[local(still)] * 20, replace(far, cut=True), *[local(still)] * 20]
    assert all(frame.sway is None for frame in through(LocalPaths(), frames_of(motions)))


def test_what_passes_by_bends_nothing() -> None:
    parts = np.zeros((60, NODES, NODES), complex)
    parts[20:40, :, :2] = 0.02 * WIDTH
    done = list(through(LocalPaths(), frames_of([local(each) for each in parts])))
    # Such a path lies up to 0.078 of the width off its slow part.
    assert max(abs(strayed(frame)).max() for frame in done) < 0.016 * WIDTH


def test_a_homography_moves_nothing_too_far() -> None:
    turns = RANDOM.normal(0, 1e-3, 40)
    motions = [
        Motion(np.eye(2, 3), homography=np.array([[1, 0, 0], [0, 1, 0], [turn, 0, 1]]))
        for turn in turns
    ]
    done = list(through(LocalPaths(), frames_of(motions)))
    assert 0.055 * WIDTH < max(abs(strayed(frame)).max() for frame in done) < 0.061 * WIDTH


def test_frames_wait_as_long_as_is_said() -> None:
    stage = LocalPaths()
    frames = frames_of([local(WAVE)] * (MESH_DELAY + 2))
    assert [len(stage.push(frame)) for frame in frames] == [0] * MESH_DELAY + [1, 1]
    assert len(stage.flush()) == MESH_DELAY
    options = Options(deblur=False, lookahead=4, motion="mesh")
    with Processor(options) as processor:
        out = [len(processor.push(frame)) for frame in frames_of([Motion.none()] * 30)]
        assert processor.delay == options.delay == 4 + MESH_DELAY
        assert sum(out) == 30 - options.delay


def test_the_zoom_hides_what_a_mesh_lays_bare() -> None:
    pattern = np.asarray(cv2.blur(RANDOM.integers(100, 255, (HEIGHT, WIDTH), np.uint8), (5, 5)))
    mesh = Mesh(6 * np.exp(1j * RANDOM.uniform(0, 6, (NODES, NODES))), WIDTH, HEIGHT)
    still = Motion(np.eye(2, 3))
    frames = [replace(frame, sway=mesh) for frame in frames_of([still] * 12, pattern)]
    assert 0.03 < laid_bare(frames[0]) < 0.08
    for done in through(Stabilizer(border="black", lookahead=3), frames):
        assert done.planes[0].min() > 90
    bare = list(through(Stabilizer(border="black", lookahead=3, zoom="none"), frames))
    assert bare[-1].planes[0].min() < 20


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--motion", "mesh", "--rolling-shutter", "auto"), "use one of the two"),
        (("--motion", "homography", "--field-of-view", "90"), "use one of the two"),
        (("--motion", "mesh", "--latency", "0.5"), "too far ahead for a live source"),
        (("--motion", "affine"), "'affine' is not one of"),
    ],
)
def test_what_does_not_go_together_is_said(
    wrong: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["in.mp4", "-o", str(tmp_path / "out.mp4"), *wrong])
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_path_with_its_mesh_is_obeyed(tmp_path: Path) -> None:
    clip, first, again, path = (tmp_path / each for each in ("c.mp4", "a.mkv", "b.mkv", "p.json"))
    render_scene("parallax", clip, stage=Stage(seconds=1, width=WIDTH, height=HEIGHT))
    process(clip, first, deblur=False, motion="mesh", motion_out=path, codec="ffv1")
    process(clip, again, deblur=False, motion="mesh", motion_in=path, codec="ffv1")
    for one, other in zip(lumas(first)[0], lumas(again)[0], strict=True):
        assert cv2.PSNR(one, other) > 50
