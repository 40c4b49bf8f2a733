"""The report's data sets, from folders, and the pairs of noisy and clean blocks made of them."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import SourceError

from .blocks import Tiling
from .measure import psnr
from .noise import Bytes, NoiseConfig, degrade

PICTURES = (".jpg", ".jpeg", ".png")
MOSAIC_COLUMNS = 75
"""Pictures in a row of a mosaic of small ones."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which pictures, and how they are cut."""

    train: str
    """Folder of pictures, mosaic or idx file, relative to the folder with the data."""
    validation: str
    edge: int = 256
    """Of the pictures, in pixels."""
    block: int = 18
    overlap: int = 4
    augment: bool = False
    """Add a randomly rotated copy of every training picture."""
    limit: int = 0
    """Use so many training pictures at most; 0 is all."""
    validation_limit: int = 0
    """The same of the validation. If both are the same pictures, these are kept from training."""

    def tiling(self) -> Tiling:
        """Where the blocks of each picture lie."""
        return Tiling(self.edge, self.edge, self.block, self.overlap)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures, clean and noisy, and their blocks."""

    tiling: Tiling
    clean: Bytes
    """(M, H, W, C)."""
    noisy: Bytes
    masks: NDArray[np.bool_]
    """(M, H, W): where a picture was degraded."""

    def blocks(self) -> tuple[Bytes, Bytes]:
        """Noisy and clean blocks, (N, E, E, C) each."""
        return self.tiling.split(self.noisy), self.tiling.split(self.clean)

    def degraded_share(self) -> NDArray[np.float32]:
        """(N,): the share of each block that was degraded."""
        blocks = self.tiling.split(self.masks[..., None])
        shares: NDArray[np.float32] = blocks.mean(axis=(1, 2, 3), dtype=np.float32)
        return shares


def load_pairs(
    folder: Path, config: DataConfig, noise: NoiseConfig, seed: int
) -> tuple[Pairs, Pairs]:
    """Training and validation pairs; the noise is made once, from `seed`.

    Raises SourceError if the data are not in `folder`.
    """
    validation = read_pictures(folder / config.validation, config.edge, config.validation_limit)
    kept = len(validation) if config.validation == config.train else 0
    most = config.limit and kept + config.limit
    training = read_pictures(folder / config.train, config.edge, most)[kept:]
    if not len(training):
        raise SourceError(f"{folder / config.train} holds no pictures beside the validation's")
    if config.augment:
        turned = rotated(training, np.random.default_rng([seed, 2]))
        training = np.concatenate([training, turned])
    return (
        make_pairs(training, config.tiling(), noise, np.random.default_rng([seed, 0])),
        make_pairs(validation, config.tiling(), noise, np.random.default_rng([seed, 1])),
    )


def make_pairs(
    pictures: Bytes, tiling: Tiling, noise: NoiseConfig, rng: np.random.Generator
) -> Pairs:
    """Degrade every picture once."""
    degraded = [degrade(picture, noise, rng) for picture in pictures]
    return Pairs(
        tiling,
        pictures,
        np.stack([noisy for noisy, _ in degraded]),
        np.stack([mask for _, mask in degraded]),
    )


def check_noise(pairs: Pairs, expected: tuple[float, float] | None) -> float:
    """The mean PSNR of the noisy pictures; SourceError if it is not within `expected`."""
    everywhere = np.ones(pairs.masks.shape[1:], bool)
    each = [psnr(a, b, everywhere) for a, b in zip(pairs.noisy, pairs.clean, strict=True)]
    mean = float(np.mean(each))
    if expected is not None and not expected[0] <= mean <= expected[1]:
        low, high = expected
        raise SourceError(
            f"the noise on these pictures leaves {mean:.2f} dB, the recipe says {low}..{high}: "
            "set its noise_psnr, or the noise"
        )
    return mean


def read_pictures(source: Path, edge: int, limit: int = 0) -> Bytes:
    """(M, edge, edge, C) in RGB or grey: a folder, one picture, a mosaic, or MNIST's idx.gz.

    A picture that is 75 times as wide as `edge` is a mosaic.
    Pictures of another size are cut to a square and resized. Raises SourceError.
    """
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES)
        if not paths:
            raise SourceError(f"{source} holds no {' or '.join(PICTURES)}")
        return np.stack([squared(_read(path), edge) for path in paths[: limit or None]])
    if not source.is_file():
        raise SourceError(f"no data at {source}: a folder, a mosaic or an idx.gz was looked for")
    if source.name.endswith(".gz"):
        return _read_idx(source, limit)
    picture = _read(source)
    if picture.shape[1] == MOSAIC_COLUMNS * edge:
        return _cut_mosaic(picture, limit, edge)
    return squared(picture, edge)[None]


def _read(path: Path) -> Bytes:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SourceError(f"cannot read the picture {path}")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def squared(picture: Bytes, edge: int) -> Bytes:
    """The middle of a picture, (edge, edge, C)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    middle = picture[y : y + side, x : x + side]
    if side == edge:
        return middle
    return np.asarray(cv2.resize(middle, (edge, edge), interpolation=cv2.INTER_AREA), np.uint8)


def _cut_mosaic(mosaic: Bytes, limit: int, edge: int) -> Bytes:
    """Row by row; the black rest of the last row holds no pictures."""
    rows, columns = mosaic.shape[0] // edge, MOSAIC_COLUMNS
    pictures = mosaic[: rows * edge].reshape(rows, edge, columns, edge, 3).swapaxes(1, 2)
    pictures = pictures.reshape(-1, edge, edge, 3)
    while len(pictures) and pictures[-1].max() < 16:
        pictures = pictures[:-1]
    return np.ascontiguousarray(pictures[: limit or None])


def _read_idx(path: Path, limit: int) -> Bytes:
    """MNIST's own format: two zeros, type, dimensions, then sizes and values, big-endian."""
    try:
        with gzip.open(path) as file:
            content = file.read()
        if content[:4] != b"\x00\x00\x08\x03":
            raise SourceError(f"{path} is not an idx file of pictures")
        count, height, width = np.frombuffer(content, ">i4", 3, 4)
        pictures = np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width, 1)
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    return pictures[: limit or None]


def rotated(pictures: Bytes, rng: np.random.Generator) -> Bytes:
    """Each picture turned about its centre by a random angle; what lies outside is mirrored."""
    return np.stack([_turn(picture, float(rng.uniform(0, 360))) for picture in pictures])


def _turn(picture: Bytes, degrees: float) -> Bytes:
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8).reshape(picture.shape)
