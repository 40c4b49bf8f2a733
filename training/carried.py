"""Restore the training clips again and again by the model that learns from them.

At run time a frame is restored with the help of the one before it as it was restored. While the
model learns, that is what its latest weights make of the clips, one frame after the other, as at
run time: it learns to make good what it did itself (Ross et al., "DAgger", 2011), and no step has
to go through a whole clip. What a first stage makes of a clip does not change: it is made once.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vdeblur.backend import TwoStages
from vdeblur.bundle import Bundle, read_bundle
from vdeblur.clusters import Clusters
from vdeblur.cpu import this_cpu
from vdeblur.frame import through
from vdeblur.model import MultiFilter
from vdeblur.restore import Restorer
from vdeblur.runtimes import TorchBackend, torch_model

from .config import TrainConfig
from .data import FIRST, Clip, clips_in, frames_of, keep
from .patches import motion_at
from .train import load_average

Bytes = NDArray[np.uint8]

AT_ONCE = 40
"""Clips that are restored before the weights are looked up again."""


def keep_restored(pool: Path, checkpoint: Path, config: TrainConfig, first: int, step: int) -> None:
    """Go on for ever: every `step`th clip of the pool, from the `first`, then all over again.

    It begins when the checkpoint is behind the warm-up, in which filters are that know nothing.
    For a second stage its first stage restores every clip before.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng([config.seed, first])
    stage = None if config.first is None else _stage_before(config)
    for turn in count():
        files = clips_in(pool)[first::step]
        if stage is not None:
            _preview(stage, files, rng, config)
        model = _learnt(checkpoint, config)
        if model is None:
            time.sleep(1)
            continue
        begin = turn * AT_ONCE % max(1, len(files))
        for path in islice(cycle(files), begin, begin + min(AT_ONCE, len(files))):
            clip = Clip.load(path)
            keep(*restored(model, clip, rng, config.misalignment, first=stage), path)


def _stage_before(config: TrainConfig) -> MultiFilter:
    """The first stage, whose filters look and go as the second one asks them to."""
    stage = torch_model(read_bundle(str(config.first))).eval()
    stage.config = replace(
        stage.config,
        both_ways=config.model.both_ways,
        bidirectional=config.model.bidirectional,
    )
    return stage


def _preview(
    stage: MultiFilter, files: Sequence[Path], rng: np.random.Generator, config: TrainConfig
) -> None:
    """Keep what the first stage makes of the clips that it has not seen."""
    for path in files:
        clip = Clip.load(path)
        if clip.first is None:
            keep(*restored(stage, clip, rng, config.misalignment, back=1), path, FIRST)


def _learnt(checkpoint: Path, config: TrainConfig) -> MultiFilter | None:
    """The newest weights, once they are worth something."""
    if not checkpoint.exists():
        return None
    model, steps = load_average(checkpoint, config.model)
    return model if steps > config.warmup_steps or config.warmup_steps == 0 else None


def restored(
    model: MultiFilter,
    clip: Clip,
    rng: np.random.Generator,
    misalignment: float = 0.0,
    *,
    first: MultiFilter | None = None,
    back: int | None = None,
) -> tuple[Bytes, Bytes]:
    """(T, S, S), (T, 2, S/2, S/2): the clip's luma and chroma as the runtime restores them.

    Its motions get an extra error. A second stage stands behind `first`. So many stages also go
    `back` in time, by default all but the last one: that is what its own filters see of t-1.
    """
    if back is None:
        back = 0 if first is None else 1
    backend = _backend(model) if first is None else _two_stages(first, model)
    moved = (
        replace(frame, motion=motion_at(clip, t, rng, misalignment))
        for t, frame in enumerate(frames_of(clip.luma, clip.chroma))
    )
    restorer = Restorer(backend, back=back)
    with torch.autocast("cpu", torch.bfloat16, enabled=this_cpu().bfloat16):
        planes = [frame.planes for frame in through(restorer, moved)]
    return np.stack([p[0] for p in planes]), np.stack([np.stack(p[1:]) for p in planes])


def _backend(model: MultiFilter, first: Bundle | None = None) -> TorchBackend:
    clusters = Clusters(model.centroids.detach().numpy(), model.config.stiffness)
    config = model.config
    bundle = Bundle(
        Path(),
        "learning",
        clusters,
        encoder_cost=0.0,
        filter_costs=(),
        context_channels=config.context_channels,
        colour_frames=config.colour_frames,
        both_ways=config.both_ways,
        bidirectional=config.bidirectional,
        first=first,
    )
    return TorchBackend(bundle, "cpu", model=model)


def _two_stages(first: MultiFilter, second: MultiFilter) -> TwoStages:
    ahead = _backend(first)
    return TwoStages(ahead, _backend(second, ahead.bundle))
