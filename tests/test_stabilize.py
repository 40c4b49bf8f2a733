from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.motion import MotionStage
from vdeblur.path import Budget
from vdeblur.similarity import Similarity
from vdeblur.stabilize import Aim, Followed, Planner, Stabilizer, Zoom
from vdeblur.warp import Edge, Interpolation, chroma_transform, warp

WIDTH, HEIGHT = 320, 180
RATE = 30
Camera = tuple[float, float, float]
"""Where a camera looks, x and y in px, and its roll in rad."""


def grey(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1, (height, width))
    clouds = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.asarray((128 + 45 * clouds / clouds.std()).clip(0, 255), np.uint8)


def frame(
    pts: int,
    motion: Motion | None = None,
    *,
    luma: int | NDArray[np.uint8] = 255,
    depth: int = 8,
    time_base: Fraction = Fraction(1, RATE),
) -> Frame:
    form = PixelFormat(depth=depth)
    y = np.full((HEIGHT, WIDTH), luma).astype(form.dtype) << (depth - 8)
    chroma = np.full(form.chroma_shape(HEIGHT, WIDTH), 128 << (depth - 8), form.dtype)
    return Frame((y, chroma, chroma.copy()), form, pts, time_base, motion=motion)


def to_picture(camera: Camera) -> Similarity:
    """From the world to the picture that a camera takes of it."""
    x, y, roll = camera
    return Similarity(np.exp(-1j * roll)) @ Similarity(1, -complex(x, y))


def motion_between(before: Camera, after: Camera) -> Motion:
    change = to_picture(after) @ to_picture(before).inverse
    return Motion(change.matrix(WIDTH, HEIGHT))


def clip(cameras: Sequence[Camera]) -> list[Frame]:
    """White frames that tell how the camera moved."""
    motions = [motion_between(a, b) for a, b in pairwise(cameras)]
    return [frame(i, motion) for i, motion in enumerate([Motion.none(), *motions])]


def shaking(count: int, *, pan: float = 0, amount: float = 1) -> list[Camera]:
    """A pan of so many px a frame, shaken at all frequencies above 1 Hz."""
    random = np.random.default_rng(7)
    frequencies = np.fft.rfftfreq(count, 1 / RATE)
    loud = np.where(frequencies > 1, 1 / np.maximum(frequencies, 1), 0)
    shake = [
        np.fft.irfft(np.fft.rfft(random.standard_normal(count)) * loud, count) for _ in range(3)
    ]
    x, y, roll = (amount * size * s / s.std() for size, s in zip((4, 3, 0.008), shake, strict=True))
    return [(pan * i + x[i], y[i], roll[i]) for i in range(count)]


