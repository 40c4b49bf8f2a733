"""Rewrite an ONNX graph so that it computes in half precision: TensorRT obeys a graph's types."""

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def typed_graph(path: Path, precision: str) -> bytes:
    """The graph in `path` with all between its inputs and its outputs in 'fp16' or 'bf16'.

    'fp32' leaves it as it is. The inputs and outputs keep their types: what enters as fp32 is
    converted first, what leaves is converted last.
    """
    if precision == "fp32":
        return path.read_bytes()
    model = onnx.load(path)
    graph, kind = model.graph, KINDS[precision]
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(_converted(weight, kind))
    for node in graph.node:
        _retype(node, kind, skip=_scales(graph))
    outputs = _converted_outputs(graph)
    inputs = _converted_inputs(graph, kind)
    nodes = [*inputs, *graph.node, *outputs]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # inferred types that are no longer true
    data: bytes = model.SerializeToString()
    return data


def _scales(graph: Any) -> set[str]:
    """What must stay fp32: by how much a Resize enlarges."""
    return {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}


def _retype(node: Any, kind: int, *, skip: set[str]) -> None:
    """Constants, and whatever is converted to fp32: bytes that enter, weights stored in half."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
        if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
            if node.output[0] in skip:
                continue
            attribute.t.CopyFrom(_converted(attribute.t, kind))


def _converted(tensor: Any, kind: int) -> Any:
    values = numpy_helper.to_array(tensor)
    return helper.make_tensor(tensor.name, kind, values.shape, values.ravel().tolist())


def _converted_inputs(graph: Any, kind: int) -> list[Any]:
    """Conversions of the inputs that are fp32; the graph's nodes then read their results."""
    casts = []
    for each in graph.input:
        if each.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        typed = f"{each.name}.typed"
        for node in graph.node:
            node.input[:] = [typed if name == each.name else name for name in node.input]
        casts.append(helper.make_node("Cast", [each.name], [typed], to=kind))
    return casts


def _converted_outputs(graph: Any) -> list[Any]:
    """Conversions to the outputs; the graph's nodes then write what they read."""
    casts = []
    for each in graph.output:
        typed = f"{each.name}.typed"
        for node in graph.node:
            node.output[:] = [typed if name == each.name else name for name in node.output]
            node.input[:] = [typed if name == each.name else name for name in node.input]
        casts.append(helper.make_node("Cast", [typed], [each.name], to=TensorProto.FLOAT))
    return casts
