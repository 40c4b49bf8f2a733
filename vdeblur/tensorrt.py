"""Run TensorRT's engines on a GPU: those of TensorRT and of TensorRT-RTX, which are used alike.

The tensors lie in torch's memory. Each batch size that occurs is rounded up to a bucket, and each
bucket has its own execution context, buffers and CUDA graph: a call copies its inputs in, replays
the graph and copies the outputs back.
"""

from collections.abc import Mapping
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, encoder_inputs
from .errors import DeviceError, EngineError

if TYPE_CHECKING:
    from torch import Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Shapes = tuple[tuple[int, ...], ...]

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The module of each backend."""
USUAL = 32
"""Blocks at a time where an engine does not limit them."""
CAPTURING = Lock()
"""Held by the thread that captures a CUDA graph."""
SMALLEST = 2
"""Blocks in a bucket: exported graphs take a batch of 1 for a special case."""


def gpu_device() -> str:
    """The GPU's name and compute capability, as engines record it; it must be there."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} ({major}.{minor})"


def bucket(count: int, largest: int) -> int:
    """The batch size that `count` blocks are padded to: a power of two, 2 to `largest`."""
    return min(largest, max(SMALLEST, 1 << (count - 1).bit_length()))


class TensorRtBackend:
    """A bundle's engines on a CUDA device."""

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        precision: str,
        parts: Mapping[str, bytes],
        *,
        max_batch: int | None,
        device: str = "cuda",
    ) -> None:
        self.bundle, self.device = bundle, device
        self.name = f"{backend} {precision} engine"
        self._max_batch = max_batch or USUAL
        try:
            library = import_module(MODULES[backend])
        except ImportError as error:
            raise DeviceError(
                f"this needs {backend}: pip install 'vdeblur[{backend}]' ({error})"
            ) from error
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        self._graphs = {}
        for part, data in parts.items():
            engine = runtime.deserialize_cuda_engine(data)
            if engine is None:
                raise EngineError(f"{backend} cannot load the engine of {part}")
            self._graphs[part] = _Graph(engine, library, device)
        self._runtime = runtime  # it must live as long as its engines

    def load(self) -> None:
        """It was loaded when it was made."""

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`."""
        context, latents = self.embed_tensors(luma, around, motion)
        return context.cpu().numpy(), latents

    def embed_tensors(self, luma: Bytes, around: Bytes, motion: Floats) -> "tuple[Tensor, Floats]":
        """As `DeviceBackend.embed_tensors`."""
        inputs = encoder_inputs(luma, around, motion)
        given = {name: _tensor(each) for name, each in inputs.items()}
        context, latents = self._graphs["encoder"].run(given)
        return context[0], latents[0].cpu().numpy()

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, E, E), chroma (N, 2, E/2, E/2)."""
        inputs = (_tensor(each) for each in (luma, chroma, context))
        residual, colour = self.apply_tensors(cluster, *inputs)
        return residual.cpu().numpy(), colour.cpu().numpy()

    def apply_tensors(
        self, cluster: int, luma: "Tensor", chroma: "Tensor", context: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """As `DeviceBackend.apply_tensors`."""
        import torch

        inputs = {"luma": luma, "chroma": chroma, "context": context}
        ready = []
        for start in range(0, len(luma), self._max_batch):
            rows = slice(start, start + self._max_batch)
            ready.append(self._apply(cluster, {name: each[rows] for name, each in inputs.items()}))
        residuals, colours = zip(*ready, strict=True)
        return torch.cat(residuals)[:, 0], torch.cat(colours)

    def _apply(self, cluster: int, inputs: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        count = len(inputs["luma"])
        rows = bucket(count, self._max_batch)
        residual, colour = self._graphs[f"filter_{cluster}"].run(inputs, rows=rows)
        return residual[:count], colour[:count]


def _tensor(array: NDArray[Any]) -> "Tensor":
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


class _Graph:
    """One engine and what was prepared for the shapes that occurred."""

    def __init__(self, engine: Any, library: Any, device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._types = {
            name: _torch_type(engine.get_tensor_dtype(name), library, torch) for name in names
        }
        self._inputs = [
            name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
        ]
        self._outputs = [name for name in names if name not in self._inputs]
        self._prepared: dict[Shapes, _Prepared] = {}

    def run(self, inputs: "dict[str, Tensor]", *, rows: int | None = None) -> "list[Tensor]":
        """The outputs in the engine's order, in float32, for a batch that is filled up to `rows`.

        The inputs may be of any type and lie anywhere.
        """
        shapes = {
            name: (rows or len(inputs[name]), *inputs[name].shape[1:]) for name in self._inputs
        }
        key = tuple(shapes.values())
        with self._torch.inference_mode():  # what was made in it can be written to only in it
            if key not in self._prepared:
                self._prepared[key] = self._prepare(shapes)
            prepared = self._prepared[key]
            for name in self._inputs:
                prepared.tensors[name][: len(inputs[name])].copy_(inputs[name])
            prepared.launch()
            kind = self._torch.float32
            return [prepared.tensors[name].to(kind, copy=True) for name in self._outputs]

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> "_Prepared":
        """A context of its own: a captured graph is only valid for its context's shapes."""
        context = self._engine.create_execution_context()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                size = "x".join(map(str, shape))
                raise DeviceError(f"the compiled engine does not take {name} of {size}")
        tensors = {}
        for name, kind in self._types.items():
            shape = tuple(context.get_tensor_shape(name))
            tensors[name] = self._torch.zeros(shape, dtype=kind, device=self._device)
            context.set_tensor_address(name, tensors[name].data_ptr())
        return _Prepared(context, tensors, self._torch, self._device)


class _Prepared:
    """An execution context with its buffers, and its CUDA graph after the first launch."""

    def __init__(self, context: Any, tensors: dict[str, Any], torch: Any, device: str) -> None:
        self.tensors = tensors
        self._context, self._torch = context, torch
        self._captures = device == "cuda"
        self._graph: Any = None

    def launch(self) -> None:
        """Compute the outputs from the inputs; on a GPU, behind what its stream does already."""
        if self._graph is not None:
            self._graph.replay()
            return
        self._enqueue()
        if self._captures:
            # The first launch allocates and may compile, which cannot be captured. Other threads
            # may go on and allocate, but not capture as well.
            with CAPTURING:
                self._torch.cuda.synchronize()
                self._graph = self._torch.cuda.CUDAGraph()
                with self._torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                    self._enqueue()

    def _enqueue(self) -> None:
        stream = self._torch.cuda.current_stream().cuda_stream if self._captures else 0
        if not self._context.execute_async_v3(stream):
            raise DeviceError("TensorRT could not run its engine")


def _torch_type(kind: Any, library: Any, torch: Any) -> Any:
    names = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    for theirs, ours in names.items():
        if kind == getattr(library.DataType, theirs):
            return getattr(torch, ours)
    raise EngineError(f"the engine has an input or output of type {kind}, which vdeblur never asks")
