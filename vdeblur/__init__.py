"""A steady, sharp video from a shaky, blurred one.

`process` turns one file into another; a `Processor` takes frames one by one. Names are loaded
when they are first used: `vdeblur --help` needs none of them.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import Backend, available_backends, open_backend
    from .errors import DeviceError, ModelError, SinkError, SourceError, VdeblurError
    from .frame import Frame, Motion, PixelFormat, Stage
    from .options import Options
    from .pipeline import Progress, Summary, process
    from .processor import Processor
    from .video import VideoInfo, VideoReader, VideoWriter

__version__ = "0.1.0"

# `import openvino` tells Intel of it over the network, and keeps a number for that in ~/intel,
# unless the package that does so is missing. Nobody who repairs a video asked for that.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_HOMES = {
    "backend": ("Backend", "available_backends", "open_backend"),
    "errors": ("DeviceError", "ModelError", "SinkError", "SourceError", "VdeblurError"),
    "frame": ("Frame", "Motion", "PixelFormat", "Stage"),
    "options": ("Options",),
    "pipeline": ("Progress", "Summary", "process"),
    "processor": ("Processor",),
    "video": ("VideoInfo", "VideoReader", "VideoWriter"),
}
"""Which module each public name lives in."""

__all__ = [
    "Backend",
    "DeviceError",
    "Frame",
    "ModelError",
    "Motion",
    "Options",
    "PixelFormat",
    "Processor",
    "Progress",
    "SinkError",
    "SourceError",
    "Stage",
    "Summary",
    "VdeblurError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "__version__",
    "available_backends",
    "open_backend",
    "process",
]


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value  # the next time it is found at once
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
