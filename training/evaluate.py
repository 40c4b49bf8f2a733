"""Measure a model on clips whose truth is known: held-out photos, or pairs of video files."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.backend import Backend
from vdeblur.errors import SourceError
from vdeblur.found import small_chroma, to_bytes
from vdeblur.frame import Frame, Plane, through
from vdeblur.motion import MotionStage
from vdeblur.restore import Restorer
from vdeblur.video import VideoReader

from .classical import PEERS, Peer, View, views
from .config import TrainConfig
from .data import Clip, ClipConfig, frames_of, held_out_in, make_clip, split_yuv, to_yuv

Bytes = NDArray[np.uint8]
CLIP = ClipConfig(size=512, frames=12, sharp_share=0.0, defocus_share=0.0, blur=(2.0, 20.0))
"""What is rendered of each held-out photo: shaky, the mean streak of a clip 2 to 20 pixels long
(its frames differ, and some are sharp)."""


PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
"""Endings of files that hold one picture."""
SMALLEST = 11
"""Pixels along each side: SSIM looks at squares of so many."""
SEED = 7
"""Of these clips, whatever the recipe: models are compared on the same ones."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip as it came from the decoder, and the truth."""

    name: str
    blurred: list[Frame]
    sharp: list[Frame]
    clip: Clip | None = None
    """Where it was rendered: what the peers need to know of it."""


@dataclass(frozen=True, slots=True)
class FrameScore:
    """One frame against its truth; all in RGB, 8 bit."""

    clip: str
    frame: int
    psnr_before: float
    psnr_after: float
    ssim_before: float
    """Structural similarity of the luma, 0..1."""
    ssim_after: float
    sharpness: float
    """Gradient energy of the input over that of the truth: 1 is as sharp as the truth."""
    flicker_before: float
    """Mean absolute change of the error since the last frame, in 8-bit steps."""
    flicker_after: float

    @property
    def gain(self) -> float:
        """Decibels."""
        return self.psnr_after - self.psnr_before


@dataclass(frozen=True, slots=True)
class Report:
    """A model's quality over many clips."""

    backend: str
    frames: int
    psnr_before: float
    gain: float
    """Mean PSNR gain over the blurred input, in decibels."""
    gain_blurriest: float
    """The same on the third of the frames whose input lost most gradient energy."""
    gain_sharpest: float
    worst: float
    """Of all frames."""
    ssim_gain: float
    flicker_before: float
    flicker_after: float
    sharp_psnr: float
    """The truth, filtered, against itself: what is sharp stays (mean over clips, 99 at most)."""
    sharp_psnr_worst: float
    sharp_filtered: float
    """Share of the truth's blocks that were filtered."""
    clusters: tuple[float, ...]
    """Share of the blurred clips' blocks in each cluster."""
    changes: float
    """Share of the blocks whose cluster is another than in the frame before."""
    ssim_gain_worst: float
    """Of all clips' means."""
    multiply_adds: float
    """Per luma pixel, over the blurred clips."""
    milliseconds: float
    """That restoring one of their frames took here, without the estimate of its motion."""


def held_out_pairs(photos: Path, config: TrainConfig, *, clip: ClipConfig = CLIP) -> Iterator[Pair]:
    """One clip of each photo that the recipe never trains on; SourceError if there are none."""
    for index, path in enumerate(held_out_in(photos, config.held_out)):
        made = make_clip([path], clip, np.random.default_rng([SEED, 10**6 + index]))
        yield Pair(
            path.stem,
            frames_of(made.luma, made.chroma),
            frames_of(made.sharp_luma, made.sharp_chroma),
            made,
        )


def file_pairs(blurred: Path, sharp: Path) -> Iterator[Pair]:
    """Two videos or pictures, or two folders with videos, pictures or folders of the same names.

    A folder in a folder is a clip: its pictures, in the order of their names, are its frames.
    Raises SourceError where one has no partner or their sizes or lengths differ.
    """
    if blurred.is_dir() != sharp.is_dir():
        raise SourceError(f"{blurred} and {sharp}: give two files or two folders")
    names = sorted(path.name for path in blurred.iterdir()) if blurred.is_dir() else [None]
    if not names:
        raise SourceError(f"{blurred} is empty")
    for name in names:
        first, second = (blurred, sharp) if name is None else (blurred / name, sharp / name)
        if not first.exists():
            raise SourceError(f"{first} does not exist")
        if not second.exists():
            raise SourceError(f"{first} has no partner {second}")
        pair = Pair(first.stem, _read(first), _read(second))
        if len(pair.blurred) != len(pair.sharp):
            raise SourceError(
                f"{first} has {len(pair.blurred)} frames and {second} has {len(pair.sharp)}"
            )
        size = pair.blurred[0].planes[0].shape
        if size != pair.sharp[0].planes[0].shape:
            raise SourceError(f"{first} and {second} differ in size")
        if min(size) < SMALLEST:
            raise SourceError(f"{first} is too small to be measured: {SMALLEST} pixels at least")
        yield pair


