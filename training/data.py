"""Make the training clips: short shaky videos with the truth for every frame.

Each clip goes the way of a real one: light gathered along a hand-held trajectory, moving
foregrounds, highlights that clip, noise before gamma, YUV 4:2:0, H.264, and the runtime's own
motion estimate on what the decoder gives back.
"""

import io
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import SinkError, SourceError
from vdeblur.frame import Frame, Motion, PixelFormat
from vdeblur.motion import MotionEstimator
from vdeblur.render import Camera, Layer, Shake, add_noise, expose, hand_shake, to_linear, to_srgb

from .defocus import random_defocus

Bytes = NDArray[np.uint8]
CELL = 16
"""Edge in pixels of the cells for which the blur length is stored."""
PHOTOS = {".jpg", ".jpeg", ".png"}
"""Endings of the pictures that are trained on."""


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """How the clips of a recipe are made; ranges are (low, high)."""

    size: int = 288
    """Edge of the square frames in pixels."""
    frames: int = 7
    sharp_share: float = 0.2
    """Clips whose blur stays under a pixel."""
    blur: tuple[float, float] = (1.2, 28.0)
    """Mean length of the streaks in a blurred clip, in pixels, log-uniform."""
    shutter: tuple[float, float] = (0.25, 1.0)
    """Share of the frame interval."""
    foreground_share: float = 0.4
    defocus_share: float = 0.3
    """Clips that are out of focus, the truth as well."""
    crf: tuple[float, float] = (10.0, 27.0)
    noise: tuple[float, float] = (1e-6, 8e-4)
    """Shot noise's variance per unit of linear light, log-uniform."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded clip, its truth and what the runtime would know about it."""

    luma: Bytes
    """(T, S, S)."""
    chroma: Bytes
    """(T, 2, S/2, S/2)."""
    sharp_luma: Bytes
    sharp_chroma: Bytes
    motions: NDArray[np.float64]
    """(T, 3, 3): the runtime's estimate of each frame's motion, a homography."""
    confidence: NDArray[np.float64]
    """(T,)."""
    blur: NDArray[np.float32]
    """(T, S/16, S/16): streak length in pixels."""
    vector: NDArray[np.float32]
    """(T, S/16, S/16, 2): from the streak's beginning to its end, x and y in pixels."""
    views: NDArray[np.float64]
    """(T, 3, 3): from frame pixels to the picture's, at mid-exposure."""
    restored: Bytes
    """(T, S, S): the luma as the model that learns last restored it; at first as it is."""
    restored_chroma: Bytes
    """(T, 2, S/2, S/2): the same of the chroma."""
    first: Bytes | None = None
    """(T, S, S): the luma as a first stage restored it, where the model is a second one."""
    first_chroma: Bytes | None = None
    """(T, 2, S/2, S/2): the same of the chroma."""

    def save(self, path: Path) -> None:
        """Write all but what was restored to `path`, complete or not at all."""
        partial = path.with_suffix(".part.npz")
        with complete(path, partial):
            np.savez(partial, **{name: getattr(self, name) for name in RENDERED})
            for kind in (RESTORED, FIRST):  # those of another clip, which was here before
                _beside(path, kind).unlink(missing_ok=True)

    @staticmethod
    def load(path: Path) -> "Clip":
        """Read what `save` and `keep` wrote; SourceError if an older version did, or for damage."""
        rendered = _mapped(path)
        if missing := set(RENDERED) - set(rendered):
            raise SourceError(f"{path} is of an older version (no {min(missing)}): remove it")
        filmed = {"restored": rendered["luma"], "restored_chroma": rendered["chroma"]}
        first = _mapped(kept) if (kept := _beside(path, FIRST)).exists() else {}
        restored = filmed if not first else dict(zip(RESTORED, first.values(), strict=True))
        if (kept := _beside(path, RESTORED)).exists():
            restored = _mapped(kept)
        return Clip(**rendered, **restored, **first)


