"""The network in OpenVINO, in ONNX Runtime and in torch: each a `Backend`."""

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, encoder_inputs
from .cells import SizedEncoder, takes_cells
from .cpu import this_cpu
from .errors import EngineError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from .model import MultiFilter

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

OPENVINO_TYPES = {"int8": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""What OpenVINO computes in where a graph does not say it: the rest of an int8 graph in fp32.

Left to itself it computes fp32 graphs in bf16 where the processor can, which is not the same.
"""


EVEN = 8
"""OpenVINO gets blocks in multiples of so many: each new number costs it 0.4 ms, as three do."""


def openvino_options(precision: str, threads: int = 0) -> dict[str, Any]:
    """How OpenVINO compiles for the CPU, and loads what it compiled."""
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # A thread that is bound to a core waits there for the decoder and the encoder.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision],
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def compile_openvino(
    core: Any, bundle: Bundle, part: str, precision: str, options: dict[str, Any]
) -> Any:
    """One graph of a bundle, compiled for the CPU; ModelError if that fails."""
    graph = _read_openvino(core, bundle, part, precision)
    if part != "encoder" or _gives_context_last(precision):
        graph = _context_last(graph)
    with _told(bundle, part):
        return core.compile_model(graph, "CPU", options)


def _gives_context_last(precision: str) -> bool:
    """Whether the encoder's context comes with channels last.

    Where a processor computes in fp16 itself, OpenVINO 2026.4 then never writes the last channels.
    """
    return precision != "fp16"


def _read_openvino(core: Any, bundle: Bundle, part: str, precision: str) -> Any:
    kind = "int8.xml" if precision == "int8" else "onnx"
    with _told(bundle, part):
        return core.read_model(str(bundle.graph(part, kind)))


@contextmanager
def _told(bundle: Bundle, part: str) -> Iterator[None]:
    """Turn what OpenVINO says of a graph that it cannot use into a ModelError of one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"OpenVINO cannot load {part} of {bundle.folder}: {reason}") from error


class OpenVinoBackend:
    """OpenVINO on the CPU: int8 where the bundle has it, or floating point."""

    device = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        precision: str = "int8",
        threads: int = 0,
        *,
        engine: Mapping[str, bytes] | None = None,
    ) -> None:
        import openvino

        self.bundle = bundle
        self.name = f"openvino {precision}{' engine' if engine else ''}"
        self._axes = (2, 0, 1) if _gives_context_last(precision) else (0, 1, 2)  # of a context
        core = openvino.Core()
        options = openvino_options(precision, threads)

        def compiled(graph: Any) -> Any:
            return core.compile_model(graph, "CPU", options)

        def load(part: str) -> Any:
            if engine is not None and part in engine:
                return _import_openvino(core, part, engine[part], options).create_infer_request()
            if part == "encoder" and precision == "int8":
                graph = _read_openvino(core, bundle, part, precision)
                if takes_cells(graph):
                    return SizedEncoder(graph, compiled)
            return compile_openvino(core, bundle, part, precision, options).create_infer_request()

        pool = ThreadPoolExecutor()  # most of a start is spent here
        self._loading = {part: pool.submit(load, part) for part in bundle.parts}
        pool.shutdown(wait=False)
        if engine is not None:  # it loads quickly, and who asked has something in its place
            self.load()

    def expect(self, size: tuple[int, int]) -> None:
        """Make an encoder that is for one size ready for `size`, (H, W) of whole blocks.

        That goes on in a thread of its own.
        """
        loading = self._loading["encoder"]

        def prepared() -> Any:
            encoder = loading.result()
            if isinstance(encoder, SizedEncoder):
                encoder.prepare(size)
            return encoder

        pool = ThreadPoolExecutor(1)
        self._loading["encoder"] = pool.submit(prepared)
        pool.shutdown(wait=False)

    def load(self) -> None:
        """Wait until all graphs are loaded; ModelError or EngineError if one cannot be."""
        for loading in self._loading.values():
            loading.result()

    @cached_property
    def _taken(self) -> frozenset[str]:
        """The names of the encoder's inputs, of which one may have several."""
        encoder = self._loading["encoder"].result().get_compiled_model()
        return frozenset(name for each in encoder.inputs for name in each.names)

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`."""
        encoder = self._loading["encoder"].result()
        if isinstance(encoder, SizedEncoder):
            return encoder.embed(luma, around, motion)
        inputs = encoder_inputs(luma, around, motion)
        taken = {name: each for name, each in inputs.items() if name in self._taken}
        context, latents = self._infer("encoder", taken)
        return context[0].transpose(self._axes), latents[0]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, E, E), chroma (N, 2, E/2, E/2)."""
        last = np.ascontiguousarray(context.transpose(0, 2, 3, 1))
        inputs: dict[str, NDArray[Any]] = {"luma": luma, "chroma": chroma, "context": last}
        if missing := -len(luma) % EVEN:
            inputs = {name: _filled(each, missing) for name, each in inputs.items()}
        residual, colour = self._infer(f"filter_{cluster}", inputs)
        return residual[: len(luma), 0], colour[: len(luma)]

    def _infer(self, part: str, inputs: dict[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """Two outputs that stay valid until the same part runs again."""
        results = self._loading[part].result().infer(inputs, share_inputs=True, share_outputs=True)
        return results[0], results[1]


def _filled(blocks: NDArray[Any], missing: int) -> NDArray[Any]:
    """(N, ...) -> (N + missing, ...): the last one again and again."""
    return np.concatenate([blocks, np.broadcast_to(blocks[-1], (missing, *blocks.shape[1:]))])


def _import_openvino(core: Any, part: str, data: bytes, options: dict[str, Any]) -> Any:
    try:
        return core.import_model(io.BytesIO(data), "CPU", options)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot load the engine of {part}") from error


def _context_last(graph: Any) -> Any:
    """Let a graph give or take its context as it lies in OpenVINO's own memory: channels last.

    To lay them first costs an eighth of the encoder's time, and more where blocks are gathered.
    """
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    process = PrePostProcessor(graph)
    if any("context" in each.names for each in graph.outputs):
        process.output("context").model().set_layout(Layout("NCHW"))
        process.output("context").tensor().set_layout(Layout("NHWC"))
    elif any("context" in each.names for each in graph.inputs):
        process.input("context").model().set_layout(Layout("NCHW"))
        process.input("context").tensor().set_layout(Layout("NHWC"))
    return process.build()


def onnx_options(threads: int = 0) -> Any:
    """How ONNX Runtime makes its sessions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or this_cpu().cores
    # Spinning threads would take the cores from the decoder and the encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OnnxBackend:
    """ONNX Runtime on the CPU in fp32: runs everywhere."""

    device = "cpu"

    def __init__(
        self, bundle: Bundle, threads: int = 0, *, engine: Mapping[str, bytes] | None = None
    ) -> None:
        import onnxruntime

        self.bundle = bundle
        self.name = f"onnxruntime fp32{' engine' if engine else ''}"
        options = onnx_options(threads)
        if engine is not None:  # it holds graphs that were optimised when they were compiled
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._sessions = {}
        for part in bundle.parts:
            try:
                self._sessions[part] = onnxruntime.InferenceSession(
                    str(bundle.graph(part)) if engine is None else engine[part],
                    options,
                    providers=["CPUExecutionProvider"],
                )
            except Exception as error:  # onnxruntime's own errors share no public base class
                if engine is not None:
                    raise EngineError(f"ONNX Runtime cannot load the engine of {part}") from error
                raise ModelError(
                    f"ONNX Runtime cannot load {part} of {bundle.folder}: {error}"
                ) from error

    def load(self) -> None:
        """It was loaded when it was made."""

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`."""
        encoder = self._sessions["encoder"]
        inputs = encoder_inputs(luma, around, motion)
        taken = {each.name: inputs[each.name] for each in encoder.get_inputs()}
        context, latents = encoder.run(None, taken)
        return context[0], latents[0]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, E, E), chroma (N, 2, E/2, E/2)."""
        inputs = {"luma": luma, "chroma": chroma, "context": context}
        residual, colour = self._sessions[f"filter_{cluster}"].run(None, inputs)
        return residual[:, 0], colour


