"""The encoder that is made for pictures of one size."""

import cv2
import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from vdeblur.backend import expect, open_backend
from vdeblur.blocks import MOTION
from vdeblur.bundle import MODELS, encoder_inputs, read_bundle
from vdeblur.cells import CHANNELS, by_cells, cells_of, takes_cells
from vdeblur.runtimes import OpenVinoBackend, compile_openvino, openvino_options

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


def test_the_encoder_of_one_size_finds_what_that_of_all_sizes_does() -> None:
    luma, around, motion = seen(256, 320)
    bundle, options = read_bundle("fast"), openvino_options("int8")
    compiled = compile_openvino(openvino.Core(), bundle, "encoder", "int8", options)
    context, latents = compiled(encoder_inputs(luma, around, motion)).to_tuple()
    any_size = np.moveaxis(context[0], -1, 0), latents[0]
    one_size = OpenVinoBackend(bundle).embed(luma, around, motion)
    for found, known in zip(one_size, any_size, strict=True):
        assert found.shape == known.shape
        assert not np.array_equal(found, known), "it is another graph"
        assert np.square(found - known).mean() < 5e-3 * known.var()


def test_each_size_has_its_own() -> None:
    backend = OpenVinoBackend(read_bundle("fast"))
    sizes = [(128, 192), (192, 128), (128, 192)]
    turns = [backend.embed(*seen(*size))[1].copy() for size in sizes]
    assert [turn.shape for turn in turns] == [(2, 3, 16), (3, 2, 16), (2, 3, 16)]
    np.testing.assert_array_equal(turns[0], turns[2])


def test_an_encoder_is_made_ready_for_a_size_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[tuple[int, ...]]()

    def spy(graph: openvino.Model, *size: int) -> openvino.Model | None:
        made.append(size)
        return by_cells(graph, *size)

    monkeypatch.setattr("vdeblur.cells.by_cells", spy)
    inputs = seen(128, 192)
    told = open_backend("fast", device="cpu")
    expect(told, (120, 180))
    told.load()
    assert (128, 192) in made
    made.clear()
    found = [each.copy() for each in told.embed(*inputs)]
    assert made == []
    for one, other in zip(found, OpenVinoBackend(read_bundle("fast")).embed(*inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    told.embed(*seen(192, 128))  # another one than was told
    assert (192, 128) in made


def test_a_graph_that_whitens_in_another_way_stays_as_it_is() -> None:
    assert takes_cells(graph("int8.xml"))
    assert not takes_cells(graph("onnx"))
