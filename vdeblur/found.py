"""What is known of a frame when its blurred blocks are to be filtered."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Frame, Plane
from .laying import Laying

if TYPE_CHECKING:
    from torch import Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Neighbour(NamedTuple):
    """The frame before or after one, as it was filmed."""

    frame: Frame
    luma: Bytes
    """(H, W)."""
    laying: Laying
    """Of it over the frame."""


@dataclass(frozen=True, slots=True)
class Found:
    """A frame whose blurred blocks are known, and what the filters need to know of it."""

    frame: Frame
    """It has its `labels`."""
    context: "Floats | Tensor | None" = None
    """(C, h/8, w/8) as from `Grid.pad`, where the filters compute; `None` if there is nothing to
    filter."""
    before: Neighbour | None = None
    """None if it is not trusted: the frame stands in for it."""
    after: Neighbour | None = None
    suited: "NDArray[np.uint8] | None" = None
    """(rows, columns): the cluster that each block may belong to, in doubt a blurred one. None if
    it does not matter: nothing is blurred, or what is, is certain."""
    stands_still: bool = False
    """All is as it was of the frame before, and so is its result."""


class Preview(NamedTuple):
    """What a first stage made of a frame and of the one after it."""

    frame: Frame
    following: Frame | None
    """None if it does not wait for that one."""


class Doubt(NamedTuple):
    """Blocks whose result is shown only if it differs enough from what was filmed."""

    blocks: NDArray[np.bool_]
    """(rows, columns), all of them labelled as blurred."""
    passed: Callable[[Floats], NDArray[np.uint8]]
    """(rows, columns), by how much they change, as from `change.relative_to_detail` -> the labels
    of all that is shown."""


class FrameFilters(Protocol):
    """The filters of one stage; of the frame before they see what they made of it."""

    def restored(
        self, found: Found, preview: Preview | None = None, *, doubt: Doubt | None = None
    ) -> tuple[Plane, ...]:
        """The planes of the next frame, its blurred blocks filtered.

        A second stage's filters see a `preview`, too. Where there is `doubt`, not all is shown.
        """
        ...

    def forget(self) -> None:
        """The next frame has none before it."""
        ...


def with_planes(frame: Frame, planes: tuple[Plane, ...]) -> Frame:
    """The frame with other planes; itself where they are its own."""
    return frame if planes is frame.planes else replace(frame, planes=planes)


def to_bytes(plane: Plane, depth: int) -> Bytes:
    """(H, W) of any depth -> uint8: what the network sees; an 8-bit plane is passed on."""
    if depth == 8:
        return plane
    step = 1 << (depth - 8)
    return cv2.convertScaleAbs(plane, alpha=1 / step).astype(np.uint8, copy=False)


def small_chroma(frame: Frame) -> Bytes:
    """The chroma of a frame at half the luma's size, (2, H/2, W/2) rounded up; grey has none."""
    height, width = -(-frame.height // 2), -(-frame.width // 2)
    if frame.format.planes == 1:
        return np.full((2, height, width), 128, np.uint8)
    planes = [to_bytes(plane, frame.format.depth) for plane in frame.planes[1:]]
    return np.stack(
        [
            plane
            if plane.shape == (height, width)
            else cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
            for plane in planes
        ]
    )
