"""Complete a moved picture at its edge with what neighbouring frames show there.

The neighbours are moved onto the same steady camera; optical flow where they overlap with the
picture, carried on beyond its edge, takes away what parallax leaves; the difference in brightness
and colour is carried on likewise; the seam is feathered (after Matsushita et al., "Full-frame
video stabilization with motion inpainting", 2006). Only strips along the edge are worked on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Frame, Plane
from .sway import Complex
from .warp import Interpolation, Look, Region, bend, remapped, sampled, where

Floats = NDArray[np.float32]
Mask = NDArray[np.uint8]

SMALL = 320
"""The longer side of the pictures that are compared."""
MOST = 5
"""So many neighbours take part at most."""
LEAST = 0.03
"""A neighbour takes part if it shows this much of what is still missing."""
PATIENCE = 12.0
"""Frames: one so much farther away has to show e times as much."""
FEATHER = 0.02
"""Width of a seam, in parts of the longer side."""
FAINT = 1e-3
"""How much of a picture shows at its very edge; where it is alone, that is enough."""
REACHES = (1, 3, 10)
"""The overlap is carried on beyond the edge in pictures so many times smaller, and 6 pixels there;
what is nearer counts a thousand times more."""
PATCH = 5
"""Half the side of what the flow compares, in small pixels."""
DISAGREEING = 10.0
"""Grey values by which pictures differ where the flow is wrong."""
STRAY = 12.0
"""Flow of more, in small pixels, is a mistake."""
DARK, LIT = 24, 40
"""Grey values of a black rim, and of the picture beside it."""
RIM = 0.03
"""A black rim is no wider, in parts of the picture's side; a wider one is a letterbox."""
_SIDE = np.linspace(0, 1, 5)[:-1]
OUTLINE = np.concatenate([_SIDE, 1 + 1j * _SIDE, 1 - _SIDE + 1j, 1j * (1 - _SIDE)])
"""Around the unit square: a rolling shutter bends the sides."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame and where it lies in the new picture."""

    frame: Frame
    look: Look
    """Places of the new picture -> those of the frame."""
    place: Look
    """Places of the frame -> those of the new picture."""
    away: int = 0
    """Frames from the one that is completed."""

    def covers(self, scale: float, size: tuple[int, int], *, inset: float = 0.0) -> Mask:
        """(h, w) 0 or 255: what of the new picture, at `scale`, the frame shows."""
        right, bottom = self.frame.width - 1 - inset, self.frame.height - 1 - inset
        edge = (1 - OUTLINE.real) * inset + OUTLINE.real * right
        edge = edge + 1j * ((1 - OUTLINE.imag) * inset + OUTLINE.imag * bottom)
        outline = _shrunk_places(self.place(np.asarray(edge, np.complex128)), scale)
        mask = np.zeros(size[::-1], np.uint8)
        points = np.rint(np.stack([outline.real, outline.imag], axis=1)).astype(np.int32)
        cv2.fillPoly(mask, [points], 255)
        return mask


def completed(
    base: Placed, neighbours: Sequence[Placed], *, interpolation: Interpolation = "bicubic"
) -> Frame:
    """The frame in its place, with what lies beyond its edge taken from `neighbours`.

    What no neighbour shows is replicated.
    """
    rim = Rim.of(base.frame)
    moved = bend(rim.painted_over(base.frame), base.look, interpolation=interpolation)
    scale = SMALL / max(moved.width, moved.height)
    size = (max(8, round(moved.width * scale)), max(8, round(moved.height * scale)))
    chosen = _chosen(base, neighbours, scale, size)
    if not chosen:
        return moved
    seen = base.covers(scale, size, inset=2 / scale + rim.widest)
    patches = [_patch(moved, seen, other, scale, size) for other in chosen]
    count = len(moved.planes)
    planes = [_plane(moved, index, base, rim, patches, interpolation) for index in range(count)]
    return replace(moved, planes=tuple(planes))


def _chosen(
    base: Placed, neighbours: Sequence[Placed], scale: float, size: tuple[int, int]
) -> list[Placed]:
    """The neighbours that show most of what is missing, the nearest first."""
    missing = cv2.bitwise_not(base.covers(scale, size, inset=1.0))
    if not missing.any():
        return []
    left = [(other, cv2.bitwise_and(missing, other.covers(scale, size))) for other in neighbours]
    whole = cv2.countNonZero(missing)
    chosen: list[Placed] = []
    while left and len(chosen) < MOST:
        worth = [
            cv2.countNonZero(mask) * np.exp(-abs(other.away) / PATIENCE) for other, mask in left
        ]
        other, mask = left.pop(int(np.argmax(worth)))
        if cv2.countNonZero(mask) <= LEAST * whole:
            break
        chosen.append(other)
        rest = cv2.bitwise_not(mask)
        left = [(each, cv2.bitwise_and(theirs, rest)) for each, theirs in left]
    return sorted(chosen, key=lambda each: abs(each.away))


