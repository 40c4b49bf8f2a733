"""Filters that also go from later frames to earlier ones."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.backend import TwoStages
from vdeblur.backwards import Backwards, Forth, Kept
from vdeblur.blocks import AHEAD, BLOCK, HALO, TILE, TOLD, VELOCITY, WAITING, WINDOW
from vdeblur.bundle import Bundle
from vdeblur.clusters import Clusters
from vdeblur.found import Found, Neighbour
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.laying import Laying
from vdeblur.restore import Restorer

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
MIDDLE = HALO + BLOCK // 2
ONE_WAY = Bundle(
    Path(),
    "fake",
    Clusters(np.array([[0.0], [100.0]], np.float32), stiffness=1.0),
    encoder_cost=1.0,
    filter_costs=(1.0,),
    context_channels=TOLD,
)
BIDIRECTIONAL = replace(ONE_WAY, bidirectional=True)
SECOND = replace(BIDIRECTIONAL, first=ONE_WAY, colour_frames=3, filter_costs=(10.0,))
STILL = Motion(np.eye(2, 3))


class Fake:
    """A block's latent is its mean brightness, and all that is told of the motion is 2.

    Its filters add `forth`, or `back` where time runs backwards.
    """

    name, device = "fake", "cpu"

    def __init__(self, bundle: Bundle = BIDIRECTIONAL, forth: float = 10, back: float = 10) -> None:
        self.bundle, self.forth, self.back = bundle, forth, back
        self.seen: list[list[int]] = []
        """The luma in the middle of each block that was filtered."""

    def load(self) -> None:
        pass

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        _, height, width = luma.shape
        blocks = luma[0].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        context = np.full((TOLD, height // 8, width // 8), 2, np.float32)
        return context, blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        self.seen += luma[:, :, MIDDLE, MIDDLE].tolist()
        residual = np.stack([np.full((TILE, TILE), self.added(each)) for each in context])
        return residual.astype(np.float32), np.zeros(
            (len(luma), 2, TILE // 2, TILE // 2), np.float32
        )

    def added(self, context: Floats) -> float:
        told = context[-TOLD:, 4, 4]
        runs = np.sign(told[0])
        assert (told == np.where(np.arange(TOLD) < VELOCITY, 2 * runs, 2)).all()
        return self.forth if runs > 0 else self.back


def film(*shades: int, depth: int = 8) -> list[Frame]:
    """Frames of one block."""
    form = PixelFormat(depth, 1, 1)

    def plane(edge: int, value: int) -> NDArray[np.generic]:
        return np.full((edge, edge), value << (depth - 8), form.dtype)

    chroma = plane(BLOCK // 2, 128)
    return [
        Frame((plane(BLOCK, shade), chroma, chroma), form, t, Fraction(1, 30), motion=STILL)
        for t, shade in enumerate(shades)
    ]


def shown(frames: list[Frame]) -> list[int]:
    return [int(frame.planes[0][32, 32]) for frame in frames]


def test_going_back_a_frame_sees_the_next_one_restored_and_the_one_before_as_filmed() -> None:
    stage, count = Fake(), WINDOW + AHEAD
    list(through(Restorer(stage), film(*range(100, 100 + count))))
    forth, back = stage.seen[:count], stage.seen[count : 2 * count]
    assert forth[:2] == [[100, 100, 101], [101, 110, 102]]
    last = 99 + count
    assert back == [
        [last, last, last - 1],  # nothing comes after it
        *([shade, shade + 11, shade - 1] for shade in range(last - 1, 100, -1)),
        [100, 111, 100],
    ]


def test_both_directions_count_the_same() -> None:
    assert shown(list(through(Restorer(Fake(back=40)), film(*[100] * 9)))) == [125] * 9
    assert BIDIRECTIONAL.looks == (1, 1 + AHEAD / WINDOW)


def test_of_three_looks_each_counts_a_third() -> None:
    class ThreeLooks(Fake):
        """Turned by half the motion has another sign, too: it tells looks by their number."""

        def apply(
            self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
        ) -> tuple[Floats, Floats]:
            colour = np.zeros((len(luma), 2, TILE // 2, TILE // 2), np.float32)
            added = self.forth if len(luma) == 2 else self.back
            return np.full((len(luma), TILE, TILE), added, np.float32), colour

    bundle = replace(BIDIRECTIONAL, both_ways=True)
    assert (
        shown(list(through(Restorer(ThreeLooks(bundle, back=40)), film(*[100] * 9)))) == [120] * 9
    )
    assert bundle.looks == (2, 1 + AHEAD / WINDOW)


def test_the_second_stage_sees_the_mean_and_goes_back_itself() -> None:
    second = Fake(SECOND, forth=30, back=10)
    restored = list(through(Restorer(TwoStages(Fake(back=40), second)), film(*[100] * 8)))
    assert {tuple(each[3:]) for each in second.seen} == {(125, 125)}
    assert shown(restored) == [120] * 8
    assert SECOND.multiply_adds(2 * [[0.5, 0.5]]) == 1 + 0.5 * (2 + AHEAD / WINDOW) * (1 + 10)


def test_going_back_the_second_stage_has_a_preview_of_the_one_before() -> None:
    second, count = Fake(SECOND, forth=30, back=30), WINDOW + AHEAD
    list(through(Restorer(TwoStages(Fake(), second)), film(*range(100, 100 + count))))
    back, last = second.seen[count : 2 * count], 99 + count
    assert back == [
        [last, last, last - 1, last + 9, last + 10],
        *([t, t + 31, t - 1, t + 9, t + 10] for t in range(last - 1, 100, -1)),
        [100, 131, 100, 110, 110],
    ]


def test_stages_may_be_asked_only_to_go_forth() -> None:
    def stages() -> TwoStages:
        return TwoStages(Fake(back=40), Fake(SECOND, forth=30, back=10))

    film_of_8 = film(*[100] * 8)
    for back, value, held in ((0, 130, 1), (1, 130, 6), (2, 120, 11), (None, 120, 11)):
        restorer = Restorer(stages(), back=back)
        ready = [frame for each in film_of_8 for frame in restorer.push(each)]
        assert len(ready) == max(0, 8 - 1 - held)
        assert shown(ready + restorer.flush()) == [value] * 8
    assert (SECOND.held(), SECOND.held(low_delay=True)) == (11, 1)


@pytest.mark.parametrize("count", range(2 * WINDOW + AHEAD + 2))
def test_frames_come_in_their_order_and_as_late_as_told(count: int) -> None:
    restorer = Restorer(Fake())
    for _ in range(2):  # a flush begins anew
        ready = [restorer.push(frame) for frame in film(*range(50, 50 + count))]
        late = BIDIRECTIONAL.held() + 1
        assert [len(each) for each in ready] == [int(t >= late) for t in range(count)]
        frames = [frame for each in [*ready, restorer.flush()] for frame in each]
        assert [frame.pts for frame in frames] == list(range(count))
        assert restorer.flush() == []


def test_a_later_frame_reaches_back_through_those_between() -> None:
    class Same(Fake):
        """Its filters make of a frame what the one before is, which going back is the next one."""

        def apply(
            self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
        ) -> tuple[Floats, Floats]:
            _, colour = super().apply(cluster, luma, chroma, context)
            return luma[:, 1].astype(np.float32) - luma[:, 0], colour

    shades = [100] * (WINDOW + AHEAD - 1) + [140] * WINDOW
    forth = list(through(Restorer(Same(ONE_WAY)), film(*shades)))
    both = list(through(Restorer(Same(BIDIRECTIONAL)), film(*shades)))
    assert shown(forth)[:WINDOW] == [100] * WINDOW
    assert shown(both)[:WINDOW] == [120] * WINDOW


def test_frames_are_released_one_by_one() -> None:
    restorer = Restorer(TwoStages(Fake(), Fake(SECOND)))
    frames = film(*range(100, 110))
    ready = [frame for each in frames for frame in restorer.push(each)]
    released = [restorer.release() for _ in range(len(frames) - len(ready) + 1)]
    assert [len(each) for each in released] == [1] * (len(frames) - len(ready)) + [0]
    pts = [frame.pts for frame in [*ready, *(f for each in released for f in each)]]
    assert pts == list(range(10))
    again = list(through(restorer, frames))
    assert [frame.pts for frame in again] == list(range(10))


def test_what_is_clear_is_passed_on_and_what_stands_still_stays_so() -> None:
    clear = film(*[0] * 9)
    stage = Fake(back=40)
    passed = list(through(Restorer(stage), clear))
    assert all(a.planes is b.planes for a, b in zip(passed, clear, strict=True))
    again = replace(STILL, duplicate=True)
    once, *others = film(*[90] * 9)
    same = [once, *(replace(each, planes=once.planes, motion=again) for each in others)]
    assert shown(list(through(Restorer(stage), same))) == [115] * 9


@pytest.mark.parametrize("depth", [8, 10, 16])
def test_clear_blocks_come_back_bit_for_bit(depth: int) -> None:
    rng = np.random.default_rng(3)
    frames = []
    for frame in film(*[100] * 7, depth=depth):
        kind = frame.format.dtype
        luma = np.full((BLOCK, 2 * BLOCK), 100 << (depth - 8), kind)
        luma[:, BLOCK:] = rng.integers(0, 20 << (depth - 8), (BLOCK, BLOCK))
        chroma = rng.integers(0, 1 << depth, (2, BLOCK // 2, BLOCK)).astype(kind)
        frames.append(replace(frame, planes=(luma, *chroma)))
    for filmed, restored in zip(frames, through(Restorer(Fake(back=40)), frames), strict=True):
        assert (restored.planes[0][:, BLOCK:] == filmed.planes[0][:, BLOCK:]).all()
        assert restored.planes[0][32, 16] == 125 << (depth - 8)
        for ours, theirs in zip(restored.planes[1:], filmed.planes[1:], strict=True):
            assert (ours[:, BLOCK // 2 :] == theirs[:, BLOCK // 2 :]).all()


def test_a_video_may_change_its_size() -> None:
    small = film(*[100] * 5)
    large = [
        replace(each, planes=tuple(np.tile(plane, (2, 3)) for plane in each.planes), motion=None)
        for each in small
    ]
    restored = list(through(Restorer(Fake(back=40)), [*small, *large]))
    assert [each.planes[0].shape for each in restored] == [
        each.planes[0].shape for each in [*small, *large]
    ]
    assert shown(restored) == [125] * 10


def test_it_keeps_no_more_than_it_tells() -> None:
    class Nothing:
        def restored(
            self, found: Found, preview: object = None, *, doubt: object = None
        ) -> tuple[()]:
            return ()

        def forget(self) -> None:
            pass

    backwards = Backwards(Nothing(), share=0.5)
    frames = film(*[0] * 20)
    out = [backwards.push(Found(frame), frame.planes) for frame in frames]
    assert [len(each) for each in out] == [0] * WAITING + [1] * (20 - WAITING)
    assert len(backwards.release()) == 1
    assert len(backwards.flush()) == WAITING - 1


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 300.0])
def test_a_field_is_kept_in_half_the_memory_and_in_its_order(size: float) -> None:
    field = np.random.default_rng(1).normal(0, size, (6, 5, 7)).astype(np.float32)
    for laid in (field, field.transpose(2, 0, 1)):
        kept = Kept.of(laid)
        assert 2 * kept.values.nbytes == laid.nbytes
        assert kept.field.strides == laid.strides
        np.testing.assert_allclose(kept.field, laid, rtol=0, atol=2e-5 * np.abs(laid).max())


def test_what_is_known_of_a_frame_is_known_after_it_has_waited() -> None:
    first, frame, third = film(10, 20, 30)
    rng = np.random.default_rng(2)
    context = rng.normal(0, 3, (TOLD, 9, 17)).astype(np.float32)
    flow = rng.normal(0, 2, (32, 64, 2)).astype(np.float32)
    before = Neighbour(first, first.planes[0], Laying(np.eye(3), flow, (np.s_[0:32, 0:64],)))
    after = Neighbour(third, third.planes[0], Laying(2 * np.eye(3)))
    waits = Forth.of(Found(frame, context, before, after), frame.planes, None)
    assert waits.found.context is None
    assert waits.found.before is not None
    assert waits.found.before.laying.flow is None
    whole = waits.whole
    assert whole.frame is frame
    assert whole.after is after
    assert whole.before is not None
    assert whole.before.laying.parts == before.laying.parts
    assert whole.before.laying.flow is not None
    assert isinstance(whole.context, np.ndarray)
    np.testing.assert_allclose(whole.before.laying.flow, flow, atol=1e-3)
    np.testing.assert_allclose(whole.context, context, atol=1e-3)
