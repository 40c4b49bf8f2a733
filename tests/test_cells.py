"""The encoder that is made for pictures of one size."""

import cv2
import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from vdeblur.blocks import MOTION
from vdeblur.bundle import MODELS, read_bundle
from vdeblur.cells import CHANNELS, by_cells, cells_of
from vdeblur.runtimes import OpenVinoBackend

PICTURE = MODELS.parent / "assets" / "colosseum.jpg"
Seen = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]


def seen(height: int, width: int) -> Seen:
    """A photo with two neighbours beside which it moved by 3 pixels."""
    photo = cv2.imread(str(PICTURE), cv2.IMREAD_GRAYSCALE)
    assert photo is not None
    luma = cv2.GaussianBlur(photo[:height, 3 : width + 3], (9, 1), 0)
    around = [cv2.resize(photo[:height, x : width + x], (width // 2, height // 2)) for x in (2, 4)]
    motion = np.zeros((MOTION, height // 8, width // 8), np.float32)
    motion[0], motion[4] = 0.3, 1
    return (
        np.ascontiguousarray(luma[None], np.uint8),
        np.stack(around).astype(np.uint8),
        motion,
    )


@pytest.fixture
def int8() -> OpenVinoBackend:
    return OpenVinoBackend(read_bundle("fast"))


def graph(kind: str) -> openvino.Model:
    return openvino.Core().read_model(str(read_bundle("fast").graph("encoder", kind)))


def test_a_cell_s_pixels_lie_side_by_side() -> None:
    noise = np.random.default_rng(1)
    luma = noise.integers(0, 256, (1, 128, 192), np.uint8)
    around = noise.integers(0, 256, (2, 64, 96), np.uint8)
    cells = cells_of(luma, around)
    assert cells.shape == (1, 16, 24, CHANNELS)
    for row, column in ((0, 0), (3, 7), (15, 23)):
        own = luma[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        beside = around[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = np.concatenate([own.ravel(), beside.ravel()])
        np.testing.assert_array_equal(cells[0, row, column], expected)


def test_the_encoder_of_one_size_finds_what_that_of_all_sizes_does(int8: OpenVinoBackend) -> None:
    given = seen(256, 320)
    first, second, third = ([each.copy() for each in int8.embed(*given)] for _ in range(3))
    for any_size, one_size, again in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(one_size, again)
        assert one_size.shape == any_size.shape
        assert not np.array_equal(one_size, any_size), "it is another graph"
        assert np.square(one_size - any_size).mean() < 5e-3 * any_size.var()


def test_each_size_has_its_own(int8: OpenVinoBackend) -> None:
    sizes = [(128, 192), (192, 128), (128, 192)]
    turns = [[int8.embed(*seen(*size))[1].copy() for _ in range(2)] for size in sizes]
    for size, turn in zip(sizes, turns, strict=True):
        assert {each.shape for each in turn} == {(size[0] // 64, size[1] // 64, 16)}
    for before, after in zip(turns[0], turns[2], strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_graph_that_whitens_in_another_way_stays_as_it_is() -> None:
    assert by_cells(graph("int8.xml"), 128, 192) is not None
    assert by_cells(graph("onnx"), 128, 192) is None
