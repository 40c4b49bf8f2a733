"""Hold an engine against the reference: the same network in fp32, by torch or ONNX Runtime."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.backend import (
    Backend,
    has_cuda,
    stages_of,
    whole,
)
from vdeblur.bundle import Bundle
from vdeblur.demo import Demo, exposures, picture_of_demo
from vdeblur.engine import Engine
from vdeblur.errors import DeviceError, SourceError
from vdeblur.frame import Frame, PixelFormat, through
from vdeblur.motion import MotionStage
from vdeblur.render import Bytes, add_noise, to_srgb
from vdeblur.restore import Restorer
from vdeblur.runtimes import OnnxBackend, OpenVinoBackend, TorchBackend

Floats = NDArray[np.float32]

BARS = {"fp32": 0.05, "fp16": 0.05, "bf16": 0.15, "int8": 0.15}
"""Decibels that the restored clips may lose in each precision."""
AGREEMENT = 0.995
"""Share of the blocks that must come into the same cluster."""
BLURS = (2.0, 5.0, 9.0)
"""Pixels: the streaks of the clips that are rendered."""
FRAMES = 12
"""Of each clip."""
BLOCKS = 256
"""That every filter is tried on."""
OUTPUTS = {"encoder": ("context", "latents")}
"""What a graph gives back; all others a filter's luma and chroma, in 8-bit steps."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames as a camera recorded them, and as they should have been."""

    name: str
    blurred: list[Frame]
    sharp: list[Frame]


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far one output of one graph is from the reference's on the same inputs."""

    graph: str
    output: str
    largest: float
    rms: float
    relative: float
    """The RMS error over the RMS of the reference's output."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine beside the reference."""

    engine: str
    reference: str
    precision: str
    deviations: tuple[Deviation, ...]
    frames: int
    psnr_blurred: float
    """Mean over all frames, in RGB, of the clips as they are; all in dB."""
    psnr_reference: float
    psnr_engine: float
    agreement: float
    """Share of the blocks that come into the same cluster."""
    failures: tuple[str, ...]
    """The bars that are missed, and by how much."""

    def in_words(self) -> str:
        """A table for people."""
        rows = [
            f"{each.graph:17}{each.output:10}{each.largest:10.4f}{each.rms:10.4f}"
            f"{each.relative:10.2%}"
            for each in self.deviations
        ]
        loss = self.psnr_reference - self.psnr_engine
        return "\n".join(
            [
                f"{self.engine} beside {self.reference}",
                f"{'graph':17}{'output':10}{'max':>10}{'RMS':>10}{'of output':>10}",
                *rows,
                f"PSNR of {self.frames} restored frames {self.psnr_engine:.3f} dB, the reference's "
                f"{self.psnr_reference:.3f}, before {self.psnr_blurred:.3f}: {loss:.3f} dB lost, "
                f"{BARS[self.precision]} allowed",
                f"{self.agreement:.2%} of the blocks in the same cluster, {AGREEMENT:.1%} needed",
                *(f"missed: {each}" for each in self.failures),
            ]
        )


def verify_engines(
    bundle: Bundle, engines: Sequence[Engine], photos: Path | None = None
) -> Verdict:
    """Compare engines with the reference on clips of the package's picture or of `photos`.

    There is one of each of the bundle's stages. DeviceError if they cannot run here.
    """
    clips = list(rendered_clips(pictures_in(photos) if photos else None))
    backend = whole([open_engine(*each) for each in zip(bundle.stages, engines, strict=True)])
    reference = whole([reference_of(stage) for stage in bundle.stages])
    return compare(backend, reference, clips, precision=engines[-1].target.precision)


def open_engine(bundle: Bundle, engine: Engine) -> Backend:
    """What runs this very engine."""
    target = engine.target
    if target.backend == "openvino":
        return OpenVinoBackend(bundle, target.precision, engine=engine.parts)
    if target.backend == "onnx":
        return OnnxBackend(bundle, engine=engine.parts)
    if not has_cuda():
        raise DeviceError(f"an engine of {target.backend} cannot be verified here: there is no GPU")
    from vdeblur.tensorrt import TensorRtBackend

    return TensorRtBackend(
        bundle, target.backend, target.precision, engine.parts, max_batch=target.max_batch
    )


def reference_of(bundle: Bundle) -> Backend:
    """The network in fp32: by torch where that is, otherwise by ONNX Runtime."""
    packages = all(importlib.util.find_spec(name) for name in ("torch", "safetensors"))
    if packages and bundle.has_weights:
        return TorchBackend(bundle, "cpu")
    return OnnxBackend(bundle)


def compare(
    engine: Backend, reference: Backend, clips: Sequence[Clip], *, precision: str
) -> Verdict:
    """Both on the same clips, graph by graph and as a whole."""
    recorders = [Recorder(each) for each in stages_of(reference)]
    expected = [_restored(whole(recorders), clip) for clip in clips]
    found = [_restored(engine, clip) for clip in clips]
    truths = [frame for clip in clips for frame in clip.sharp]
    psnr_reference, psnr_engine, psnr_blurred = (
        _psnr([frame for each in frames for frame in each], truths)
        for frames in (expected, found, [clip.blurred for clip in clips])
    )
    agreement = _agreement(expected, found)
    return Verdict(
        engine=engine.name,
        reference=reference.name,
        precision=precision,
        deviations=tuple(
            each
            for recorder, stage in zip(recorders, stages_of(engine), strict=True)
            for each in recorder.deviations(stage)
        ),
        frames=len(truths),
        psnr_blurred=psnr_blurred,
        psnr_reference=psnr_reference,
        psnr_engine=psnr_engine,
        agreement=agreement,
        failures=tuple(_failures(psnr_reference - psnr_engine, agreement, BARS[precision])),
    )