@dataclass(frozen=True, slots=True)
class Rim:
    """Black rows and columns at the edge of a frame, as old cameras leave; in luma pixels."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    @staticmethod
    def of(frame: Frame) -> "Rim":
        """Look for them."""
        luma, unit = frame.planes[0], 1 << (frame.format.depth - 8)
        across, down = int(RIM * frame.width), int(RIM * frame.height)
        return Rim(
            _black_lines(luma[:, : across + 3].mean(axis=0) / unit, across),
            _black_lines(luma[: down + 3].mean(axis=1) / unit, down),
            _black_lines(luma[:, -across - 3 :].mean(axis=0)[::-1] / unit, across),
            _black_lines(luma[-down - 3 :].mean(axis=1)[::-1] / unit, down),
        )

    @property
    def widest(self) -> int:
        """px."""
        return max(self.left, self.top, self.right, self.bottom)

    def painted_over(self, frame: Frame) -> Frame:
        """The frame with what lies beside them in their place."""
        if not self.widest:
            return frame
        planes = []
        for index, plane in enumerate(frame.planes):
            rim, (height, width) = self.of_plane(index, frame), plane.shape
            inner = plane[rim.top : height - rim.bottom, rim.left : width - rim.right]
            sides = (rim.top, rim.bottom, rim.left, rim.right)
            planes.append(np.asarray(cv2.copyMakeBorder(inner, *sides, cv2.BORDER_REPLICATE)))
        return replace(frame, planes=tuple(planes))

    def of_plane(self, index: int, frame: Frame) -> "Rim":
        """In pixels of plane `index`."""
        if not index:
            return self
        x, y = frame.format.shift_x, frame.format.shift_y
        return Rim(-(-self.left >> x), -(-self.top >> y), -(-self.right >> x), -(-self.bottom >> y))


def _black_lines(means: NDArray[np.float64], most: int) -> int:
    """How many of the lines from the edge inwards are black; 0 if what follows is dark too."""
    lit = np.flatnonzero(means > DARK)
    count = int(lit[0]) if len(lit) else len(means)
    if not 0 < count <= most or means[min(count + 2, len(means) - 1)] < LIT:
        return 0
    return count + 1  # compression smears the last one


@dataclass(frozen=True, slots=True)
class Patch:
    """A neighbour, bent and tinted so that it continues the picture."""

    placed: Placed
    look: Look
    rim: Rim
    tints: tuple[Floats, ...]
    """For each plane (h, w), small: what is to be added."""


def _patch(moved: Frame, seen: Mask, other: Placed, scale: float, size: tuple[int, int]) -> Patch:
    """Compare a neighbour with the picture where both show something, and carry that on."""
    rim = Rim.of(other.frame)
    whole = other.covers(scale, size, inset=2 / scale + rim.widest)
    common = np.asarray(cv2.bitwise_and(seen, whole), np.uint8)
    here = [_small(plane, size) for plane in moved.planes]
    there = _small_moved(other, scale, size)
    weight = (common > 0).astype(np.float32)
    eight = 1.0 / (1 << (moved.format.depth - 8))
    flow = _parallax(here[0] * eight, there[0] * eight, common)
    rows, columns = np.indices(size[::-1], np.float32)
    bent = [remapped(each, np.stack([columns, rows], axis=-1) + flow) for each in there]
    # What moved on its own says nothing about the light.
    off = np.abs(here[0] - bent[0]) * eight
    weight = weight * np.exp(-((off / 24) ** 2)) + 1e-6 * weight
    tints = tuple(
        _carried_on(np.asarray(a - b, np.float32), weight) for a, b in zip(here, bent, strict=True)
    )
    return Patch(other, _bent(other.look, flow, scale), rim, tints)


def _parallax(here: Floats, there: Floats, common: Mask) -> Floats:
    """(h, w, 2): the flow between two pictures of 0..255, carried on beyond what is `common`."""
    # The flow needs all of its patch to be in both pictures.
    inner = cv2.erode(
        common, np.ones((2 * PATCH + 1, 2 * PATCH + 1), np.uint8), borderType=cv2.BORDER_CONSTANT
    )
    if cv2.countNonZero(inner) < inner.size // 8:
        return np.zeros((*here.shape, 2), np.float32)
    there = there + np.float32(here[inner > 0].mean() - there[inner > 0].mean())
    flow = _flow(here, there)
    rows, columns = np.indices(here.shape, np.float32)
    places = np.stack([columns, rows], axis=-1)
    plain, bent = (_spread(np.abs(here - remapped(there, p)), 5) for p in (places, places + flow))
    # It is believed where the pictures then agree, and where it makes them agree better.
    weight = (inner > 0) * np.exp(-((bent / DISAGREEING) ** 2)) * (bent <= plain + 0.5)
    weight *= np.hypot(flow[..., 0], flow[..., 1]) < STRAY
    doubt = 0.02 * (inner > 0)  # for there being none
    return _carried_on(flow, weight.astype(np.float32), doubt.astype(np.float32))


def _flow(here: Floats, there: Floats) -> Floats:
    """(h, w, 2): there[p + flow(p)] shows what here[p] does."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    a, b = (np.clip(each, 0, 255).astype(np.uint8) for each in (here, there))
    start = np.zeros((*here.shape, 2), np.float32)
    found = search.calc(a, b, start)
    return np.stack([cv2.medianBlur(np.ascontiguousarray(found[..., k]), 5) for k in (0, 1)], -1)