class Recorder(Stabilizer):
    """A stabiliser that notes the corrections and leaves the pictures alone."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.corrections: list[Similarity] = []

    def _moved(self, frame: Frame, correction: Similarity) -> Frame:
        self.corrections.append(correction)
        return frame


def corrected(frames: Sequence[Frame], **options: object) -> list[Similarity]:
    recorder = Recorder(**options)
    assert [done.pts for done in through(recorder, frames)] == [given.pts for given in frames]
    return recorder.corrections


def steady(cameras: Sequence[Camera], **options: object) -> list[Similarity]:
    """From the world to the steady pictures."""
    corrections = corrected(clip(cameras), **options)
    first = to_picture(cameras[0])
    return [
        c @ to_picture(cam) @ first.inverse for c, cam in zip(corrections, cameras, strict=True)
    ]


def looks_at(pictures: Sequence[Similarity]) -> NDArray[np.complex128]:
    return np.array([picture.inverse.shift for picture in pictures], complex)


def roughness(path: NDArray[np.complex128]) -> float:
    """RMS acceleration, px a frame a frame."""
    return float(np.sqrt((abs(np.diff(path, 2)) ** 2).mean()))


@pytest.mark.parametrize("lookahead", [0, 1, 15, 100])
def test_every_frame_comes_back_in_order_and_in_time(lookahead: int) -> None:
    stabilizer = Stabilizer(lookahead=lookahead)
    frames = [replace(f, pts=1001 * f.pts, duration=1001) for f in clip(shaking(30))]
    for _ in range(2):
        held = [len(stabilizer.push(each)) for each in frames]
        assert held == [0] * min(lookahead, 30) + [1] * max(0, 30 - lookahead)
        assert len(stabilizer.flush()) == min(lookahead, 30)
    done = list(through(stabilizer, frames))
    assert [(f.pts, f.duration) for f in done] == [(f.pts, f.duration) for f in frames]
    assert [f.planes[1].shape for f in done] == [f.planes[1].shape for f in frames]


def test_an_empty_video_stays_empty() -> None:
    assert list(through(Stabilizer(), [])) == []


@pytest.mark.parametrize(("lookahead", "factor"), [(0, 2), (5, 12), (15, 25), (90, 30)])
def test_shaking_becomes_smooth(lookahead: int, factor: float) -> None:
    cameras = shaking(120)
    pictures = steady(cameras, lookahead=lookahead, zoom="static")
    raw = np.array([complex(x, y) for x, y, _ in cameras])
    assert roughness(looks_at(pictures)) < roughness(raw) / factor
    rolls = np.array([picture.log_turn.imag for picture in pictures], complex)
    assert roughness(rolls) < roughness(np.array([c[2] for c in cameras], complex)) / factor


def test_a_steady_pan_is_kept_without_lag_and_without_a_zoom() -> None:
    corrections = corrected(clip([(6.0 * i, 0, 0) for i in range(90)]))
    assert max(abs(c.shift) for c in corrections) < 0.01
    assert max(abs(c.turn - 1) for c in corrections) < 1e-6


def test_a_shaken_pan_is_followed_without_lag() -> None:
    cameras = shaking(180, pan=5)
    wanted = np.array([5.0 * i for i in range(180)])
    off = looks_at(steady(cameras, zoom="static"))[30:-30].real - wanted[30:-30]
    assert abs(off.mean() + cameras[0][0]) < 2  # 0.4 frames at 5 px a frame


@pytest.mark.parametrize("amount", [1, 6, 40])
@pytest.mark.parametrize("lookahead", [0, 15])
@pytest.mark.parametrize("zoom", ["adaptive", "static"])
def test_no_border_shows(zoom: Zoom, lookahead: int, amount: float) -> None:
    stabilizer = Stabilizer(
        zoom=zoom, lookahead=lookahead, border="black", interpolation="bilinear", max_crop=0.12
    )
    for done in through(stabilizer, clip(shaking(40, amount=amount))):
        assert done.planes[0].min() >= 254


@pytest.mark.parametrize("lookahead", [0, 15])
def test_the_crop_stays_within_its_budget_and_the_zoom_is_slow(lookahead: int) -> None:
    corrections = corrected(clip(shaking(90, amount=20)), lookahead=lookahead, max_crop=0.1)
    # A change of scale may use 8 % of the budget.
    assert max(abs(c.turn) for c in corrections) <= 1 / (1 - 0.1) * 1.01
    zooms = np.array([abs(c.turn) for c in corrections])
    assert abs(np.diff(zooms)).max() < 0.25 / RATE


def test_the_limit_is_met_smoothly() -> None:
    """A camera that swings twice as far as the budget is followed without a kink."""
    cameras = [(40 * np.sin(2 * np.pi * i / 30), 0.0, 0.0) for i in range(150)]
    path = looks_at(steady(cameras, zoom="static", max_crop=0.125))[15:-15]
    raw = np.array([complex(c[0]) for c in cameras])[15:-15]
    assert abs(path - raw).max() < 20 * 1.02 + 1e-6
    assert abs(np.diff(path, 2)).max() < 0.85 * abs(np.diff(raw, 2)).max()


def test_no_zoom_shows_the_border_that_was_asked_for() -> None:
    frames = clip(shaking(40, amount=4))
    black = list(through(Stabilizer(zoom="none", border="black", interpolation="bilinear"), frames))
    replicated = list(through(Stabilizer(zoom="none", border="replicate"), frames))
    assert min(done.planes[0].min() for done in black) == 16
    assert min(done.planes[0].min() for done in replicated) == 255
    assert all((done.planes[1] == 128).all() for done in black)


@pytest.mark.parametrize("zoom", ["adaptive", "none"])
def test_a_camera_on_a_tripod_comes_back_bit_for_bit(zoom: Zoom) -> None:
    random = np.random.default_rng(8)
    still = grey(9, WIDTH, HEIGHT)
    lumas = [np.clip(still + random.normal(0, 1.5, still.shape), 0, 255) for _ in range(25)]
    frames = [frame(i, luma=luma.astype(np.uint8)) for i, luma in enumerate(lumas)]
    done = list(through(Stabilizer(zoom=zoom), through(MotionStage(), frames)))
    for before, after in zip(frames, done, strict=True):
        assert all(a is b for a, b in zip(before.planes, after.planes, strict=True))


def test_a_cut_parts_two_scenes() -> None:
    first, second = shaking(40), shaking(80)[40:]
    parts = [clip(first), clip(second)]
    begin = replace(parts[1][0], motion=Motion.none(cut=True))
    both = [*parts[0], begin, *parts[1][1:]]
    both = [replace(each, pts=i) for i, each in enumerate(both)]
    apart = [*corrected(parts[0]), *corrected(parts[1])]
    for together, alone in zip(corrected(both), apart, strict=True):
        assert abs(together.shift - alone.shift) < 1e-9
        assert abs(together.turn - alone.turn) < 1e-9


def test_a_frame_without_a_known_motion_does_not_make_a_jump() -> None:
    cameras = shaking(100, pan=3)
    frames = clip(cameras)
    for index in range(50, 56):
        frames[index] = replace(frames[index], motion=Motion.none())
    corrections = corrected(frames, zoom="static")
    jumps = abs(np.diff([c.shift for c in corrections]))
    assert jumps[48:60].max() < 1.3 * jumps.max()
    # With nothing known the camera is taken to go on; the picture stays where it was.
    assert jumps[50:55].max() < 2


def test_black_frames_at_the_beginning_are_no_trouble() -> None:
    frames = [frame(i, Motion.none(), luma=0) for i in range(20)]
    done = list(through(Stabilizer(lookahead=5), frames))
    assert all(after is before for after, before in zip(done, frames, strict=True))


def test_a_frame_without_motion_is_taken_as_it_is() -> None:
    frames = [frame(i) for i in range(5)]
    assert list(through(Stabilizer(lookahead=2), frames)) == frames


@pytest.mark.parametrize("lookahead", [0, 4])
def test_a_picture_too_small_to_be_moved_is_left_alone(lookahead: int) -> None:
    moved = Motion(np.array([[1, 0, 0.3], [0, 1, 0]]))
    for width, height in ((1, 1), (1, 90), (90, 1), (2, 2)):
        luma = np.full((height, width), 80, np.uint8)
        frames = [
            Frame((luma,), PixelFormat(planes=1), i, Fraction(1, 25), motion=moved)
            for i in range(9)
        ]
        assert list(through(Stabilizer(lookahead=lookahead), frames)) == frames


def test_time_comes_from_pts() -> None:
    """The same camera, filmed at an irregular pace, takes the same path."""
    times = np.sort(np.random.default_rng(11).choice(np.arange(1, 900), 300, replace=False))

    def camera(t: float) -> Camera:
        return 30 * t + 5 * np.sin(11 * t), 4 * np.cos(14 * t), 0.0

    def stable(ticks: Sequence[int]) -> NDArray[np.complex128]:
        cameras = [camera(t / 90) for t in ticks]
        frames = [
            replace(each, pts=int(t), time_base=Fraction(1, 90))
            for each, t in zip(clip(cameras), ticks, strict=True)
        ]
        corrections = corrected(frames, lookahead=45, zoom="none")
        first = to_picture(cameras[0])
        return looks_at(
            [c @ to_picture(k) @ first.inverse for c, k in zip(corrections, cameras, strict=True)]
        )

    irregular = stable([0, *times, 900])
    regular = stable(range(0, 901, 3))
    there = np.interp(np.arange(300, 600), [0, *times, 900], irregular.real)
    even = np.interp(np.arange(300, 600), np.arange(0, 901, 3), regular.real)
    assert abs(there - even).max() < 1.0  # of a swing of 10 px


def test_repeated_frames_make_no_jerk() -> None:
    """A pan of 25 frames a second, played at 30: every sixth frame is shown twice."""
    frames = []
    for index in range(120):
        repeated = index % 6 == 5
        motion = Motion(np.array([[1.0, 0, 0 if repeated else -6], [0, 1, 0]]), duplicate=repeated)
        frames.append(frame(index, motion if index else Motion.none()))
    placed = np.cumsum([0, *(-f.motion.transform[0, 2] for f in frames[1:] if f.motion)])
    corrections = corrected(frames, zoom="static")
    path = placed - np.array([(c.shift / abs(c.turn)).real for c in corrections])
    steps = np.diff(path)[20:-20]
    assert steps.std() < 0.1  # 2.2 px before


@pytest.mark.parametrize("smoothing", [0.001, 0.1, 60])
def test_any_smoothing_stays_within_the_budget(smoothing: float) -> None:
    frames = clip(shaking(50, amount=5))
    for correction in corrected(frames, smoothing=smoothing, zoom="none", max_crop=0.1):
        assert Budget(WIDTH, HEIGHT, 0.1).kept(correction) > 0.9 - 1e-9


def test_a_clock_that_stands_still_does_no_harm() -> None:
    frames = [replace(each, pts=3) for each in clip(shaking(20))]
    assert len(list(through(Stabilizer(lookahead=4), frames))) == 20


def test_a_picture_turned_on_its_side_stays_within_its_own_limits() -> None:
    """After a roll of 90 degrees x and y have changed places; the budget goes along."""
    cameras = [
        (x, y, roll + np.pi / 2 * min(1, i / 60)) for i, (x, y, roll) in enumerate(shaking(120))
    ]
    stabilizer = Stabilizer(zoom="static", border="black", interpolation="bilinear")
    for done in through(stabilizer, clip(cameras)):
        assert done.planes[0].min() >= 254


def test_real_pictures_become_steady() -> None:
    world = grey(12, 700, 400)
    frames = []
    for index, camera in enumerate(shaking(50, pan=1.5)):
        view = Similarity(1, complex(-150, 0)) @ to_picture(camera)
        shown = view.matrix(700, 400)
        shown[:, 2] -= (700 - WIDTH) / 2 - 150, (400 - HEIGHT) / 2
        luma = cv2.warpAffine(world, shown, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
        frames.append(frame(index, luma=np.asarray(luma, np.uint8)))
    moving = list(through(MotionStage(), frames))
    still = list(through(Stabilizer(), moving))
    again = list(through(MotionStage(), [replace(done, motion=None) for done in still]))

    def path(seen: Sequence[Frame]) -> NDArray[np.complex128]:
        steps = [Similarity.of(f.motion.transform, WIDTH, HEIGHT).shift for f in seen if f.motion]
        return np.cumsum(steps)

    assert roughness(path(again)) < roughness(path(moving)) / 10


@pytest.mark.parametrize(
    "bad",
    [
        {"lookahead": -1},
        {"smoothing": 0},
        {"smoothing": float("nan")},
        {"smoothing": float("inf")},
        {"max_crop": 0.5},
        {"max_crop": 0},
        {"zoom": "dynamic"},
        {"border": "mirror"},
        {"interpolation": "nearest"},
    ],
)
def test_nonsense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Stabilizer(**bad)  # type: ignore[arg-type]


def test_kept_is_where_the_border_begins() -> None:
    budget = Budget(WIDTH, HEIGHT, 0.12)
    correction = Similarity(1.01 * np.exp(0.01j), 5 - 3j)
    kept = budget.kept(correction)
    for shown, bordered in ((kept * 0.995, False), (kept * 1.01, True)):
        zoomed = Similarity(1 / shown) @ correction
        done = warp(
            frame(0), zoomed.matrix(WIDTH, HEIGHT), border="black", interpolation="bilinear"
        )
        assert (done.planes[0].min() < 250) == bordered


def test_chroma_moves_with_luma() -> None:
    """A ramp of luma and one of chroma, drawn in the same place, stay in the same place."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    cy, cx = np.mgrid[0 : HEIGHT // 2, 0 : WIDTH // 2]
    planes = (20 * (x + y), 20 * (2 * cx + 2 * cy + 0.5), 20 * (2 * cx + 2 * cy + 0.5))
    deep = Frame(
        tuple(plane.astype(np.uint16) for plane in planes), PixelFormat(16), 0, Fraction(1, 30)
    )
    move = (Similarity(1.05 * np.exp(0.03j), 3.3 - 2.2j)).matrix(WIDTH, HEIGHT)
    done = warp(deep, move, interpolation="bilinear")
    luma = done.planes[0][20:-20, 20:-20].astype(float)
    chroma = done.planes[1][10:-10, 10:-10].astype(float)
    halfway = (luma[0::2, 0::2] + luma[1::2, 0::2]) / 2
    assert abs(halfway - chroma).mean() < 20 * 0.04  # 0.04 px
    assert abs(halfway - chroma).max() < 20 * 0.15


