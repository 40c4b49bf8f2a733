"""Filter the blurred blocks of a frame where torch computes: on a GPU.

It does what `vdeblur.filtering` does in the computer's own memory. A picture goes to the device
once, and what becomes of it comes back once. Needs torch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .backend import DeviceBackend
from .blocks import (
    BLOCK,
    CLEAR_SIDE,
    CONTEXT_STRIDE,
    DIRECTED,
    HALO,
    TILE,
    TOLD,
    Grid,
    fade_weights,
    neighbours,
)
from .change import relative_to_detail
from .clusters import CLEAR
from .found import Doubt, Found, Neighbour, Preview, small_chroma, to_bytes
from .frame import Frame, PixelFormat, Plane
from .laying import Laying
from .timing import measured

LARGEST = 1024
"""Blocks that a filter is given at once: their features at 1/4 take 50 MB in half precision."""
KEPT = 32
"""Pictures that stay on the device. Each frame adds some, as it was filmed and as stages restored
it, and a second stage sees it last when the first one is nine frames further."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame on the device."""

    planes: tuple[Tensor, ...]
    """(H, W) each, of its own size and depth: uint8, or int32 where there are more than 8 bits."""
    luma: Tensor
    """(1, H, W) uint8: what filters see."""
    chroma: Tensor
    """(2, H/2, W/2) uint8, rounded up: the same."""