def _carried_on(field: Floats, weight: Floats, doubt: Floats | float = 0.0) -> Floats:
    """(h, w) or (h, w, 2): smoothed where it has weight, and continued where it has none.

    `doubt` is weight that speaks for 0.
    """
    axes = (slice(None), slice(None)) + (None,) * (field.ndim - 2)
    known, mass = field * weight[axes], weight + np.float32(doubt)
    size = weight.shape[::-1]
    total, norm = np.zeros_like(field), np.full(weight.shape, 1e-12, np.float32)
    share = 1.0
    for shrink in REACHES:
        less = max(1, size[0] // shrink), max(1, size[1] // shrink)
        for sum_, part in ((total, known), (norm, mass)):
            coarse = cv2.resize(part, less, interpolation=cv2.INTER_AREA)
            near = _spread(np.asarray(coarse, np.float32), 7)
            sum_ += share * cv2.resize(near, size, interpolation=cv2.INTER_LINEAR)
        share *= 1e-3
    return np.asarray(total / norm[axes], np.float32)


def _spread(field: Floats, side: int) -> Floats:
    """Blurred over twice `side` pixels."""
    once = cv2.boxFilter(field, -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    twice = cv2.boxFilter(once, -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(twice, np.float32)


def _bent(look: Look, flow: Floats, scale: float) -> Look:
    """`look`, led astray by a flow of small pixels."""
    height, width = flow.shape[:2]

    def astray(places: Complex) -> Complex:
        small = _shrunk_places(places, scale)
        x = np.clip(small.real, 0, width - 1).astype(np.float32)
        y = np.clip(small.imag, 0, height - 1).astype(np.float32)
        here = cv2.remap(flow, x, y, cv2.INTER_LINEAR)
        return look(places + (here[..., 0] + 1j * here[..., 1]) / scale)

    return astray


def _shrunk_places(places: Complex, scale: float) -> Complex:
    """Luma pixels -> small ones; the centre of a pixel has whole coordinates in both."""
    return np.asarray((places + (0.5 + 0.5j)) * scale - (0.5 + 0.5j))


def _small(plane: Plane, size: tuple[int, int]) -> Floats:
    """(h, w): by area."""
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _small_moved(other: Placed, scale: float, size: tuple[int, int]) -> list[Floats]:
    """(h, w) of each plane: the neighbour in its place, small."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    places = ((x + 1j * y) + (0.5 + 0.5j)) / scale - (0.5 + 0.5j)
    found = _shrunk_places(other.look(places), scale)
    maps = np.stack([found.real, found.imag], axis=-1).astype(np.float32)
    return [
        np.asarray(remapped(_small(plane, size), maps), np.float32) for plane in other.frame.planes
    ]


def _plane(
    moved: Frame,
    index: int,
    base: Placed,
    rim: Rim,
    patches: Sequence[Patch],
    interpolation: Interpolation,
) -> NDArray[Any]:
    """Plane `index`, complete."""
    plane = moved.planes[index].copy()
    for region in _strips(base, rim, plane, moved):
        rows, columns = region.slices
        original = moved.planes[index][rows, columns].astype(np.float32)
        own = where(base.look, region, index, moved.format)
        mix = Mix(original, _opacity(plane.shape, rim.of_plane(index, moved), own))
        for patch in patches:
            frame = patch.placed.frame
            places = where(patch.look, region, index, frame.format)
            taken = sampled(
                frame.planes[index], places, index, frame.format, "replicate", interpolation
            )
            tint = _part(patch.tints[index], region, plane.shape)
            mix.lay_under(
                taken + tint, _opacity(plane.shape, patch.rim.of_plane(index, frame), places)
            )
        mixed = mix.over(original)
        plane[rows, columns] = np.clip(mixed + 0.5, 0, moved.format.peak).astype(plane.dtype)
    return plane


class Mix:
    """Pictures of which each fades at its own edge into the ones below; the first is on top."""

    def __init__(self, top: Floats, opacity: Floats) -> None:
        self._sum, self._weight, self._clear = top * opacity, opacity, 1 - opacity

    def lay_under(self, picture: Floats, opacity: Floats) -> None:
        """(h, w) and 0..1."""
        weight = self._clear * opacity
        self._sum = self._sum + weight * picture
        self._weight = self._weight + weight
        self._clear = self._clear - weight

    def over(self, ground: Floats) -> Floats:
        """All of them, over what shows only where there is none."""
        weight = FAINT * FAINT * self._clear
        return np.asarray((self._sum + weight * ground) / (self._weight + weight), np.float32)


def _strips(base: Placed, rim: Rim, plane: Plane, moved: Frame) -> list[Region]:
    """Above, below, left and right: outside of them the picture is whole."""
    height, width = plane.shape
    corners = np.array(
        [0, moved.width - 1, moved.width - 1 + 1j * (moved.height - 1), 1j * (moved.height - 1)]
    )
    feather = FEATHER * max(moved.width, moved.height) + 2
    inside = np.array([1, -1, -1, 1]) * feather + 1j * np.array([1, 1, -1, -1]) * feather
    black = np.array(
        [
            rim.left + 1j * rim.top,
            -rim.right + 1j * rim.top,
            -rim.right - 1j * rim.bottom,
            rim.left - 1j * rim.bottom,
        ]
    )
    placed = base.place(corners + black + inside)
    x, y = placed.real * width / moved.width, placed.imag * height / moved.height
    left = int(np.clip(np.ceil(max(x[0], x[3])), 0, width))
    right = int(np.clip(np.floor(min(x[1], x[2])), left, width))
    top = int(np.clip(np.ceil(max(y[0], y[1])), 0, height))
    bottom = int(np.clip(np.floor(min(y[2], y[3])), top, height))
    strips = [
        Region(0, 0, width, top),
        Region(0, bottom, width, height - bottom),
        Region(0, top, left, bottom - top),
        Region(right, top, width - right, bottom - top),
    ]
    return [strip for strip in strips if strip.width and strip.height]


def _opacity(shape: tuple[int, ...], rim: Rim, places: Floats) -> Floats:
    """(h, w) 0..1: how far inside an (H, W) plane each place lies, at most a feather's width."""
    ramp = _ramp(shape[0], shape[1], rim)
    return np.asarray(remapped(ramp, places, edge=cv2.BORDER_CONSTANT), np.float32)


@lru_cache(maxsize=64)
def _ramp(height: int, width: int, rim: Rim) -> Floats:
    """(H, W): faint at the edge, rising smoothly to 1."""
    feather = max(2.0, FEATHER * max(height, width))
    x = np.minimum(np.arange(width) - rim.left, np.arange(width)[::-1] - rim.right)
    y = np.minimum(np.arange(height) - rim.top, np.arange(height)[::-1] - rim.bottom)
    depth = np.minimum(x[None], y[:, None])
    inside = np.clip(depth / feather, 0, 1)
    smooth = np.maximum(inside * inside * (3 - 2 * inside), FAINT)
    return np.asarray(np.where(depth < 0, 0, smooth), np.float32)


def _part(field: Floats, region: Region, shape: tuple[int, ...]) -> Floats:
    """(h, w): a region of a small field, as large as its plane would be."""
    scale_x, scale_y = field.shape[1] / shape[1], field.shape[0] / shape[0]
    x = (region.left + np.arange(region.width) + 0.5) * scale_x - 0.5
    y = (region.top + np.arange(region.height) + 0.5) * scale_y - 0.5
    maps = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)
    return np.asarray(remapped(field, maps), np.float32)
