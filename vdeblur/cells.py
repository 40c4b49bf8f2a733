"""An encoder's int8 graph made for pictures of one size, which it is given as cells.

The graph in a bundle takes pictures of any size, plane by plane. OpenVINO then spends half of its
time on what is no convolution: it widens bytes, moves channels to where its kernels want them, and
whitens in 32 bits, a plane at a time. Of a video all pictures have one size. For that size it plans
better, and where it is given each cell's pixels side by side, nothing is left to be moved.

The whitening's weights do not bear 8 bits: large ones of both signs cancel where the picture is
flat. Two convolutions of 8 bits, of which the second one adds what the first one rounded away, are
as good as 14 bits, and faster than 32.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK, CONTEXT_STRIDE

if TYPE_CHECKING:
    import openvino

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

Compile = Callable[["openvino.Model"], Any]
"""A graph -> an `openvino.CompiledModel`."""

CELL = CONTEXT_STRIDE
"""Edge of a cell in the frame's pixels; of its neighbours, at half size, it is half of that."""
CHANNELS = CELL * CELL + 2 * (CELL // 2) ** 2
"""Numbers a cell: of the frame, then of each neighbour, row by row."""
LARGEST = 63
"""Of rounded weights: a processor without VNNI adds two products in 16 bits."""


class SizedEncoder:
    """An encoder that is compiled when pictures of another size come: in a tenth of a second."""

    def __init__(self, graph: "openvino.Model", compiled: Compile) -> None:
        """`graph` is as in a bundle, `compiled` compiles what is made of it."""
        self._graph, self._compiled = graph, compiled
        self._size: tuple[int, ...] = ()  # of the last picture
        self._request: Any = None  # to infer for that size

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`; the results stay valid until the next call."""
        self.prepare(luma.shape[1:])
        inputs = {"cells": cells_of(luma, around), "motion": motion[None]}
        results = self._request.infer(inputs, share_inputs=True, share_outputs=True)
        return results[0][0].transpose(2, 0, 1), results[1][0]

    def prepare(self, size: tuple[int, ...]) -> None:
        """Be ready for pictures of `size`, (H, W) of whole blocks."""
        if size == self._size:
            return
        graph = by_cells(self._graph, *size)
        assert graph is not None, "it whitens as ours do"
        self._request, self._size = self._compiled(graph).create_infer_request(), size


def takes_cells(graph: "openvino.Model") -> bool:
    """Whether `by_cells` can make of an encoder's graph what it makes of ours."""
    return by_cells(graph, BLOCK, BLOCK) is not None


def cells_of(luma: Bytes, around: Bytes) -> Bytes:
    """(1, H, W), (2, H/2, W/2) -> (1, H/8, W/8, CHANNELS): a cell's pixels side by side.

    Whole rows of a cell are moved at once, as words of 8 and of 4 bytes.
    """
    rows, columns = luma.shape[1] // CELL, luma.shape[2] // CELL
    cells = np.empty((1, rows, columns, CHANNELS), np.uint8)
    wide = luma[0].view(np.uint64).reshape(rows, CELL, columns)
    cells[0, ..., : CELL * CELL].view(np.uint64)[:] = wide.swapaxes(1, 2)
    narrow = around.view(np.uint32).reshape(2, rows, CELL // 2, columns)
    beside = cells[0, ..., CELL * CELL :].view(np.uint32).reshape(rows, columns, 2, CELL // 2)
    beside[:] = narrow.transpose(1, 3, 0, 2)
    return cells


def by_cells(graph: "openvino.Model", height: int, width: int) -> "openvino.Model | None":
    """An encoder's int8 graph for pictures of H x W; None if it does not whiten as ours do.

    It takes 'cells' (1, H/8, W/8, CHANNELS) uint8 and 'motion' (1, 5, H/8, W/8), and gives
    'context' (1, H/8, W/8, C) and 'latents' (1, H/64, W/64, D).
    """
    import openvino
    from openvino import opset13 as ops

    graph = graph.clone()
    nodes = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
    whitening = _whitening(nodes)
    entered = nodes.get("/enter/conv/Conv/WithoutBiases")
    motion = _of(graph.get_parameters(), "motion")
    joined = nodes.get("context")
    if whitening is None or entered is None or motion is None or joined is None:
        return None
    shape = [1, height // CELL, width // CELL]
    cells = ops.parameter([*shape, CHANNELS], np.uint8)
    cells.output(0).set_names({"cells"})
    pixels = ops.transpose(ops.convert(cells, np.float32), ops.constant([0, 3, 1, 2]))
    rounded = entered.input_value(0).get_node()  # to 8 bits, as before
    rounded.input(0).replace_source_output(_whitened(pixels, *whitening).output(0))
    motion.set_partial_shape(openvino.PartialShape([1, motion.get_partial_shape()[1], *shape[1:]]))
    context = ops.transpose(joined, ops.constant([0, 2, 3, 1]))
    context.output(0).set_names({"context"})
    joined.output(0).set_names({"context.planes"})
    latents = _of(graph.get_results(), "latents")
    return openvino.Model([ops.result(context), latents], [cells, motion], "encoder")


def _of(nodes: Any, name: str) -> Any:
    """The parameter or result of that name."""
    return next((node for node in nodes if name in node.output(0).get_names()), None)


def _whitening(nodes: dict[str, Any]) -> tuple[NDArray[np.float64], Floats] | None:
    """(M, CHANNELS), (1, M, 1, 1): the weights by cells and what is added; None if there is none.

    As `vdeblur.model.Strided` has them, a strided convolution for the frame and one for both
    neighbours.
    """
    parts = []
    for index, shape in enumerate([(1, CELL, CELL), (2, CELL // 2, CELL // 2)]):
        node = nodes.get(f"/enter/whiten.{index}/Conv")
        weight = None if node is None else _constant(node.input_value(1))
        if weight is None or weight.shape[1:] != shape:
            return None
        parts.append(weight.reshape(len(weight), -1).astype(np.float64))
    added = nodes["/enter/Add"].input_values() if "/enter/Add" in nodes else []
    black = next((each for each in map(_constant, added) if each is not None), None)
    return None if black is None else (np.concatenate(parts, axis=1), black.astype(np.float32))


def _constant(output: Any) -> NDArray[Any] | None:
    """What an output is, if that does not depend on a picture; it may be stored narrower."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data()) if node.get_type_name() == "Constant" else None


def _whitened(pixels: "openvino.Node", weights: NDArray[np.float64], black: Floats) -> Any:
    """(1, CHANNELS, h, w) of bytes -> (1, M, h, w), by two convolutions of 8 bits."""
    from openvino import opset13 as ops

    ends = [ops.constant(np.float32(end)) for end in (0, 255)]
    pixels = ops.fake_quantize(pixels, *ends, *ends, 256)  # as they are
    step = np.abs(weights).max(axis=1, keepdims=True) / LARGEST
    step = np.where(step == 0, 1, step)
    whole = np.rint(weights / step)
    finer = step / (2 * LARGEST)
    rest = np.rint((weights - whole * step) / finer)
    coarse, fine = (_convolved(pixels, *each) for each in ((whole, step), (rest, finer)))
    return ops.add(ops.add(coarse, ops.constant(black)), fine)


def _convolved(pixels: "openvino.Node", whole: NDArray[Any], step: NDArray[Any]) -> Any:
    """By weights that are whole numbers of an output's `step`."""
    from openvino import opset13 as ops

    rounded = ops.convert(ops.constant(whole.astype(np.int8)[:, :, None, None]), np.float32)
    kernel = ops.multiply(rounded, ops.constant(step.astype(np.float32)[:, :, None, None]))
    return ops.convolution(pixels, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