def test_a_shift_of_chroma_is_that_of_luma_in_chroma_samples() -> None:
    shift = np.array([[1.0, 0, 6], [0, 1.0, -3]])
    assert (chroma_transform(shift, PixelFormat()) == [[1, 0, 3], [0, 1, -1.5]]).all()
    wide = PixelFormat(shift_x=1, shift_y=0)
    assert (chroma_transform(shift, wide) == [[1, 0, 3], [0, 1, -3]]).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("border", ["replicate", "reflect"])
def test_ten_bits_stay_within_ten_bits(interpolation: Interpolation, border: Edge) -> None:
    sharp = np.where(grey(13, WIDTH, HEIGHT) > 128, 255, 0).astype(np.uint8)
    deep = frame(0, luma=sharp, depth=10)
    deep = replace(
        deep, planes=(np.where(deep.planes[0] > 0, 1023, 0).astype(np.uint16), *deep.planes[1:])
    )
    move = Similarity(np.exp(0.01j), 0.5 + 0.5j).matrix(WIDTH, HEIGHT)
    done = warp(deep, move, border=border, interpolation=interpolation)
    assert done.planes[0].dtype == np.uint16
    assert done.planes[0].max() == 1023
    assert (done.planes[1] == 512).all()


def planned(frames: Sequence[Frame], aim: Aim) -> list[Similarity]:
    """The corrections of a whole-file plan."""
    done = list(through(Planner(aim), frames))
    assert [each.pts for each in done] == [each.pts for each in frames]
    found = [each.correction for each in done]
    assert all(correction is not None for correction in found)
    return [Similarity.of(c, WIDTH, HEIGHT) for c in found if c is not None]


