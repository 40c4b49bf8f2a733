from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.fill import Rim
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.stabilize import Stabilizer

WIDTH, HEIGHT = 320, 180


def world(seed: int = 1) -> NDArray[np.float32]:
    """(400, 600): clouds of three sizes, 0..255."""
    random = np.random.default_rng(seed)
    total = np.zeros((400, 600), np.float32)
    for size in (2, 6, 20):
        clouds = cv2.GaussianBlur(random.standard_normal((400, 600)), (0, 0), size)
        total += (clouds / clouds.std()).astype(np.float32) * size**0.4
    return np.asarray(np.clip(125 + 35 * total / total.std(), 20, 230), np.float32)


WORLD = world()


def shaken(count: int = 40, *, depth: int = 8, dim: float = 0.0) -> list[Frame]:
    """A camera that swings by 12 px; each frame is darker by up to `dim` grey values."""
    format = PixelFormat(depth)
    frames, before = [], 0
    for index in range(count):
        x = round(12 * np.sin(1.1 * index))
        seen = WORLD[100 : 100 + HEIGHT, 140 + x : 140 + x + WIDTH] - dim * (index % 2)
        luma = np.rint(seen * (1 << (depth - 8))).astype(format.dtype)
        chroma = np.ascontiguousarray(luma[::2, ::2])
        motion = Motion(np.array([[1, 0, before - x], [0, 1, 0.0]])) if index else Motion.none()
        frames.append(
            Frame((luma, chroma, chroma.copy()), format, index, Fraction(1, 30), motion=motion)
        )
        before = x
    return frames


def still(frames: list[Frame], border: str = "fill") -> list[Frame]:
    """Held on the first frame by given corrections."""
    place, held = 0.0, []
    for frame in frames:
        assert frame.motion is not None
        place += frame.motion.transform[0, 2]
        held.append(replace(frame, correction=np.array([[1, 0, -place], [0, 1, 0.0]])))
    stabilizer = Stabilizer(border=border, lookahead=10)  # type: ignore[arg-type]
    return list(through(stabilizer, held))


@pytest.mark.parametrize("depth", [8, 10])
def test_the_edge_shows_what_was_there(depth: int) -> None:
    unit = 1 << (depth - 8)
    truth = WORLD[100 : 100 + HEIGHT, 140 : 140 + WIDTH]
    for done in still(shaken(depth=depth))[12:-12]:
        off = np.abs(done.planes[0] / unit - truth)
        assert off[:, :12].mean() < 1.5
        assert off[:, -12:].mean() < 1.5
        assert np.abs(done.planes[1] / unit - truth[::2, ::2])[:, -6:].mean() < 1.5
        assert done.planes[0].dtype == np.dtype(np.uint8 if depth == 8 else np.uint16)


def test_replicating_would_have_been_wrong() -> None:
    truth = WORLD[100 : 100 + HEIGHT, 140 : 140 + WIDTH]
    worst = [np.abs(d.planes[0] - truth)[:, -12:].mean() for d in still(shaken(), "replicate")]
    assert max(worst) > 10


def test_no_seam_shows_between_a_bright_frame_and_a_dark_one() -> None:
    frames = still(shaken(dim=20))
    for done in frames[12:-12]:
        inner = done.planes[0].astype(float)[:, 100:-100].mean()
        truth = WORLD[100 : 100 + HEIGHT, 140 : 140 + WIDTH]
        expected = truth - (truth[:, 100:-100].mean() - inner)
        assert np.abs(done.planes[0] - expected)[:, -12:].mean() < 1.5


def test_fill_keeps_the_whole_picture_unless_a_zoom_is_asked_for() -> None:
    frames = shaken()
    for zoom, scaled in (("auto", False), ("none", False), ("static", True)):
        stabilizer = Stabilizer(border="fill", zoom=zoom)  # type: ignore[arg-type]
        corrections = [done.correction for done in through(stabilizer, frames)]
        scales = [abs(c[0, 0]) for c in corrections if c is not None]
        assert (max(scales) > 1.05) == scaled


def test_another_scene_does_not_fill_the_border() -> None:
    frames = shaken()
    planes = tuple(np.full_like(plane, 235) for plane in frames[0].planes)
    white = replace(frames[0], planes=planes, pts=40, motion=Motion.none(cut=True))
    plain = still(frames)
    both = still([*frames, white])
    for alone, together in zip(plain, both[:-1], strict=True):
        assert all((a == b).all() for a, b in zip(alone.planes, together.planes, strict=True))


@pytest.mark.parametrize("shape", [(16, 16), (16, 200), (33, 47)])
def test_small_and_odd_pictures_are_no_trouble(shape: tuple[int, int]) -> None:
    height, width = shape
    luma = np.ascontiguousarray(WORLD[:height, :width]).astype(np.uint8)
    chroma = luma[: -(-height // 2), : -(-width // 2)].copy()
    motion = Motion(np.array([[1, 0, 1.5], [0, 1, -0.7]]))
    frames = [
        Frame((luma, chroma, chroma.copy()), PixelFormat(), i, Fraction(1, 30), motion=motion)
        for i in range(6)
    ]
    done = list(through(Stabilizer(border="fill", lookahead=2), frames))
    assert [f.planes[1].shape for f in done] == [chroma.shape] * 6


def swung(frame: Frame) -> bool:
    return frame.correction is not None and abs(frame.correction[0, 2]) > 1


def test_a_black_rim_of_the_camera_is_no_picture() -> None:
    """Old cameras leave black columns at the edge; as a border they would be seen wandering."""
    frames = []
    for frame in shaken():
        planes = []
        for index, plane in enumerate(frame.planes):
            rimmed = plane.copy()
            rimmed[:, : 4 >> bool(index)] = 128 if index else 16
            planes.append(rimmed)
        frames.append(replace(frame, planes=tuple(planes)))
    truth = WORLD[100 : 100 + HEIGHT, 140 : 140 + WIDTH]
    moved = [done for done in still(frames)[12:-12] if swung(done)]
    assert len(moved) > 10
    for done in moved:
        # Where the camera swung to one side only, a few columns were never seen.
        assert np.abs(done.planes[0] - truth)[:, 6:30].mean() < 2.5
        assert done.planes[0][:, :30].mean(axis=0).min() > 60


def test_colour_may_turn_to_grey() -> None:
    coloured, grey = PixelFormat(), PixelFormat(planes=1)
    frames = [
        frame if index < 20 else replace(frame, planes=frame.planes[:1], format=grey)
        for index, frame in enumerate(shaken())
    ]
    moved = list(through(Stabilizer(border="fill", lookahead=10), frames))
    assert [frame.format for frame in moved] == [coloured] * 20 + [grey] * 20


def test_a_dark_scene_and_a_letterbox_have_no_rim() -> None:
    dark = shaken(1)[0]
    dark = replace(dark, planes=tuple(np.full_like(plane, 17) for plane in dark.planes))
    assert Rim.of(dark) == Rim()
    boxed = shaken(1)[0].planes[0].copy()
    boxed[:30] = 16
    assert Rim.of(replace(dark, planes=(boxed, *dark.planes[1:]))) == Rim()
