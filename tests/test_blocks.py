import numpy as np
import pytest

from vdeblur.blocks import BLOCK, HALO, SEAM, Grid, merge, seam_windows

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
    edge, step = (BLOCK + 2 * HALO) // stride, BLOCK // stride
    assert blocks.shape == (3, 2, edge, edge)
    for block, row, column in zip(blocks, rows, columns, strict=True):
        y, x = row * step, column * step
        assert (block == padded[:, y : y + edge, x : x + edge]).all()


def test_padding_repeats_the_edge() -> None:
    plane = RNG.integers(0, 255, (1, 70, 90), dtype=np.uint8)
    padded = Grid(70, 90).pad(plane)
    assert padded.shape == (1, 128 + 2 * HALO, 128 + 2 * HALO)
    assert (padded[0, HALO : HALO + 70, HALO : HALO + 90] == plane[0]).all()
    assert (padded[0, : HALO, HALO] == plane[0, 0, 0]).all()
    assert (padded[0, HALO + 70 :, HALO] == plane[0, -1, 0]).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_where_all_blocks_are_filtered_their_windows_sum_to_one(stride: int) -> None:
    filtered = np.ones((3, 4), bool)
    rows, columns = np.nonzero(filtered)
    size = (BLOCK + 2 * SEAM) // stride
    ones = np.ones((len(rows), size, size), np.float32)
    merged = merge(ones, rows, columns, filtered, stride=stride)
    assert merged.shape == (3 * BLOCK // stride, 4 * BLOCK // stride)
    np.testing.assert_allclose(merged, 1, atol=1e-6)


def test_residuals_cut_from_one_picture_merge_to_that_picture() -> None:
    filtered = np.ones((2, 3), bool)
    rows, columns = np.nonzero(filtered)
    picture = RNG.normal(size=(2 * BLOCK, 3 * BLOCK)).astype(np.float32)
    padded = np.pad(picture, SEAM)
    size = BLOCK + 2 * SEAM
    cut = np.stack(
        [
            padded[r * BLOCK : r * BLOCK + size, c * BLOCK : c * BLOCK + size]
            for r, c in zip(rows, columns, strict=True)
        ]
    )
    np.testing.assert_allclose(merge(cut, rows, columns, filtered), picture, atol=1e-5)


def test_nothing_leaks_into_a_clear_block() -> None:
    filtered = RNG.random((4, 5)) < 0.5
    rows, columns = np.nonzero(filtered)
    size = BLOCK + 2 * SEAM
    merged = merge(np.ones((len(rows), size, size), np.float32), rows, columns, filtered)
    per_block = merged.reshape(4, BLOCK, 5, BLOCK).swapaxes(1, 2)
    assert (per_block[~filtered] == 0).all()
    assert (per_block[filtered][:, BLOCK // 2, BLOCK // 2] == 1).all()


def test_a_residual_fades_towards_a_clear_neighbour_and_not_at_the_frame_edge() -> None:
    vertical, horizontal = seam_windows(np.array([[True, False]]))
    assert (vertical[0, 0] == 1).all()  # one row of blocks: frame edges above and below
    window = horizontal[0, 0]
    assert (window[: SEAM + BLOCK // 2] == 1).all()  # frame edge on the left
    assert (np.diff(window[-4 * SEAM :]) <= 0).all()  # falls towards the clear block
    assert (window[-SEAM:] == 0).all()  # and is nothing inside it
