"""What runs the network: OpenVINO, ONNX Runtime, or on a GPU TensorRT or torch."""

import importlib.util
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, encoder_inputs, read_bundle, shipped
from .cpu import this_cpu
from .engine import Engine, cpu_device, find_engine, target_of
from .errors import DeviceError, EngineError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from .model import MultiFilter

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Backend(Protocol):
    """Runs a bundle's encoder and filters; shapes are those of `vdeblur.model`."""

    name: str
    """For people: 'openvino int8', or 'openvino int8 engine' where a compiled one runs."""
    device: str
    """'cpu' or 'cuda'."""
    bundle: Bundle

    def load(self) -> None:
        """Wait until all is there that it runs; ModelError or EngineError if something cannot be.

        Nobody has to call it: who does knows that what comes next takes no longer than usual.
        """
        ...

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """(1, H, W), (2, H/2, W/2), (MOTION, H/8, W/8), whole blocks -> context (C, H/8, W/8),
        latents (rows, columns, D).

        A frame's luma, its neighbours t-1 and t+1 as seen from it, at half size, and the motion
        as from `vdeblur.align.motion_of`; not all models look at all.
        """
        ...

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals in 8-bit steps: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
        ...


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend whose results can stay on its device, for its filters to take them from there."""

    def embed_tensors(self, luma: Bytes, around: Bytes, motion: Floats) -> "tuple[Tensor, Floats]":
        """As `embed`; the context, of any type, stays on the device."""
        ...

    def apply_tensors(
        self, cluster: int, luma: "Tensor", chroma: "Tensor", context: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """As `apply`: pictures of any type, in 8-bit steps -> residuals in float32.

        Who gets them may change them; they stay as they are when the same filter runs again.
        """
        ...


OPENVINO_TYPES = {"int8": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""What OpenVINO computes in where a graph does not say it: the rest of an int8 graph in fp32.

Left to itself it computes fp32 graphs in bf16 where the processor can, which is not the same.
"""


