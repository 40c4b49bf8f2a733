"""A model of two stages: the second one's filters see what the first one made of t+1 and t."""

import json
import shutil
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.backend import TwoStages, open_backend, stages_of
from vdeblur.blocks import BLOCK, HALO, TILE
from vdeblur.bundle import MODELS, Bundle, read_bundle
from vdeblur.cli import main
from vdeblur.clusters import Clusters
from vdeblur.errors import ModelError
from vdeblur.filtering import both_ways
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.options import Options
from vdeblur.processor import Processor, delay_of
from vdeblur.restore import Restorer
from vdeblur.video import VideoReader

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
FIRST = Bundle(
    Path(),
    "first",
    Clusters(np.array([[0.0], [100.0], [200.0]], np.float32), stiffness=1.0),
    encoder_cost=1.0,
    filter_costs=(1.0, 2.0),
    context_channels=1,
)
SECOND = replace(FIRST, name="second", first=FIRST, colour_frames=3, filter_costs=(10.0, 20.0))
STILL = Motion(np.eye(2, 3))


@dataclass
class FakeStage:
    """A block's latent is its mean brightness; filters add `luma` and `chroma`."""

    bundle: Bundle
    luma: float
    chroma: float
    name: str = "fake"
    device: str = "cpu"
    seen: list[tuple[Bytes, Bytes]] = field(default_factory=list)
    """Luma and chroma of the blocks that were filtered."""

    def load(self) -> None:
        pass

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        assert self.bundle.first is None, "a second stage embeds nothing"
        _, height, width = luma.shape
        blocks = luma[0].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        context = np.zeros((1, height // 8, width // 8), np.float32)
        return context, blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        self.seen.append((luma.copy(), chroma.copy()))
        count = len(luma)
        return (
            np.full((count, TILE, TILE), self.luma, np.float32),
            np.full((count, 2, TILE // 2, TILE // 2), self.chroma, np.float32),
        )


def two_stages() -> tuple[TwoStages, FakeStage]:
    """The first stage adds 10 and 1, the second 30 and 3."""
    second = FakeStage(SECOND, 30, 3)
    return TwoStages(FakeStage(FIRST, 10, 1), second), second


def film(*shades: int, depth: int = 8, motion: Motion | None = STILL) -> list[Frame]:
    """Frames of one block; the first colour is 128 plus their number."""
    form = PixelFormat(depth, 1, 1)
    more = depth - 8

    def plane(edge: int, value: int) -> NDArray[np.generic]:
        return np.full((edge, edge), value << more, form.dtype)

    return [
        Frame(
            (plane(BLOCK, shade), plane(BLOCK // 2, 128 + t), plane(BLOCK // 2, 128)),
            form,
            t,
            Fraction(1, 30),
            motion=motion,
        )
        for t, shade in enumerate(shades)
    ]


@pytest.mark.parametrize("depth", [8, 10])
def test_the_second_stage_sees_what_the_first_made_of_this_frame_and_the_next(depth: int) -> None:
    backend, second = two_stages()
    restored = list(through(Restorer(backend), film(100, 101, 102, depth=depth)))
    middle = HALO + BLOCK // 2
    lumas = [luma[0, :, middle, middle].tolist() for luma, _ in second.seen]
    assert lumas == [
        [100, 100, 101, 111, 110],  # nothing came before it
        [101, 130, 102, 112, 111],
        [102, 131, 102, 112, 112],  # nothing comes after it
    ]
    half = middle // 2
    colours = [chroma[0, ::2, half, half].tolist() for _, chroma in second.seen]
    assert colours == [
        [128, 128, 129, 130, 129],
        [129, 131, 130, 131, 130],
        [130, 132, 130, 131, 131],
    ]
    shown = [frame.planes[0][32, 32] >> (depth - 8) for frame in restored]
    assert shown == [130, 131, 132]  # added to what was filmed


def test_what_the_first_stage_left_alone_is_seen_as_it_was_filmed() -> None:
    backend, second = two_stages()
    restored = list(through(Restorer(backend), film(100, 0, 101)))
    assert [frame.planes[0][0, 0] for frame in restored] == [130, 0, 131]
    middle = HALO + BLOCK // 2
    lumas = [luma[0, :, middle, middle].tolist() for luma, _ in second.seen]
    assert lumas == [[100, 100, 0, 0, 110], [101, 0, 101, 111, 111]]


def test_where_the_motion_is_not_trusted_the_frame_stands_in() -> None:
    backend, second = two_stages()
    list(through(Restorer(backend), film(100, 101, motion=None)))
    middle = HALO + BLOCK // 2
    lumas = [luma[0, :, middle, middle].tolist() for luma, _ in second.seen]
    assert lumas == [[100, 100, 100, 110, 110], [101, 101, 101, 111, 111]]


def test_both_stages_look_at_each_block_from_both_sides() -> None:
    """What is seen twice counts once: the residuals are the same, and the cost is twice as much."""
    second = FakeStage(replace(SECOND, both_ways=True), 30, 3)
    first = FakeStage(FIRST, 10, 1)
    frames = film(100, 101, 102)
    for frame in frames:
        frame.planes[0][:32] += np.uint8(5)  # the upper half
    restored = list(through(Restorer(TwoStages(first, second)), frames))
    assert [len(luma) for stage in (first, second) for luma, _ in stage.seen] == [2] * 6
    for luma, chroma in first.seen + second.seen:
        assert (luma[1] == luma[0, :, ::-1, ::-1]).all()
        assert (luma[1] != luma[0]).any()
        assert (chroma[1] == chroma[0, :, ::-1, ::-1]).all()
    assert [frame.planes[0][40, 32] for frame in restored] == [130, 131, 132]
    once, twice = (each.multiply_adds(2 * [[0.5, 0.5, 0]]) for each in (SECOND, second.bundle))
    assert (once, twice) == (1 + 0.5 * 11, 1 + 2 * 0.5 * 11)


def test_what_a_filter_gets_wrong_one_way_only_is_halved() -> None:
    rng = np.random.default_rng(4)
    luma = rng.integers(0, 255, (3, 3, 12, 12)).astype(np.uint8)
    chroma, context = luma[:, :2, :6, :6].copy(), rng.normal(size=(3, 12, 2, 2)).astype(np.float32)
    signs = np.array([1] * 3 + [-1] * 4 + [1] * 5, np.float32)[:, None, None]

    def moved(luma: Bytes, chroma: Bytes, context: Floats) -> tuple[Floats, Floats]:
        assert np.array_equal(context[3:], signs * context[:3, :, ::-1, ::-1])
        return np.roll(np.float32(luma[:, 0]), 1, axis=-1), np.float32(chroma) + context[
            :, 3:4
        ].max()

    residual, colour = both_ways(moved, luma, chroma, context)
    once = np.float32(luma[:, 0])
    assert np.allclose(residual, (np.roll(once, 1, axis=-1) + np.roll(once, -1, axis=-1)) / 2)
    assert colour.shape == chroma.shape


def clouds(x: int) -> NDArray[np.uint8]:
    """A window of 256 x 128 into the same picture, `x` px from its left."""
    noise = np.random.default_rng(2).standard_normal((128, 320)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.asarray((100 + 5 * soft / soft.std()).clip(0, 255), np.uint8)[:, x : x + 256]


def missed(stage: FakeStage) -> list[float]:
    """By how much the neighbours differ from the middle one of three frames as they are laid over
    it; what a filter has added to all of a picture does not count.
    """
    blocks = np.concatenate([luma for luma, _ in stage.seen])
    current, *others = blocks.reshape(3, -1, *blocks.shape[1:])[1].swapaxes(0, 1)[:3]
    inner = np.s_[:, 20:-20, 20:-20]  # beyond a neighbour's edge the frame itself is seen
    return [float(np.std(current[inner].astype(float) - each[inner])) for each in others]


def test_the_second_stage_lays_neighbours_by_what_the_first_made_of_them() -> None:
    """They move by 6 px, by 5.5 as it was first thought; for a flow there is too little to see."""
    backend, second = two_stages()
    chroma = np.full((64, 128), 128, np.uint8)
    thought = Motion(np.array([[1.0, 0, -5.5], [0, 1, 0]]))
    frames = [
        Frame((clouds(6 * t), chroma, chroma), PixelFormat(), t, Fraction(1, 30), motion=thought)
        for t in range(3)
    ]
    restorer = Restorer(backend)
    list(through(restorer, frames))
    first = backend.first
    assert isinstance(first, FakeStage)
    for by_first, by_second in zip(missed(first), missed(second), strict=True):
        assert by_second < 0.5 * by_first
    assert restorer.seconds["align second"] > 0


@dataclass
class Contrast(FakeStage):
    """Its filters make the picture eight times as rich in contrast."""

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        _, colour = super().apply(cluster, luma, chroma, context)
        return 7 * (luma[:, 0] - np.float32(100)), colour


def test_what_moves_on_its_own_is_followed_in_what_the_first_made_of_it() -> None:
    """As it was filmed there is too little of it to be seen."""
    thing, chroma = clouds(30)[:48, :80] // 4 + 75, np.full((64, 128), 128, np.uint8)
    frames = []
    for t in range(3):
        picture = clouds(6 * t) // 4 + 76
        picture[40:88, 90 + 5 * t : 170 + 5 * t] = thing
        motion = Motion(np.array([[1.0, 0, -6], [0, 1, 0]]))
        planes = picture, chroma, chroma
        frames.append(Frame(planes, PixelFormat(), t, Fraction(1, 30), motion=motion))
    second = FakeStage(SECOND, 0, 0)
    list(through(Restorer(TwoStages(Contrast(FIRST, 0, 0), second)), frames))
    luma = np.concatenate([luma for luma, _ in second.seen]).reshape(3, 2, 4, 5, TILE, TILE)[1]
    rows = [np.concatenate(list(row[..., HALO:, HALO:]), axis=-1) for row in luma]
    _, _, _, following, own = np.concatenate(rows, axis=1).astype(float)
    inside = np.s_[48:80, 103:167]
    assert np.std(own[inside]) > 10
    assert np.std((following - own)[inside]) < 0.3 * np.std(own[inside])


def test_it_holds_two_frames_back_and_begins_anew_after_a_flush() -> None:
    backend, _ = two_stages()
    restorer, frames = Restorer(backend), film(100, 101, 102, 103)
    for _ in range(2):
        ready = [restorer.push(frame) for frame in frames]
        assert [len(each) for each in ready] == [0, 0, 1, 1]
        shown = [*ready[2], *ready[3], *restorer.flush()]
        assert [frame.planes[0][0, 0] for frame in shown] == [130, 131, 132, 133]
        assert [frame.pts for frame in shown] == [0, 1, 2, 3]
    assert restorer.flush() == []


def test_what_stands_still_is_filtered_once_by_each_stage() -> None:
    backend, second = two_stages()
    first = backend.first
    assert isinstance(first, FakeStage)
    still = replace(STILL, duplicate=True)
    frames = [replace(each, motion=still if each.pts else STILL) for each in film(*[100] * 6)]
    same = [replace(each, planes=frames[0].planes) for each in frames]
    restored = list(through(Restorer(backend), same))
    assert [frame.planes[0][0, 0] for frame in restored] == [130] * 6
    assert len(second.seen) == len(first.seen) == 3  # two at the beginning, and the last


def test_a_clear_frame_is_passed_on_untouched() -> None:
    backend, second = two_stages()
    frames = film(0, 1, 2)
    restored = list(through(Restorer(backend), frames))
    assert all(a.planes is b.planes for a, b in zip(restored, frames, strict=True))
    assert second.seen == []


def test_frames_are_released_one_by_one() -> None:
    """Without a preview of the next one: the frame as the first stage restored it stands in."""
    backend, second = two_stages()
    restorer = Restorer(backend)
    for frame in film(100, 101):
        assert restorer.push(frame) == []
    released = [restorer.release() for _ in range(3)]
    assert [[frame.pts for frame in each] for each in released] == [[0], [1], []]
    middle = HALO + BLOCK // 2
    lumas = [luma[0, :, middle, middle].tolist() for luma, _ in second.seen]
    assert lumas == [[100, 100, 101, 110, 110], [101, 130, 101, 111, 111]]


def test_a_video_may_change_its_size() -> None:
    backend, _ = two_stages()
    small = film(100, 101)
    large = [
        replace(each, planes=tuple(np.tile(plane, (2, 3)) for plane in each.planes), motion=None)
        for each in small
    ]
    restored = list(through(Restorer(backend), [*small, *large]))
    shapes = [frame.planes[0].shape for frame in restored]
    assert shapes == [(BLOCK, BLOCK)] * 2 + [(2 * BLOCK, 3 * BLOCK)] * 2
    assert all((frame.planes[0] >= 130).all() for frame in restored)


def test_paused_it_gives_back_what_it_holds() -> None:
    backend, _ = two_stages()
    restorer, frames = Restorer(backend), film(100, 101, 102)
    assert restorer.push(frames[0]) + restorer.push(frames[1]) == []
    restorer.paused = True
    shown = [frame.planes[0][0, 0] for frame in restorer.push(frames[2])]
    assert shown == [130, 131, 102]


def test_the_costs_of_both_stages_count() -> None:
    assert FIRST.multiply_adds([[0.5, 0.25, 0.25]]) == 1 + 0.25 * 1 + 0.25 * 2
    assert SECOND.multiply_adds(2 * [[0.5, 0.25, 0.25]]) == 1 + 0.25 * 11 + 0.25 * 22


def test_a_bundle_names_what_comes_first(tmp_path: Path) -> None:
    for name in ("behind", "third"):
        shutil.copytree(MODELS / "fast", tmp_path / name)
    _set(tmp_path / "behind", first="fast", colour_frames=3)
    _set(tmp_path / "third", first="behind")
    (tmp_path / "behind" / "encoder.onnx").unlink()
    behind = read_bundle(tmp_path / "behind")
    assert behind.first is not None
    assert [each.name for each in behind.stages] == ["fast", "fast"]
    assert behind.parts == ("filter_1", "filter_2", "filter_3")
    assert (behind.luma_planes, behind.chroma_planes) == (5, 10)
    for name in ("behind", "third"):  # of which one would follow itself
        _set(tmp_path / "third", first=name)
        with pytest.raises(ModelError, match=f"third follows {name}, which is a second stage, too"):
            read_bundle(tmp_path / "third")
    stiff = json.loads((MODELS / "fast" / "config.json").read_text())["stiffness"]
    _set(tmp_path / "behind", stiffness=stiff + 1)
    with pytest.raises(ModelError, match="behind does not fit fast, which comes before it"):
        read_bundle(tmp_path / "behind")
    _set(tmp_path / "behind", first="nobody")
    with pytest.raises(ModelError, match="no model"):
        read_bundle(tmp_path / "behind")


def _set(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def test_the_shipped_second_stage_has_the_clusters_of_its_first() -> None:
    best, fast = read_bundle("best"), read_bundle("fast")
    assert best.first is not None
    assert best.first.name == "fast"
    assert (best.clusters.centroids == fast.clusters.centroids).all()
    assert (best.clusters.biases <= fast.clusters.biases).all(), "it does less harm"
    assert best.context_channels == fast.context_channels


def test_both_stages_are_opened_by_one_name() -> None:
    stages = stages_of(open_backend("best", device="cpu"))
    assert [stage.bundle.name for stage in stages] == ["fast", "best"]
    assert len(stages_of(open_backend("fast", device="cpu"))) == 1


def test_delay_counts_the_stages() -> None:
    options = Options(model="best", device="cpu", stabilize=False)
    assert Processor(options).delay == delay_of(options) == 12
    assert Processor(options, low_delay=True).delay == 2
    assert delay_of(replace(options, model="fast")) == 1
    assert delay_of(replace(options, deblur=False)) == 0


def test_two_threads_give_what_one_does(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    assert main(["demo", str(clip), "--size", "192x128", "--seconds", "0.4", "--blur", "3"]) == 0
    options = Options(model="best", device="cpu", stabilize=False, strength=1.0)
    with VideoReader(clip) as reader:
        frames = list(reader)
    side_by_side = list(Processor(options).run(iter(frames)))
    in_turn = list(through(Processor(options), frames))
    assert len(side_by_side) == len(in_turn) == len(frames)
    for ours, theirs in zip(side_by_side, in_turn, strict=True):
        assert all(map(np.array_equal, ours.planes, theirs.planes))
        assert (ours.pts, ours.time_base) == (theirs.pts, theirs.time_base)