@contextmanager
def complete(path: Path, partial: Path) -> Iterator[None]:
    """Give what is written to `partial` its name; SinkError if it cannot be written."""
    try:
        yield
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SinkError(f"cannot write {path}: {error.strerror}") from error


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file of the pool; SourceError if it is damaged."""
    try:
        return _arrays(path)
    except (zipfile.BadZipFile, ValueError, EOFError, struct.error) as error:
        raise SourceError(
            f"{path} is damaged ({error}): remove it, and the same command makes it anew"
        ) from error


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that `numpy.savez` wrote; of each only what is looked at is read.

    A patch needs three frames of a clip: to read all and to check its sums cost more than to align
    them. What is written to the arrays does not reach the file.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                assert version == (1, 0), "numpy.savez writes short headers so"
                shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
                begin = file.tell()
            assert member.compress_type == zipfile.ZIP_STORED
            assert not fortran
            offset = _data_of(path, member) + begin
            mapped = np.memmap(path, kind, "c", offset, shape)
            arrays[member.filename.removesuffix(".npy")] = np.asarray(mapped)
    return arrays


def _data_of(path: Path, member: zipfile.ZipInfo) -> int:
    """Where in the file a member's bytes begin (APPNOTE.TXT, 4.3.7: the local file header)."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(member.header_offset) + 30 + int(name) + int(extra)


RESTORED = ("restored", "restored_chroma")
FIRST = ("first", "first_chroma")
RENDERED = tuple(name for name in Clip.__slots__ if name not in (*RESTORED, *FIRST))


def keep(luma: Bytes, chroma: Bytes, path: Path, kind: tuple[str, str] = RESTORED) -> None:
    """Write the clip that was saved to `path` as it was restored, complete or not at all.

    `FIRST` is for what a first stage made of it.
    """
    partial = path.with_suffix(f".{kind[0]}.part.npz")
    shown: dict[str, Any] = dict(zip(kind, (luma, chroma), strict=True))
    with complete(_beside(path, kind), partial):
        np.savez(partial, **shown)


def _beside(path: Path, kind: tuple[str, str]) -> Path:
    return path.with_suffix(f".{kind[0]}.npz")


def clips_in(pool: Path, *, previewed: bool = False) -> list[Path]:
    """The files of a pool's clips; if `previewed`, of those that a first stage has restored."""
    files = sorted(pool.glob("*[0-9].npz"))
    return [path for path in files if not previewed or _beside(path, FIRST).exists()]