def _read(path: Path) -> list[Frame]:
    if not path.is_dir() and path.suffix.lower() not in PICTURES:
        with VideoReader(path) as reader:
            return list(reader)
    pictures = sorted(path.iterdir()) if path.is_dir() else [path]
    if not pictures:
        raise SourceError(f"{path} is empty")
    planes = [split_yuv(to_yuv(_picture(each))) for each in pictures]
    if len({luma.shape for luma, _ in planes}) > 1:
        raise SourceError(f"the pictures of {path} differ in size")
    return frames_of(*(np.stack(part) for part in zip(*planes, strict=True)))


def _picture(path: Path) -> Bytes:
    """(H, W, 3) BGR with even sides, as 4:2:0 needs them: a last odd row or column is left out."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SourceError(f"{path} is no picture that can be read")
    even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
    if not even.size:
        raise SourceError(f"{path} is too small")
    return np.ascontiguousarray(even, np.uint8)


@dataclass(frozen=True, slots=True)
class _Restored:
    frames: list[Frame]
    blocks: NDArray[np.int64]
    """(S, K): of each cluster, as each stage was given them."""
    shown: NDArray[np.int64]
    """(K,): the same, as they are shown."""
    seconds: float


def evaluate(
    backend: Backend, pairs: Iterable[Pair], *, strength: float = 0.5, neighbours: bool = True
) -> tuple[Report, list[FrameScore]]:
    """Deblur every clip as the runtime does, its own motion estimates included.

    Without `neighbours` no motion is known, and each frame is restored by itself.
    """
    scores: list[FrameScore] = []
    seconds = 0.0
    blocks = np.zeros((len(backend.bundle.stages), len(backend.bundle.clusters)), np.int64)
    shown, sharp_shown = np.zeros_like(blocks[0]), np.zeros_like(blocks[0])
    kept, changes = list[float](), list[float]()
    for pair in pairs:
        restored = _deblur(backend, pair.blurred, strength, neighbours)
        blocks += restored.blocks
        shown += restored.shown
        seconds += restored.seconds
        scores += _score(pair, restored.frames)
        changes += _changes(restored.frames)
        again = _deblur(backend, pair.sharp, strength, neighbours)
        sharp_shown += again.shown
        both = zip(again.frames, pair.sharp, strict=True)
        kept += [min(99.0, psnr(rgb(one), rgb(other))) for one, other in both]
    if not scores:
        raise SourceError("there is nothing to evaluate on")
    counts = blocks, shown, sharp_shown
    return _report(backend, scores, counts, kept, changes, seconds), scores


def _deblur(
    backend: Backend, frames: Sequence[Frame], strength: float, neighbours: bool
) -> _Restored:
    restorer = Restorer(backend, strength=strength)
    moved = list(through(MotionStage(), frames)) if neighbours else frames
    began = time.perf_counter()
    restored = list(through(restorer, moved))
    seconds = time.perf_counter() - began
    return _Restored(restored, restorer.blocks, restorer.shown, seconds)


def _changes(frames: Sequence[Frame]) -> list[float]:
    """Share of the blocks that change their cluster, for each pair of consecutive frames."""
    labels = [frame.labels for frame in frames if frame.labels is not None]
    return [float((now != then).mean()) for then, now in pairwise(labels)]


def _score(pair: Pair, restored: Sequence[Frame]) -> list[FrameScore]:
    scores, last = [], None
    for index, frames in enumerate(zip(pair.blurred, restored, pair.sharp, strict=True)):
        before, after, truth = (rgb(frame) for frame in frames)
        errors = tuple(picture.astype(np.float32) - truth for picture in (before, after))
        luma_before, luma_after, luma_truth = (_luma(frame) for frame in frames)
        changes = (
            [0.0, 0.0]
            if last is None
            else [float(np.abs(now - then).mean()) for now, then in zip(errors, last, strict=True)]
        )
        last = errors
        scores.append(
            FrameScore(
                pair.name,
                index,
                psnr(before, truth),
                psnr(after, truth),
                ssim(luma_before, luma_truth),
                ssim(luma_after, luma_truth),
                _gradient_energy(luma_before) / max(_gradient_energy(luma_truth), 1e-9),
                *changes,
            )
        )
    return scores


def _report(
    backend: Backend,
    scores: Sequence[FrameScore],
    counts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    kept: Sequence[float],
    changes: Sequence[float],
    seconds: float,
) -> Report:
    gains = np.array([score.gain for score in scores])
    by_sharpness = np.argsort([score.sharpness for score in scores])
    third = max(1, len(scores) // 3)
    blocks, shown, sharp_shown = counts
    shares = blocks / blocks.sum(axis=1, keepdims=True)
    moving = [score for score in scores if score.frame > 0]
    bundle = backend.bundle
    return Report(
        backend=backend.name,
        frames=len(scores),
        psnr_before=float(np.mean([score.psnr_before for score in scores])),
        gain=float(gains.mean()),
        gain_blurriest=float(gains[by_sharpness[:third]].mean()),
        gain_sharpest=float(gains[by_sharpness[-third:]].mean()),
        worst=float(gains.min()),
        ssim_gain=float(np.mean([score.ssim_after - score.ssim_before for score in scores])),
        flicker_before=float(np.mean([score.flicker_before for score in moving] or [0.0])),
        flicker_after=float(np.mean([score.flicker_after for score in moving] or [0.0])),
        sharp_psnr=float(np.mean(kept)),
        sharp_psnr_worst=float(np.min(kept)),
        sharp_filtered=float(1 - sharp_shown[0] / sharp_shown.sum()),
        clusters=tuple(float(share) for share in shown / shown.sum()),
        changes=float(np.mean(changes or [0.0])),
        ssim_gain_worst=min(
            float(np.mean([s.ssim_after - s.ssim_before for s in clip]))
            for clip in _by_clip(scores)
        ),
        multiply_adds=bundle.multiply_adds(shares.tolist()),
        milliseconds=1000 * seconds / len(scores),
    )


@dataclass(frozen=True, slots=True)
class PeerScore:
    """A classical peer at the best of its settings on these clips."""

    name: str
    gain: float
    """Mean PSNR gain over the blurred input, in decibels."""
    gain_blurriest: float
    worst: float


def evaluate_peers(pairs: Sequence[Pair], scores: Sequence[FrameScore]) -> list[PeerScore]:
    """Every classical peer on rendered pairs, on every third frame; `scores` are the model's."""
    rendered = [pair for pair in pairs if pair.clip is not None]
    seen = [views(pair.clip) for pair in rendered if pair.clip is not None]
    sharpness = np.array([score.sharpness for score in scores if score.frame % 3 == 0])
    blurriest = np.argsort(sharpness)[: max(1, len(sharpness) // 3)]
    found = []
    for name, settings in PEERS.items():
        trials = [
            np.concatenate(
                [_peer_gains(pair, clip, peer) for pair, clip in zip(rendered, seen, strict=True)]
            )
            for peer in settings
        ]
        gains = max(trials, key=lambda trial: float(trial.mean()))
        found.append(
            PeerScore(name, float(gains.mean()), float(gains[blurriest].mean()), float(gains.min()))
        )
    return found


def _peer_gains(pair: Pair, seen: Sequence[View], peer: Peer) -> NDArray[np.float64]:
    gains = []
    for index in range(0, len(seen), 3):
        blurred, truth = pair.blurred[index], rgb(pair.sharp[index])
        luma = np.clip(np.rint(peer(seen[index])), 0, 255).astype(np.uint8)
        restored = replace(blurred, planes=(luma, *blurred.planes[1:]))
        gains.append(psnr(rgb(restored), truth) - psnr(rgb(blurred), truth))
    return np.array(gains)


def _by_clip(scores: Sequence[FrameScore]) -> list[list[FrameScore]]:
    clips = dict.fromkeys(score.clip for score in scores)
    return [[score for score in scores if score.clip == clip] for clip in clips]


def rgb(frame: Frame) -> Bytes:
    """A frame of any format as (H, W, 3) 8-bit RGB (BT.601, limited range), even sizes."""
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    chroma = small_chroma(frame)[:, : height // 2, : width // 2]
    planar = np.concatenate([_luma(frame)[:height, :width], chroma.reshape(height // 2, width)])
    return cv2.cvtColor(planar, cv2.COLOR_YUV2RGB_I420).astype(np.uint8, copy=False)


def _luma(frame: Frame) -> Bytes:
    return to_bytes(frame.planes[0], frame.format.depth)


def psnr(first: Bytes, second: Bytes) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in decibels; infinite if they are equal."""
    error = np.square(first.astype(np.float32) - second).mean(dtype=np.float64)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(first: Bytes, second: Bytes) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11, sigma 1.5)."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            first,
            second,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _gradient_energy(luma: Plane) -> float:
    smooth = cv2.GaussianBlur(luma, (0, 0), 1.0).astype(np.float32)  # or noise would count
    return float(
        np.square(np.diff(smooth, axis=0)).mean() + np.square(np.diff(smooth, axis=1)).mean()
    )


def contact_sheet(pair: Pair, restored: Sequence[Frame], *, edge: int = 192) -> Bytes:
    """Before, after, truth side by side at 1:1: the sharpest, a middle and the blurriest frame."""
    energy = [_gradient_energy(_luma(frame)) for frame in pair.blurred]
    order = np.argsort(energy)
    rows = []
    for index in (order[-1], order[len(order) // 2], order[0]):
        frames = (pair.blurred[index], restored[index], pair.sharp[index])
        top, left = (frames[0].height - edge) // 2, (frames[0].width - edge) // 2
        crops = [rgb(frame)[top : top + edge, left : left + edge] for frame in frames]
        rows.append(np.concatenate(crops, axis=1))
    return np.concatenate(rows)
