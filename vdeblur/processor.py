"""The chain of stages for frames that a loop gives and takes, one by one."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .backend import Backend, chosen_model, expect, open_backend
from .bundle import read_bundle
from .found import Found
from .frame import Frame, Stage, emptied, through
from .mesh import LocalPaths
from .motion import MotionStage
from .motionfile import CameraPath, KnownMotion, PathRecorder
from .options import DEFAULTS, Options
from .overlay import Overlay
from .prefetch import prefetch
from .restore import Restorer
from .rolling import RollingShutter
from .stabilize import PLAN_FRAMES, Aim, Followed, Planner, Stabilizer
from .timing import measured

logger = logging.getLogger(__name__)

PLANNED = 64
"""Frames without pictures that wait to be met by their pictures."""
DEPTH = 5
"""Frames that one thread may be ahead of another."""
LOOKED = 2
"""The same of frames whose blocks are known; each has its context and its flows."""


def delay_of(options: Options) -> int:
    """What `Processor.delay` would be; ModelError where the model cannot be read."""
    if not options.deblur:
        return options.delay
    model = chosen_model(options.model, device=options.device, backend=options.backend)
    return options.delay + read_bundle(model).held()


class Processor:
    """Takes frames in the order of their pts and gives them back, `delay` frames later.

    `push` and `flush` do to a loop's frames what `process` does to a file's. After a `flush` it
    is ready for another video.
    """

    def __init__(
        self,
        options: Options = DEFAULTS,
        *,
        recorder: PathRecorder | None = None,
        opened: Backend | None = None,
        low_delay: bool = False,
        size: tuple[int, int] | None = None,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """For a `low_delay` a model's filters only go forth in time.

        Networks that are `opened` already take the place of those that the options name; they
        serve one video at a time.

        If the `size` of the frames to come, (H, W), is known, the first one comes sooner.
        """
        self.options = options
        self._recorder, self._low_delay = recorder, low_delay
        self.seconds: dict[str, float] = {}
        """Spent in each stage so far."""
        self.backend: Backend | None = None
        """What runs the networks; `None` if nothing is deblurred."""
        self._restorer: Restorer | None = None
        self._stabilizer: Stabilizer | None = None
        self._known = CameraPath.read(options.motion_in) if options.motion_in is not None else None
        if options.deblur:
            self.backend = opened or open_backend(
                options.model,
                device=options.device,
                backend=options.backend,
                wait=False,  # a video can be opened meanwhile
                warn=warn,
            )
            if size is not None:
                expect(self.backend, size=size)
            self._restorer = self._new_restorer(self.backend)
        self._motion = self._motion_stages()
        self._picture = self._picture_stages()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._motion, self._picture = [], []
        self._restorer = self._stabilizer = self.backend = None

    @property
    def delay(self) -> int:
        """Frames that are held back: some more where the model has two stages."""
        if self.backend is None:
            return self.options.delay
        return self.options.delay + self.backend.bundle.held(low_delay=self._low_delay)

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return those that are ready.

        Raises ValueError if its planes are not what its format says.
        """
        frame.check()
        return _push([*self._motion, *self._picture], [frame])

    def flush(self) -> list[Frame]:
        """The video has ended: return the frames that were held back."""
        try:
            return _flush([*self._motion, *self._picture])
        except BaseException:  # an interruption, too: some stages still hold frames
            self.forget()
            raise

    def forget(self) -> None:
        """The video is given up: drop the frames that are held back, ready for another one.

        Unlike `flush` this does no more work on them.
        """
        if self.backend is None and self.options.deblur:
            return  # it has ended itself, and keeps nothing
        if (last := self._restorer) is not None and self.backend is not None:
            self._restorer = self._new_restorer(self.backend)
            self._restorer.strength, self._restorer.paused = last.strength, last.paused
            self._restorer.blocks, self._restorer.shown = last.blocks, last.shown
        self._motion = self._motion_stages()
        self._picture = self._picture_stages()

    def warm_up(self, frame: Frame) -> None:
        """Let the networks see a frame like those to come: the first one may take a second."""
        if self._restorer is not None:
            wanted, self._restorer.strength = self._restorer.strength, 1.0
            for _ in range(2):
                self._restorer.push(frame)
            self._restorer.flush()
            self._restorer.strength = wanted
            self._restorer.blocks[:] = self._restorer.shown[:] = 0

    def release(self, count: int) -> list[Frame]:
        """Return up to `count` frames before their time: who shows them cannot wait longer."""
        ready: list[Frame] = []
        if self._stabilizer is not None:
            ready = self._stabilizer.release(count)
        while len(ready) < count and self._restorer is not None:
            if not (early := self._restorer.release()):
                break
            ready += _push(self._picture[1:], early)
            if self._stabilizer is not None:
                ready += self._stabilizer.release(count - len(ready))
        return ready

    def weaken(self, share: float) -> None:
        """Filter from now on with this share of the wanted strength; 0 does without networks."""
        if self._restorer is not None:
            self._restorer.strength = share * self.options.strength
            self._restorer.paused = share == 0

    def run(
        self,
        frames: Iterable[Frame],
        *,
        depth: int = DEPTH,
        release: Callable[[], None] | None = None,
        scout: Iterable[Frame] | None = None,
        held: int = 0,
    ) -> Generator[Frame]:
        """Yield what `push` and `flush` return, with `frames` and motion ahead in a thread.

        `release` is called at the end and ends a wait for more `frames`. A `scout` yields the same
        frames again, and in a thread of its own it is taken so far ahead of them as planning the
        camera's path needs. Without a scout so many frames may be `held` for the same purpose.
        Where this does not come to its end, the frames that are held back are forgotten.
        """
        try:
            yield from self._run(frames, depth, release, scout, held)
        except BaseException:  # it may have been closed, too
            self.forget()
            raise

    def _run(
        self,
        frames: Iterable[Frame],
        depth: int,
        release: Callable[[], None] | None,
        scout: Iterable[Frame] | None,
        held: int,
    ) -> Generator[Frame]:
        with ExitStack() as stack:
            if scout is None:
                for stage in self._motion:
                    frames = through(stage, frames)
                if held:
                    frames = through(self._planner(held), frames)
            else:
                planned = prefetch(self._planned(scout), depth=PLANNED)
                frames = through(Followed(stack.enter_context(closing(planned))), frames)
            ahead = prefetch(frames, depth=depth, release=release)
            stack.enter_context(closing(ahead))
            ready: Iterator[Frame] = ahead
            stages = self._picture
            if self._stabilizer is not None:
                self._stabilizer.planned = scout is not None or held > 0
            if self._restorer is not None:
                looked = min(LOOKED, depth)
                found = prefetch(_found(self._restorer, ready), depth=looked, release=release)
                stack.enter_context(closing(found))
                ready = prefetch(_restored(self._restorer, found), depth=looked, release=release)
                stack.enter_context(closing(ready))
                stages = stages[1:]
            for stage in stages:
                ready = through(stage, ready)
            yield from ready

    @property
    def clusters(self) -> tuple[float, ...]:
        """Share of the blocks in each cluster so far, as they are shown: what was tried in vain is
        clear. Empty if none was looked at.
        """
        if self._restorer is None or not self._restorer.shown.any():
            return ()
        return tuple((self._restorer.shown / self._restorer.shown.sum()).tolist())

    @property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """The same as each of the model's stages tried them."""
        if self._restorer is None or not self._restorer.blocks.sum(axis=1).all():
            return ()
        blocks = self._restorer.blocks / self._restorer.blocks.sum(axis=1, keepdims=True)
        return tuple(tuple(stage) for stage in blocks.tolist())

    def _planned(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Frames without pictures, but with what is known of their motion and their place."""
        first, *others = self._motion
        frames = (frame.hollow for frame in through(first, frames))
        for stage in (*others, self._planner(PLAN_FRAMES)):
            frames = through(stage, frames)
        return iter(frames)

    def _planner(self, most: int) -> Stage:
        options = self.options
        aim = Aim.of(
            options.smoothing,
            options.zoom,
            options.border,
            options.max_crop,
            options.camera_lock,
            options.field_of_view,
        )
        return self._timed("plan", Planner(aim, min(most, PLAN_FRAMES)))

    def _new_restorer(self, backend: Backend) -> Restorer:
        return Restorer(
            backend,
            strength=self.options.strength,
            seconds=self.seconds,
            back=0 if self._low_delay else None,
        )

    def _motion_stages(self) -> list[Stage]:
        options, stages = self.options, list[Stage]()
        if self._known is not None:
            known = KnownMotion(self._known, str(options.motion_in))
            stages.append(self._timed("motion", known))
        elif options.deblur or options.stabilize or self._recorder is not None:
            recorded = self._recorder is not None
            stage = MotionStage(
                perspective=options.deblur or recorded or options.motion != "similarity",
                skewed=bool(options.rolling_shutter) or recorded,
                local=options.motion == "mesh",
            )
            stages.append(self._timed("motion", stage))
        if options.stabilize and options.motion != "similarity":
            stages.append(self._timed("mesh", LocalPaths()))
        if options.stabilize and options.rolling_shutter:
            rolling = RollingShutter(options.rolling_shutter, measured=options.motion_in is None)
            stages.append(self._timed("rolling", rolling))
        return stages

    def _picture_stages(self) -> list[Stage]:
        options, stages = self.options, list[Stage]()
        if self._restorer is not None:
            stages.append(self._restorer)
            if options.show_clusters:
                stages.append(self._timed("overlay", Overlay()))
        if options.stabilize:
            self._stabilizer = Stabilizer(
                lookahead=options.frames_ahead,
                smoothing=options.smoothing,
                zoom=options.zoom,
                max_crop=options.max_crop,
                camera_lock=options.camera_lock,
                border=options.border,
                interpolation=options.interpolation,
                field_of_view=options.field_of_view,
            )
            stages.append(self._timed("warp", self._stabilizer))
        if self._recorder is not None:
            stages.append(self._recorder)
        return stages

    def _timed(self, name: str, stage: Stage) -> Stage:
        return _Timed(stage, name, self.seconds)


def _found(restorer: Restorer, frames: Iterable[Frame]) -> Iterator[Found]:
    """The first half of the restorer's work on all frames."""
    for frame in frames:
        found = restorer.look(frame)
        del frame
        yield from emptied(found)
    yield from emptied(restorer.end())


def _restored(restorer: Restorer, found: Iterable[Found]) -> Iterator[Frame]:
    """The second half."""
    for each in found:
        frames = restorer.restored([each])
        del each
        yield from emptied(frames)
    yield from emptied(restorer.rest())


def _push(stages: Sequence[Stage], frames: list[Frame]) -> list[Frame]:
    for stage in stages:
        frames = [ready for frame in frames for ready in stage.push(frame)]
    return frames


def _flush(stages: Sequence[Stage]) -> list[Frame]:
    frames: list[Frame] = []
    for stage in stages:
        frames = _push([stage], frames) + stage.flush()
    return frames


@dataclass(frozen=True, slots=True)
class _Timed:
    """A stage whose time is taken."""

    stage: Stage
    name: str
    seconds: dict[str, float]

    def push(self, frame: Frame) -> list[Frame]:
        with measured(self.name, self.seconds):
            return self.stage.push(frame)

    def flush(self) -> list[Frame]:
        with measured(self.name, self.seconds):
            return self.stage.flush()