def photos_in(folder: Path, held_out: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """All pictures of `folder` as (training, held out); SourceError if there are none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PHOTOS)
    if not found:
        raise SourceError(f"{folder} holds no .jpg or .png pictures to train on")
    return (
        [path for path in found if path.stem not in held_out],
        [path for path in found if path.stem in held_out],
    )


def held_out_in(folder: Path, held_out: Sequence[str]) -> list[Path]:
    """The pictures of `folder` that are held out; SourceError if there are none."""
    _, found = photos_in(folder, held_out)
    if not found:
        example = f", e.g. {held_out[0]}" if held_out else ": the recipe names none"
        raise SourceError(f"{folder} holds none of the held-out pictures{example}")
    return found


def fill_pool(
    photos: Sequence[Path], config: ClipConfig, seed: int, pool: Path, indices: Sequence[int]
) -> None:
    """Render the clips `indices` of `seed` into `pool`, except those that are there already."""
    cv2.setNumThreads(1)
    pool.mkdir(parents=True, exist_ok=True)
    for index in indices:
        path = pool / f"{seed}-{index:05d}.npz"
        if not path.exists():
            make_clip(photos, config, np.random.default_rng([seed, index])).save(path)


def make_clip(photos: Sequence[Path], config: ClipConfig, rng: np.random.Generator) -> Clip:
    """One clip of a random photo, camera, shake, foreground, noise and compression."""
    picture = _picture(photos, config, rng)
    camera = Camera(config.size, config.size, focal=float(rng.uniform(450, 1300)))
    length = _length(config, rng)
    # A short shutter with a long streak would leave neighbours that hardly overlap.
    shutter = max(float(rng.uniform(*config.shutter)), min(1.0, length / 48))
    rate = float(rng.choice([24.0, 25.0, 30.0, 30.0, 60.0]))
    shake = _shake(config.frames / rate, length * rate / (shutter * camera.focal), rng)
    layers = _layers(photos, config, length * rate / shutter, rng)
    exposures = [
        expose(picture, camera, shake, t / rate, shutter=shutter / rate, layers=layers)
        for t in range(config.frames)
    ]
    if (aside := rng.spawn(1)[0]).random() < config.defocus_share:
        lens = random_defocus(config.size, aside)
        exposures = [
            replace(each, blurred=lens.of(each.blurred), sharp=lens.of(each.sharp))
            for each in exposures
        ]
    shot = float(np.exp(rng.uniform(*np.log(config.noise))))
    read = float(np.exp(rng.uniform(np.log(1e-4), np.log(3e-3))))
    noisy = [to_srgb(add_noise(each.blurred, rng, shot=shot, read=read)) for each in exposures]
    crf = float(rng.uniform(*config.crf))
    luma, chroma = compress([to_yuv(each) for each in noisy], crf)
    sharp = [split_yuv(to_yuv(to_srgb(each.sharp))) for each in exposures]
    motions = _estimate(luma)
    centres = np.arange(CELL / 2, config.size, CELL)
    points = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    cells = len(centres)
    return Clip(
        luma=luma,
        chroma=chroma,
        sharp_luma=np.stack([y for y, _ in sharp]),
        sharp_chroma=np.stack([uv for _, uv in sharp]),
        motions=np.stack([each.way for each in motions]),
        confidence=np.array([0.0 if each.cut else each.confidence for each in motions]),
        blur=np.stack([e.blur_length(points).reshape(cells, cells) for e in exposures]).astype(
            np.float32
        ),
        vector=np.stack([e.blur_vector(points).reshape(cells, cells, 2) for e in exposures]).astype(
            np.float32
        ),
        views=np.stack([e.view for e in exposures]),
        restored=luma,
        restored_chroma=chroma,
    )


def _picture(
    photos: Sequence[Path], config: ClipConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A random part of a random photo at a random scale, linear light, some highlights boosted."""
    picture = _drawn(photos, rng)
    scale = max(rng.uniform(0.45, 1.0), 1.15 * config.size / min(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    region = min(int(config.size * 2.2), *picture.shape[:2])
    top = int(rng.integers(picture.shape[0] - region + 1))
    left = int(rng.integers(picture.shape[1] - region + 1))
    light = to_linear(np.ascontiguousarray(picture[top : top + region, left : left + region]))
    light = light * np.float32(rng.uniform(0.5, 1.05))
    if rng.random() < 0.35:
        bright = np.clip((light - 0.6) / 0.4, 0, 1)
        light = light * (1 + bright * np.float32(rng.uniform(0.5, 5)))
    if rng.random() < 0.25:
        cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.3, 0.7)), dst=light)
    return light


def _drawn(photos: Sequence[Path], rng: np.random.Generator) -> NDArray[Any]:
    """(H, W, 3) BGR: a random photo; SourceError if it cannot be read."""
    path = photos[int(rng.integers(len(photos)))]
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SourceError(f"cannot read the picture {path}")
    return picture


def _length(config: ClipConfig, rng: np.random.Generator) -> float:
    """The mean length of a clip's streaks in pixels."""
    if rng.random() < config.sharp_share:
        return float(rng.uniform(0, 0.8))
    return float(np.exp(rng.uniform(*np.log(config.blur))))


def _shake(seconds: float, speed: float, rng: np.random.Generator) -> Shake:
    """A trajectory of the given mean speed in radians a second."""
    unit = hand_shake(
        rng,
        amplitude=0.01,
        roll=float(rng.uniform(0.1, 1.0)),
        drift=float(rng.choice([0.0, 0.05, 0.15])),
    )
    times = np.linspace(0, seconds, 200)
    unit_speed = np.linalg.norm(np.gradient(unit.angles(times), times, axis=0)[:, :2], axis=1)
    factor = speed / float(unit_speed.mean())
    return Shake(
        unit.frequencies, unit.amplitudes * factor, unit.phases, unit.drift * factor, seconds / 2
    )