class TorchBackend:
    """torch on a GPU (or, for comparison, on the CPU) from the bundle's own weights."""

    def __init__(
        self, bundle: Bundle, device: str = "cuda", *, model: "MultiFilter | None" = None
    ) -> None:
        """`model` is what the bundle holds, where somebody has loaded it already."""
        import torch

        self.bundle, self.device = bundle, device
        self._torch = torch
        self._dtype = torch.float16 if device == "cuda" else torch.float32
        self.name = f"torch {'fp16' if device == 'cuda' else 'fp32'}"
        self._model = (
            (torch_model(bundle) if model is None else model)
            .eval()
            .to(
                device=device,
                dtype=self._dtype,
                memory_format=torch.channels_last,  # type: ignore[call-overload]
            )
        )

    def load(self) -> None:
        """It was loaded when it was made."""

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`."""
        context, latents = self.embed_tensors(luma, around, motion)
        return self._fetch(context), latents

    def embed_tensors(self, luma: Bytes, around: Bytes, motion: Floats) -> "tuple[Tensor, Floats]":
        """As `DeviceBackend.embed_tensors`."""
        with self._torch.inference_mode():
            context, latents = self._model.encoder(
                self._load(luma[None]), self._load(around[None]), self._load(motion[None])
            )
        return context[0], self._fetch(latents)[0]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, E, E), chroma (N, 2, E/2, E/2)."""
        inputs = self._load(luma), self._load(chroma), self._load(context)
        residual, colour = self.apply_tensors(cluster, *inputs)
        return self._fetch(residual), self._fetch(colour)

    def apply_tensors(
        self, cluster: int, luma: "Tensor", chroma: "Tensor", context: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """As `DeviceBackend.apply_tensors`."""
        with self._torch.inference_mode():
            residual, colour = self._model.filters[cluster - 1](
                luma, chroma, context.to(self._dtype)
            )
            return residual[:, 0].float(), colour.float()

    def _load(self, array: NDArray[Any]) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _fetch(self, tensor: Any) -> Floats:
        array: Floats = tensor.float().cpu().numpy()
        return array


def torch_model(bundle: Bundle) -> "MultiFilter":
    """The networks with a bundle's weights; ModelError if it has none."""
    from .model import MultiFilter, config_from

    model = MultiFilter(config_from(bundle.card["model"]))
    model.load_state_dict(weights_of(bundle))
    return model


def weights_of(bundle: Bundle) -> dict[str, Any]:
    """torch's, in fp32, a second stage's with its first one's encoder; ModelError without any."""
    from safetensors.torch import load_file

    path = bundle.folder / "weights.safetensors"
    if not path.is_file():
        raise ModelError(f"the model in {bundle.folder} has no weights.safetensors for torch")
    weights = {name: value.float() for name, value in load_file(path).items()}
    if bundle.first is not None:
        weights |= whole_frame(weights_of(bundle.first))
    return weights


def whole_frame(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a model's encoder and of its clusters, which a second stage shares."""
    return {name: each for name, each in weights.items() if not name.startswith("filters.")}