def _failures(loss: float, agreement: float, allowed: float) -> Iterator[str]:
    if not loss <= allowed:
        yield f"{loss:.3f} dB lost, {allowed} allowed"
    if not agreement >= AGREEMENT:
        yield f"{agreement:.2%} of the blocks in the same cluster, {AGREEMENT:.1%} needed"


class Recorder:
    """The reference, which keeps what its graphs were given and gave."""

    def __init__(self, reference: Backend) -> None:
        self._reference = reference
        self.name, self.device = reference.name, reference.device
        self.bundle = reference.bundle
        self._frames: list[tuple[tuple[Bytes, Bytes, Floats], tuple[Floats, Floats]]] = []
        self._blocks: list[tuple[Bytes, Bytes, Floats]] = []

    def load(self) -> None:
        """As the backend does."""
        self._reference.load()

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        """As `Backend.embed`."""
        context, latents = self._reference.embed(luma, around, motion)
        if len(self._frames) < FRAMES:
            seen = luma.copy(), around.copy(), motion.copy()
            self._frames.append((seen, _kept((context, latents))))
        return context, latents

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        """Blocks with halo -> residuals: luma (N, E, E), chroma (N, 2, E/2, E/2)."""
        if sum(len(blocks[0]) for blocks in self._blocks) < BLOCKS:
            self._blocks.append((luma.copy(), chroma.copy(), context.copy()))
        return self._reference.apply(cluster, luma, chroma, context)

    def deviations(self, engine: Backend) -> Iterator[Deviation]:
        """Give the engine the same inputs; every filter sees all blocks, whatever their cluster."""
        if self._frames:  # a second stage embeds none
            pairs = [(expected, _kept(engine.embed(*seen))) for seen, expected in self._frames]
            yield from _deviations("encoder", pairs)
        stage = "second_" if self.bundle.first is not None else ""
        for cluster in range(1, len(self.bundle.clusters)):
            yield from _deviations(
                f"{stage}filter_{cluster}",
                [
                    (
                        _kept(self._reference.apply(cluster, *blocks)),
                        _kept(engine.apply(cluster, *blocks)),
                    )
                    for blocks in self._blocks
                ],
            )


def _kept(outputs: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Copies: a backend's outputs are valid until it runs the same graph again."""
    return outputs[0].copy(), outputs[1].copy()


def _deviations(graph: str, pairs: Sequence[tuple[Any, Any]]) -> Iterator[Deviation]:
    """Each output's, over all calls: pairs of what was expected and what came."""
    for index, output in enumerate(OUTPUTS.get(graph, ("luma", "chroma"))):
        expected = np.concatenate([each[index].ravel() for each, _ in pairs])
        found = np.concatenate([each[index].ravel() for _, each in pairs])
        error = found - expected
        rms = float(np.sqrt(np.square(error).mean()))
        scale = float(np.sqrt(np.square(expected).mean()))
        yield Deviation(graph, output, float(np.abs(error).max()), rms, rms / max(scale, 1e-9))


def _restored(backend: Backend, clip: Clip) -> list[Frame]:
    return list(through(Restorer(backend), through(MotionStage(), clip.blurred)))


def _agreement(expected: Sequence[list[Frame]], found: Sequence[list[Frame]]) -> float:
    same = [
        np.equal(a.labels, b.labels)  # type: ignore[arg-type]
        for first, second in zip(expected, found, strict=True)
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.concatenate([each.ravel() for each in same]).mean())


def _psnr(frames: Sequence[Frame], truths: Sequence[Frame]) -> float:
    """Mean peak signal-to-noise ratio in RGB, in dB."""
    ratios = [
        cv2.PSNR(_rgb(frame), _rgb(truth)) for frame, truth in zip(frames, truths, strict=True)
    ]
    return float(np.mean(ratios))


def _rgb(frame: Frame) -> Any:
    """(H, W, 3), BT.601, limited range, as the model is evaluated."""
    y, u, v = frame.planes
    planar = np.concatenate([y, np.stack([u, v]).reshape(len(y) // 2, -1)])
    return cv2.cvtColor(planar, cv2.COLOR_YUV2RGB_I420)


def pictures_in(folder: Path) -> dict[str, Bytes]:
    """The photographs in a folder, (H, W, 3) sRGB, by name; SourceError if there are none."""
    found = {}
    for path in sorted(folder.iterdir()):
        stored = cv2.imread(str(path)) if path.is_file() else None
        if stored is not None:
            found[path.stem] = np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)
    if not found:
        raise SourceError(f"there are no pictures in {folder}")
    return found


def rendered_clips(
    pictures: dict[str, Bytes] | None = None,
    *,
    blurs: Sequence[float] = BLURS,
    frames: int = FRAMES,
) -> Iterator[Clip]:
    """Shaky clips of 640x360 with known truth, one of each picture and blur."""
    for name, picture in (pictures or {"colosseum": picture_of_demo()}).items():
        for index, blur in enumerate(blurs):
            demo = Demo(seconds=frames / 30, blur=blur, seed=index)
            noise = np.random.default_rng(index)
            blurred, sharp = list[Frame](), list[Frame]()
            for exposure in exposures(demo, picture):
                light = add_noise(exposure.blurred, noise, shot=2e-4, read=1e-3)
                blurred.append(_frame(to_srgb(light), len(blurred)))
                sharp.append(_frame(to_srgb(exposure.sharp), len(sharp)))
            yield Clip(f"{name}, {blur:g} px", blurred, sharp)


def _frame(picture: Bytes, index: int) -> Frame:
    height, width = picture.shape[:2]
    planar = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), np.uint8)
    u, v = planar[height:].reshape(2, height // 2, width // 2)
    return Frame((planar[:height], u, v), PixelFormat(), index, Fraction(1, 30))