def _layers(
    photos: Sequence[Path], config: ClipConfig, speed: float, rng: np.random.Generator
) -> list[Layer]:
    """None, one or two cut-outs of other photos with soft outlines and speeds of their own."""
    if rng.random() >= config.foreground_share:
        return []
    return [_layer(photos, config, speed, rng) for _ in range(int(rng.integers(1, 3)))]


def _layer(
    photos: Sequence[Path], config: ClipConfig, speed: float, rng: np.random.Generator
) -> Layer:
    edge = int(config.size * rng.uniform(0.25, 0.7))
    picture = _drawn(photos, rng)
    picture = cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    edge = min(edge, *picture.shape[:2])
    top = int(rng.integers(picture.shape[0] - edge + 1))
    left = int(rng.integers(picture.shape[1] - edge + 1))
    blob = cv2.resize(rng.random((6, 6), np.float32), (edge, edge), interpolation=cv2.INTER_CUBIC)
    ramp = np.minimum(np.arange(edge), np.arange(edge)[::-1]).astype(np.float32) / (edge * 0.2)
    blob = blob * np.minimum(1, np.minimum(ramp[:, None], ramp[None, :])) - 0.3
    alpha = np.clip(blob * edge / rng.uniform(3, 12), 0, 1).astype(np.float32)
    light = to_linear(np.ascontiguousarray(picture[top : top + edge, left : left + edge]))
    own = max(speed, 30.0) * rng.uniform(0, 1.5)
    heading = rng.uniform(0, 2 * np.pi)
    start = rng.uniform(-0.2 * edge, config.size - 0.8 * edge, 2)
    return Layer(
        light * alpha[..., None] * np.float32(rng.uniform(0.5, 1.1)),
        alpha,
        (float(start[0]), float(start[1])),
        (float(own * np.cos(heading)), float(own * np.sin(heading))),
    )


def to_yuv(picture: Bytes) -> Bytes:
    """(H, W, 3) BGR -> (3 * H / 2, W) planar 4:2:0, BT.601 limited range.

    A chroma sample is the colour of the mean of its four pixels, as encoders make it. OpenCV takes
    one of the four, and its colours alias: no filter can know by how much.
    """
    height, width = picture.shape[:2]
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    means = cv2.resize(half, (width, height), interpolation=cv2.INTER_NEAREST)
    planar = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420).astype(np.uint8, copy=False)
    planar[height:] = cv2.cvtColor(means, cv2.COLOR_BGR2YUV_I420)[height:]
    return planar


def split_yuv(planar: Bytes) -> tuple[Bytes, Bytes]:
    """(3 * H / 2, W) -> luma (H, W), chroma (2, H / 2, W / 2)."""
    height = planar.shape[0] * 2 // 3
    return planar[:height], planar[height:].reshape(2, height // 2, planar.shape[1] // 2)


def compress(pictures: Sequence[Bytes], crf: float) -> tuple[Bytes, Bytes]:
    """Planar 4:2:0 pictures -> luma (T, H, W), chroma (T, 2, H/2, W/2) as H.264 gives them back."""
    height, width = pictures[0].shape[0] * 2 // 3, pictures[0].shape[1]
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": f"{crf:.1f}", "preset": "veryfast", "threads": "1"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as decoder:
        decoded = [np.asarray(f.to_ndarray(), np.uint8) for f in decoder.decode(video=0)]
    parts = [split_yuv(planar) for planar in decoded]
    return np.stack([y for y, _ in parts]), np.stack([uv for _, uv in parts])


def frames_of(luma: Bytes, chroma: Bytes) -> list[Frame]:
    """(T, H, W), (T, 2, H/2, W/2) -> frames, 30 a second."""
    return [
        Frame((y, u, v), PixelFormat(), index, Fraction(1, 30))
        for index, (y, (u, v)) in enumerate(zip(luma, chroma, strict=True))
    ]


def _estimate(luma: Bytes) -> list[Motion]:
    """(T, H, W) -> the runtime's motion of each frame."""
    estimator = MotionEstimator()
    return [estimator.estimate(picture) for picture in luma]
