from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.align import (
    Aligned,
    Aligner,
    View,
    _better,
    align_next,
    align_previous,
    motion_of,
)
from vdeblur.blocks import BLOCK, HALO, TILE, add
from vdeblur.bundle import Bundle
from vdeblur.clusters import Clusters
from vdeblur.filtering import enlarge
from vdeblur.found import small_chroma, to_bytes
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.laying import Laying
from vdeblur.restore import Restorer

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
CLUSTERS = Clusters(np.array([[0.0], [100.0], [200.0]], np.float32), stiffness=1.0)


@dataclass
class FakeBackend:
    """A block's latent is its mean brightness; filter k adds 10 * k to luma and k to chroma."""

    name: str = "fake"
    device: str = "cpu"
    bundle: Bundle = field(
        default_factory=lambda: Bundle(None, "fake", CLUSTERS, 1.0, (1.0, 2.0), 1)  # type: ignore[arg-type]
    )
    calls: list[tuple[int, int]] = field(default_factory=list)
    around: list[Bytes] = field(default_factory=list)
    """The neighbours that each frame came with."""
    told: list[Floats] = field(default_factory=list)
    """The motion that each frame came with."""
    seen: list[Bytes] = field(default_factory=list)
    """The lumas of the blocks that were filtered."""
    colours: list[Bytes] = field(default_factory=list)
    """Their chromas."""

    def load(self) -> None:
        pass

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        self.around.append(around.copy())
        self.told.append(motion.copy())
        _, height, width = luma.shape
        blocks = luma[0].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        context = np.zeros((1, height // 8, width // 8), np.float32)
        return context, blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        self.calls.append((cluster, len(luma)))
        self.seen.append(luma.copy())
        self.colours.append(chroma.copy())
        return (
            np.full((len(luma), TILE, TILE), 10.0 * cluster, np.float32),
            np.full((len(luma), 2, TILE // 2, TILE // 2), float(cluster), np.float32),
        )


def frame(shades: list[list[int]], depth: int = 8, shift: tuple[int, int] = (1, 1)) -> Frame:
    """One shade a block, in 8-bit steps."""
    form = PixelFormat(depth, *shift)
    blocks = np.array(shades, form.dtype) << (depth - 8)
    luma = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)
    chroma = np.full(form.chroma_shape(*luma.shape), 128 << (depth - 8), form.dtype)
    return Frame((luma, chroma, chroma), form, 0, Fraction(1, 30))


def restore(source: Frame, backend: FakeBackend, **options: float) -> Frame:
    (restored,) = list(through(Restorer(backend, **options), [source]))  # type: ignore[arg-type]
    return restored


def test_only_blurred_clusters_run_and_in_bounded_batches() -> None:
    backend = FakeBackend()
    restored = restore(frame([[0, 100, 100], [200, 100, 0]]), backend, batch=2)
    assert backend.calls == [(1, 2), (1, 1), (2, 1)]
    assert restored.labels is not None
    assert restored.labels.tolist() == [[0, 1, 1], [2, 1, 0]]


def test_each_block_gets_the_residual_of_its_own_filter() -> None:
    restored = restore(frame([[0, 100], [200, 100]]), FakeBackend())
    centres = restored.planes[0][BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
    assert centres.tolist() == [[0, 110], [220, 110]]
    assert restored.planes[1][16::32, 16::32].tolist() == [[128, 129], [130, 129]]


def test_clear_blocks_come_back_bit_for_bit() -> None:
    source = frame([[0, 100, 0], [0, 200, 5]])
    restored = restore(source, FakeBackend())
    clear = np.array([[True, False, True], [True, False, True]])
    for plane, original, edge in zip(restored.planes, source.planes, (64, 32, 32), strict=True):
        mask = clear.repeat(edge, 0).repeat(edge, 1)
        assert (plane[mask] == original[mask]).all()


def test_a_clear_frame_is_passed_on_untouched() -> None:
    source = frame([[0, 3]])
    backend = FakeBackend()
    assert restore(source, backend).planes is source.planes
    assert backend.calls == []


def test_strength_0_filters_nothing_and_1_everything() -> None:
    source = frame([[0, 100, 200]])
    assert restore(source, FakeBackend(), strength=0.0).planes is source.planes
    backend = FakeBackend()
    restore(source, backend, strength=1.0)
    assert sum(count for _, count in backend.calls) == 3


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_deep_frames_keep_their_depth_and_get_a_scaled_residual(depth: int) -> None:
    source = frame([[0, 100]], depth)
    restored = restore(source, FakeBackend())
    assert restored.planes[0].dtype == np.uint16
    assert restored.planes[0][BLOCK // 2, BLOCK // 2 + BLOCK] == 110 << (depth - 8)
    assert (restored.planes[0][:, :BLOCK] == source.planes[0][:, :BLOCK]).all()


@pytest.mark.parametrize("shift", [(1, 1), (1, 0), (0, 0)])
def test_chroma_of_any_size_is_restored_at_its_own_size(shift: tuple[int, int]) -> None:
    source = frame([[0, 200], [0, 200]], shift=shift)
    restored = restore(source, FakeBackend())
    assert restored.planes[1].shape == source.planes[1].shape
    wide = BLOCK >> shift[0]
    assert (restored.planes[1][:, :wide] == 128).all()
    assert restored.planes[1][5, wide + wide // 2] == 130


def test_grey_frames_work() -> None:
    luma = np.full((64, 64), 100, np.uint8)
    source = Frame((luma,), PixelFormat(planes=1), 0, Fraction(1))
    assert restore(source, FakeBackend()).planes[0][32, 32] == 110


@pytest.mark.parametrize(("height", "width"), [(70, 91), (16, 16), (1, 1), (65, 64)])
def test_odd_sizes_keep_their_size(height: int, width: int) -> None:
    form = PixelFormat()
    luma = np.full((height, width), 100, np.uint8)
    chroma = np.full(form.chroma_shape(height, width), 128, np.uint8)
    restored = restore(Frame((luma, chroma, chroma), form, 0, Fraction(1)), FakeBackend())
    assert [plane.shape for plane in restored.planes] == [luma.shape, chroma.shape, chroma.shape]
    assert (restored.planes[0] == 110).all()


def test_frames_come_out_in_order_one_late() -> None:
    restorer = Restorer(FakeBackend())
    sources = [frame([[shade]]) for shade in (0, 100, 200)]
    out = [restorer.push(each) for each in sources]
    assert [len(each) for each in out] == [0, 1, 1]
    last = restorer.flush()
    means = [int(each.planes[0][32, 32]) for each in [*out[1], *out[2], *last]]
    assert means == [0, 110, 220]
    assert restorer.flush() == []
    assert restorer.blocks.tolist() == [[1, 1, 1]]


def test_a_picture_that_stands_still_is_restored_once() -> None:
    repeated = Motion(np.eye(2, 3), duplicate=True)
    sources = [replace(frame([[0, 100]]), motion=repeated, pts=pts) for pts in range(6)]
    backend = FakeBackend()
    restorer = Restorer(backend)
    out = list(through(restorer, sources))
    assert backend.calls == [(1, 1)] * 3  # the first two and the last one: other neighbours
    assert [each.pts for each in out] == list(range(6))
    assert all((each.planes[0] == out[0].planes[0]).all() for each in out)
    assert restorer.blocks.tolist() == [[6, 6, 0]]


def test_what_only_looks_repeated_is_restored_again() -> None:
    repeated = Motion(np.eye(2, 3), duplicate=True)
    sources = [replace(frame([[0, shade]]), motion=repeated) for shade in (100, 101, 100, 101)]
    backend = FakeBackend()
    out = list(through(Restorer(backend), sources))
    assert len(backend.calls) == 4
    assert [int(each.planes[0][32, 96]) for each in out] == [110, 111, 110, 111]


def panned(steps: list[int], repeats: list[bool]) -> list[Frame]:
    """Windows of a texture, each so many pixels further left than the last; (96, 200)."""
    picture, place, frames = np.hstack([texture(0), texture(1)]), 200, []
    for index, (step, repeated) in enumerate(zip(steps, repeats, strict=True)):
        place += step
        luma = np.ascontiguousarray(picture[:96, place : place + 200])
        motion = Motion(np.array([[1.0, 0, -step], [0, 1, 0]]), duplicate=repeated)
        frames.append(Frame((luma,), PixelFormat(planes=1), index, Fraction(1, 30), motion=motion))
    return frames


def test_the_network_is_told_how_the_picture_moves() -> None:
    backend = FakeBackend()
    list(through(Restorer(backend), panned([0, 16, 16, 32], [False] * 4)))
    assert [told.shape for told in backend.told] == [(5, 16, 32)] * 4
    steady, faster = backend.told[1], backend.told[2]
    for row in (3, 15):  # the last rows and columns lie beyond the frame
        np.testing.assert_allclose(steady[:, row, 31], [-1, 0, 0, 0, 1], atol=1e-6)
        np.testing.assert_allclose(faster[:, row, 31], [-1.5, 0, -1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(backend.told[0][:, 3, 3], [-1, 0, 0, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(backend.told[3][:, 3, 3], [-2, 0, 0, 0, 0.5], atol=1e-6)


def test_the_encoder_sees_both_neighbours_laid_over_the_frame_at_half_size() -> None:
    backend = FakeBackend()
    frames = panned([0, 16, 16, 32], [False] * 4)
    list(through(Restorer(backend), frames))
    assert [around.shape for around in backend.around] == [(2, 64, 128)] * 4
    halves = [View(each.planes[0]).half for each in frames]
    before, after = backend.around[1]
    inner = np.s_[4:44, 20:80]
    assert np.abs(before[inner].astype(int) - halves[1][inner]).max() <= 2
    assert np.abs(after[inner].astype(int) - halves[1][inner]).max() <= 2
    # Beyond the neighbours' edges the frame shines through; what lies beyond it is repeated.
    assert (before[:48, 93:100] == halves[1][:, 93:100]).all()
    assert (before[:, 99:] == before[:, 99:100]).all()
    assert (backend.around[0][0][:48, :100] == halves[0]).all()


def test_a_frame_that_is_shown_twice_does_not_seem_to_stop() -> None:
    backend = FakeBackend()
    repeats = [False, False, True, False]
    list(through(Restorer(backend), panned([0, 16, 0, 16], repeats)))
    for told in backend.told[1:3]:
        np.testing.assert_allclose(told[:, 3, 3], [-1, 0, 0, 0, 0.5], atol=1e-6)


def test_a_filter_sees_the_previous_frame_as_it_was_restored() -> None:
    backend = FakeBackend()
    still = Motion(np.eye(2, 3))
    list(through(Restorer(backend), [replace(frame([[s]]), motion=still) for s in (100, 101)]))
    first, second = (luma[0, :, BLOCK // 2, BLOCK // 2].tolist() for luma in backend.seen)
    assert first == [100, 100, 101]  # nothing came before it
    assert second == [101, 110, 101]


@pytest.mark.parametrize(
    ("shade", "motion", "seen"), [(0, Motion(np.eye(2, 3)), 0), (100, None, 101)]
)
def test_a_filter_sees_what_was_filmed_where_nothing_was_restored(
    shade: int, motion: Motion | None, seen: int
) -> None:
    """Neither a clear frame before this one nor one that cannot be laid over it."""
    backend = FakeBackend()
    list(through(Restorer(backend), [frame([[shade]]), replace(frame([[101]]), motion=motion)]))
    assert (backend.seen[-1][0, 1] == seen).all()


def test_the_restored_frame_is_laid_as_its_source_is() -> None:
    backend = FakeBackend()
    pan = panned([0, 16, 16], [False] * 3)
    mild = [replace(each, planes=(each.planes[0] // 4 + 70,)) for each in pan]
    list(through(Restorer(backend, strength=1.0), mild))
    assert backend.calls == [(1, 8)] * 3
    for luma in backend.seen[1:]:
        now, before, _ = luma[1, :, HALO:, HALO:]  # a block that the pan did not uncover
        assert (before == now + 10).all()


@pytest.mark.parametrize("shift", [(1, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("depth", [8, 10])
def test_a_filter_sees_its_neighbours_colours_if_it_shall(
    depth: int, shift: tuple[int, int]
) -> None:
    backend = with_colours()
    still = Motion(np.eye(2, 3))
    shown = [replace(frame([[s]], depth, shift), motion=still) for s in (100, 101, 102)]
    tinted = [
        replace(each, planes=(each.planes[0], each.planes[1] + (k << (depth - 8)), each.planes[2]))
        for k, each in enumerate(shown)
    ]
    list(through(Restorer(backend), tinted))
    middle = HALO // 2 + BLOCK // 4
    seen = [chroma[0, :, middle, middle].tolist() for chroma in backend.colours]
    assert seen == [
        [128, 128, 128, 128, 129, 128],  # nothing came before it
        [129, 128, 129, 129, 130, 128],  # what was before gained 1
        [130, 128, 130, 129, 130, 128],
    ]


def test_colours_are_laid_as_the_luma_is() -> None:
    backend = with_colours()
    pan = panned([0, 16, 16], [False] * 3)
    grey = [(each.planes[0][::2, ::2] // 4 + 70) for each in pan]
    mild = [
        replace(each, planes=(each.planes[0] // 4 + 70, half, half), format=PixelFormat(8, 1, 1))
        for each, half in zip(pan, grey, strict=True)
    ]
    list(through(Restorer(backend, strength=1.0), mild))
    for chroma in backend.colours[1:]:  # a block that the pan did not uncover
        now, _, before, _, *_ = chroma[1, :, HALO // 2 :, HALO // 2 :]
        assert (before == now + 1).all()


def with_colours() -> FakeBackend:
    plain = FakeBackend()
    return FakeBackend(bundle=replace(plain.bundle, colour_frames=3))


def test_the_input_is_never_written_to() -> None:
    source = frame([[100, 200]])
    kept = [plane.copy() for plane in source.planes]
    restore(source, FakeBackend())
    assert all((a == b).all() for a, b in zip(source.planes, kept, strict=True))


def test_a_shifted_neighbour_is_laid_over_the_frame() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (80, 120), dtype=np.uint8)
    moved = np.roll(picture, (3, 5), axis=(0, 1))
    motion = Motion(np.array([[1.0, 0, 5], [0, 1, 3]]))
    before = align_previous(View(picture), View(moved), motion)
    after = align_next(View(moved), View(picture), motion)
    assert (laid(before, picture, moved)[3:, 5:] == moved[3:, 5:]).all()
    assert (laid(after, moved, picture)[:-3, :-5] == picture[:-3, :-5]).all()
    assert before.offset is not None
    assert before.offset.shape == (10, 15, 2)
    assert np.allclose(before.offset, (-5, -3))
    assert after.offset is not None
    assert np.allclose(after.offset, (5, 3))


def test_a_neighbour_is_laid_over_the_frame_as_a_turning_camera_sees_it() -> None:
    turn = np.array([[1.01, 0.02, -9], [-0.02, 0.99, 6], [4e-4, -3e-4, 1]])
    before = texture(0)
    now = np.asarray(cv2.warpPerspective(before, turn, (320, 192)), np.uint8)
    motion = Motion(np.eye(2, 3), homography=turn)
    seen = align_previous(View(before), View(now), motion)
    back = align_next(View(now), View(before), motion)
    inner = np.s_[30:-30, 30:-30]
    assert np.abs(laid(seen, before, now).astype(int) - now)[inner].mean() < 1
    assert np.abs(laid(back, now, before).astype(int) - before)[inner].mean() < 1
    assert np.abs(seen.half.astype(int) - View(now).half)[15:-15, 15:-15].mean() < 1.5
    assert back.offset is not None
    middle = np.array([8 * 30 + 3.5, 8 * 20 + 3.5, 1])
    place = turn @ middle
    np.testing.assert_allclose(back.offset[20, 30], place[:2] / place[2] - middle[:2], atol=0.3)


@pytest.mark.parametrize("size", [(180, 320), (179, 320), (192, 341)])
def test_looking_up_a_part_gives_what_looking_up_all_does(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = size
    before = cv2.resize(texture(0), (width, height))
    now = np.roll(before, (-2, 2), axis=(0, 1))  # by whole pixels of the half picture, too
    before[60:140, 50:130] = texture(1)[:80, :80]
    now[58:138, 56:136] = texture(1)[:80, :80]
    motion = Motion(np.array([[1.0, 0, 2], [0, 1, -2]]))
    parts = Aligner().following(View(now), View(before), motion)
    monkeypatch.setattr("vdeblur.align.WORTH", -1)
    whole = Aligner().following(View(now), View(before), motion)
    assert whole.laying is not None
    assert parts.laying is not None
    assert len(parts.laying.parts) == len(whole.laying.parts) == 1
    assert parts.laying.parts != whole.laying.parts
    assert (laid(parts, now, before) != laid(parts, now, before, flow=False)).any()
    assert np.abs(laid(parts, now, before).astype(int) - laid(whole, now, before)).max() <= 1
    assert np.abs(parts.half.astype(int) - whole.half).max() <= 1
    np.testing.assert_array_equal(parts.offset, whole.offset)


@pytest.mark.parametrize("size", [(180, 320), (179, 321), (192, 341), (1101, 1651)])
def test_laying_a_part_gives_what_laying_all_does(size: tuple[int, int]) -> None:
    """Whatever the ratio to the picture is in which the flow was found."""
    height, width = size
    before = cv2.resize(texture(0), (width, height))
    now = before.copy()
    down, across = height // 3, width // 3
    before[down : 2 * down, across : 2 * across] = cv2.resize(texture(1), (across, down))
    now[down : 2 * down, across + 4 : 2 * across + 4] = cv2.resize(texture(1), (across, down))
    turn = np.array([[1, 0.001, 0.6], [-0.001, 1, -0.4], [1e-5, 0, 1]])
    seen = align_next(View(now), View(before), Motion(np.eye(2, 3), homography=turn))
    whole = laid(seen, now, before)
    assert (whole != laid(seen, now, before, flow=False)).any()
    assert seen.laying is not None
    part = np.s_[down - 11 : 2 * down - 7, across - 3 : 2 * across - 20]
    room = np.zeros_like(now)
    seen.laying.lay(now, before, room, [part])
    assert np.abs(room[part].astype(int) - whole[part]).max() <= 2
    room[part] = 0
    assert not room.any()


@pytest.mark.parametrize("size", [(180, 320), (179, 321)])
def test_half_a_neighbour_is_half_of_what_is_laid(size: tuple[int, int]) -> None:
    before, now = (cv2.resize(texture(0), size[::-1]) for _ in range(2))
    turn = np.array([[1, 0.02, 2.6], [-0.02, 1, -1.4], [1e-5, 0, 1]])
    now = np.asarray(cv2.warpPerspective(now, turn, size[::-1]), np.uint8)
    seen = align_previous(View(before), View(now), Motion(np.eye(2, 3), homography=turn))
    assert seen.half.shape == (90, -(-size[1] // 2))
    inner = np.s_[10:-10, 10:-10]
    far = np.abs(seen.half.astype(int) - View(laid(seen, before, now)).half)[inner]
    assert far.mean() < 1.5


def test_edges_are_looked_up_where_they_are() -> None:
    before = cv2.resize(texture(0), (341, 192))  # the flow's picture is not a whole part of it
    now = before.copy()
    before[60:140, 50:130] = texture(1)[:80, :80]
    now[60:140, 54:134] = texture(1)[:80, :80]
    seen = laid(align_previous(View(before), View(now), Motion(np.eye(2, 3))), before, now)
    assert np.abs(seen[[0, -1]].astype(int) - before[[0, -1]]).max() <= 1
    assert np.abs(seen[:, [0, -1]].astype(int) - before[:, [0, -1]]).max() <= 1


def test_each_cell_knows_how_far_its_place_in_a_neighbour_is() -> None:
    turn = np.array([[0.9, -0.2, 4], [0.2, 0.9, 7.0]])
    noise = np.random.default_rng(0).integers(0, 255, (2, 20, 28), dtype=np.uint8)
    first, second = (View(each) for each in noise)
    offset = align_next(first, second, Motion(turn)).offset  # too small for a flow
    assert offset is not None
    assert offset.shape == (3, 4, 2)
    middle = np.array([8 * 2 + 3.5, 8 * 1 + 3.5, 1])
    assert np.allclose(offset[1, 2], turn @ middle - middle[:2])


def test_the_motion_of_a_cell_comes_from_both_neighbours_or_from_one() -> None:
    before = np.full((2, 3, 2), (-16.0, 0.0), np.float32)
    after = np.full((2, 3, 2), (48.0, 8.0), np.float32)
    both, ahead, back, none = (
        motion_of(first, second, (2, 3))
        for first, second in ((before, after), (None, after), (before, None), (None, None))
    )
    assert both[:, 1, 2].tolist() == [2.0, 0.25, 2.0, 0.5, 1.0]
    assert ahead[:, 1, 2].tolist() == [3.0, 0.5, 0.0, 0.0, 0.5]
    assert back[:, 1, 2].tolist() == [1.0, 0.0, 0.0, 0.0, 0.5]
    assert not none.any()


def test_what_moves_on_its_own_is_laid_over_the_frame_too() -> None:
    ground = texture(0)
    thing = texture(1)[:80, :80]
    before, now = ground.copy(), ground.copy()
    before[60:140, 50:130] = thing
    now[60:140, 53:133] = thing
    still = Motion(np.eye(2, 3))
    inner = np.s_[72:128, 66:118]
    for align in (align_previous, align_next):
        aligned = align(View(before), View(now), still)
        luma = laid(aligned, before, now)
        error = np.abs(luma.astype(int) - now)[inner].mean()
        assert error < 0.3 * np.abs(before.astype(int) - now)[inner].mean()
        assert (luma[1:-1, 240:-1] == now[1:-1, 240:-1]).all()
        smaller = np.abs(aligned.half.astype(int) - View(now).half)[36:64, 33:59]
        assert smaller.mean() < 0.3 * np.abs(before.astype(int) - now)[inner].mean()
        assert aligned.offset is not None
        assert np.abs(np.median(aligned.offset[9:16, 9:14], axis=(0, 1)) - (-3, 0)).max() < 1
        assert not aligned.offset[:, 32:].any()


def test_a_flow_that_helps_a_little_is_believed_beside_where_it_helps_clearly() -> None:
    before = np.full((8, 12), 5.0, np.float32)
    after = before.copy()
    after[1:4, 1:4] = 3.9  # a little everywhere, and nowhere clearly
    after[1:4, 6:9], after[2, 6:9] = 3.9, 1.0  # clearly in a third of it
    after[6, 1:11], after[6, 5] = 3.9, 1.0  # clearly in a tenth of it
    believed = _better(before, after)
    assert (believed[1:4, 6:9] == 1).all()
    assert believed.sum() == 9


def test_a_used_aligner_aligns_as_a_fresh_one_does() -> None:
    before, now = texture(0), np.roll(texture(0), 3, axis=1)
    now[60:140, 50:130] = texture(1)[:80, :80]
    used = Aligner()
    tiny = View(before[:48, :48].copy()), View(now[:48, :48].copy())
    used.following(*tiny, Motion(np.eye(2, 3)))
    one, other = (
        each.following(View(now), View(before), Motion(np.eye(2, 3))) for each in (used, Aligner())
    )
    np.testing.assert_array_equal(one.offset, other.offset)


def test_what_moved_on_its_own_is_followed_back_only_where_it_is_now() -> None:
    pan = np.eye(2, 3)
    pan[0, 2] = 5.0
    motion = Motion(pan)
    ground, thing = texture(0), texture(1)[:80, :80]
    first = View(shown(ground, 0, thing, 20))
    second = View(shown(ground, 5, thing, 28))
    used, fresh = Aligner(), Aligner()
    used.following(second, first, motion)
    followed = asked(used)
    back, expected = (each.previous(first, second, motion) for each in (used, fresh))
    (size,) = followed
    assert 40 * 40 < size < 0.7 * second.half.size
    inner = np.s_[72:128, 40:96]
    for aligned in (back, expected):
        error = np.abs(laid(aligned, first.luma, second.luma).astype(int) - second.luma)[inner]
        assert error.mean() < 3
    # After another frame, or another motion, all may move on its own again.
    for neighbour, way in ((View(first.luma.copy()), motion), (first, Motion(np.eye(2, 3)))):
        used.following(second, first, motion)
        followed.clear()
        used.previous(neighbour, second, way)
        assert followed == [second.half.size]


def test_where_nothing_moved_on_its_own_nothing_is_followed_back() -> None:
    ground = texture(0)
    first, second = View(shown(ground, 0)), View(shown(ground, 5))
    pan = np.eye(2, 3)
    pan[0, 2] = 5.0
    used = Aligner()
    used.following(second, first, Motion(pan))
    followed = asked(used)
    aligned = used.previous(first, second, Motion(pan))
    assert followed == []
    assert (laid(aligned, first.luma, second.luma) == second.luma)[:, 5:-5].all()


def shown(ground: Bytes, x: int, thing: Bytes | None = None, place: int = 0) -> Bytes:
    """(192, 320): a ground that has moved by so many pixels, and a thing before it."""
    picture = np.roll(ground, x, axis=1)
    if thing is not None:
        picture[60:140, place : place + 80] = thing
    return picture


def asked(aligner: Aligner) -> list[int]:
    """Fills with the pixels of each picture in which the aligner looks for a flow."""
    estimator, sizes = aligner._estimator, []

    def calc(here: Bytes, there: Bytes, flow: None) -> NDArray[Any]:
        sizes.append(here.size)
        return np.asarray(estimator.calc(here, there, flow))  # type: ignore[call-overload]

    counting = SimpleNamespace(calc=calc, setFinestScale=estimator.setFinestScale)
    aligner._estimator = counting  # type: ignore[assignment]
    return sizes


def laid(
    aligned: Aligned, neighbour: NDArray[Any], current: NDArray[Any], *, flow: bool = True
) -> Bytes:
    """A neighbour as seen from the frame, with what moves on its own or without."""
    assert aligned.laying is not None
    out = np.full_like(current, 77)
    laying = aligned.laying if flow else Laying(aligned.laying.way)
    laying.lay(neighbour, current, out)
    return out


def texture(seed: int) -> Bytes:
    """Smooth noise, (192, 320)."""
    noise = np.random.default_rng(seed).normal(0, 1, (192, 320)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), 4))
    picture: Bytes = np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    return picture


def test_where_a_neighbour_does_not_reach_the_frame_itself_stands_in() -> None:
    current = np.full((40, 40), 9, np.uint8)
    far = Motion(np.array([[1.0, 0, 100], [0, 1, 0]]))
    seen = align_previous(View(np.zeros_like(current)), View(current), far)
    assert (seen.half == 9).all()
    assert (laid(seen, np.zeros_like(current), current) == 9).all()


@pytest.mark.parametrize("motion", [None, Motion.none(), Motion(np.eye(2, 3), cut=True)])
def test_without_trusted_motion_the_frame_stands_in_for_its_neighbours(
    motion: Motion | None,
) -> None:
    current, other = (View(np.full((8, 8), shade, np.uint8)) for shade in (9, 0))
    for aligned in (align_previous(other, current, motion), align_next(other, current, motion)):
        assert aligned.half is current.half
        assert aligned.offset is None
        assert aligned.laying is None


def test_residuals_round_and_stay_in_range() -> None:
    plane = np.array([[0, 100, 250]], np.uint8)
    residual = np.array([[-7.0, 0.6, 9.0]], np.float32)
    assert add(plane, residual, 8).tolist() == [[0, 101, 255]]
    deep = add(plane.astype(np.uint16) * 4, residual, 10)
    assert deep.tolist() == [[0, 402, 1023]]


def test_deep_planes_are_seen_in_8_bits() -> None:
    plane = np.array([[0, 4, 1023]], np.uint16)
    assert to_bytes(plane, 10).tolist() == [[0, 1, 255]]


def test_chroma_is_seen_at_half_size() -> None:
    assert small_chroma(frame([[9]], shift=(0, 0))).shape == (2, 32, 32)


def test_an_enlarged_residual_stays_out_of_clear_blocks() -> None:
    residual = np.ones((32, 64), np.float32)
    large = enlarge(residual, np.array([[True, False]]), 0, 0)
    assert large.shape == (64, 128)
    assert (large[:, :64] == 1).all()
    assert (large[:, 64:] == 0).all()


def test_the_memory_of_a_frame_is_not_used_again_while_it_waits() -> None:
    sources = [frame([[shade, 100]]) for shade in (100, 150, 180, 200)]
    at_once = Restorer(FakeBackend())
    wanted = [each.planes[0] for each in through(at_once, sources)]
    restorer = Restorer(FakeBackend())
    waiting = [found for each in sources for found in restorer.look(each)] + restorer.end()
    for each, plane in zip(restorer.restored(waiting), wanted, strict=True):
        assert (each.planes[0] == plane).all()


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="strength"):
        Restorer(FakeBackend(), strength=2)
    with pytest.raises(ValueError, match="batch"):
        Restorer(FakeBackend(), batch=0)
