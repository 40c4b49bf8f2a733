"""What runs the network: OpenVINO (int8 or fp32), ONNX Runtime, or torch on a GPU."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, read_bundle
from .errors import DeviceError, ModelError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Backend(Protocol):
    """Runs a bundle's encoder and filters; shapes are those of `vdeblur.model`."""

    name: str
    """For people: 'openvino int8'."""
    device: str
    """'cpu' or 'cuda'."""
    bundle: Bundle

    def embed(self, luma: Bytes) -> tuple[Floats, Floats]:
        """(3, H, W), whole blocks -> context (C, H/8, W/8), latents (rows, columns, D)."""
        ...

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals in 8-bit steps: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
        ...


class OpenVinoBackend:
    """OpenVINO on the CPU: int8 where the bundle has it, or fp32."""

    device = "cpu"

    def __init__(self, bundle: Bundle, precision: str = "int8", threads: int = 0) -> None:
        import openvino

        self.bundle = bundle
        self.name = f"openvino {precision}"
        core = openvino.Core()
        # Left to itself it computes fp32 layers in bf16 where the processor can: not the same.
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        kind = "int8.xml" if precision == "int8" else "onnx"
        self._requests = {}
        for part in bundle.parts:
            try:
                compiled = core.compile_model(str(bundle.graph(part, kind)), "CPU", options)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ModelError(
                    f"OpenVINO cannot load {part} of {bundle.folder}: {reason}"
                ) from error
            self._requests[part] = compiled.create_infer_request()

    def embed(self, luma: Bytes) -> tuple[Floats, Floats]:
        """(3, H, W) -> context (C, H/8, W/8), latents (rows, columns, D)."""
        context, latents = self._infer("encoder", {"luma": luma[None]})
        return context[0], latents[0]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
        inputs: dict[str, NDArray[Any]] = {"luma": luma, "chroma": chroma, "context": context}
        residual, colour = self._infer(f"filter_{cluster}", inputs)
        return residual[:, 0], colour

    def _infer(self, part: str, inputs: dict[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """Two outputs that stay valid until the same part runs again."""
        results = self._requests[part].infer(inputs, share_inputs=True, share_outputs=True)
        return results[0], results[1]


class OnnxBackend:
    """ONNX Runtime on the CPU in fp32: runs everywhere."""

    device = "cpu"
    name = "onnxruntime fp32"

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        import onnxruntime

        self.bundle = bundle
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        # Spinning threads would take the cores from the decoder and the encoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {}
        for part in bundle.parts:
            try:
                self._sessions[part] = onnxruntime.InferenceSession(
                    str(bundle.graph(part)), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime's own errors share no public base class
                raise ModelError(
                    f"ONNX Runtime cannot load {part} of {bundle.folder}: {error}"
                ) from error

    def embed(self, luma: Bytes) -> tuple[Floats, Floats]:
        """(3, H, W) -> context (C, H/8, W/8), latents (rows, columns, D)."""
        context, latents = self._sessions["encoder"].run(None, {"luma": luma[None]})
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

    def __init__(self, bundle: Bundle, device: str = "cuda") -> None:
        import torch
        from safetensors.torch import load_file

        from .model import MultiFilter, config_from

        self.bundle, self.device = bundle, device
        self._torch = torch
        self._dtype = torch.float16 if device == "cuda" else torch.float32
        self.name = f"torch {'fp16' if device == 'cuda' else 'fp32'}"
        path = bundle.folder / "weights.safetensors"
        if not path.is_file():
            raise ModelError(f"the model in {bundle.folder} has no weights.safetensors for torch")
        model = MultiFilter(config_from(bundle.card["model"]))
        model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        self._model = model.eval().to(
            device=device,
            dtype=self._dtype,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )

    def embed(self, luma: Bytes) -> tuple[Floats, Floats]:
        """(3, H, W) -> context (C, H/8, W/8), latents (rows, columns, D)."""
        with self._torch.inference_mode():
            context, latents = self._model.encoder(self._load(luma[None]))
        return self._fetch(context)[0], self._fetch(latents)[0]

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, S, S), chroma (N, 2, S/2, S/2)."""
        with self._torch.inference_mode():
            residual, colour = self._model.filters[cluster - 1](
                self._load(luma), self._load(chroma), self._load(context).to(self._dtype)
            )
        return self._fetch(residual)[:, 0], self._fetch(colour)

    def _load(self, array: NDArray[Any]) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _fetch(self, tensor: Any) -> Floats:
        array: Floats = tensor.float().cpu().numpy()
        return array


BACKENDS = ("openvino", "openvino-fp32", "onnxruntime", "torch")
"""What `open_backend` takes beside 'auto'."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend could be used here, and if not, what is missing."""

    name: str
    available: bool
    note: str


def available_backends() -> list[Availability]:
    """What is installed, without importing any of it."""
    packages = {
        "openvino": "openvino",
        "openvino-fp32": "openvino",
        "onnxruntime": "onnxruntime",
        "torch": "torch",
    }
    return [
        Availability(name, True, "installed")
        if importlib.util.find_spec(package)
        else Availability(
            name, False, f"pip install {'vdeblur[cuda]' if name == 'torch' else package}"
        )
        for name, package in packages.items()
    ]


def open_backend(
    model: str | Path = "fast", *, device: str = "auto", backend: str = "auto", threads: int = 0
) -> Backend:
    """Load a bundle by name or folder into the best backend that is here.

    Raises ModelError if the bundle is not usable and DeviceError if what was asked for by name
    is not here.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}: known are auto, cpu, cuda")
    if backend not in ("auto", *BACKENDS):
        raise DeviceError(f"unknown backend {backend!r}: known are auto, {', '.join(BACKENDS)}")
    bundle = read_bundle(model)
    if device == "cuda" or backend == "torch":
        return _open_torch(bundle, device)
    if device == "auto" and backend == "auto" and _has_cuda():
        return TorchBackend(bundle, "cuda")
    installed = {each.name for each in available_backends() if each.available}
    if backend != "auto" and backend not in installed:
        raise DeviceError(f"the backend {backend} is not installed: pip install {backend}")
    if backend == "openvino" or (
        backend == "auto" and "openvino" in installed and bundle.quantised
    ):
        return OpenVinoBackend(bundle, "int8" if bundle.quantised else "fp32", threads)
    if backend == "openvino-fp32":
        return OpenVinoBackend(bundle, "fp32", threads)
    if "onnxruntime" not in installed and "openvino" in installed:
        return OpenVinoBackend(bundle, "fp32", threads)
    if "onnxruntime" not in installed:
        raise DeviceError("no backend is installed: pip install openvino (or onnxruntime)")
    return OnnxBackend(bundle, threads)


def _open_torch(bundle: Bundle, device: str) -> Backend:
    """torch on the GPU if asked for or here, on the CPU only if asked for."""
    if importlib.util.find_spec("torch") is None:
        raise DeviceError("this needs torch: pip install 'vdeblur[cuda]'")
    if device == "cuda" and not _has_cuda():
        raise DeviceError("no CUDA device was found; --device cpu works everywhere")
    return TorchBackend(bundle, "cuda" if device != "cpu" and _has_cuda() else "cpu")


def _has_cuda() -> bool:
    """Look for a driver first: importing torch takes seconds."""
    if not Path("/proc/driver/nvidia/version").exists() and os.name == "posix":
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
