"""Measure how much steadier a path gets with more in sight.

    python -m vdeblur_training.lookaheads CLIP

The runtime's own motions are smoothed as for a live source with some frames of lookahead, and as
for a file. What the steady camera then does is measured as `steadiness` does it, but on the motions
alone.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from vdeblur.frame import Frame, Stage, through
from vdeblur.motion import MotionStage
from vdeblur.stabilize import Aim, Planner, Stabilizer
from vdeblur.video import VideoReader

from .steadiness import WIDE, Floats, Walk, acceleration, shake

LOOKAHEADS = (0, 5, 15, 30)
"""Frames."""
SMOOTHING = 0.8
"""s, as the runtime has it."""


class Unmoved(Stabilizer):
    """Finds a frame's place, and leaves the frame where it is."""

    def _resampled(self, frame: Frame, *_: object) -> Frame:
        return frame


def stage_of(lookahead: int | None) -> Stage:
    """What places frames, for a file if there is no limit to what it sees."""
    if lookahead is None:
        return Planner(Aim.of(SMOOTHING, "auto", "replicate", None, False, None))
    return Unmoved(lookahead=lookahead, smoothing=SMOOTHING)


def shown(frames: Sequence[Frame]) -> Walk:
    """The way of the steady camera, of frames with motion and correction."""
    height, width = frames[0].planes[0].shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2, 1])
    position, roll = np.zeros((len(frames), 2)), np.zeros(len(frames))
    places = [_square(frame.correction) for frame in frames]
    for index in range(1, len(frames)):
        motion = frames[index].motion
        step = places[index] @ _square(None if motion is None else motion.transform)
        step = step @ np.linalg.inv(places[index - 1])
        moved = (step @ centre - centre)[:2] * (WIDE / width)
        position[index] = position[index - 1] - moved
        roll[index] = roll[index - 1] - np.degrees(np.arctan2(step[1, 0], step[0, 0]))
    return Walk(position, roll, np.array([float(frame.time) for frame in frames]))


def _square(transform: Floats | None) -> Floats:
    """(2, 3) or nothing -> (3, 3)."""
    return np.eye(3) if transform is None else np.vstack([transform, [0, 0, 1]])


@click.command()
@click.argument("clip", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(clip: Path) -> None:
    """Print what is left of the shake of CLIP for each lookahead, as Markdown."""
    with VideoReader(clip) as reader:
        frames = list(through(MotionStage(perspective=False), iter(reader)))
    click.echo(
        "| lookahead | high-pass, px at 1280 | acceleration | roll, degrees |\n|---|---|---|---|"
    )
    ways: tuple[int | None, ...] = (*LOOKAHEADS, None)
    for lookahead in ways:
        path = shown(list(through(stage_of(lookahead), iter(frames))))
        fast, turned = shake(path)
        name = "file" if lookahead is None else str(lookahead)
        click.echo(f"| {name} | {fast:.2f} | {acceleration(path):.3f} | {turned:.3f} |")


if __name__ == "__main__":
    main()