def openvino_options(precision: str, threads: int = 0) -> dict[str, Any]:
    """How OpenVINO compiles for the CPU, and loads what it compiled."""
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision],
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def compile_openvino(
    core: Any, bundle: Bundle, part: str, precision: str, options: dict[str, Any]
) -> Any:
    """One graph of a bundle, compiled for the CPU; ModelError if that fails."""
    kind = "int8.xml" if precision == "int8" else "onnx"
    try:
        graph = core.read_model(str(bundle.graph(part, kind)))
        return core.compile_model(_context_last(graph), "CPU", options)
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
        core = openvino.Core()
        options = openvino_options(precision, threads)

        def load(part: str) -> Any:
            if engine is None:
                compiled = compile_openvino(core, bundle, part, precision, options)
            else:
                compiled = _import_openvino(core, part, engine[part], options)
            return compiled.create_infer_request()

        pool = ThreadPoolExecutor()  # most of a start is spent here
        self._loading = {part: pool.submit(load, part) for part in bundle.parts}
        pool.shutdown(wait=False)
        if engine is not None:  # it loads quickly, and who asked has something in its place
            self.load()

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
        inputs = encoder_inputs(luma, around, motion)
        taken = {name: each for name, each in inputs.items() if name in self._taken}
        context, latents = self._infer("encoder", taken)
        return context[0].transpose(2, 0, 1), latents[0]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
        last = np.ascontiguousarray(context.transpose(0, 2, 3, 1))
        inputs: dict[str, NDArray[Any]] = {"luma": luma, "chroma": chroma, "context": last}
        residual, colour = self._infer(f"filter_{cluster}", inputs)
        return residual[:, 0], colour

    def _infer(self, part: str, inputs: dict[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """Two outputs that stay valid until the same part runs again."""
        results = self._loading[part].result().infer(inputs, share_inputs=True, share_outputs=True)
        return results[0], results[1]


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
        """Blocks with halo -> residuals: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
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
        """Blocks with halo -> residuals: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
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


class TwoStages:
    """A first stage, which embeds and filters, and the filters of a second one behind it."""

    def __init__(self, first: Backend, second: Backend) -> None:
        self.first, self.second = first, second
        self.name, self.device = second.name, second.device
        if first.name != second.name:
            self.name = f"{first.name}, then {second.name}"
        self.bundle = second.bundle
        """The second stage's, whose clusters both follow."""

    def load(self) -> None:
        """Wait for both stages."""
        self.first.load()
        self.second.load()

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`."""
        return self.first.embed(luma, around, motion)

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """As `Backend.apply`: the first stage's filters."""
        return self.first.apply(cluster, luma, chroma, context)


def whole(stages: Sequence[Backend]) -> Backend:
    """What runs one stage, or two of them as one."""
    return stages[0] if len(stages) == 1 else TwoStages(*stages)


def stages_of(backend: Backend) -> tuple[Backend, ...]:
    """What runs each of its stages."""
    return (backend.first, backend.second) if isinstance(backend, TwoStages) else (backend,)


BACKENDS = (
    "openvino",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-fp16",
    "onnxruntime",
    "torch",
    "tensorrt",
    "tensorrt-rtx",
)
"""What `open_backend` takes beside 'auto'."""
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")
"""Those that run nothing but engines that were compiled before."""
GPU_PRECISIONS = ("fp16", "bf16", "fp32")
"""Of their engines, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend could be used here, and if not, what is missing."""

    name: str
    available: bool
    note: str


def available_backends() -> list[Availability]:
    """What is installed, without importing any of it."""
    return [
        Availability(name, True, "installed")
        if importlib.util.find_spec(_module(name))
        else Availability(name, False, f"pip install {_package(name)}")
        for name in BACKENDS
    ]


def _module(backend: str) -> str:
    """The Python module that a backend needs."""
    return (
        backend.partition("-")[0] if backend.startswith("openvino") else backend.replace("-", "_")
    )


def _package(backend: str) -> str:
    """What to install for it."""
    extras = {"torch": "'vdeblur[cuda]'", "tensorrt": "'vdeblur[cuda]'"}
    extras["tensorrt-rtx"] = "'vdeblur[tensorrt-rtx]'"
    return extras.get(backend, _module(backend))


AUTO = "auto"
"""As a model: `best` where a GPU runs it, else `fast`."""


def chosen_model(model: str | Path, *, device: str = "auto", backend: str = "auto") -> str | Path:
    """The name or folder of a bundle: what is given, or what suits the device if it is `AUTO`."""
    if model != AUTO:
        return model
    anywhere = device == "auto" and backend in ("auto", "torch")
    on_gpu = device == "cuda" or backend in GPU_BACKENDS or (anywhere and has_cuda())
    return "best" if on_gpu and "best" in shipped() else "fast"


def open_backend(
    model: str | Path = AUTO,
    *,
    device: str = "auto",
    backend: str = "auto",
    threads: int = 0,
    wait: bool = True,
    warn: Callable[[str], None] = logger.warning,
) -> Backend:
    """Load a bundle by name or folder into the best backend that is here; `TwoStages` of a second
    stage's.

    An engine that `vdeblur compile` made for it is used; a wrong one is told to `warn`, and the
    bundle is used instead. Raises ModelError if the bundle is not usable and DeviceError if what
    was asked for by name is not here. Without `wait` OpenVINO's graphs load in threads of their
    own, and what is wrong with one is raised when it is first used.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}: known are auto, cpu, cuda")
    if backend not in ("auto", *BACKENDS):
        raise DeviceError(f"unknown backend {backend!r}: known are auto, {', '.join(BACKENDS)}")
    bundle = read_bundle(chosen_model(model, device=device, backend=backend))
    on_gpu = device == "cuda" or backend in ("torch", *GPU_BACKENDS)
    if not on_gpu and device == "auto" and backend == "auto" and bundle.has_weights and has_cuda():
        on_gpu, device = True, "cuda"
    stages = [
        _open_gpu(each, device, backend, warn)
        if on_gpu
        else _open_cpu(each, backend, threads, warn)
        for each in bundle.stages
    ]
    opened = whole(stages)
    if wait and not on_gpu:
        opened.load()
    return opened


def _open_cpu(bundle: Bundle, backend: str, threads: int, warn: Callable[[str], None]) -> Backend:
    installed = {each.name for each in available_backends() if each.available}
    if backend != "auto" and backend not in installed:
        raise DeviceError(f"the backend {backend} is not installed: pip install {_module(backend)}")
    if backend == "auto":
        backend = _choose(bundle, installed)
    if backend == "onnxruntime":
        compiled = _engine(bundle, "onnx", "fp32", cpu_device(), warn)
        try:
            return OnnxBackend(bundle, threads, engine=compiled.parts if compiled else None)
        except EngineError as error:
            warn(f"{error}: it is not used; 'vdeblur compile' makes a new one")
            return OnnxBackend(bundle, threads)
    precision = backend.partition("-")[2] or ("int8" if bundle.quantised else "fp32")
    check_openvino(precision)
    compiled = _engine(bundle, "openvino", precision, cpu_device(), warn)
    try:
        return OpenVinoBackend(
            bundle, precision, threads, engine=compiled.parts if compiled else None
        )
    except EngineError as error:
        warn(f"{error}: it is not used; 'vdeblur compile' makes a new one")
        return OpenVinoBackend(bundle, precision, threads)


def _choose(bundle: Bundle, installed: set[str]) -> str:
    """OpenVINO's int8 is much the fastest; ONNX Runtime is the fallback everywhere."""
    if "openvino" in installed and (bundle.quantised or "onnxruntime" not in installed):
        return "openvino"
    if "onnxruntime" not in installed:
        raise DeviceError("no backend is installed: pip install openvino (or onnxruntime)")
    return "onnxruntime"


def check_openvino(precision: str) -> None:
    """Raise DeviceError where the processor does not compute in it: OpenVINO would emulate it."""
    if precision not in ("bf16", "fp16"):
        return
    import openvino

    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() not in known:
        raise DeviceError(f"this processor does not compute in {precision}: try openvino-fp32")


def _engine(
    bundle: Bundle, backend: str, precision: str, device: str, warn: Callable[[str], None]
) -> Engine | None:
    """The engine that was compiled for this; a wrong one is told and not used."""
    try:
        return find_engine(target_of(bundle, backend, precision, device=device))
    except EngineError as error:
        warn(str(error))
        return None


def _open_gpu(bundle: Bundle, device: str, backend: str, warn: Callable[[str], None]) -> Backend:
    """An engine that was compiled for the GPU, or torch; on the CPU torch only if asked for."""
    if importlib.util.find_spec("torch") is None:
        raise DeviceError("this needs torch: pip install 'vdeblur[cuda]'")
    if (device == "cuda" or backend in GPU_BACKENDS) and not has_cuda():
        raise DeviceError("no CUDA device was found; --device cpu works everywhere")
    if device == "cpu" or not has_cuda():
        return TorchBackend(bundle, "cpu")
    for wanted in GPU_BACKENDS if backend == "auto" else (backend,):
        if (found := _open_compiled(bundle, wanted, warn)) is not None:
            return found
    if backend in GPU_BACKENDS:
        raise DeviceError(
            f"there is no engine of {backend} for {bundle.name} here: "
            f"'vdeblur compile --backend {backend}' makes one"
        )
    return TorchBackend(bundle, "cuda")


def _open_compiled(bundle: Bundle, backend: str, warn: Callable[[str], None]) -> Backend | None:
    """TensorRT with an engine of this GPU, if there is one that loads."""
    if backend not in GPU_BACKENDS or importlib.util.find_spec(_module(backend)) is None:
        return None
    from .tensorrt import TensorRtBackend, gpu_device

    for precision in GPU_PRECISIONS:
        compiled = _engine(bundle, backend, precision, gpu_device(), warn)
        if compiled is None:
            continue
        max_batch = compiled.target.max_batch
        try:
            return TensorRtBackend(bundle, backend, precision, compiled.parts, max_batch=max_batch)
        except EngineError as error:
            warn(f"{error}: it is not used; 'vdeblur compile' makes a new one")
    return None


def has_cuda() -> bool:
    """Look for a driver first: importing torch takes seconds."""
    if not Path("/proc/driver/nvidia/version").exists() and os.name == "posix":
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
