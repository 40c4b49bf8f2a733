from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.blocks import BLOCK
from vdeblur.frame import Frame, PixelFormat
from vdeblur.overlay import Overlay

HEIGHT, WIDTH = 2 * BLOCK - 7, 3 * BLOCK - 5  # the last row and column are cut off

FORMATS = (
    PixelFormat(),
    PixelFormat(depth=10, shift_y=0),
    PixelFormat(depth=12, shift_x=0, shift_y=0),
    PixelFormat(planes=1),
)


def grey(format: PixelFormat, labels: NDArray[np.uint8] | None) -> Frame:
    """An evenly grey frame, a little darker than the middle."""
    shapes = [(HEIGHT, WIDTH), *[format.chroma_shape(HEIGHT, WIDTH)] * 2][: format.planes]
    level = format.peak * 2 // 5
    planes = tuple(np.full(shape, level, format.dtype) for shape in shapes)
    return Frame(planes, format, pts=0, time_base=Fraction(1, 30), labels=labels)


def paint(frame: Frame) -> Frame:
    (painted,) = Overlay().push(frame)
    return painted


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_clear_blocks_stay_bit_for_bit(format: PixelFormat) -> None:
    labels = np.array([[0, 1, 0], [2, 0, 3]], np.uint8)
    frame = grey(format, labels)
    painted = paint(frame)
    for index, (before, after) in enumerate(zip(frame.planes, painted.planes, strict=True)):
        high = BLOCK >> (format.shift_y if index else 0)
        wide = BLOCK >> (format.shift_x if index else 0)
        for row, column in np.argwhere(labels == 0):
            place = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            assert (before[place] == after[place]).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_filtered_blocks_show_a_border_and_their_colour(format: PixelFormat) -> None:
    frame = grey(format, np.array([[0, 1, 0], [2, 0, 3]], np.uint8))
    painted = paint(frame)
    luma = painted.planes[0]
    assert luma[0, BLOCK + 5] != luma[5, BLOCK + 5] == frame.planes[0][5, BLOCK + 5]
    assert luma[-1, -5] != frame.planes[0][-1, -5]  # the cut-off block has its border, too
    assert {plane.dtype for plane in painted.planes} == {format.dtype}
    if format.planes == 3:
        y, x = 5 >> format.shift_y, 5 >> format.shift_x
        high, wide = BLOCK >> format.shift_y, BLOCK >> format.shift_x
        places = ((y, x), (y, wide + x), (high + y, x), (high + y, 2 * wide + x))
        colours = {tuple(int(plane[place]) for plane in painted.planes[1:]) for place in places}
        assert len(colours) == 4  # clear and three clusters, all different


def test_the_frame_that_came_in_is_not_written() -> None:
    frame = grey(PixelFormat(), np.ones((2, 3), np.uint8))
    paint(frame)
    assert all(len(np.unique(plane)) == 1 for plane in frame.planes)


@pytest.mark.parametrize("labels", [None, np.zeros((2, 3), np.uint8)])
def test_without_filtered_blocks_the_frame_itself_comes_back(
    labels: NDArray[np.uint8] | None,
) -> None:
    frame = grey(PixelFormat(), labels)
    assert paint(frame) is frame


def test_extremes_do_not_wrap_around() -> None:
    frame = grey(PixelFormat(), np.full((2, 3), 6, np.uint8))
    white = replace(frame, planes=tuple(np.full_like(plane, 255) for plane in frame.planes))
    assert (paint(white).planes[0][0] == 255 - 128).all()


def test_nothing_is_held_back() -> None:
    assert Overlay().flush() == []
