"""What a first stage changed of a block tells whether the second one is worth it."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.backend import TwoStages
from vdeblur.blocks import BLOCK, TILE
from vdeblur.bundle import Bundle, read_bundle, write_config
from vdeblur.change import (
    ALONE,
    BEFORE_ANOTHER,
    FLAT,
    Cascade,
    Trying,
    change_of,
    relative_change,
    relative_to_detail,
    roots_of,
)
from vdeblur.clusters import Clusters
from vdeblur.errors import ModelError
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.restore import Restorer

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
FIRST = Bundle(
    Path(),
    "first",
    Clusters(np.array([[0.0], [100.0], [200.0]], np.float32), stiffness=5e-4),
    encoder_cost=1.0,
    filter_costs=(1.0, 2.0),
    context_channels=1,
)
SECOND = replace(FIRST, name="second", first=FIRST, min_change=0.05)
STILL = Motion(np.eye(2, 3))
BLURRED, DOUBTFUL, CLEAR = 100, 40, 0
"""First pixels of blocks; the encoder takes the last two for clear, but one not for sure."""


class Adding:
    """A block's latent is its first pixel; filters add `value` to all that is no stripe of 255."""

    def __init__(self, bundle: Bundle, value: int) -> None:
        self.bundle, self.value = bundle, value
        self.name, self.device = "fake", "cpu"
        self.blocks = 0

    def load(self) -> None:
        pass

    def embed(self, luma: Bytes, _around: Bytes, _motion: Floats) -> tuple[Floats, Floats]:
        _, height, width = luma.shape
        context = np.zeros((1, height // 8, width // 8), np.float32)
        return context, luma[0, ::BLOCK, ::BLOCK, None].astype(np.float32)

    def apply(
        self, _cluster: int, luma: Bytes, _chroma: Bytes, _context: Floats
    ) -> tuple[Floats, Floats]:
        self.blocks += len(luma)
        added = np.where(luma[:, 0] == 255, 0, self.value).astype(np.float32)
        return added, np.zeros((len(luma), 2, TILE // 2, TILE // 2), np.float32)


def block(first: int, *, sharp: bool = False) -> Bytes:
    """Flat, or with stripes; the first pixel is `first`."""
    made = np.full((BLOCK, BLOCK), first, np.uint8)
    if sharp:
        made[:, BLOCK // 8 :: BLOCK // 4] = 255
        made[:, BLOCK // 8 + 1 :: BLOCK // 4] = 255
    return made


def frame(*blocks: Bytes, depth: int = 8, pts: int = 0, motion: Motion | None = STILL) -> Frame:
    """Blocks side by side."""
    form = PixelFormat(depth, 1, 1)
    luma = np.concatenate(blocks, axis=1).astype(form.dtype) << (depth - 8)
    chroma = np.full((BLOCK // 2, luma.shape[1] // 2), 128 << (depth - 8), form.dtype)
    return Frame((luma, chroma, chroma), form, pts, Fraction(1, 30), motion=motion)


def test_change_is_measured_against_detail() -> None:
    ramp = np.tile(np.arange(3 * BLOCK, dtype=np.uint8), (BLOCK, 1))  # one step a pixel
    steep = np.minimum(ramp, 80) * np.uint8(3)  # the first block
    for change in (1, 4):
        found = relative_change(ramp, ramp + np.uint8(change))
        assert found.shape == (1, 3)
        assert found[0, 1] == pytest.approx(change / (1 + FLAT), rel=1e-3)
        smaller = relative_change(steep, steep + np.uint8(change))[0, 0]
        assert smaller == pytest.approx(change / 9, rel=0.03)  # its first column has no gradient
    assert relative_change(ramp, ramp).tolist() == [[0, 0, 0]]


def test_a_few_pixels_that_change_much_count_little() -> None:
    flat = np.full((BLOCK, BLOCK), 50, np.uint8)
    one = flat.copy()
    one[8:12, 8:12] += 64  # by a quarter step a pixel in the mean
    everywhere = flat.copy()
    everywhere[::2, ::2] += 1  # the same mean
    few, all_over = (float(relative_change(flat, each)[0, 0]) for each in (one, everywhere))
    assert few < all_over / 32


def test_blocks_that_reach_past_the_frame_are_measured_too() -> None:
    flat = np.full((BLOCK + 6, 2 * BLOCK + 2), 50, np.uint8)
    found = relative_change(flat, flat + np.uint8(1))
    assert found == pytest.approx(np.full((2, 3), 1 / FLAT))


def test_where_much_is_blurred_others_are_tried() -> None:
    suited = np.tile(np.array([1, 2], np.uint8), (4, 5))
    for blurred in range(41):
        given = np.zeros(40, np.uint8)
        given[:blurred] = 3
        labels = Cascade(1.0).tried(given.reshape(4, 10), suited)
        others = suited.ravel() if blurred >= 40 * BEFORE_ANOTHER.share else given
        assert labels.dtype == np.uint8
        assert labels.ravel().tolist() == [3] * blurred + others[blurred:].tolist()


@pytest.mark.parametrize("trying", [BEFORE_ANOTHER, ALONE])
def test_what_was_tried_in_vain_is_tried_again_in_turn(trying: Trying) -> None:
    cascade, every = Cascade(1.0, trying), trying.every
    labels, suited = np.zeros((6, 6), np.uint8), np.ones((6, 6), np.uint8)
    labels[:3] = 2
    change = np.zeros((6, 6), np.float32)
    change[:3], change[3, 1] = 0.5, 1.0
    seen = []
    for _ in range(2 * every + 1):
        tried = cascade.tried(labels, suited)
        passed = cascade.passed(tried, change)
        assert (tried[:3] == 2).all()
        assert tried[3, 1] == 1
        assert np.argwhere(passed).tolist() == [[3, 1]]
        seen.append(tried[3:] != 0)
    assert seen[0].all()
    for turns in (seen[1 : 1 + every], seen[1 + every :]):
        assert (np.sum(turns, axis=0)[1:] == 1).all()
        assert max(map(np.count_nonzero, turns)) <= 1 + 18 // every
    cascade.forget()
    assert cascade.tried(labels, suited).all()


@pytest.mark.parametrize("depth", [8, 10])
def test_only_what_was_changed_passes(depth: int) -> None:
    film = frame(block(100), block(100), block(100), depth=depth)
    luma = film.planes[0].copy()
    luma[:, BLOCK : 2 * BLOCK] += 2 << (depth - 8)
    planes = (luma, *film.planes[1:])
    assert change_of(film, planes) == pytest.approx(np.array([[0, 2 / FLAT, 0]]), rel=1e-5)
    passed = Cascade(1.0).passed(np.array([[1, 2, 0]], np.uint8), change_of(film, planes))
    assert passed.dtype == np.uint8
    assert passed.tolist() == [[0, 2, 0]]


def test_the_second_stage_leaves_alone_what_the_first_hardly_changed() -> None:
    first, second = Adding(FIRST, 10), Adding(SECOND, 30)
    restorer = Restorer(TwoStages(first, second))
    blocks = block(BLURRED), block(DOUBTFUL), block(BLURRED, sharp=True), block(CLEAR)
    film = [frame(*blocks, pts=pts) for pts in range(3)]
    restored = list(through(restorer, film))
    assert first.blocks == 9  # the doubtful one, too
    assert second.blocks == 6
    assert restorer.blocks.tolist() == [[3, 9, 0], [6, 6, 0]]
    for before, after in zip(film, restored, strict=True):
        assert after.labels is not None
        assert after.labels.tolist() == [[1, 1, 0, 0]]
        assert np.array_equal(after.planes[0][:, 2 * BLOCK :], before.planes[0][:, 2 * BLOCK :])
        assert after.planes[0][40, 40] == BLURRED + 30
        assert after.planes[0][40, 100] == DOUBTFUL + 30


def test_a_single_stage_shows_what_is_sure_and_what_it_changed() -> None:
    filters = Adding(replace(FIRST, min_change=0.05), 10)
    restorer = Restorer(filters)
    in_doubt = block(DOUBTFUL), block(DOUBTFUL, sharp=True)
    blocks = block(BLURRED), in_doubt[0], block(BLURRED, sharp=True), in_doubt[1], block(CLEAR)
    film = [frame(*blocks, pts=pts) for pts in range(3)]
    restored = list(through(restorer, film))
    assert filters.blocks == 9 + 1  # the last doubtful one in vain, and not in each frame
    assert restorer.blocks.tolist() == [[5, 10, 0]]
    assert restorer.shown.tolist() == [6, 9, 0]
    for before, after in zip(film, restored, strict=True):
        assert after.labels is not None
        assert after.labels.tolist() == [[1, 1, 1, 0, 0]]
        assert np.array_equal(after.planes[0][:, 3 * BLOCK :], before.planes[0][:, 3 * BLOCK :])
        added = after.planes[0].astype(int) - before.planes[0]
        assert (added[:, : 2 * BLOCK] == 10).all()
        assert set(np.unique(added[:, 2 * BLOCK : 3 * BLOCK - 8])) == {0, 10}


def test_a_single_stage_does_not_try_where_little_is_blurred() -> None:
    for blurred in (1, 2):  # of five
        filters = Adding(replace(FIRST, min_change=0.05), 10)
        restorer = Restorer(filters)
        firsts = [BLURRED] * blurred + [DOUBTFUL] * 3 + [CLEAR] * (2 - blurred)
        (restored,) = through(restorer, [frame(*map(block, firsts))])
        assert restored.labels is not None
        assert restored.labels.tolist() == [[1, 1, 1, 1, 1] if blurred == 2 else [1, 0, 0, 0, 0]]


def test_a_change_is_the_same_before_blocks_are_merged() -> None:
    noise = np.random.default_rng(4)
    before = noise.integers(60, 190, (2 * BLOCK, 3 * BLOCK), np.uint8)
    residual = noise.normal(0, 3, before.shape).astype(np.float32)
    after = np.rint(before + residual).astype(np.uint8)
    tiles = np.stack(
        [
            np.pad(residual, ((8, 0), (8, 0)))[y : y + TILE, x : x + TILE]
            for y in range(0, 2 * BLOCK, BLOCK)
            for x in range(0, 3 * BLOCK, BLOCK)
        ]
    )
    filtered = np.array([[True, False, True], [False, False, True]])
    found = relative_to_detail(before, roots_of(tiles[filtered.ravel()]), filtered)
    expected = np.where(filtered, relative_change(before, after), np.inf)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def tries(films: list[list[Frame]]) -> list[int]:
    """How many blocks the first stage was given of films of the same size, one after the other."""
    first = Adding(FIRST, 10)
    restorer = Restorer(TwoStages(first, Adding(SECOND, 30)))
    counts = []
    for film in films:
        list(through(restorer, film))
        counts.append(first.blocks)
        first.blocks = 0
    return counts


def test_another_video_and_another_scene_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    in_vain, every = block(DOUBTFUL, sharp=True), 3
    monkeypatch.setattr("vdeblur.restore.BEFORE_ANOTHER", replace(BEFORE_ANOTHER, every=every))
    film = [frame(block(BLURRED), in_vain, in_vain, pts=pts) for pts in range(every)]
    alone, again = tries([film, film])
    assert alone == again == 3 + 2 * (every - 1)  # of the two one is tried again each time
    cut = Motion(np.eye(2, 3), cut=True)
    assert tries([film + [replace(each, motion=cut) for each in film[:1]]]) == [alone + 3]


def test_all_are_filtered_at_full_strength_and_by_a_bundle_that_does_not_say() -> None:
    film = [frame(block(100), block(100, sharp=True))]
    for bundle, strength in ((SECOND, 1.0), (replace(SECOND, min_change=None), 0.5)):
        restorer = Restorer(TwoStages(Adding(FIRST, 10), Adding(bundle, 30)), strength=strength)
        list(through(restorer, film))
        assert restorer.blocks.tolist() == [[0, 2, 0]] * 2


def test_what_stands_still_keeps_its_labels() -> None:
    repeated = Motion(np.eye(2, 3), duplicate=True)
    film = [
        frame(block(BLURRED), block(DOUBTFUL), block(BLURRED, sharp=True), pts=pts, motion=repeated)
        for pts in range(6)
    ]
    first, second = Adding(FIRST, 10), Adding(SECOND, 30)
    restored = list(through(Restorer(TwoStages(first, second)), film))
    assert first.blocks == 9  # the first two frames and the last one
    labels = [each.labels for each in restored]
    assert all(each is not None and each.tolist() == [[1, 1, 0]] for each in labels)
    assert all((each.planes[0] == restored[0].planes[0]).all() for each in restored)


def test_a_bundle_says_what_must_change(tmp_path: Path) -> None:
    assert read_bundle("fast").min_change is not None
    best = read_bundle("best")
    assert best.min_change is not None
    for least in (0.25, None):
        for graph in best.folder.glob("*.onnx"):
            (tmp_path / graph.name).write_bytes(graph.read_bytes())
        write_config(
            tmp_path,
            "mine",
            best.clusters,
            encoder_cost=0,
            filter_costs=best.filter_costs,
            context_channels=best.context_channels,
            first="fast",
            min_change=least,
            card={},
        )
        assert read_bundle(tmp_path).min_change == least
    config = tmp_path / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "min_change": "much"}))
    with pytest.raises(ModelError, match=r"damaged config\.json"):
        read_bundle(tmp_path)


def test_of_two_stages_the_second_one_says_it() -> None:
    first = Adding(replace(FIRST, min_change=1e9), 10)
    restorer = Restorer(TwoStages(first, Adding(SECOND, 30)))
    film = [frame(block(BLURRED), pts=pts) for pts in range(3)]
    for after in through(restorer, film):
        assert (after.planes[0] == BLURRED + 30).all()
