"""Restore the training clips again and again by the model that learns from them.

At run time a frame is restored with the help of the one before it as it was restored. While the
model learns, that is what its latest weights make of the clips, one frame after the other, as at
run time: it learns to make good what it did itself (Ross et al., "DAgger", 2011), and no step has
to go through a whole clip.
"""

import time
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vdeblur.backend import TorchBackend
from vdeblur.bundle import Bundle
from vdeblur.clusters import Clusters
from vdeblur.cpu import this_cpu
from vdeblur.frame import through
from vdeblur.model import MultiFilter
from vdeblur.restore import Restorer

from .config import TrainConfig
from .data import Clip, end_with_parent, frames_of, keep
from .patches import motion_at
from .train import load_average

Bytes = NDArray[np.uint8]

AT_ONCE = 40
"""Clips that are restored before the weights are looked up again."""


def keep_restored(pool: Path, checkpoint: Path, config: TrainConfig, first: int, step: int) -> None:
    """Go on for ever: every `step`th clip of the pool, from the `first`, then all over again.

    It begins when the checkpoint is behind the warm-up, in which filters are that know nothing.
    """
    end_with_parent()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng([config.seed, first])
    for turn in count():
        model = _learnt(checkpoint, config)
        files = sorted(pool.glob("*[0-9].npz"))[first::step]
        begin = turn * AT_ONCE % max(1, len(files))
        for path in islice(cycle(files), begin, begin + min(AT_ONCE, len(files))):
            keep(*restored(model, Clip.load(path), rng, config.misalignment), path)


def _learnt(checkpoint: Path, config: TrainConfig) -> MultiFilter:
    """The newest weights, once they are worth something."""
    while True:
        if checkpoint.exists():
            model, steps = load_average(checkpoint, config.model)
            if steps > config.warmup_steps or config.warmup_steps == 0:
                return model
        time.sleep(1)


def restored(
    model: MultiFilter, clip: Clip, rng: np.random.Generator, misalignment: float = 0.0
) -> tuple[Bytes, Bytes]:
    """(T, S, S), (T, 2, S/2, S/2): the clip's luma and chroma as the runtime restores them.

    Its motions get an extra error.
    """
    clusters = Clusters(model.centroids.detach().numpy(), model.config.stiffness)
    channels = model.config.context_channels
    bundle = Bundle(Path(), "learning", clusters, 0.0, (), channels, model.config.colour_frames)
    moved = (
        replace(frame, motion=motion_at(clip, t, rng, misalignment))
        for t, frame in enumerate(frames_of(clip.luma, clip.chroma))
    )
    restorer = Restorer(TorchBackend(bundle, "cpu", model=model))
    with torch.autocast("cpu", torch.bfloat16, enabled=this_cpu().bfloat16):
        planes = [frame.planes for frame in through(restorer, moved)]
    return np.stack([p[0] for p in planes]), np.stack([np.stack(p[1:]) for p in planes])