class Pictures:
    """The last frames that went to a device, or were made there; all stages of a model share it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._known: deque[tuple[tuple[Plane, ...], Picture]] = deque(maxlen=KEPT)

    def of(self, frame: Frame) -> Picture:
        """A frame on the device; the last ones are there already."""
        for planes, picture in self._known:
            if planes is frame.planes:
                return picture
        return self.keep(frame, [self._load(plane) for plane in frame.planes])

    def keep(self, frame: Frame, planes: Sequence[Tensor]) -> Picture:
        """Know a frame whose planes are on the device already."""
        form = frame.format
        luma, *colours = (seen_bytes(plane, form.depth) for plane in planes)
        halved = (form.shift_x, form.shift_y, form.planes) == (1, 1, 3)
        chroma = torch.stack(colours) if halved else self._load(small_chroma(frame))
        picture = Picture(tuple(planes), luma[None], chroma)
        self._known.append((frame.planes, picture))
        return picture

    def _load(self, array: NDArray[np.generic]) -> Tensor:
        if array.dtype == np.uint8:
            return torch.tensor(array, device=self.device)
        there = torch.tensor(array.view(np.int16), device=self.device)
        return there.to(torch.int32) & 0xFFFF  # torch knows little of unsigned 16 bits


class DeviceFilters:
    """`FrameFilters` on the device of a backend."""

    def __init__(
        self,
        backend: DeviceBackend,
        pictures: Pictures,
        *,
        seconds: dict[str, float],
        name: str = "filter",
        both_ways: bool = False,
    ) -> None:
        """`name` is what the time is booked to in `seconds` that it takes to tell the device.

        How long the device takes shows where something is waited for: in "merge". They look at each
        block also turned by half if they look `both_ways`.
        """
        self._backend, self._pictures = backend, pictures
        self._seconds, self._name = seconds, name
        self._colour_frames, self._both_ways = backend.bundle.colour_frames, both_ways
        self._planes: tuple[Plane, ...] = ()  # of the last frame
        self._restored: Picture | None = None  # of the same; `None` if nothing was filtered

    @torch.inference_mode()
    def restored(
        self, found: Found, preview: Preview | None = None, *, doubt: Doubt | None = None
    ) -> tuple[Plane, ...]:
        """As `FrameFilters.restored`."""
        frame = found.frame
        if not found.stands_still:
            last, self._planes, self._restored = self._restored, frame.planes, None
            if found.context is not None:
                assert isinstance(found.context, Tensor), "it was found on the device"
                seen = last, preview, doubt
                restored, self._restored = self._filtered(found, found.context, *seen)
                self._planes = restored.planes
        return self._planes

    def forget(self) -> None:
        """As `FrameFilters.forget`."""
        self._planes, self._restored = (), None

    def _filtered(
        self,
        found: Found,
        context: Tensor,
        last: Picture | None,
        preview: Preview | None,
        doubt: Doubt | None,
    ) -> tuple[Frame, Picture]:
        """The frame restored, which also stays on the device; `last` is t-1 as it was."""
        frame = found.frame
        assert frame.labels is not None, "it was looked at"
        with measured("lay", self._seconds):
            luma, chroma = self._seen(found, last, preview)
        with measured(self._name, self._seconds):
            residual, colour = self._residuals(frame.labels, luma, chroma, context)
        blurred = frame.labels != CLEAR
        if doubt is not None:
            with measured("assign", self._seconds):
                (doubted,) = there(residual, np.flatnonzero(doubt.blocks[blurred]))
                roots = roots_of(residual[doubted]).cpu().numpy()
                filmed = to_bytes(frame.planes[0], frame.format.depth)
                change = relative_to_detail(filmed, roots, doubt.blocks)
                passed = doubt.passed(change) != CLEAR
            if not np.array_equal(passed, blurred):
                (kept,) = there(residual, np.flatnonzero(passed[blurred]))
                residual, colour, blurred = residual[kept], colour[:, kept], passed
        with measured("merge", self._seconds):
            sums = self._sums(frame, blurred, residual, colour)
            restored = replace(frame, planes=tuple(fetched(each, frame.format) for each in sums))
            return restored, self._pictures.keep(restored, sums)

    def _seen(
        self, found: Found, last: Picture | None, preview: Preview | None
    ) -> tuple[Tensor, Tensor]:
        """(P, H, W), (Q, H/2, W/2): what the filters see, in the order of `Bundle`'s planes."""
        own = self._pictures.of(found.frame)
        before = last if last is not None else self._filmed(found.before)
        after = self._filmed(found.after)
        lumas, chromas = [own.luma], [own.chroma]
        for near, picture in ((found.before, before), (found.after, after)):
            luma, chroma = laid_over(own, near, picture, colours=self._colour_frames > 1)
            lumas.append(luma)
            chromas.append(chroma)
        if self._colour_frames == 1:
            del chromas[1:]
        if preview is not None:
            current = self._pictures.of(preview.frame)
            seen = None if preview.following is None else self._pictures.of(preview.following)
            luma, chroma = laid_over(current, found.after, seen, colours=True)
            lumas += [luma, current.luma]
            chromas += [chroma, current.chroma]
        return torch.cat(lumas), torch.cat(chromas)

    def _filmed(self, near: Neighbour | None) -> Picture | None:
        return None if near is None else self._pictures.of(near.frame)

    def _residuals(
        self, labels: NDArray[np.uint8], luma: Tensor, chroma: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run each cluster's filter -> residuals (N, E, E), (2, N, E/2, E/2), row by row."""
        rows, columns = np.nonzero(labels)
        clusters = labels[rows, columns]
        pictures = (
            windows(padded(luma)),
            windows(padded(chroma, stride=2), stride=2),
            windows(context, stride=CONTEXT_STRIDE),
        )
        residual = torch.empty(len(rows), TILE, TILE, device=luma.device)
        colour = torch.empty(2, len(rows), TILE // 2, TILE // 2, device=luma.device)
        for cluster in range(CLEAR + 1, int(labels.max()) + 1):
            look = partial(self._backend.apply_tensors, cluster)
            largest = LARGEST // 2 if self._both_ways else LARGEST
            for part in batches(np.flatnonzero(clusters == cluster), largest):
                row, column, place = there(luma, rows[part], columns[part], part)
                blocks = (each[:, row, column].transpose(0, 1) for each in pictures)
                light, tint = both_ways(look, *blocks) if self._both_ways else look(*blocks)
                residual[place] = light
                colour[:, place] = tint.transpose(0, 1)
        return residual, colour

    def _sums(
        self, frame: Frame, blurred: NDArray[np.bool_], residual: Tensor, colour: Tensor
    ) -> list[Tensor]:
        """The frame's planes with what the filters add to the blurred blocks."""
        form = frame.format
        luma, *others = self._pictures.of(frame).planes
        sums = [added(luma, merged(residual, blurred), blurred, form.depth)]
        for plane, part in zip(others, colour, strict=False):  # grey has no others
            blocks = merged(part, blurred, stride=2)
            if (form.shift_x, form.shift_y) != (1, 1):
                blocks = enlarged(blocks, blurred, form.shift_x, form.shift_y)
            sums.append(added(plane, blocks, blurred, form.depth))
        return sums


def batches(chosen: NDArray[np.intp], largest: int) -> Iterator[NDArray[np.intp]]:
    """Cut (N,) into parts of `largest` and then of powers of two.

    A backend prepares itself for each size that it sees; so these are few.
    """
    start = 0
    while start < len(chosen):
        left = len(chosen) - start
        size = min(largest, 1 << (left.bit_length() - 1))
        yield chosen[start : start + size]
        start += size


def both_ways(
    look: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    luma: Tensor,
    chroma: Tensor,
    context: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `filtering.both_ways`."""
    turned = context.flip(-2, -1)
    turned[:, -TOLD : DIRECTED - TOLD] *= -1
    residual, colour = look(
        torch.cat([luma, luma.flip(-2, -1)]),
        torch.cat([chroma, chroma.flip(-2, -1)]),
        torch.cat([context, turned]),
    )
    return _mean(residual), _mean(colour)


def _mean(both: Tensor) -> Tensor:
    """(2 * N, ...) -> (N, ...)."""
    one, other = both.chunk(2)
    return (one + other.flip(-2, -1)) / 2


def roots_of(residuals: Tensor) -> Tensor:
    """(N, E, E) -> (N,): as `change.roots_of`."""
    own = residuals[:, HALO:, HALO:]
    return own.abs().round().clamp(max=255).sqrt().mean(dim=(1, 2))


def there(beside: Tensor, *indices: NDArray[np.intp]) -> list[Tensor]:
    """Indices on the device where another tensor is."""
    return [torch.from_numpy(each).to(beside.device, non_blocking=True) for each in indices]


def seen_bytes(plane: Tensor, depth: int) -> Tensor:
    """(H, W) of any depth -> uint8, as `found.to_bytes`."""
    if depth == 8:
        return plane
    return (plane / (1 << (depth - 8))).round().clamp(max=255).to(torch.uint8)


def fetched(plane: Tensor, form: PixelFormat) -> Plane:
    """(H, W) from the device, in the frame's own type."""
    if form.depth == 8:
        return plane.cpu().numpy()
    return plane.to(torch.int16).cpu().numpy().view(np.uint16)


def laid_over(
    current: Picture, near: Neighbour | None, picture: Picture | None, *, colours: bool
) -> tuple[Tensor, Tensor]:
    """Luma and chroma of a neighbour's `picture` as seen from the `current` frame.

    That one stands in for a missing one, and without `colours` for the chroma.
    """
    if near is None or picture is None:
        return current.luma, current.chroma
    luma = laid(near.laying, picture.luma, current.luma)
    if not colours:
        return luma, current.chroma
    return luma, laid(near.laying, picture.chroma, current.chroma, shrunk=2)


def laid(laying: Laying, neighbour: Tensor, current: Tensor, *, shrunk: int = 1) -> Tensor:
    """(C, H, W) uint8 -> as `Laying.lay` does it: `current` shines through at the ends."""
    height, width = current.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=current.device),
        torch.arange(width, dtype=torch.float32, device=current.device),
        indexing="ij",
    )
    if laying.flow is not None:
        step = laying.scale / shrunk
        flow = torch.from_numpy(laying.flow).to(current.device).permute(2, 0, 1)
        moved = step * sampled(flow, (x + 0.5) / step - 0.5, (y + 0.5) / step - 0.5)
        x, y = x + moved[0], y + moved[1]
    way = laying.way_between(shrunk)
    depth = way[2, 0] * x + way[2, 1] * y + way[2, 2]
    x, y = ((way[axis, 0] * x + way[axis, 1] * y + way[axis, 2]) / depth for axis in range(2))
    rows, columns = neighbour.shape[1:]
    reached = (x > -NEARLY) & (x < columns - 1 + NEARLY) & (y > -NEARLY) & (y < rows - 1 + NEARLY)
    return torch.where(reached, sampled(neighbour.float(), x, y).round().to(torch.uint8), current)


NEARLY = 1e-3
"""Pixels by which a place may miss a picture and is still in it: for what rounding does."""


def sampled(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(C, h, w), (H, W), (H, W) -> (C, H, W): linear between pixels, the edge's ones repeated."""
    height, width = picture.shape[1:]
    places = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    found = functional.grid_sample(
        picture[None], places[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return found[0]


def padded(pictures: Tensor, *, stride: int = 1) -> Tensor:
    """(C, H, W) -> as `Grid.pad` does it."""
    height, width = pictures.shape[1:]
    grid, halo = Grid(height * stride, width * stride), HALO // stride
    rows, columns = (
        torch.arange(-halo, blocks * BLOCK // stride, device=pictures.device).clamp(0, edge - 1)
        for blocks, edge in ((grid.rows, height), (grid.columns, width))
    )
    return pictures[:, rows[:, None], columns]


def windows(pictures: Tensor, *, stride: int = 1) -> Tensor:
    """(C, h, w), padded -> (C, rows, columns, e, e): blocks with their halo, a view."""
    edge, block = TILE // stride, BLOCK // stride
    return pictures.unfold(1, edge, block).unfold(2, edge, block)


def merged(residuals: Tensor, filtered: NDArray[np.bool_], *, stride: int = 1) -> Tensor:
    """(N, s, s), (rows, columns) -> (N, b, b): as `blocks.merge`; `residuals` is used up."""
    above, below, left, right = there(residuals, *neighbours(filtered))
    halo = HALO // stride
    wide = _merged_along(residuals.transpose(1, 2), left, right, halo).transpose(1, 2)
    return _merged_along(wide, above, below, halo)


def _merged_along(residuals: Tensor, before: Tensor, behind: Tensor, halo: int) -> Tensor:
    """As `blocks._merged_along`; to look at how many there are would wait for the device."""
    rising, falling = (torch.from_numpy(each).to(residuals.device) for each in fade_weights(halo))
    blocks = residuals[:, halo:]
    blocks[:, :halo] *= rising[before.clamp(max=0)][:, :, None]
    blocks[:, -halo:] *= falling[behind.clamp(max=0)][:, :, None]
    lent = residuals[behind.clamp(min=0), :halo] * (behind >= 0)[:, None, None]
    blocks[:, -halo:] += lent * rising[CLEAR_SIDE][:, None]
    return blocks


def added(plane: Tensor, residuals: Tensor, filtered: NDArray[np.bool_], depth: int) -> Tensor:
    """(H, W), (N, h, w) in 8-bit steps -> (H, W): their sum; clear blocks stay as they are."""
    high, wide = residuals.shape[1:]
    rows, columns = filtered.shape
    height, width = plane.shape
    canvas = plane.new_zeros(rows * high, columns * wide)
    canvas[:height, :width] = plane
    blocks = canvas.view(rows, high, columns, wide).transpose(1, 2)
    row, column = there(plane, *np.nonzero(filtered))
    summed = blocks[row, column] + residuals * float(1 << (depth - 8))
    blocks[row, column] = summed.round().clamp(0, (1 << depth) - 1).to(plane.dtype)
    return canvas[:height, :width]


def enlarged(residuals: Tensor, filtered: NDArray[np.bool_], shift_x: int, shift_y: int) -> Tensor:
    """(N, b, b) of 4:2:0 chroma -> (N, h, w) of chroma of another size: as `filtering.enlarge`."""
    rows, columns = filtered.shape
    high, wide, edge = BLOCK >> shift_y, BLOCK >> shift_x, residuals.shape[-1]
    row, column = there(residuals, *np.nonzero(filtered))
    whole = residuals.new_zeros(rows, columns, edge, edge)
    whole[row, column] = residuals
    flat = whole.transpose(1, 2).reshape(1, 1, rows * edge, columns * edge)
    large = functional.interpolate(
        flat, size=(rows * high, columns * wide), mode="bilinear", align_corners=False
    )
    return large.view(rows, high, columns, wide).transpose(1, 2)[row, column]
