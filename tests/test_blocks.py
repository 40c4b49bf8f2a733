from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from vdeblur.blocks import BLOCK, HALO, TILE, Grid, add_to_blocks, laid_out, merge

RNG = np.random.default_rng(0)


def test_a_grid_covers_a_frame_that_is_no_multiple_of_the_block() -> None:
    grid = Grid(height=100, width=130)
    assert (grid.rows, grid.columns) == (2, 3)


def test_a_frame_has_at_least_one_pixel() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Grid(0, 10)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_gathered_blocks_are_the_windows_of_the_padded_frame(stride: int) -> None:
    grid = Grid(150, 200)
    plane = RNG.integers(0, 255, (2, -(-150 // stride), -(-200 // stride)), dtype=np.uint8)
    padded = grid.pad(plane, stride=stride)
    rows, columns = np.array([0, 2, 1]), np.array([3, 0, 2])
    blocks = grid.gather(padded, rows, columns, stride=stride)
    edge, step = TILE // stride, BLOCK // stride
    assert blocks.shape == (3, 2, edge, edge)
    for block, row, column in zip(blocks, rows, columns, strict=True):
        y, x = row * step, column * step
        assert (block == padded[:, y : y + edge, x : x + edge]).all()


def test_padding_repeats_the_edge() -> None:
    plane = RNG.integers(0, 255, (1, 70, 90), dtype=np.uint8)
    padded = Grid(70, 90).pad(plane)
    assert padded.shape == (1, 128 + HALO, 128 + HALO)
    assert (padded[0, HALO : HALO + 70, HALO : HALO + 90] == plane[0]).all()
    assert (padded[0, :HALO, HALO] == plane[0, 0, 0]).all()
    assert (padded[0, HALO + 70 :, HALO] == plane[0, -1, 0]).all()


def ones(filtered: np.ndarray[Any, np.dtype[np.bool_]], stride: int = 1) -> Any:
    size = TILE // stride
    return np.ones((int(filtered.sum()), size, size), np.float32)


@pytest.mark.parametrize("stride", [1, 2])
def test_where_all_blocks_are_filtered_their_weights_sum_to_one(stride: int) -> None:
    filtered = np.ones((3, 4), bool)
    merged = merge(ones(filtered, stride), filtered, stride=stride)
    assert merged.shape == (12, BLOCK // stride, BLOCK // stride)
    np.testing.assert_allclose(merged, 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (1, 4)])
def test_residuals_cut_from_one_picture_merge_to_that_picture(shape: tuple[int, int]) -> None:
    rows, columns = shape
    picture = RNG.normal(size=(rows * BLOCK, columns * BLOCK)).astype(np.float32)
    padded = np.pad(picture, ((HALO, 0), (HALO, 0)))
    windows = sliding_window_view(padded, (TILE, TILE))[::BLOCK, ::BLOCK]
    filtered = np.ones(shape, bool)
    merged = laid_out(merge(windows.reshape(-1, TILE, TILE).copy(), filtered), filtered)
    np.testing.assert_allclose(merged, picture, atol=1e-5)


def test_blocks_are_added_where_they_belong_and_clear_ones_stay() -> None:
    filtered = RNG.random((4, 5)) < 0.5
    plane = RNG.integers(0, 200, (4 * BLOCK - 9, 5 * BLOCK - 30), dtype=np.uint8)
    residuals = np.arange(1, filtered.sum() + 1, dtype=np.float32)[:, None, None]
    residuals = residuals.repeat(BLOCK, 1).repeat(BLOCK, 2)
    summed = add_to_blocks(plane, residuals, filtered, 8)
    height, width = plane.shape
    wanted = laid_out(residuals, filtered)[:height, :width]
    assert (summed == plane + wanted).all()
    assert (summed == plane)[~filtered.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]].all()


def test_a_residual_fades_towards_a_clear_neighbour_and_not_at_the_frame_edge() -> None:
    filtered = np.array([[True, False]])
    (merged,) = merge(ones(filtered), filtered)
    profile = merged[BLOCK // 2]
    assert (merged[:, : BLOCK // 2] == 1).all()  # frame edges on three sides
    assert (np.diff(profile[BLOCK // 2 : BLOCK]) <= 0).all()
    assert profile[BLOCK - 1] == pytest.approx(1 / (2 * HALO))


def test_a_corner_that_four_blocks_share_has_the_weight_of_one() -> None:
    filtered = np.ones((2, 2), bool)
    filtered[1, 1] = False
    merged = laid_out(merge(ones(filtered), filtered), filtered)
    assert (merged[BLOCK:, BLOCK:] == 0).all()
    assert merged.max() == pytest.approx(1)
    assert merged[BLOCK - 1, BLOCK // 2] == pytest.approx(1)


def test_two_blocks_fade_into_each_other_over_the_halo_of_the_later_one() -> None:
    residuals = np.ones((2, TILE, TILE), np.float32) * np.array([[[1.0]], [[3.0]]], np.float32)
    first, second = merge(residuals, np.array([[True, True]]))
    assert (first[:, :-HALO] == 1).all()
    assert (second == 3).all()
    np.testing.assert_allclose(np.diff(first[:, -HALO:]), 2 / HALO, atol=1e-6)
    assert np.allclose(first[:, -HALO:].mean(), 2)


def test_channels_that_lie_together_stay_together() -> None:
    grid, rows, columns = Grid(150, 200), np.array([0, 2, 1]), np.array([3, 0, 2])
    plane = np.random.default_rng(0).random((24, 32, 5)).astype(np.float32).transpose(2, 0, 1)
    padded = grid.pad(plane, stride=8)
    blocks = grid.gather(padded, rows, columns, stride=8)
    usual = grid.gather(grid.pad(np.ascontiguousarray(plane), stride=8), rows, columns, stride=8)
    assert padded.strides[0] == blocks.strides[1] == plane.itemsize
    np.testing.assert_array_equal(blocks, usual)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("size", [(720, 1280), (70, 90), (5, 300)])
def test_parts_cover_what_is_chosen_with_its_halo(share: float, size: tuple[int, int]) -> None:
    grid = Grid(*size)
    chosen = np.random.default_rng(0).random((grid.rows, grid.columns)) < share
    wanted, covered = np.zeros(size, bool), np.zeros(size, bool)
    for row, column in zip(*np.nonzero(chosen), strict=True):
        top, left = row * BLOCK - HALO, column * BLOCK - HALO
        wanted[max(0, top) : (row + 1) * BLOCK, max(0, left) : (column + 1) * BLOCK] = True
    for part in grid.parts(chosen):
        covered[part] = True
    assert covered[wanted].all()
    assert bool(covered.any()) == bool(chosen.any())
    if share == 0.1 and size[0] > 100:
        assert covered.mean() < 0.5