def seen(cameras: Sequence[Camera], corrections: Sequence[Similarity]) -> list[Similarity]:
    """From the world to the pictures so corrected."""
    first = to_picture(cameras[0]).inverse
    return [c @ to_picture(cam) @ first for c, cam in zip(corrections, cameras, strict=True)]


@pytest.mark.parametrize(("amount", "factor"), [(1, 0.5), (4, 1.3)])
def test_a_planned_path_is_steadier_than_one_with_a_lookahead(amount: float, factor: float) -> None:
    """Where the budget is used up all the time, both can do no more than follow."""
    cameras = shaking(240, amount=amount)
    lagging = steady(cameras, lookahead=15, zoom="static")
    ahead = seen(cameras, planned(clip(cameras), Aim(zoom="static")))
    assert roughness(looks_at(ahead)) < factor * roughness(looks_at(lagging))


@pytest.mark.parametrize("amount", [4, 30])
@pytest.mark.parametrize("lock", [False, True])
def test_a_plan_stays_within_its_budget(amount: float, lock: bool) -> None:
    aim = Aim(zoom="none", max_crop=0.1, camera_lock=lock)
    budget = Budget(WIDTH, HEIGHT, 0.1)
    for correction in planned(clip(shaking(300, pan=1, amount=amount)), aim):
        assert budget.kept(correction) > 0.9 - 1e-9


