"""Build TensorRT's engines: with TensorRT-RTX from ONNX graphs, with torch-tensorrt from torch's.

TensorRT-RTX builds without a GPU. torch-tensorrt needs one; `dry_run` needs none and tells
whether every operator of a bundle is covered.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vdeblur.backend import has_cuda
from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, MOTION, TILE
from vdeblur.bundle import Bundle
from vdeblur.engine import Profile
from vdeblur.errors import DeviceError, EngineError
from vdeblur.runtimes import torch_model

USUAL = (12, 20)
"""Rows and columns of blocks in the frames that the encoder is tuned for: 1280x720."""
LARGEST = (68, 128)
"""8192x4352."""
PICTURES = ("luma", "around", "chroma")
"""Inputs of 8 bits."""
EDGES = {"luma": BLOCK, "around": BLOCK // 2, "motion": BLOCK // CONTEXT_STRIDE}
"""Of a block, in the encoder's inputs."""


def profile_of(bundle: Bundle, max_batch: int) -> Profile:
    """The shapes for which the graphs are built: frames of whole blocks, up to so many blocks."""
    if max_batch < 2:
        raise ValueError(f"max_batch must be at least 2, got {max_batch}")
    sizes = [[1, 1], USUAL, LARGEST]
    whole = {
        name: [[1, channels, EDGES[name] * rows, EDGES[name] * columns] for rows, columns in sizes]
        for name, channels in (("luma", 1), ("around", 2), ("motion", MOTION))
    }
    inputs = {
        "luma": [bundle.luma_planes, TILE, TILE],
        "chroma": [bundle.chroma_planes, TILE // 2, TILE // 2],
        "context": [bundle.context_channels, TILE // CONTEXT_STRIDE, TILE // CONTEXT_STRIDE],
    }
    blocks = {
        name: [[count, *shape] for count in (1, max(1, max_batch // 2), max_batch)]
        for name, shape in inputs.items()
    }
    return {part: dict(whole) if part == "encoder" else dict(blocks) for part in bundle.parts}


def build_rtx(bundle: Bundle, precision: str, profile: Profile) -> dict[str, bytes]:
    """TensorRT-RTX's engines of the bundle's ONNX graphs; DeviceError if it is not installed."""
    library = _import("tensorrt_rtx", "tensorrt-rtx")
    _import("onnx", "tensorrt-rtx")
    from .typed import typed_graph

    builder = library.Builder(library.Logger(library.Logger.ERROR))
    return {
        part: _build_onnx(library, builder, typed_graph(bundle.graph(part), precision), shapes)
        for part, shapes in profile.items()
    }


def _build_onnx(
    library: Any, builder: Any, graph: bytes, shapes: dict[str, list[list[int]]]
) -> bytes:
    """One graph; EngineError with the library's words if it is not accepted."""
    # The types of a graph are obeyed as they stand: fp16 is a matter of the graph.
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, builder.logger)
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"TensorRT-RTX cannot read the graph: {reasons}")
    profile = builder.create_optimization_profile()
    for name, (least, usual, largest) in shapes.items():
        profile.set_shape(name, least, usual, largest)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineError("TensorRT-RTX cannot build an engine of the graph")
    return bytes(data)


def build_tensorrt(bundle: Bundle, precision: str, profile: Profile) -> dict[str, bytes]:
    """torch-tensorrt's engines; the model's own type decides the precision."""
    if not has_cuda():  # torch-tensorrt cannot even be imported
        raise DeviceError("TensorRT builds its engines on the GPU, and no CUDA device was found")
    torch_tensorrt = _import("torch_tensorrt", "cuda")
    parts = {}
    for part, program in programs(bundle, precision, profile, device="cuda"):
        parts[part] = bytes(
            torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program.exported,
                arg_inputs=_inputs(torch_tensorrt, program, profile[part]),
                **SETTINGS,
            )
        )
    return parts


SETTINGS: dict[str, Any] = {
    "min_block_size": 1,
    "require_full_compilation": True,
    "immutable_weights": True,
}
"""One engine of each graph, nothing of it left to torch."""


@dataclass(frozen=True, slots=True)
class Program:
    """A graph as torch exports it."""

    exported: Any
    examples: tuple[Any, ...]


def programs(
    bundle: Bundle, precision: str, profile: Profile, *, device: str
) -> Iterator[tuple[str, Program]]:
    """Each graph of the bundle in a precision, with the shapes free that the profile leaves so."""
    import torch

    from vdeblur.model import plain

    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model = torch_model(bundle)
    modules = [*model.filters] if bundle.first is not None else [model.encoder, *model.filters]
    for part, module in zip(bundle.parts, modules, strict=True):
        examples = tuple(
            torch.zeros(usual, dtype=torch.uint8 if name in PICTURES else kind, device=device)
            for name, (_, usual, _) in profile[part].items()
        )
        exported = torch.export.export(
            plain(module).eval().to(device=device, dtype=kind),
            examples,
            dynamic_shapes=_free(profile[part]),
        )
        yield part, Program(exported, examples)


def _free(shapes: dict[str, list[list[int]]]) -> tuple[dict[int, Any], ...]:
    """Which axes may vary: height and width of a frame by whole blocks, the number of blocks."""
    from torch.export import Dim

    if "context" in shapes:
        blocks = Dim("blocks", min=1, max=shapes["luma"][-1][0])
        return tuple({0: blocks} for _ in shapes)
    rows, columns = (
        Dim(name, min=1, max=largest)
        for name, largest in zip(("rows", "columns"), LARGEST, strict=True)
    )
    return tuple({2: EDGES[name] * rows, 3: EDGES[name] * columns} for name in shapes)


def _inputs(torch_tensorrt: Any, program: Program, shapes: dict[str, list[list[int]]]) -> list[Any]:
    return [
        torch_tensorrt.Input(
            min_shape=least, opt_shape=usual, max_shape=largest, dtype=example.dtype
        )
        for example, (least, usual, largest) in zip(program.examples, shapes.values(), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What torch-tensorrt would do with a graph."""

    operators: int
    covered: int
    engines: int
    """Into how many pieces the graph would be cut; 1 if all is covered."""
    unsupported: tuple[str, ...]


def dry_run(bundle: Bundle, precision: str, profile: Profile) -> dict[str, Coverage]:
    """Ask torch-tensorrt which operators of each graph it covers; nothing is built."""
    torch_tensorrt = _import("torch_tensorrt", "cuda")
    # It tells nothing but a table on its log; the table's data are what is wanted.
    compiler = _import("torch_tensorrt.dynamo._compiler", "cuda")
    told: list[Any] = []
    shown = compiler.dryrun_stats_display
    compiler.dryrun_stats_display = lambda tracker, _: told.append(tracker)
    try:
        for part, program in programs(bundle, precision, profile, device="cpu"):
            torch_tensorrt.dynamo.compile(
                program.exported,
                arg_inputs=_inputs(torch_tensorrt, program, profile[part]),
                dryrun=True,
                device=torch_tensorrt.Device(gpu_id=0),
                min_block_size=1,
            )
    finally:
        compiler.dryrun_stats_display = shown
    return {
        part: Coverage(
            tracker.total_ops_in_graph,
            tracker.supported_ops_in_graph,
            tracker.tensorrt_graph_count,
            tuple(sorted({*map(str, tracker.unsupported_ops), *tracker.to_run_in_torch})),
        )
        for part, tracker in zip(bundle.parts, told, strict=True)
    }


def _import(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DeviceError(f"this needs {module}: pip install 'vdeblur[{extra}]'") from error
