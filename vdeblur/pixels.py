"""Between PyAV's pictures and the planes of a `Frame`, without a copy where that is possible."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from .frame import PixelFormat, Plane

FULL_RANGE = int(ColorRange.JPEG)
LIMITED_RANGE = int(ColorRange.MPEG)
BT709 = 1
"""The number of this matrix in H.273, which FFmpeg and all codecs use."""

_PACKED = {3: "bgr24", 4: "bgra"}
"""FFmpeg's names of packed pictures, by their channels."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What becomes of a native pixel format: planar, little-endian, without alpha."""

    name: str
    """FFmpeg's name of the planar format that the frames get."""
    format: PixelFormat
    full_range: bool = False
    """The native name says full range (yuvj420p and its kin)."""
    from_rgb: bool = False
    """RGB or a palette: the matrix is chosen by us."""
    alpha: bool = False
    """There was an alpha channel; it is lost."""


@cache
def layout_of(native: str) -> Layout:
    """Say how pictures of the pixel format `native` are handed on."""
    known = av.VideoFormat(native, 64, 64)
    from_rgb = known.is_rgb or known.has_palette or known.is_bayer or native.startswith("xyz")
    grey = not from_rgb and sum(not part.is_alpha for part in known.components) < 3
    depth = min(16, max([8, *(part.bits for part in known.components)]))
    if from_rgb or grey:
        shift_x = shift_y = 0
    else:
        shift_x = int(math.log2(64 // known.chroma_width()))
        shift_y = int(math.log2(64 // known.chroma_height()))
    format = _existing(PixelFormat(depth, shift_x, shift_y, 1 if grey else 3))
    alpha = any(part.is_alpha for part in known.components)
    return Layout(name_of(format), format, native.startswith("yuvj"), from_rgb, alpha)


def name_of(format: PixelFormat) -> str:
    """Give FFmpeg's name of a planar format."""
    suffix = "" if format.depth == 8 else f"{format.depth}le"
    if format.planes == 1:
        return f"gray{suffix}"
    sampling = {(0, 0): 444, (1, 0): 422, (1, 1): 420, (0, 1): 440, (2, 0): 411, (2, 2): 410}
    return f"yuv{sampling[format.shift_x, format.shift_y]}p{suffix}"


def _existing(format: PixelFormat) -> PixelFormat:
    """Return `format`, or the next deeper one that FFmpeg has."""
    for depth in range(format.depth, 17):
        deeper = PixelFormat(depth, format.shift_x, format.shift_y, format.planes)
        try:
            av.VideoFormat(name_of(deeper))
        except (ValueError, KeyError):
            continue
        return deeper
    return PixelFormat(16, 0, 0, format.planes)


def normalise(picture: av.VideoFrame, layout: Layout, *, width: int, height: int) -> av.VideoFrame:
    """Convert a decoded picture to `layout` and size; most come back as they are."""
    # The old names for full range keep the scaler from squeezing it into the limited one.
    name = layout.name.replace("yuv", "yuvj", 1) if layout.full_range else layout.name
    if picture.format.name == name and (picture.width, picture.height) == (width, height):
        return picture
    if layout_of(picture.format.name).from_rgb:
        return picture.reformat(
            width=width,
            height=height,
            format=layout.name,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
    return picture.reformat(width=width, height=height, format=name)


def views(picture: av.VideoFrame, format: PixelFormat) -> tuple[Plane, ...]:
    """Look at the planes of `picture`; the views keep it alive. (H, W) each."""
    chroma = format.chroma_shape(picture.height, picture.width)
    shapes = [(picture.height, picture.width), chroma, chroma][: format.planes]
    return tuple(
        _view(plane, format.dtype, shape)
        for plane, shape in zip(picture.planes, shapes, strict=True)
    )


def _view(
    plane: av.video.plane.VideoPlane, dtype: np.dtype[np.generic], shape: tuple[int, int]
) -> Plane:
    height, width = shape
    rows: Plane = np.frombuffer(memoryview(plane), dtype).reshape(height, -1)
    if plane.line_size < 0:
        rows = rows[::-1]
    return rows[:, :width]


def from_packed(picture: Plane) -> tuple[Plane, ...]:
    """(H, W, 3) BGR or (H, W, 4) BGRA, uint8 -> Y, U, V as a reader of RGB has them.

    `picture` is contiguous; its alpha is left out.
    """
    layout = layout_of("bgr24")
    packed = av.VideoFrame.from_numpy_buffer(picture, format=_PACKED[picture.shape[2]])
    return views(normalise(packed, layout, width=packed.width, height=packed.height), layout.format)


def to_bgr(planes: tuple[Plane, ...], format: PixelFormat, *, matrix: int, range: int) -> Plane:
    """Planes -> (H, W, 3) BGR, uint8; where nothing is said of colours, the usual is taken."""
    picture = picture_of(planes, format)
    unsaid = 1 if picture.height >= 720 else 6  # H.273: BT.709, BT.601
    picture.colorspace = unsaid if matrix in (0, 2) else matrix
    picture.color_range = range or LIMITED_RANGE
    return picture.reformat(format="bgr24").to_ndarray()


def picture_of(planes: tuple[Plane, ...], format: PixelFormat) -> av.VideoFrame:
    """Copy planes into a new picture."""
    height, width = planes[0].shape
    picture = av.VideoFrame(width, height, name_of(format))
    fill(picture, planes, format)
    return picture


def fill(picture: av.VideoFrame, planes: tuple[Plane, ...], format: PixelFormat) -> None:
    """Overwrite the samples of `picture`."""
    for view, plane in zip(views(picture, format), planes, strict=True):
        np.copyto(view, plane)


def nearest(
    wanted: PixelFormat, names: Iterable[str], *, width: int, height: int, whole_chroma: bool
) -> str | None:
    """Choose among the pixel formats `names` of an encoder the one that loses least.

    With `whole_chroma` the size must be a multiple of the chroma subsampling. `None` if none fits.
    """
    usable = [
        name
        for name in names
        if av.VideoFormat(name).components  # else it lives on a GPU
        and not av.VideoFormat(name).has_palette
        and not name.startswith("yuvj")
        and not (whole_chroma and _uneven(layout_of(name).format, width, height))
    ]
    return min(usable, key=lambda name: (_loss(wanted, name), name), default=None)


def _uneven(format: PixelFormat, width: int, height: int) -> bool:
    """Tell whether the chroma planes would need half a sample at the edge."""
    return bool(width % (1 << format.shift_x) or height % (1 << format.shift_y))


def _loss(wanted: PixelFormat, name: str) -> tuple[int, ...]:
    """Order pixel formats: first what is lost, then what is wasted."""
    layout = layout_of(name)
    have = layout.format
    coarser_x, coarser_y = have.shift_x - wanted.shift_x, have.shift_y - wanted.shift_y
    if wanted.planes == 1:  # there is no chroma to lose, and the less is stored the better
        coarser_x, coarser_y = min(0, -coarser_x), min(0, -coarser_y)
    return (
        max(0, wanted.planes - have.planes),
        max(0, coarser_x) + max(0, coarser_y),
        max(0, wanted.depth - have.depth),
        layout.from_rgb,
        layout.alpha,
        max(0, 3 * wanted.depth - av.VideoFormat(name).bits_per_pixel) if layout.from_rgb else 0,
        max(0, have.planes - wanted.planes),
        max(0, -coarser_x) + max(0, -coarser_y) if wanted.planes == 3 else coarser_x + coarser_y,
        max(0, have.depth - wanted.depth),
        name != layout.name,
    )