def test_a_plan_knows_how_far_the_edges_of_a_wide_lens_move() -> None:
    frames = clip(shaking(120, amount=4))
    plain = max(abs(c.shift) for c in planned(frames, Aim(zoom="none")))
    wide = max(abs(c.shift) for c in planned(frames, Aim(zoom="none", field_of_view=100)))
    assert wide < 0.7 * plain


def test_a_plan_zooms_slowly_and_shows_no_border() -> None:
    frames = clip(shaking(300, amount=20))
    corrections = planned(frames, Aim(zoom="adaptive"))
    zooms = np.array([abs(c.turn) for c in corrections])
    assert abs(np.diff(zooms)).max() < 0.3 / RATE
    done = through(Stabilizer(border="black", interpolation="bilinear"), _placed(frames))
    assert min(each.planes[0].min() for each in done) >= 254


def _placed(frames: Sequence[Frame]) -> list[Frame]:
    return list(through(Planner(Aim()), frames))


@pytest.mark.parametrize("ahead", [True, False])
def test_a_locked_camera_holds_still(ahead: bool) -> None:
    cameras = shaking(300)
    if ahead:
        aim = Aim(zoom="static", camera_lock=True)
        pictures = seen(cameras, planned(clip(cameras), aim))
    else:
        pictures = steady(cameras, zoom="static", camera_lock=True)
    raw = np.array([complex(x, y) for x, y, _ in cameras])
    path = looks_at(pictures)
    assert abs(path - path.mean()).max() < 0.1 * abs(raw - raw.mean()).max()


