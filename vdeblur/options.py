"""What can be asked for, with its defaults; nothing heavy is imported here, for `--help`'s sake."""

from dataclasses import dataclass
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Literal, get_args

Zoom = Literal["auto", "adaptive", "static", "none"]
Border = Literal["replicate", "black", "reflect", "fill"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
Scene = Literal[
    "hand", "walk", "parallax", "crossing", "rolling-shutter", "wide",
    "vfr", "duplicates", "noise", "blur", "cut", "black",
]  # fmt: skip
"""What `vdeblur demo --scene` films."""
MotionModel = Literal["similarity", "homography", "mesh"]
"""How the picture is taken to move: shifted, turned and zoomed, as a turning camera sees it, or
each part on its own."""
Device = Literal["auto", "cpu", "cuda"]
BackendName = Literal[
    "auto",
    "openvino", "openvino-fp32", "openvino-bf16", "openvino-fp16",
    "onnxruntime", "torch", "tensorrt", "tensorrt-rtx",
]  # fmt: skip

LOOKAHEAD = 15
"""Frames that the stabiliser sees ahead where it is not told."""
ROLLING_DELAY = 2
"""Frames that the rolling-shutter stage sees ahead."""
MESH_DELAY = 15
"""Frames that are seen ahead to steady the parts of the picture on their own."""

LONGEST_SMOOTHING = 3600
"""s: no video shakes so slowly, and the path's equations have no solution long after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is done to the pictures of a video."""

    deblur: bool = True
    """Filter the blurred blocks."""
    stabilize: bool = True
    """Smooth the camera's path."""
    model: str | Path = "auto"
    """Name of a shipped model bundle, or the folder of another one. 'auto': `best` on a GPU, else
    `fast`."""
    strength: float = 0.5
    """How readily blocks are filtered: 0 none, 1 all."""
    lookahead: int | None = None
    """Frames that the stabiliser sees ahead; the output is as much later. `None`: 15, and for a
    file some seconds."""
    smoothing: float = 0.8
    """Seconds over which the camera's path is smoothed."""
    zoom: Zoom | float = "auto"
    """How the moving edge is hidden; "auto" is "none" with the border "fill", else "adaptive"."""
    max_crop: float | None = None
    """The part of the sides that a frame may be moved out of the picture; `None`: 0.12, and 0.3 at
    a fixed zoom, where an edge may show."""
    camera_lock: bool = False
    """Stay where each scene began, as on a tripod."""
    border: Border = "replicate"
    """What completes an edge that is not hidden; "fill" takes it from neighbouring frames."""
    interpolation: Interpolation = "bicubic"
    """How the moved picture is resampled."""
    motion: MotionModel = "similarity"
    """What of the camera's motion is steadied: "homography" also how a turning camera's picture
    moves at its edges, "mesh" each part of the picture, near or far, on its own."""
    rolling_shutter: float | Literal["auto"] = 0.0
    """Part of the frame interval in which the sensor's rows are read; 0 for all at once."""
    field_of_view: float | None = None
    """Degrees that a wide lens sees from left to right: the camera's turns are undone as turns,
    not as shifts. `None`: as shifts."""
    motion_in: Path | None = None
    """A camera's path, as `--motion-out` wrote it, that is obeyed instead of looked for."""
    device: Device = "auto"
    """Where the networks run."""
    backend: BackendName = "auto"
    """What runs the networks."""
    show_clusters: bool = False
    """Paint each block's cluster over the picture."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be 0..1, got {self.strength}")
        if self.lookahead is not None and self.lookahead < 0:
            raise ValueError(f"lookahead must be at least 0, got {self.lookahead}")
        if not 0 < self.smoothing <= LONGEST_SMOOTHING:
            raise ValueError(
                f"smoothing must be above 0 and at most {LONGEST_SMOOTHING} s, got {self.smoothing}"
            )
        if self.rolling_shutter != "auto" and not 0 <= self.rolling_shutter <= 1:
            raise ValueError(f"rolling_shutter must be 0..1 or 'auto', got {self.rolling_shutter}")
        if self.field_of_view is not None and not 0 < self.field_of_view < 175:
            raise ValueError(
                f"field_of_view must be above 0 and below 175, got {self.field_of_view}"
            )
        if self.motion == "mesh" and self.rolling_shutter:
            raise ValueError("a mesh steadies what a rolling shutter bends: use one of the two")
        if self.motion != "similarity" and self.field_of_view is not None:
            raise ValueError("field_of_view is for the motion similarity: use one of the two")
        if self.max_crop is not None and not 0 < self.max_crop < 0.5:
            raise ValueError(f"max_crop must be above 0 and below 0.5, got {self.max_crop}")
        if not isinstance(self.zoom, str) and not 1 <= self.zoom <= 4:
            raise ValueError(f"zoom must be 1 to 4, got {self.zoom}")
        if isinstance(self.zoom, str) and self.zoom not in get_args(Zoom):
            names = ", ".join(get_args(Zoom))
            raise ValueError(f"zoom must be one of {names} or a number, got {self.zoom!r}")
        for name, known in (
            ("border", get_args(Border)),
            ("interpolation", get_args(Interpolation)),
            ("motion", get_args(MotionModel)),
            ("device", get_args(Device)),
            ("backend", get_args(BackendName)),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    @property
    def delay(self) -> int:
        """Frames that are held back before the first one comes out, if a model has one stage.

        `Processor.delay` and `processor.delay_of` know how many its model has.
        """
        rolling = ROLLING_DELAY if self.rolling_shutter else 0
        local = MESH_DELAY if self.motion != "similarity" else 0
        return int(self.deblur) + (self.frames_ahead + rolling + local) * int(self.stabilize)

    @property
    def frames_ahead(self) -> int:
        """Frames that the stabiliser holds back."""
        return LOOKAHEAD if self.lookahead is None else self.lookahead


DEFAULTS = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What the source does not say of itself (raw video, or what a camera shall send), and which
    part of it is wanted."""

    format: str | None = None
    """FFmpeg's name of the container or device."""
    size: tuple[int, int] | None = None
    """Width and height."""
    rate: str | Fraction | None = None
    """Frames per second, also as "30000/1001"."""
    pix_fmt: str | None = None
    """FFmpeg's name of the pixel format."""
    hwaccel: str = "none"
    """FFmpeg's name of the hardware that decodes ("cuda", "vaapi"), "auto" or "none"; where it
    does not work the CPU decodes."""
    start: float = 0.0
    """Seconds from the beginning on; what comes before is left out."""
    duration: float | None = None
    """Seconds; what comes after is left out. `None`: nothing is."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < inf:
            raise ValueError(f"the start must be at least 0 seconds, got {self.start}")
        if self.duration is not None and not 0 < self.duration < inf:
            raise ValueError(f"the duration must be above 0 seconds, got {self.duration}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"the input's size must be at least 1x1, got {self.size}")
        if self.rate is not None and not 0 < Fraction(self.rate) <= 1000:
            raise ValueError(f"the input's rate must be above 0 frames/s, got {self.rate}")


AS_IT_IS = Input()
"""It says all of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How the pictures are written; `None` lets the source and the sink decide."""

    format: str | None = None
    """FFmpeg's name of the container."""
    codec: str = "auto"
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    overwrite: bool = False


AS_THE_SOURCE = Output()
"""As the source is, as far as the sink can."""
