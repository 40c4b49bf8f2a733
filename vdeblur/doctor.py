"""Find out what this machine has and what would be used."""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import av

from . import hardware
from .backend import Availability, Backend, available_backends, open_backend
from .bundle import shipped
from .cpu import Cpu, this_cpu
from .engine import cpu_device, known_engines
from .errors import VdeblurError

PACKAGES = (
    "vdeblur",
    "av",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "openvino",
    "onnxruntime",
    "torch",
    "torch-tensorrt",
    "tensorrt",
    "tensorrt-rtx",
)
ENCODERS = (
    "libx264",
    "libx265",
    "libsvtav1",
    "libvpx-vp9",
    "ffv1",
    "h264_nvenc",
    "hevc_nvenc",
    "av1_nvenc",
    "h264_vaapi",
    "h264_qsv",
    "h264_videotoolbox",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What there is."""

    python: str
    system: str
    packages: dict[str, str | None]
    """Versions; `None` for what is not installed."""
    ffmpeg: dict[str, str]
    """Versions of the libraries in PyAV."""
    cpu: Cpu
    gpus: tuple[str, ...]
    backends: tuple[Availability, ...]
    decoders: tuple[str, ...]
    """Hardware that decodes: see `--hwaccel`."""
    encoders: dict[str, bool]
    """Whether PyAV knows the encoder; one of a GPU may still find no driver."""
    models: tuple[str, ...]
    engines: dict[str, str]
    """Compiled ones in the cache folder: their names and for what they are."""
    would_use: str | None
    """The backend that "auto" chooses; `None` if there is a problem."""
    because: str | None
    """Why that one."""
    warnings: tuple[str, ...]
    """Of engines that are not used."""
    problem: str | None


def examine() -> Report:
    """Look at everything; this loads the default model."""
    warnings: list[str] = []
    would_use, because, problem = _choice(warnings)
    return Report(
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        ffmpeg={name: ".".join(map(str, number)) for name, number in av.library_versions.items()},
        cpu=this_cpu(),
        gpus=_gpus(),
        backends=tuple(available_backends()),
        decoders=tuple(hardware.decoders()),
        encoders={name: _has_encoder(name) for name in ENCODERS},
        models=tuple(shipped()),
        engines=_engines(),
        would_use=would_use,
        because=because,
        warnings=tuple(warnings),
        problem=problem,
    )


def in_words(report: Report) -> str:
    """A page for people."""
    packages = [f"{name} {number}" for name, number in report.packages.items() if number]
    missing = [name for name, number in report.packages.items() if not number]
    backends = [f"{each.name} ({each.note})" for each in report.backends if each.available]
    rows = {
        "system": f"{report.system}, Python {report.python}",
        "CPU": f"{report.cpu.name}, {report.cpu.cores} cores, {_listed(report.cpu.flags)}",
        "GPU": _listed(report.gpus),
        "packages": _listed(packages),
        "not here": _listed(missing),
        "FFmpeg": _listed([f"{name} {number}" for name, number in report.ffmpeg.items()]),
        "decoders": _listed(("CPU", *report.decoders)),
        "encoders": _listed([name for name, here in report.encoders.items() if here]),
        "models": _listed(report.models),
        "backends": _listed(backends),
        "engines": _listed([f"{name}: {state}" for name, state in report.engines.items()]),
        "will use": f"{report.would_use}: {report.because}"
        if report.would_use
        else f"nothing: {report.problem}",
    }
    lines = [*rows.items(), *(("warning", each) for each in report.warnings)]
    return "\n".join(f"{name:10}{value}" for name, value in lines)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"


def _choice(warnings: list[str]) -> tuple[str | None, str | None, str | None]:
    """The backend that would be used and why, or why there is none."""
    try:
        backend = open_backend(warn=warnings.append)
    except VdeblurError as error:
        return None, None, str(error)
    return f"{backend.name} on {backend.device}", _reason(backend), None


def _reason(backend: Backend) -> str:
    """Why "auto" has chosen it."""
    advice = "" if backend.name.endswith("engine") else "; 'vdeblur compile' makes it start faster"
    if backend.device == "cuda":
        return f"there is a GPU{advice}"
    if backend.name.startswith("openvino int8"):
        fast = "with" if this_cpu().eight_bit else "though without"
        return f"the fastest on a CPU, {fast} instructions for 8 bit{advice}"
    return f"OpenVINO or the model's int8 graphs are missing{advice}"


def _engines() -> dict[str, str]:
    """Each engine in the cache folder, and for what it is."""
    return {
        folder.name: "damaged" if target is None else _owner(target.device)
        for folder, target in known_engines()
    }


def _owner(device: str) -> str:
    return "for this processor" if device == cpu_device() else f"for {device}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> tuple[str, ...]:
    """NVIDIA's, by its own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # a tool without a driver
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def _has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:  # PyAV's error for an unknown codec is a ValueError, too
        return False
    return True
