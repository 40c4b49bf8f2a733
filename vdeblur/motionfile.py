"""A camera's path as a text file: written after a run, edited by hand, obeyed by another run.

JSON with one line a frame:

    {"vdeblur": "path", "version": 1, "width": 1280, "height": 720, "time_base": "1/30",
     "frames": [
      {"pts": 0, "motion": [1, 0, 0, 0, 1, 0], "confidence": 0, "cut": true,
       "correction": {"x": 0, "y": 0, "roll": 0, "zoom": 1}},
      ...]}

`motion` takes (x, y, 1) of the frame before to this one, row by row. Where there is a `homography`
(3 x 3), it is the same motion more exactly, and what deblurring goes by; without one it goes by
`motion`. `skew` is what a rolling shutter adds; `local` says, where `--motion mesh` looked, by how
much more the picture moved near each node of a mesh (x and y in px, row by row). `correction` moves
the frame about its middle: x right and y down in px of `width` x `height`, roll in degrees
(clockwise as seen), zoom as a factor. A frame whose correction is null or missing is smoothed as
usual, from its motion. What else an object holds is not looked at.
"""

import json
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import cos, degrees, exp, isfinite, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SinkError, SourceError
from .frame import Frame, Motion
from .mesh import NODES
from .similarity import Similarity
from .sway import Complex

VERSION = 1
"""Of the format; a file of a later one is refused."""

ROUNDING = Fraction(1, 1000)
"""s: so much a time may change when a video is copied into another container."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one frame's motion and of what was done about it."""

    pts: int
    motion: Motion
    correction: Similarity | None = None
    """In pixels of the frame; None leaves it to the stabiliser."""


@dataclass(frozen=True, slots=True)
class CameraPath:
    """The records of a video."""

    width: int
    height: int
    time_base: Fraction
    records: Sequence[Record] = field(default_factory=tuple)

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write it; it appears under its name when it is complete."""
        head = {
            "vdeblur": "path",
            "version": VERSION,
            "width": self.width,
            "height": self.height,
            "time_base": str(self.time_base),
        }
        lines = ",\n  ".join(json.dumps(_as_text(record)) for record in self.records)
        text = json.dumps(head)[:-1] + ', "frames": [\n  ' + lines + "\n]}\n"
        partial = path.with_name(f".{path.name}.partial")
        try:
            refuse_existing(path, overwrite=overwrite)
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            raise SinkError(f"cannot write {path}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path) -> "CameraPath":
        """Read it back."""
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"cannot read {path}: {_reason(error)}") from error
        try:
            return _parsed(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise SourceError(f"{path} is no path of a camera: {_reason(error)}") from error

    def scaled(self, width: int, height: int) -> "CameraPath":
        """The same for frames of another size, as those of a proxy."""
        factor = width / self.width
        if abs(height / self.height - factor) > 0.02 * factor:
            raise SourceError(
                f"the path is of a {self.width}x{self.height} video, this one has {width}x{height}"
            )
        records = tuple(_scaled(record, factor) for record in self.records)
        return CameraPath(width, height, self.time_base, records)


class PathRecorder:
    """A stage that lets frames pass and keeps what they say of the camera's path."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._first: Frame | None = None

    def push(self, frame: Frame) -> list[Frame]:
        """Return the frame at once."""
        self._first = self._first or replace(frame, attachment=None)
        correction = Similarity()
        if frame.correction is not None:
            correction = Similarity.of(frame.correction, frame.width, frame.height)
        motion = frame.motion or Motion.none()
        self._records.append(Record(frame.pts, motion, correction))
        return [frame]

    def flush(self) -> list[Frame]:
        """Nothing was held back."""
        return []

    @property
    def path(self) -> CameraPath:
        """Of all frames so far."""
        if self._first is None:
            raise ValueError("no frame has passed")
        first = self._first
        return CameraPath(first.width, first.height, first.time_base, tuple(self._records))


