"""`Frame` and what it carries: the values that flow from stage to stage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .sway import Complex, Distortion

Item = TypeVar("Item")
Plane = NDArray[Any]
"""(H, W) uint8, or uint16 for a depth above 8 (value range 0..2**depth - 1)."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How a picture lies in memory: planar YUV, or one grey plane."""

    depth: int = 8
    """Bits of a sample: 8, 9, 10, 12, 14 or 16."""
    shift_x: int = 1
    """Chroma is 2**shift_x times narrower than luma."""
    shift_y: int = 1
    """Chroma is 2**shift_y times lower than luma."""
    planes: int = 3
    """3 (Y, U, V) or 1 (grey)."""

    def __post_init__(self) -> None:
        if not 8 <= self.depth <= 16:
            raise ValueError(f"depth must be 8..16, got {self.depth}")
        if self.planes not in (1, 3):
            raise ValueError(f"planes must be 1 or 3, got {self.planes}")

    @property
    def peak(self) -> int:
        """The largest value of a sample."""
        return (1 << self.depth) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a sample in memory."""
        return np.dtype(np.uint8 if self.depth == 8 else np.uint16)

    def chroma_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the chroma planes, rounded up as FFmpeg does."""
        return -(-height >> self.shift_y), -(-width >> self.shift_x)


@dataclass(frozen=True, slots=True)
class Motion:
    """How the picture moved from the frame before to this one."""

    transform: NDArray[np.float64]
    """(2, 3): takes (x, y, 1) of the previous frame, in luma pixels, to this frame."""
    confidence: float = 1.0
    """0 (nothing could be tracked: the transform is the identity) to 1."""
    cut: bool = False
    """This frame begins a new scene; it has nothing to do with the previous one."""
    duplicate: bool = False
    """This frame repeats the previous one."""
    skew: complex = 0
    """What of the motion is neither shift, turn nor zoom, for its matrix A the sum A01 + A10 and
    the difference A11 - A00; a rolling shutter makes them."""
    homography: NDArray[np.float64] | None = None
    """(3, 3): the same more exactly, of a camera that turned; None where only the similarity
    `transform` is known."""
    local: Complex | None = None
    """(R, C): by how much more than `way` the picture moved near each node of a mesh, px
    (`mesh.nodes`); None where that was not looked for."""

    @property
    def way(self) -> NDArray[np.float64]:
        """(3, 3): takes (x, y, 1) of the previous frame to this one, as exactly as is known."""
        if self.homography is not None:
            return self.homography
        return np.vstack([self.transform, [0, 0, 1]])

    @staticmethod
    def none(*, cut: bool = False) -> "Motion":
        """No motion known: the first frame, a cut, or nothing to track."""
        return Motion(np.eye(2, 3), confidence=0.0, cut=cut)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, its time and what the stages found out about it."""

    planes: tuple[Plane, ...]
    """Y, U, V (or grey alone) at native depth and chroma size; never written in place."""
    format: PixelFormat
    pts: int
    """When it is shown, in units of `time_base`."""
    time_base: Fraction
    duration: int = 0
    """In units of `time_base`; 0 if unknown."""
    motion: Motion | None = None
    """Set by the motion stage."""
    sway: Distortion | None = None
    """Set by the stages that undo a rolling shutter and what shakes on its own; None where there is
    nothing to undo."""
    correction: NDArray[np.float64] | None = None
    """(2, 3): takes (x, y, 1) of the frame as it was filmed, in luma pixels, to the steady picture.
    Given, the stabiliser obeys it; on its output it tells what was done, None for nothing."""
    labels: NDArray[np.uint8] | None = None
    """(rows, columns): the cluster of each block, set by the restore stage."""
    attachment: object = None
    """What the reader hands to the writer past all stages (a PyAV frame's properties)."""

    def __post_init__(self) -> None:
        if len(self.planes) != self.format.planes:
            raise ValueError(f"expected {self.format.planes} planes, got {len(self.planes)}")

    def check(self) -> None:
        """Raise ValueError if the planes' types or sizes are not those of the format."""
        luma, *others = (plane.shape for plane in self.planes)
        if len(luma) != 2 or not min(luma):
            raise ValueError(f"a plane has rows and columns, got the shape {luma}")
        if others and set(others) != {chroma := self.format.chroma_shape(*luma)}:
            raise ValueError(f"expected chroma planes of the shape {chroma}, got {others}")
        for plane in self.planes:
            if plane.dtype != self.format.dtype:
                raise ValueError(f"expected planes of {self.format.dtype}, got {plane.dtype}")

    @property
    def height(self) -> int:
        """Luma rows."""
        return int(self.planes[0].shape[0])

    @property
    def width(self) -> int:
        """Luma columns."""
        return int(self.planes[0].shape[1])

    @property
    def hollow(self) -> "Frame":
        """The frame without its picture, which takes no memory then."""
        luma = np.broadcast_to(self.format.dtype.type(0), (self.height, self.width))
        return replace(self, planes=(luma,) * self.format.planes, attachment=None)

    @property
    def time(self) -> Fraction:
        """When it is shown, in seconds."""
        return self.pts * self.time_base


class Stage(Protocol):
    """Takes frames one by one and gives frames back, perhaps later."""

    def push(self, frame: Frame) -> list[Frame]:
        """Take one frame; return those that are ready, in order."""
        ...

    def flush(self) -> list[Frame]:
        """The input has ended: return what was held back and be ready for a new input."""
        ...


def through(stage: Stage, frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield what `stage` makes of `frames`, drained at their end."""
    for frame in frames:
        ready = stage.push(frame)
        del frame
        yield from emptied(ready)
    yield from emptied(stage.flush())


def emptied(items: list[Item]) -> Iterator[Item]:
    """Yield the items of a list and take them out of it: pictures wait nowhere once they are gone.

    A `for` over the list would keep the last one until the next is asked for.
    """
    items.reverse()
    while items:
        yield items.pop()
