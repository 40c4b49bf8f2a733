"""Make an engine of a bundle: for OpenVINO and ONNX Runtime on the CPU, for TensorRT on a GPU."""

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from vdeblur.backend import (
    check_openvino,
    has_cuda,
)
from vdeblur.bundle import Bundle
from vdeblur.engine import (
    Engine,
    Target,
    compiled_parts,
    cpu_device,
    read_engine,
    remove_stale,
    save_engine,
    target_of,
)
from vdeblur.errors import DeviceError, EngineError, ModelError
from vdeblur.runtimes import compile_openvino, onnx_options, openvino_options

PRECISIONS = {
    "openvino": ("int8", "fp32", "bf16", "fp16"),
    "onnx": ("fp32",),
    "tensorrt-rtx": ("fp16", "bf16", "fp32"),
    "tensorrt": ("fp16", "bf16", "fp32"),
}
"""What each backend can be compiled to; the first one is the default."""
GPU = ("tensorrt", "tensorrt-rtx")
MAX_BATCH = 32
"""Blocks that are filtered at a time on a GPU where it is not told otherwise."""
NO_GPU = "no GPU"
"""The device of engines that were built where none is; they run nowhere but can be looked at."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """An engine and how it came about."""

    engine: Engine
    seconds: float
    """That it took to make; 0 if it was there already."""
    removed: list[Path]
    """Damaged and outdated ones that it replaces."""


def default_backend() -> str:
    """What an engine is made for where it is not told."""
    installed = importlib.util.find_spec
    if has_cuda():
        for backend, module in (("tensorrt", "torch_tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")):
            if installed(module):
                return backend
    return "openvino" if installed("openvino") else "onnx"


def compile_bundle(
    bundle: Bundle,
    backend: str | None = None,
    precision: str | None = None,
    *,
    max_batch: int | None = None,
    force: bool = False,
) -> Compiled:
    """Make an engine for this machine, or find it in the cache; `force` makes it again.

    Raises DeviceError for what is not to be had here, ModelError for what the bundle has not,
    and ValueError for what the backend does not know.
    """
    backend = backend or default_backend()
    if backend not in PRECISIONS:
        raise ValueError(f"backend must be one of {', '.join(PRECISIONS)}, got {backend!r}")
    precision = precision or _default_precision(bundle, backend)
    if precision not in PRECISIONS[backend]:
        known = ", ".join(PRECISIONS[backend])
        raise ValueError(f"{backend} is compiled to {known}, not to {precision}")
    if max_batch is not None and backend not in GPU:
        raise ValueError(f"{backend} takes any number of blocks: --max-batch is for {GPU[0]}")
    if precision == "int8" and not bundle.quantised:
        raise ModelError(f"the model in {bundle.folder} has no int8 graphs: try fp32")
    target = _target(bundle, backend, precision, max_batch or MAX_BATCH)
    if not force and (found := _complete(target)):
        return Compiled(found, 0.0, [])
    start = perf_counter()
    parts = _build(bundle, target)
    removed = remove_stale(target)
    return Compiled(save_engine(target, parts), perf_counter() - start, removed)


def _default_precision(bundle: Bundle, backend: str) -> str:
    return next(each for each in PRECISIONS[backend] if each != "int8" or bundle.quantised)


def _target(bundle: Bundle, backend: str, precision: str, max_batch: int) -> Target:
    if backend not in GPU:
        return target_of(bundle, backend, precision, device=cpu_device())
    from .gpu import profile_of

    device = NO_GPU
    if has_cuda():
        from vdeblur.tensorrt import gpu_device

        device = gpu_device()
    profile = profile_of(bundle, max_batch)
    return target_of(bundle, backend, precision, device=device, profile=profile)


def _complete(target: Target) -> Engine | None:
    """The engine in its place, if it is there and whole."""
    try:
        return read_engine(target.folder)
    except EngineError:
        return None


def _build(bundle: Bundle, target: Target) -> dict[str, bytes]:
    if target.backend == "openvino":
        return build_openvino(bundle, target.precision)
    if target.backend == "onnx":
        return build_onnx(bundle)
    from . import gpu

    if target.backend == "tensorrt-rtx":
        return gpu.build_rtx(bundle, target.precision, target.profile)
    return gpu.build_tensorrt(bundle, target.precision, target.profile)


def build_openvino(bundle: Bundle, precision: str) -> dict[str, bytes]:
    """What OpenVINO exports of each graph that it compiled for this CPU."""
    if importlib.util.find_spec("openvino") is None:
        raise DeviceError("this needs openvino: pip install openvino")
    import openvino

    check_openvino(precision)
    core, options = openvino.Core(), openvino_options(precision)
    return {
        part: compile_openvino(core, bundle, part, precision, options).export_model().getvalue()
        for part in compiled_parts(bundle, "int8.xml" if precision == "int8" else "onnx")
    }


def build_onnx(bundle: Bundle) -> dict[str, bytes]:
    """The graphs as ONNX Runtime has optimised them for this CPU."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise DeviceError("this needs onnxruntime: pip install onnxruntime")
    import onnxruntime

    parts = {}
    with tempfile.TemporaryDirectory(prefix="vdeblur-") as name:
        for part in bundle.parts:
            options = onnx_options()
            optimised = Path(name) / f"{part}.onnx"
            options.optimized_model_filepath = str(optimised)
            onnxruntime.InferenceSession(
                str(bundle.graph(part)), options, providers=["CPUExecutionProvider"]
            )
            parts[part] = optimised.read_bytes()
    return parts
