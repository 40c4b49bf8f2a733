"""What runs the network, and which of those that are here is opened."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, read_bundle, shipped
from .engine import Engine, cpu_device, find_engine, target_of
from .errors import DeviceError, EngineError
from .runtimes import OnnxBackend, OpenVinoBackend, TorchBackend
from .strips import seen_at_once

if TYPE_CHECKING:
    from torch import Tensor


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
        """Blocks with halo -> residuals in 8-bit steps: luma (N, E, E), chroma (N, 2, E/2, E/2)."""
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


def expect(backend: Backend, size: tuple[int, int]) -> None:
    """Let a backend make itself ready for frames of `size`, (H, W), where that saves time.

    Without it the first frame takes a tenth of a second longer.
    """
    first = stages_of(backend)[0]
    if isinstance(first, OpenVinoBackend):
        first.expect(seen_at_once(*size))


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
        parts = compiled.parts if compiled else None
        return OpenVinoBackend(bundle, precision, threads, engine=parts)
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