def test_a_cut_ends_a_plan() -> None:
    first, second = clip(shaking(40)), clip(shaking(80)[40:])
    begin = replace(second[0], motion=Motion.none(cut=True))
    later = [replace(each, pts=40 + each.pts) for each in [begin, *second[1:]]]
    whole = planned([*first, *later], Aim())
    parts = planned(first, Aim()) + planned(later, Aim())
    assert all(abs(a.shift - b.shift) < 1e-9 for a, b in zip(whole, parts, strict=True))


def test_a_fixed_zoom_is_the_one_that_was_asked_for() -> None:
    for corrections in (
        corrected(clip(shaking(60)), zoom=1.25),
        planned(clip(shaking(60)), Aim(zoom=1.25, max_crop=0.3)),
    ):
        assert all(abs(abs(c.turn) - 1.25) < 1.25 * 0.03 for c in corrections)


def test_what_only_one_reader_saw_is_left_out() -> None:
    known = [frame(i, Motion(np.eye(2, 3))).hollow for i in (0, 1, 2, 4)]
    followed = Followed(iter(known))
    done = list(through(followed, [frame(i) for i in (0, 2, 3, 4, 5)]))
    assert [each.motion is not None and each.motion.confidence for each in done] == [1, 1, 0, 1, 0]


def test_planned_frames_go_at_once_and_where_they_would_have_gone() -> None:
    plan = Planner(Aim.of(0.8, "auto", "replicate", None, camera_lock=False))
    frames = list(through(plan, clip(shaking(20, amount=5))))
    waited = list(through(Stabilizer(), frames))
    stabilizer = Stabilizer()
    stabilizer.planned = True
    at_once = [stabilizer.push(each) for each in frames]
    assert [len(each) for each in at_once] == [1] * 20
    for (here,), there in zip(at_once, waited, strict=True):
        assert (here.planes[0] == there.planes[0]).all()
        assert here.pts == there.pts


def test_a_planned_frame_whose_border_is_filled_waits_for_those_after_it() -> None:
    plan = Planner(Aim.of(0.8, "auto", "fill", None, camera_lock=False))
    frames = list(through(plan, clip(shaking(6, amount=5))))
    stabilizer = Stabilizer(lookahead=3, border="fill")
    stabilizer.planned = True
    assert [len(stabilizer.push(each)) for each in frames] == [0, 0, 0, 1, 1, 1]
    assert len(stabilizer.flush()) == 3
