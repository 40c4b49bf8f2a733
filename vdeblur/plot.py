"""Draw a camera's path as it was filmed and as it is shown, over time."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import SinkError
from .motionfile import CameraPath, refuse_existing, trajectory

WIDTH, PANEL = 1200, 220
"""px of the picture, and the height of one curve's panel."""
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 34, 30
"""px around a panel's curves."""
FILMED, STEADY, INK, GRID = (60, 60, 220), (190, 110, 20), (40, 40, 40), (225, 225, 225)
"""Blue, green, red."""
FONT, SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
NAMES = ("x [px]", "y [px]", "roll [deg]", "zoom [log2]")

Picture = NDArray[np.uint8]


def plot(path: CameraPath, sink: Path, *, overwrite: bool = False) -> None:
    """Write a PNG with four curves: x, y, roll and zoom, as filmed and as shown."""
    refuse_existing(sink, overwrite=overwrite)
    good, data = cv2.imencode(".png", drawing(path))
    assert good, "OpenCV writes every 8-bit picture as PNG"
    partial = sink.with_name(f".{sink.name}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(sink)
    except OSError as error:
        raise SinkError(f"cannot write {sink}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def drawing(path: CameraPath) -> Picture:
    """(H, W, 3) BGR."""
    times = np.array([float(record.pts * path.time_base) for record in path.records])
    filmed, steady = (trajectory(path, steady=which) for which in (False, True))
    cuts = [index for index, record in enumerate(path.records) if index and record.motion.cut]
    panels = [
        _panel(name, Axes.of(times, np.concatenate([filmed[:, k], steady[:, k]])),
               filmed[:, k], steady[:, k], cuts)
        for k, name in enumerate(NAMES)
    ]  # fmt: skip
    return np.vstack(panels)


@dataclass(frozen=True, slots=True)
class Axes:
    """From times and values to the pixels of a panel."""

    times: NDArray[np.float64]
    low: float
    high: float

    @staticmethod
    def of(times: NDArray[np.float64], values: NDArray[np.float64]) -> "Axes":
        """Such that all values fit in."""
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        room = max(0.05 * (high - low), 0.01)
        return Axes(times, low - room, high + room)

    def x(self, time: float) -> float:
        """px."""
        start, end = float(self.times.min(initial=0)), float(self.times.max(initial=0))
        return LEFT + (WIDTH - LEFT - RIGHT) * (time - start) / max(end - start, 1e-6)

    def y(self, value: float) -> float:
        """px."""
        return TOP + (PANEL - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)


def _panel(
    name: str,
    axes: Axes,
    filmed: NDArray[np.float64],
    steady: NDArray[np.float64],
    cuts: list[int],
) -> Picture:
    picture = np.full((PANEL, WIDTH, 3), 255, np.uint8)
    for value in _ticks(axes.low, axes.high):
        _line(picture, (LEFT, axes.y(value)), (WIDTH - RIGHT, axes.y(value)), GRID)
        _text(picture, f"{value:g}", 8, axes.y(value) + 4)
    for time in _ticks(float(axes.times.min(initial=0)), float(axes.times.max(initial=0)), 10):
        _line(picture, (axes.x(time), TOP), (axes.x(time), PANEL - BOTTOM), GRID)
        _text(picture, f"{time:g} s", axes.x(time) - 10, PANEL - 10)
    for index in cuts:
        at = axes.x(float(axes.times[index]))
        _line(picture, (at, TOP), (at, PANEL - BOTTOM), INK)
    _text(picture, name, LEFT, 22)
    _text(picture, "as filmed", LEFT + 160, 22, FILMED)
    _text(picture, "as shown", LEFT + 260, 22, STEADY)
    for values, colour in ((filmed, FILMED), (steady, STEADY)):
        for scene in np.split(np.arange(len(values)), cuts):
            _curve(picture, axes, scene, values, colour)
    return picture


def _curve(
    picture: Picture,
    axes: Axes,
    scene: NDArray[np.int_],
    values: NDArray[np.float64],
    colour: tuple[int, int, int],
) -> None:
    places = [(axes.x(float(axes.times[i])), axes.y(float(values[i]))) for i in scene]
    points = np.rint(np.array(places) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(picture, [points], False, colour, 1, cv2.LINE_AA, shift=4)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(k for k in (1, 2, 5, 10) if k * power >= rough) * power)
    return [round(k * step, 10) for k in range(int(np.ceil(low / step)), int(high // step) + 1)]


def _line(
    picture: Picture,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: tuple[int, int, int],
) -> None:
    cv2.line(picture, (round(start[0]), round(start[1])), (round(end[0]), round(end[1])), colour)


def _text(
    picture: Picture, text: str, x: float, y: float, colour: tuple[int, int, int] = INK
) -> None:
    cv2.putText(picture, text, (round(x), round(y)), FONT, SIZE, colour, 1, cv2.LINE_AA)