class KnownMotion:
    """A stage that gives each frame the motion and the correction that a file has for its time."""

    def __init__(self, path: CameraPath, name: str = "the path") -> None:
        self._path, self._name = path, name
        self._times = sorted(record.pts * path.time_base for record in path.records)
        self._scaled: tuple[tuple[int, int], Mapping[Fraction, Record]] | None = None

    def push(self, frame: Frame) -> list[Frame]:
        """Return the frame at once."""
        record = self._of_size(frame.width, frame.height).get(self._nearest(frame.time))
        if record is None:
            raise SourceError(f"{self._name} has no frame at {float(frame.time):.3f} s")
        correction = record.correction
        matrix = None if correction is None else correction.matrix(frame.width, frame.height)
        return [replace(frame, motion=record.motion, correction=matrix)]

    def flush(self) -> list[Frame]:
        """Nothing was held back."""
        return []

    def _nearest(self, time: Fraction) -> Fraction:
        """The recorded time that `time` is, but for another time base's rounding."""
        at = bisect(self._times, time)
        near = min(self._times[max(0, at - 1) : at + 1], key=lambda t: abs(t - time), default=time)
        return near if abs(near - time) <= ROUNDING else time

    def _of_size(self, width: int, height: int) -> Mapping[Fraction, Record]:
        if self._scaled is None or self._scaled[0] != (width, height):
            path = self._path.scaled(width, height)
            by_time = {record.pts * path.time_base: record for record in path.records}
            self._scaled = ((width, height), by_time)
        return self._scaled[1]


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise where something would be replaced unasked, or where there is no folder for it."""
    if path.exists() and not overwrite:
        raise SinkError(f"{path} exists already: choose another name, or overwrite it")
    if not path.parent.is_dir():
        raise SinkError(f"the folder {path.parent} does not exist")


def trajectory(path: CameraPath, *, steady: bool) -> NDArray[np.float64]:
    """(frames, 4): where the camera looks, x and y in px, its roll in degrees, its zoom's log2.

    As filmed, or `steady`: as the output shows it. A scene begins at 0; (frames, 4) are NaN at
    none.
    """
    rows, pose = [], Similarity()
    for record in path.records:
        if record.motion.cut:
            pose = Similarity()
        else:
            pose = Similarity.of(record.motion.transform, path.width, path.height) @ pose
        shown = (record.correction or Similarity()) @ pose if steady else pose
        place, turn = shown.inverse.shift, shown.inverse.log_turn
        rows.append((place.real, place.imag, degrees(turn.imag), -turn.real / np.log(2)))
    return np.array(rows, np.float64).reshape(-1, 4)


def _as_text(record: Record) -> dict[str, Any]:
    motion = record.motion
    said: dict[str, Any] = {
        "pts": record.pts,
        "motion": [round(float(value), 9) for value in motion.transform.ravel()],
        "confidence": round(motion.confidence, 4),
    }
    if motion.cut:
        said["cut"] = True
    if motion.duplicate:
        said["duplicate"] = True
    if motion.skew:
        said["skew"] = [round(motion.skew.real, 9), round(motion.skew.imag, 9)]
    if motion.homography is not None:
        said["homography"] = [round(float(value), 12) for value in motion.homography.ravel()]
    if motion.local is not None:
        parts = np.stack([motion.local.real, motion.local.imag], axis=-1)
        said["local"] = [round(float(value), 3) for value in parts.ravel()]
    said["correction"] = None
    if (correction := record.correction) is not None:
        turn = correction.log_turn
        said["correction"] = {
            "x": round(correction.shift.real, 5),
            "y": round(correction.shift.imag, 5),
            "roll": round(degrees(turn.imag), 7),
            "zoom": round(exp(turn.real), 9),
        }
    return said


def _parsed(said: Mapping[str, Any]) -> CameraPath:
    if said.get("vdeblur") != "path":
        raise ValueError('it does not begin with "vdeblur": "path"')
    if said.get("version") != VERSION:
        raise ValueError(f"its version is {said.get('version')}, known is {VERSION}")
    width, height = int(said["width"]), int(said["height"])
    time_base = Fraction(said["time_base"])
    if width < 1 or height < 1 or time_base <= 0:
        raise ValueError("width, height and time_base must be above 0")
    return CameraPath(width, height, time_base, tuple(_records(said["frames"], width, height)))


def _records(frames: Iterable[Mapping[str, Any]], width: int, height: int) -> Iterable[Record]:
    for said in frames:
        pts = said["pts"]
        if not isinstance(pts, int):
            raise ValueError(f"pts must be a whole number, got {pts!r}")
        transform = np.reshape(_numbers(said["motion"], 6, pts), (2, 3))
        homography = None
        if (numbers := said.get("homography")) is not None:
            homography = np.reshape(_numbers(numbers, 9, pts), (3, 3))
        for way in (np.vstack([transform, [0, 0, 1]]), homography):
            if way is not None and not _possible(way, width, height):
                raise ValueError(f"no camera moves like that at pts {pts}: {way.tolist()}")
        motion = Motion(
            transform,
            confidence=_numbers([said.get("confidence", 1.0)], 1, pts)[0],
            cut=bool(said.get("cut", False)),
            duplicate=bool(said.get("duplicate", False)),
            skew=complex(*_numbers(said.get("skew", (0, 0)), 2, pts)),
            homography=homography,
            local=_local(said.get("local"), pts),
        )
        yield Record(pts, motion, _correction(said.get("correction"), pts))


def _possible(way: NDArray[np.float64], width: int, height: int) -> bool:
    """Whether a (3, 3) motion leaves the frame's corners in front of the camera, in their order."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1.0]])
    moved = corners @ way.T
    if not (moved[:, 2] > 1e-3).all():
        return False
    x, y = (moved[:, :2] / moved[:, 2:]).T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    return bool(area > 1e-3 * width * height)


