"""Filter the blurred blocks of a frame where torch computes: on a GPU.

It does what `vdeblur.filtering` does in the computer's own memory. Pictures go to the device once,
what becomes of them comes back once, and in between nothing waits for anything. Needs torch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .align import Laying
from .backend import DeviceBackend
from .blocks import BLOCK, CONTEXT_STRIDE, HALO, SEAM, Grid, fade_weights, neighbours
from .clusters import CLEAR
from .found import Found, Neighbour, Preview, small_chroma, to_bytes
from .frame import Frame, Plane
from .timing import measured

LARGEST = 1024
"""Blocks that a filter is given at once: their features at 1/4 take 50 MB in half precision."""
KEPT = 6
"""Pictures that stay on the device: t-1, t and t+1, and what a first stage made of the last two."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What filters see of a frame, on the device, in 8-bit steps."""

    luma: Tensor
    """(1, H, W) float32."""
    chroma: Tensor
    """(2, H/2, W/2) float32, rounded up."""


class DeviceFilters:
    """`FrameFilters` on the device of a backend."""

    def __init__(
        self, backend: DeviceBackend, *, seconds: dict[str, float], name: str = "filter"
    ) -> None:
        """`name` is what the time is booked to in `seconds` in which the device is told."""
        self._backend, self._seconds, self._name = backend, seconds, name
        self._colour_frames = backend.bundle.colour_frames
        self._known: deque[tuple[tuple[Plane, ...], Picture]] = deque(maxlen=KEPT)
        self._planes: tuple[Plane, ...] = ()  # of the last frame
        self._restored: Picture | None = None  # of the same; `None` if nothing was filtered

    @torch.inference_mode()
    def restored(self, found: Found, preview: Preview | None = None) -> tuple[Plane, ...]:
        """As `FrameFilters.restored`."""
        frame = found.frame
        if not found.stands_still:
            self._planes, restored = frame.planes, None
            if found.context is not None:
                assert isinstance(found.context, Tensor), "it was found on the device"
                self._planes, restored = self._filtered(found, found.context, preview)
            self._restored = restored
        return self._planes

    def _filtered(
        self, found: Found, context: Tensor, preview: Preview | None
    ) -> tuple[tuple[Plane, ...], Picture]:
        frame = found.frame
        assert frame.labels is not None, "it was looked at"
        with measured("lay", self._seconds):
            luma, chroma = self._seen(found, preview)
        with measured(self._name, self._seconds):
            residual, colour = self._residuals(frame, luma, chroma, context)
        with measured("merge", self._seconds):
            return self._sum(frame, residual, colour)

    def _seen(self, found: Found, preview: Preview | None) -> tuple[Tensor, Tensor]:
        """(P, H, W), (Q, H/2, W/2): what the filters see, in the order of `Bundle`'s planes."""
        own = self._picture(found.frame)
        before = self._restored if self._restored is not None else self._filmed(found.before)
        after = self._filmed(found.after)
        lumas, chromas = [own.luma], [own.chroma]
        for near, picture in ((found.before, before), (found.after, after)):
            laid = laid_over(own, near, picture, colours=self._colour_frames > 1)
            lumas.append(laid.luma)
            chromas.append(laid.chroma)
        if self._colour_frames == 1:
            del chromas[1:]
        if preview is not None:
            current = following = self._picture(preview.frame)
            if preview.following is not None:
                seen = self._picture(preview.following)
                following = laid_over(current, found.after, seen, colours=True)
            lumas += [following.luma, current.luma]
            chromas += [following.chroma, current.chroma]
        return torch.cat(lumas), torch.cat(chromas)

    def _filmed(self, near: Neighbour | None) -> Picture | None:
        return None if near is None else self._picture(near.frame)

    def _picture(self, frame: Frame) -> Picture:
        """A frame on the device; the last ones are there already."""
        for planes, picture in self._known:
            if planes is frame.planes:
                return picture
        luma = self._load(to_bytes(frame.planes[0], frame.format.depth))[None]
        picture = Picture(luma, self._load(small_chroma(frame)))
        self._known.append((frame.planes, picture))
        return picture

    def _load(self, array: NDArray[Any]) -> Tensor:
        """On the device as float32, which holds 16 bits exactly."""
        if array.dtype == np.uint16:
            array = array.astype(np.int32)  # torch knows little of the other
        return torch.tensor(array, device=self._backend.device).float()

    def _residuals(
        self, frame: Frame, luma: Tensor, chroma: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run each cluster's filter -> residuals (N, s, s), (2, N, s/2, s/2), row by row."""
        assert frame.labels is not None, "it was looked at"
        size = BLOCK + 2 * SEAM
        rows, columns = np.nonzero(frame.labels)
        clusters = frame.labels[rows, columns]
        pictures = (
            windows(padded(luma), BLOCK, HALO),
            windows(padded(chroma, stride=2), BLOCK // 2, HALO // 2),
            windows(context, BLOCK // CONTEXT_STRIDE, HALO // CONTEXT_STRIDE),
        )
        residual = luma.new_empty(len(rows), size, size)
        colour = luma.new_empty(2, len(rows), size // 2, size // 2)
        for cluster in range(CLEAR + 1, int(frame.labels.max()) + 1):
            chosen = np.flatnonzero(clusters == cluster)
            for first in range(0, len(chosen), LARGEST):
                part = chosen[first : first + LARGEST]
                row, column, place = (
                    torch.from_numpy(each).to(luma.device)
                    for each in (rows[part], columns[part], part)
                )
                blocks = (each[:, row, column].transpose(0, 1) for each in pictures)
                added, tinted = self._backend.apply_tensors(cluster, *blocks)
                residual[place] = added
                colour[:, place] = tinted.transpose(0, 1)
        return residual, colour

    def _sum(
        self, frame: Frame, residual: Tensor, colour: Tensor
    ) -> tuple[tuple[Plane, ...], Picture]:
        """The frame's planes with what the filters add, and as the filters will see them."""
        assert frame.labels is not None, "it was looked at"
        blurred, form = frame.labels != CLEAR, frame.format
        own = self._picture(frame)
        filmed = [self._native(own.luma[0], frame, 0)]
        sums = [added(filmed[0], merged(residual, blurred), blurred, form.depth)]
        for index, part in enumerate(colour[: form.planes - 1], start=1):
            plane = self._native(own.chroma[index - 1], frame, index)
            blocks = merged(part, blurred, stride=2)
            if (form.shift_x, form.shift_y) != (1, 1):
                blocks = enlarged(blocks, blurred, form.shift_x, form.shift_y)
            sums.append(added(plane, blocks, blurred, form.depth))
        kind = np.uint8 if form.depth == 8 else np.uint16
        type_ = torch.uint8 if form.depth == 8 else torch.int32
        planes = tuple(each.to(type_).cpu().numpy().astype(kind, copy=False) for each in sums)
        return planes, self._as_seen(frame, planes, sums)

    def _native(self, seen: Tensor, frame: Frame, index: int) -> Tensor:
        """(h, w): a plane of a frame in its own steps; often that is what the filters see."""
        plane = frame.planes[index]
        if frame.format.depth == 8 and plane.shape == seen.shape:
            return seen
        return self._load(plane)

    def _as_seen(self, frame: Frame, planes: tuple[Plane, ...], sums: Sequence[Tensor]) -> Picture:
        """The restored frame as the filters will see it beside the next one."""
        form = frame.format
        step = 1 << (form.depth - 8)
        luma = (sums[0] / step).round().clamp(max=255)[None]
        if self._colour_frames == 1:
            chroma = luma.new_empty(0)  # nobody looks at it
        elif form.depth == 8 and (form.shift_x, form.shift_y) == (1, 1) and form.planes > 1:
            chroma = torch.stack([*sums[1:]])
        else:
            chroma = self._load(small_chroma(replace(frame, planes=planes)))
        return Picture(luma, chroma)


def laid_over(
    current: Picture, near: Neighbour | None, picture: Picture | None, *, colours: bool
) -> Picture:
    """A neighbour's `picture` as seen from the `current` frame, which stands in for a missing one.

    Without `colours` its chroma is the current one's.
    """
    if near is None or picture is None:
        return current
    luma = laid(near.laying, picture.luma, current.luma)
    if not colours:
        return Picture(luma, current.chroma)
    return Picture(luma, laid(near.laying, picture.chroma, current.chroma, shrunk=2))


def laid(laying: Laying, neighbour: Tensor, current: Tensor, *, shrunk: int = 1) -> Tensor:
    """(C, H, W) -> as `Laying.lay` does it: rounded, `current` shining through at the ends."""
    height, width = current.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=current.device),
        torch.arange(width, dtype=torch.float32, device=current.device),
        indexing="ij",
    )
    if laying.flow is not None:
        across, down = (each / shrunk for each in laying.scale)
        flow = torch.from_numpy(laying.flow).to(current.device).permute(2, 0, 1)
        moved = sampled(flow, (x + 0.5) / across - 0.5, (y + 0.5) / down - 0.5) / shrunk
        x, y = x + moved[0], y + moved[1]
    way = laying.way_between(shrunk)
    depth = way[2, 0] * x + way[2, 1] * y + way[2, 2]
    x, y = ((way[axis, 0] * x + way[axis, 1] * y + way[axis, 2]) / depth for axis in range(2))
    rows, columns = neighbour.shape[1:]
    reached = (x > -NEARLY) & (x < columns - 1 + NEARLY) & (y > -NEARLY) & (y < rows - 1 + NEARLY)
    return torch.where(reached, sampled(neighbour, x, y).round(), current)


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
    grid = Grid(height * stride, width * stride)
    halo = HALO // stride
    below, right = (
        blocks * BLOCK // stride - edge + halo
        for blocks, edge in ((grid.rows, height), (grid.columns, width))
    )
    return functional.pad(pictures[None], (halo, right, halo, below), mode="replicate")[0]


def windows(pictures: Tensor, block: int, halo: int) -> Tensor:
    """(C, h, w), padded -> (C, rows, columns, e, e): blocks with their halos, a view."""
    edge = block + 2 * halo
    return pictures.unfold(1, edge, block).unfold(2, edge, block)


def merged(residuals: Tensor, filtered: NDArray[np.bool_], *, stride: int = 1) -> Tensor:
    """(N, s, s), (rows, columns) -> (N, b, b): as `blocks.merge`; `residuals` is used up."""
    seam = SEAM // stride
    sides = [torch.from_numpy(each).to(residuals.device) for each in neighbours(filtered)]
    above, below, left, right = sides
    weights = torch.from_numpy(fade_weights(seam)).to(residuals.device)
    reach = weights.shape[1]
    residuals[:, :reach] *= weights[above.clamp(max=0)][:, :, None]
    residuals[:, -reach:] *= weights[below.clamp(max=0)].flip(1)[:, :, None]
    residuals[:, :, :reach] *= weights[left.clamp(max=0)][:, None]
    residuals[:, :, -reach:] *= weights[right.clamp(max=0)].flip(1)[:, None]
    first, last = slice(seam, 2 * seam), slice(-2 * seam, -seam)
    across = residuals.transpose(1, 2)
    _lend(across, left, first, slice(-seam, None))
    _lend(across, right, last, slice(0, seam))
    strips = residuals[:, :, seam:-seam]
    _lend(strips, above, first, slice(-seam, None))
    _lend(strips, below, last, slice(0, seam))
    return strips[:, seam:-seam]


def _lend(residuals: Tensor, beside: Tensor, where: slice, source: slice) -> None:
    """As `blocks._lend`, without a look at how many there are: that would wait for the device."""
    lent = residuals[beside.clamp(min=0), source] * (beside >= 0)[:, None, None]
    residuals[:, where] += lent


def added(plane: Tensor, residuals: Tensor, filtered: NDArray[np.bool_], depth: int) -> Tensor:
    """(H, W), (N, h, w) in 8-bit steps -> (H, W): their sum; clear blocks stay as they are."""
    high, wide = residuals.shape[1:]
    rows, columns = filtered.shape
    height, width = plane.shape
    canvas = plane.new_zeros(rows * high, columns * wide)
    canvas[:height, :width] = plane
    blocks = canvas.view(rows, high, columns, wide).transpose(1, 2)
    row, column = (torch.from_numpy(each).to(plane.device) for each in np.nonzero(filtered))
    summed = blocks[row, column] + residuals * float(1 << (depth - 8))
    blocks[row, column] = summed.round().clamp(0, (1 << depth) - 1)
    return canvas[:height, :width]


def enlarged(residuals: Tensor, filtered: NDArray[np.bool_], shift_x: int, shift_y: int) -> Tensor:
    """(N, b, b) of 4:2:0 chroma -> (N, h, w) of chroma of another size: as `filtering.enlarge`."""
    rows, columns = filtered.shape
    high, wide, edge = BLOCK >> shift_y, BLOCK >> shift_x, residuals.shape[-1]
    row, column = (torch.from_numpy(each).to(residuals.device) for each in np.nonzero(filtered))
    whole = residuals.new_zeros(rows, columns, edge, edge)
    whole[row, column] = residuals
    flat = whole.transpose(1, 2).reshape(1, 1, rows * edge, columns * edge)
    large = functional.interpolate(
        flat, size=(rows * high, columns * wide), mode="bilinear", align_corners=False
    )
    return large.view(rows, high, columns, wide).transpose(1, 2)[row, column]
