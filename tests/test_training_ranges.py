"""The ranges of int8 graphs follow what the graphs are for, not the largest value ever seen."""

import numpy as np
import onnx
import openvino
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from openvino import opset13

from vdeblur.bundle import read_bundle
from vdeblur.model import MultiFilter, within
from vdeblur.runtimes import torch_model
from vdeblur_training.patches import Patch
from vdeblur_training.ranges import HARM, Sample, encoder_loss, filter_loss, fit_ranges, limits_of

EDGE = 72


def rounding(highest: float) -> openvino.Model:
    """Gives its input back, rounded to 256 steps between -highest and highest, as the residual."""
    given = opset13.parameter([-1, 1, EDGE, EDGE], np.float32, name="luma")
    bounds = [np.float32(sign * highest) for sign in (-1, 1)] * 2
    luma = opset13.fake_quantize(given, *bounds, levels=256)
    chroma = opset13.multiply(given, np.float32(0))
    return openvino.Model([luma, chroma], [given])


def sample(noise: np.random.Generator) -> Sample:
    """Blocks that say what they ought to, between -20 and 20."""
    residual = noise.uniform(-20, 20, (4, 1, EDGE, EDGE)).astype(np.float32)
    truth = torch.from_numpy(residual)
    return Sample({"luma": residual}, truth, torch.zeros_like(truth))


def highest(graph: openvino.Model) -> float:
    [node] = [n for n in graph.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]
    value: NDArray[np.float32] = node.input_value(2).get_node().get_data()
    return float(value)


@pytest.mark.parametrize("begin", [4000.0, 4.0])
def test_a_range_is_narrowed_or_widened_to_what_serves_the_blocks(begin: float) -> None:
    noise = np.random.default_rng(3)
    samples = [sample(noise), sample(noise)]
    graph = rounding(begin)
    before, after = fit_ranges(graph, filter_loss(samples))
    assert after < before
    assert 14 < highest(graph) < 120


def test_a_range_that_serves_stays() -> None:
    graph = rounding(20.0)
    before, after = fit_ranges(graph, filter_loss([sample(np.random.default_rng(3))]))
    assert highest(graph) == pytest.approx(20, rel=0.45)
    assert after <= before


def test_harm_counts_more_than_help() -> None:
    helped, harmed = (sample(np.random.default_rng(3)) for _ in "ab")
    harmed = Sample(harmed.inputs, -harmed.luma, harmed.chroma)
    losses = [
        filter_loss([each])(openvino.compile_model(rounding(20.0), "CPU"))
        for each in (helped, harmed)
    ]
    assert losses[0] < -4
    assert losses[1] == pytest.approx((1 + HARM) * np.log(4), rel=0.02)  # the error has doubled


def test_an_encoder_is_as_far_off_as_its_clusters_and_contexts(
    small_model: tuple[MultiFilter, Patch],
) -> None:
    model, patch = small_model
    model.centroids.data[0] = model.centroids.data[1] + 0.1
    frame = {"luma": patch.own, "around": patch.around, "motion": patch.motion}
    frames = [{name: each.contiguous().numpy() for name, each in frame.items()}]
    loss = encoder_loss(model, frames)
    with torch.no_grad():
        exact = model.encoder(*frame.values())

    def off_by(context: float, latents: float) -> float:
        class Graph:
            def __call__(self, _inputs: object) -> "Graph":
                return self

            def to_tuple(self) -> tuple[NDArray[np.float32], ...]:
                ours = exact[0] * (1 + context), exact[1] + latents
                return tuple(each.numpy() for each in ours)

        return float(loss(Graph()))

    assert off_by(0, 0) == pytest.approx(0, abs=1e-6)
    assert off_by(1, 0) == pytest.approx(0.1 * np.log(2), rel=1e-4)
    assert off_by(0, 0.5) > 0
    assert off_by(1, 0.5) > off_by(0.1, 0.5)


def test_a_filter_in_floating_point_cuts_off_what_its_int8_graph_does() -> None:
    bundle = read_bundle("fast")
    for number, each in enumerate(torch_model(bundle).config.filters, start=1):
        limits = limits_of(
            openvino.Core().read_model(str(bundle.graph(f"filter_{number}", "int8.xml")))
        )
        assert (each.coarse_limits, each.context_limits) == limits
        nodes = onnx.load(bundle.graph(f"filter_{number}")).graph.node
        known = {n.output[0]: n.attribute[0].t for n in nodes if n.op_type == "Constant"}
        clamps = [
            tuple(float(numpy_helper.to_array(known[name])) for name in node.input[1:])
            for node in nodes
            if node.op_type == "Clip"
        ]
        np.testing.assert_allclose(sorted(clamps), sorted(limits), rtol=1e-6)


def test_what_lies_beyond_the_limits_becomes_the_nearer_one() -> None:
    x = torch.tensor([-5.0, 0.5, 7.0])
    assert within(x, (-1.0, 2.0)).tolist() == [-1.0, 0.5, 2.0]
    assert within(x, None) is x


def test_the_shipped_weights_do_not_overflow_without_vnni() -> None:
    """Two products of a byte and a weight are added up in 16 bits there."""
    bundle = read_bundle("fast")
    for part in bundle.parts:
        graph = openvino.Core().read_model(str(bundle.graph(part, "int8.xml")))
        weights = [
            node.get_data()
            for node in graph.get_ordered_ops()
            if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8
        ]
        assert weights
        assert max(int(np.abs(each.astype(np.int16)).max()) for each in weights) <= 64