def _local(said: Iterable[Any] | None, pts: int) -> Complex | None:
    if said is None:
        return None
    parts = np.reshape(_numbers(said, 2 * NODES * NODES, pts), (NODES, NODES, 2))
    return np.asarray(parts[..., 0] + 1j * parts[..., 1])


def _correction(said: Mapping[str, Any] | None, pts: int) -> Similarity | None:
    if said is None:
        return None
    names = ("x", 0), ("y", 0), ("roll", 0), ("zoom", 1)
    x, y, roll, zoom = _numbers([said.get(name, default) for name, default in names], 4, pts)
    if not 0.05 <= zoom <= 20:
        raise ValueError(f"zoom must be 0.05..20, got {zoom} at pts {pts}")
    angle = radians(roll)
    return Similarity(zoom * complex(cos(angle), sin(angle)), complex(x, y))


def _numbers(values: Iterable[Any], count: int, pts: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(isfinite(number) for number in numbers):
        raise ValueError(f"{count} finite numbers are needed, got {values} at pts {pts}")
    return numbers


def _scaled(record: Record, factor: float) -> Record:
    transform = record.motion.transform.copy()
    # Pixels' centres have whole coordinates: the frame's corner lies half a pixel off 0.
    offset = (factor - 1) / 2
    transform[:, 2] = factor * transform[:, 2] + offset - offset * transform[:, :2].sum(axis=1)
    homography = record.motion.homography
    if homography is not None:
        enlarging = np.array([[factor, 0, offset], [0, factor, offset], [0, 0, 1]])
        homography = enlarging @ homography @ np.linalg.inv(enlarging)
    correction = record.correction
    if correction is not None:
        correction = Similarity(correction.turn, correction.shift * factor)
    local = None if record.motion.local is None else factor * record.motion.local
    motion = replace(record.motion, transform=transform, homography=homography, local=local)
    return Record(record.pts, motion, correction)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
