"""Find out what this machine has and what would be used."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av

from .backend import Availability, available_backends, open_backend
from .bundle import shipped
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
)
ENCODERS = (
    "libx264",
    "libx265",
    "libsvtav1",
    "libvpx-vp9",
    "ffv1",
    "h264_nvenc",
    "hevc_nvenc",
    "h264_vaapi",
    "h264_qsv",
    "h264_videotoolbox",
)
CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp")
"""What makes 8-bit networks fast."""


@dataclass(frozen=True, slots=True)
class Report:
    """What there is."""

    python: str
    system: str
    packages: dict[str, str | None]
    """Versions; `None` for what is not installed."""
    ffmpeg: dict[str, str]
    """Versions of the libraries in PyAV."""
    cpu: str
    cores: int
    """That this process may use."""
    cpu_flags: tuple[str, ...]
    gpus: tuple[str, ...]
    backends: tuple[Availability, ...]
    encoders: dict[str, bool]
    """Whether PyAV knows the encoder; one of a GPU may still find no driver."""
    models: tuple[str, ...]
    would_use: str | None
    """The backend that "auto" chooses; `None` if there is a problem."""
    problem: str | None


def examine() -> Report:
    """Look at everything; this loads the default model."""
    would_use, problem = _choice()
    cpu, flags = _cpu()
    return Report(
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        ffmpeg={name: ".".join(map(str, number)) for name, number in av.library_versions.items()},
        cpu=cpu,
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
        gpus=_gpus(),
        backends=tuple(available_backends()),
        encoders={name: _has_encoder(name) for name in ENCODERS},
        models=tuple(shipped()),
        would_use=would_use,
        problem=problem,
    )


def in_words(report: Report) -> str:
    """A page for people."""
    packages = [f"{name} {number}" for name, number in report.packages.items() if number]
    missing = [name for name, number in report.packages.items() if not number]
    backends = [f"{each.name} ({each.note})" for each in report.backends if each.available]
    rows = {
        "system": f"{report.system}, Python {report.python}",
        "CPU": f"{report.cpu}, {report.cores} cores, {_listed(report.cpu_flags)}",
        "GPU": _listed(report.gpus),
        "packages": _listed(packages),
        "not here": _listed(missing),
        "FFmpeg": _listed([f"{name} {number}" for name, number in report.ffmpeg.items()]),
        "encoders": _listed([name for name, here in report.encoders.items() if here]),
        "models": _listed(report.models),
        "backends": _listed(backends),
        "will use": report.would_use or f"nothing: {report.problem}",
    }
    return "\n".join(f"{name:10}{value}" for name, value in rows.items())


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"


def _choice() -> tuple[str | None, str | None]:
    """The backend that would be used, or why there is none."""
    try:
        backend = open_backend()
    except VdeblurError as error:
        return None, str(error)
    return f"{backend.name} on {backend.device}", None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> tuple[str, set[str]]:
    """Name and flags, as far as the system tells."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    return name, flags


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
