"""Steady what one motion of the whole picture does not: each part of it gets a path of its own.

A camera that turns moves the edges of its picture further than the middle, and a camera that is
carried what is near further than what is far. At the nodes of a coarse mesh the motion that the
camera's similarity does not explain is added up over time; what of it is fast is undone by bending
the picture (Liu et al., "MeshFlow: minimum latency online video stabilization", 2016).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Frame
from .lens import moved_by
from .options import MESH_DELAY
from .sway import Complex, distorted_by

Floats = NDArray[np.float64]

NODES = 9
"""Along each side."""
REACH = 0.19
"""Points within this part of the longer side tell a node how it moves."""
FEWEST = 3
"""Points that it takes."""
MEMORY = 4 * MESH_DELAY
"""Frames whose paths are remembered."""
SLOW = 0.5
"""s: sigma of the weights by which a node's path is smoothed."""
FURTHEST = 0.06
"""As a turning camera sees it a node is moved by no more than this part of the longer side."""
SHAKEN = 0.02
"""Parts that stray further from their slow paths do not shake: something passes by. Less and less
of that is undone."""
UNSEEN = 0.02
"""A mesh that moves nothing by more, px, is left away."""


def nodes(width: int, height: int) -> Complex:
    """(R, C): where the nodes of the mesh over a picture lie, luma px."""
    x, y = np.linspace(0, width - 1, NODES), np.linspace(0, height - 1, NODES)
    return np.asarray(x + 1j * y[:, None])


@dataclass(frozen=True, slots=True)
class Mesh:
    """A picture whose parts have strayed by a little from where a steady camera saw them."""

    strayed: Complex
    """(R, C): by how far, at the nodes, px."""
    width: int
    height: int

    def observed(self, places: Complex) -> Complex:
        """Places in the steady picture -> where they are seen."""
        return places + self._at(places)

    def true(self, places: Complex) -> Complex:
        """The inverse of `observed`."""
        found = places
        for _ in range(3):  # the mesh is smooth: each time the error is a few per cent of the last
            found = places - self._at(found)
        return found

    @property
    def effect(self) -> float:
        """How far a pixel is moved at most, px."""
        return float(abs(self.strayed).max())

    def _at(self, places: Complex) -> Complex:
        """What the mesh says between its nodes; beyond the picture, what it says at the edge."""
        rows, columns = self.strayed.shape
        x = places.real * ((columns - 1) / max(1, self.width - 1))
        y = places.imag * ((rows - 1) / max(1, self.height - 1))
        shape = (len(places), -1) if places.ndim > 1 else (1, -1)
        x, y = (each.astype(np.float32).reshape(shape) for each in (x, y))
        known = np.stack([self.strayed.real, self.strayed.imag], axis=-1).astype(np.float32)
        between = cv2.remap(known, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(between[..., 0] + 1j * between[..., 1]).reshape(places.shape)


def beside(way: Floats, transform: Floats, width: int, height: int) -> Complex:
    """(R, C): by how much a (3, 3) motion moves the nodes more than a (2, 3) one does, px."""
    places = nodes(width, height)
    return moved_by(way, places) - moved_by(np.vstack([transform, [0, 0, 1]]), places)


def local_motion(start: Complex, end: Complex, way: Floats, width: int, height: int) -> Complex:
    """(R, C): how the picture near each node moved beside `way`, by points that were followed.

    `start` and `end` are (N,) px, `way` is (3, 3). A median of the points around, and one of the
    nodes around: what goes its own way moves no node as long as it is in the minority there.
    """
    places = nodes(width, height)
    if len(start) < FEWEST:
        return np.zeros_like(places)
    left = end - moved_by(way, start)
    near = abs(places.reshape(-1, 1) - end) < REACH * max(width, height)
    parts = [_median(part, near).reshape(places.shape) for part in (left.real, left.imag)]
    smooth = [cv2.medianBlur(each.astype(np.float32), 3) for each in parts]
    return np.asarray(smooth[0] + 1j * smooth[1])


def _median(values: Floats, taken: NDArray[np.bool_]) -> Floats:
    """(N,), (M, N) -> (M,): of the values that each row takes; 0 where these are too few."""
    count = taken.sum(axis=1)
    ordered = np.sort(np.where(taken, values, np.inf), axis=1)
    middle = np.maximum(count[:, None] + [-1, 0], 0) // 2
    found = np.take_along_axis(ordered, middle, axis=1).mean(axis=1)
    return np.where(count >= FEWEST, found, 0.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a frame's nodes have come since its scene began."""

    size: tuple[int, int]
    """Width and height, px."""
    time: float
    """s."""
    scene: int
    paths: Complex
    """(2, R, C) px: as a turning camera sees it, and what parts of the picture do beside that."""


class LocalPaths:
    """Gives each frame, some later, the `sway` that undoes how its parts shake on their own."""

    def __init__(self, delay: int = MESH_DELAY) -> None:
        self._delay = delay
        self._seen: deque[Seen] = deque(maxlen=MEMORY + delay)
        self._waiting: deque[Frame] = deque()

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the one that has seen enough."""
        self._seen.append(self._followed(frame))
        self._waiting.append(frame)
        return [self._released()] if len(self._waiting) > self._delay else []

    def flush(self) -> list[Frame]:
        """Return the frames still held and be ready for a new video."""
        frames = [self._released() for _ in range(len(self._waiting))]
        self._seen.clear()
        return frames

    def _followed(self, frame: Frame) -> Seen:
        last = self._seen[-1] if self._seen else None
        motion, time, size = frame.motion, float(frame.time), (frame.width, frame.height)
        if last is None or motion is None or motion.cut or last.size != size:
            paths = np.zeros((2, NODES, NODES), complex)
            return Seen(size, time, last.scene + 1 if last else 0, paths)
        moved = beside(motion.way, motion.transform, *size)
        parts = np.zeros_like(moved) if motion.local is None else motion.local
        return Seen(size, time, last.scene, last.paths + np.stack([moved, parts]))

    def _released(self) -> Frame:
        """The oldest waiting frame with its mesh."""
        here = self._seen[len(self._seen) - len(self._waiting)]
        frame = self._waiting.popleft()
        known = [each for each in self._seen if each.scene == here.scene]
        turned, parts = here.paths - smoothed(known, here.time)
        longer = max(here.size)
        turned *= np.minimum(1, FURTHEST * longer / np.maximum(abs(turned), 1e-9))
        parts /= 1 + (abs(parts) / (SHAKEN * longer)) ** 4
        mesh = Mesh(turned + parts, *here.size)
        if mesh.effect < UNSEEN:
            return frame
        return replace(frame, sway=distorted_by(frame.sway, mesh))


def smoothed(seen: Sequence[Seen], time: float) -> Complex:
    """(2, R, C): the nodes' slow paths at a time, s.

    A straight line fitted to what lies around, the nearer the more: it has no lag where the future
    is shorter than the past.
    """
    away = np.array([each.time - time for each in seen])
    weights = np.exp(-0.5 * (away / SLOW) ** 2)
    total, lean, spread = weights.sum(), weights @ away, weights @ away**2
    determinant = total * spread - lean**2
    if determinant < 1e-9 * total**2:
        share = weights / total
    else:
        share = weights * (spread - lean * away) / determinant
    paths = np.stack([each.paths for each in seen])
    weighted = share[:, None, None, None] * paths  # too little for BLAS, whose threads cost more
    return np.asarray(weighted.sum(axis=0))
