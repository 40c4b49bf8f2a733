"""The restore stage: find the blurred blocks of each frame and filter only those."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from .align import Aligned, Aligner, View, motion_of
from .backend import Backend, DeviceBackend, stages_of
from .backwards import Backwards, Restored
from .blocks import BLOCK, CONTEXT_STRIDE, Grid
from .calm import Calm, speed_around
from .change import ALONE, BEFORE_ANOTHER, Cascade, change_of
from .clusters import CLEAR
from .cpu import this_cpu
from .filtering import Filters, Room
from .found import Doubt, Found, FrameFilters, Neighbour, to_bytes, with_planes
from .frame import Frame, Motion
from .second import SecondStage
from .strips import embed_in_strips
from .timing import measured

if TYPE_CHECKING:
    from torch import Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame that waits for the one after it."""

    frame: Frame
    view: View
    repeats: bool
    """It is, bit for bit, the frame before."""


class Restorer:
    """A stage: deblur each frame with the help of the one before and the one after it.

    The encoder sees both as they were filmed, the filters the one before as it was restored, with
    what it had gained from those before it (Sajjadi et al., "Frame-recurrent video
    super-resolution", 2018).

    It holds one frame back, one more if the model has two stages (see `second`), and some more if
    it goes backwards in time, too (see `backwards`). Frames need
    their `motion`; blocks of the clear cluster come back bit for bit, and so do whole frames that
    have no other. Its two halves, `look` and `restored`, may run in two threads. A picture that
    stands still, itself and its neighbours, is restored once. Where nothing was blurred for a
    while, only every third frame is looked at (see `calm`), and what moves on its own is followed
    only where that look finds something.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        strength: float = 0.5,
        batch: int | None = None,
        seconds: dict[str, float] | None = None,
        back: int | None = None,
    ) -> None:
        """On a CPU filters get at most `batch` blocks at once, by default some for each core.

        Of a bidirectional model's stages the first `back` go backwards in time, by default all.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be 0..1, got {strength}")
        if batch is None:
            batch = min(max(8, 4 * this_cpu().cores), 32)
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.backend = backend
        self.strength = strength
        self.paused = False
        """Pass frames on at once, as they are: for a machine that cannot keep up."""
        self.block = BLOCK
        stages = len(backend.bundle.stages)
        self.blocks: NDArray[np.int64] = np.zeros((stages, len(backend.bundle.clusters)), np.int64)
        """(S, K): blocks of each cluster so far, as each stage was given them."""
        self.shown: NDArray[np.int64] = np.zeros(len(backend.bundle.clusters), np.int64)
        """(K,): the same, as the last stage shows them: what it tried in vain is clear."""
        self.seconds: dict[str, float] = {} if seconds is None else seconds
        """Spent in each step so far."""
        self._aligner = Aligner()
        self._calm = Calm()
        self._previous: Taken | None = None
        self._held: Taken | None = None
        self._labels: NDArray[np.uint8] | None = None
        self._found_with: float | None = None  # the strength of the last labels
        first, *others = stages_of(backend)
        bundle, make = backend.bundle, self._maker(batch)
        going_back = 0 if not bundle.bidirectional else len(bundle.stages) if back is None else back

        def backwards(stage: Backend, name: str, number: int) -> Backwards | None:
            """They look once more, which counts as much as each look forth."""
            if number > going_back:
                return None
            looks = 3 if bundle.both_ways else 2
            return Backwards(make(stage, name, False), share=1 / looks)

        self._filters = make(first, "filter", bundle.both_ways)
        trying = BEFORE_ANOTHER if others else ALONE
        self._cascade = None if bundle.min_change is None else Cascade(bundle.min_change, trying)
        self._backwards = backwards(first, "filter back", 1)
        self._second: SecondStage | None = None
        if others:
            self._second = SecondStage(
                make(others[0], "filter second", bundle.both_ways),
                backwards(others[0], "filter second back", 2),
                seconds=self.seconds,
            )

    def _maker(self, batch: int) -> Callable[[Backend, str, bool], FrameFilters]:
        """Makes a stage's filters, where it computes, which look both ways or not."""
        stages = stages_of(self.backend)
        if all(each.device != "cpu" and isinstance(each, DeviceBackend) for each in stages):
            from .device import DeviceFilters, Pictures

            pictures = Pictures(stages[0].device)
            return lambda stage, name, both_ways: DeviceFilters(
                cast(DeviceBackend, stage),
                pictures,
                seconds=self.seconds,
                name=name,
                both_ways=both_ways,
            )
        room = Room()
        return lambda stage, name, both_ways: Filters(
            stage.apply,
            colour_frames=stage.bundle.colour_frames,
            batch=batch,
            seconds=self.seconds,
            name=name,
            both_ways=both_ways,
            room=room,
        )

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the one whose turn it is, restored."""
        if self.paused:
            return [*self.flush(), frame]
        return self.restored(self.look(frame))

    def flush(self) -> list[Frame]:
        """Return the last frames; the next `push` begins a new video."""
        return self.restored(self.end()) + self.rest()

    def release(self) -> list[Frame]:
        """Return the oldest frame that is held back, if any, before its time."""
        while True:
            if self._second is not None and (frames := self._second.release()):
                return frames
            if self._backwards is None or not (early := self._backwards.release()):
                break
            if frames := self._once_more(early):
                return frames
        return ([] if self._second is None else self._second.flush()) or self.flush()

    def look(self, frame: Frame) -> list[Found]:
        """Take the next frame; return what is found out about the one before it."""
        view = View(to_bytes(frame.planes[0], frame.format.depth))
        last = self._held
        taken = Taken(frame, view, last is not None and _same(last.frame, frame))
        ready = self._find_held(taken)
        self._held = taken
        return ready

    def end(self) -> list[Found]:
        """Return what is found out about the last frame; the next `look` begins a new video."""
        ready = self._find_held(None)
        self._held = self._previous = self._labels = None
        self._calm = Calm()
        return ready

    def restored(self, found: Iterable[Found]) -> list[Frame]:
        """The next frames with their blurred blocks filtered.

        A second stage is one behind, and what goes backwards some more.
        """
        return [frame for each in found for frame in self._restored(each)]

    def rest(self) -> list[Frame]:
        """The frames that are held back behind the first filters, without any after them."""
        frames = [] if self._backwards is None else self._once_more(self._backwards.flush())
        if self._cascade is not None:
            self._cascade.forget()
        return frames + ([] if self._second is None else self._second.flush())

    def _find_held(self, following: Taken | None) -> list[Found]:
        if self._held is None:
            return []
        frame = self._held.frame
        if self._stands_still(following):
            return [self._noted(Found(replace(frame, labels=self._labels), stands_still=True))]
        speed = speed_around(frame, None if following is None else following.frame)
        known = self._labels is not None and self._found_with == self.strength
        if known and self._calm.leaves_out(speed):
            unseen = replace(frame, labels=np.zeros_like(self._labels))
            return [self._noted(Found(unseen))]
        settled, labels = self._calm.settled, self._labels
        found = self._seen(self._held, following, closely=not settled)
        if settled and found.context is not None:
            self._labels = labels
            found = self._seen(self._held, following)
        self._calm.looked(speed, clear=found.context is None)
        return [self._noted(found)]

    def _seen(self, held: Taken, following: Taken | None, *, closely: bool = True) -> Found:
        """What the encoder finds in a frame; if not `closely`, as if only the camera moved."""
        frame = held.frame
        grid = Grid(frame.height, frame.width)
        with measured("align", self.seconds):
            before, after = self._aligned(held, following, closely=closely)
            around = grid.whole(np.stack([before.half, after.half]), stride=2)
            motion = grid.whole(motion_of(before.offset, after.offset, grid.cells))
            luma = grid.whole(held.view.luma[None], stride=1)
        with measured("load", self.seconds):
            self.backend.load()
        with measured("embed", self.seconds):
            context, latents = self._embedded(luma, around, motion)
        with measured("assign", self.seconds):
            labels = self._assign(latents, frame.motion)
            suited = None
            if self._doubting is not None and labels.any():
                doubted = max(self.strength, self._doubting.trying.doubted)
                suited = self.backend.bundle.clusters.assign(latents, strength=doubted)
            padded = _padded_context(grid, context) if labels.any() else None
        near = _neighbour(self._previous, before), _neighbour(following, after)
        return Found(replace(frame, labels=labels), padded, *near, suited=suited)

    def _embedded(
        self, luma: Bytes, around: Bytes, motion: Floats
    ) -> "tuple[Floats | Tensor, Floats]":
        """As `Backend.embed`; the context stays where the filters compute."""
        first = stages_of(self.backend)[0]
        if isinstance(self._filters, Filters):
            return embed_in_strips(first.embed, luma, around, motion)
        assert isinstance(first, DeviceBackend)
        return first.embed_tensors(luma, around, motion)

    def _stands_still(self, following: Taken | None) -> bool:
        """Whether all that was filmed is as it was for the frame before: its result is kept."""
        three = (self._previous, self._held, following)
        return (
            all(each is not None and each.repeats for each in three)
            and self._labels is not None
            and self._found_with == self.strength
        )

    def _noted(self, found: Found) -> Found:
        self._previous, self._found_with = self._held, self.strength
        return found

    def _aligned(
        self, current: Taken, following: Taken | None, *, closely: bool
    ) -> tuple[Aligned, Aligned]:
        """The neighbours as seen from `current`."""
        view, previous = current.view, self._previous
        before = after = Aligned(view.half, None)
        if previous is not None and previous.view.luma.shape == view.luma.shape:
            before = self._aligner.previous(
                previous.view, view, current.frame.motion, closely=closely
            )
        if following is not None and following.view.luma.shape == view.luma.shape:
            after = self._aligner.following(
                following.view, view, following.frame.motion, closely=closely
            )
        # A frame that is shown twice seems to stop; only where all stands still it does.
        repeats = _repeats(current.frame), following is not None and _repeats(following.frame)
        if repeats == (True, False):
            before = before._replace(offset=None)
        elif repeats == (False, True):
            after = after._replace(offset=None)
        return before, after

    def _assign(self, latents: Floats, motion: Motion | None) -> NDArray[np.uint8]:
        """(rows, columns, D) -> (rows, columns): in a scene blocks tend to keep their cluster."""
        before = self._labels
        if motion is None or motion.cut or before is None or before.shape != latents.shape[:2]:
            before = None
        clusters = self.backend.bundle.clusters
        self._labels = clusters.assign(latents, strength=self.strength, before=before)
        return self._labels

    def _restored(self, found: Found) -> list[Frame]:
        sure, cascade = found.frame.labels, self._cascade
        found = self._tried(found)
        labels = found.frame.labels
        assert labels is not None, "it was looked at"
        if cascade is None or found.suited is None:
            planes = self._filters.restored(found)
        elif self._second is None:
            doubt = Doubt((labels != CLEAR) & (sure == CLEAR), partial(cascade.passed, labels))
            planes = self._filters.restored(found, doubt=doubt)
            found = _labelled(found, cascade.last)
        else:
            planes = self._filters.restored(found)
            with measured("assign", self.seconds):
                cascade.passed(labels, change_of(found.frame, planes))
            found = _labelled(found, cascade.last)
        for counted in (*self.blocks[1:], self.shown):
            self._count(found, counted)
        if self._backwards is None:
            return self._once_more([(found, planes)])
        return self._once_more(self._backwards.push(found, planes))

    @property
    def _doubting(self) -> Cascade | None:
        """What lets filters find out which blocks are blurred, where that is open."""
        return self._cascade if 0 < self.strength < 1 else None

    def _tried(self, found: Found) -> Found:
        """With the labels by which the first stage filters."""
        labels, cascade = found.frame.labels, self._cascade
        assert labels is not None, "it was looked at"
        if cascade is not None and found.stands_still:
            found = _labelled(found, labels if cascade.last is None else cascade.last)
        elif cascade is not None and self._certain(found, cascade):
            found, cascade.last = replace(found, suited=None), labels
        elif cascade is not None and found.suited is not None:
            if found.frame.motion is not None and found.frame.motion.cut:
                cascade.forget()
            found = _labelled(found, cascade.tried(labels, found.suited))
        self._count(found, self.blocks[0])
        return found

    def _certain(self, found: Found, cascade: Cascade) -> bool:
        """Whether the encoder alone decides what is filtered, and all of that is shown."""
        labels = found.frame.labels
        assert labels is not None, "it was looked at"
        return found.suited is None or (self._second is None and not cascade.doubts(labels))

    def _count(self, found: Found, counted: NDArray[np.int64]) -> None:
        assert found.frame.labels is not None, "it was looked at"
        counted += np.bincount(found.frame.labels.ravel(), minlength=len(counted))

    def _once_more(self, frames: Iterable[Restored]) -> list[Frame]:
        """What a second stage, if there is one, makes of the next frames that were restored."""
        ready = []
        for found, planes in frames:
            if self._second is not None:
                ready += self._second.push(found, planes)
            else:
                ready.append(with_planes(found.frame, planes))
        return ready


def _labelled(found: Found, labels: NDArray[np.uint8] | None) -> Found:
    assert labels is not None, "a frame was labelled"
    kept = found.context if labels.any() else None
    return replace(found, frame=replace(found.frame, labels=labels), context=kept)


def _padded_context(grid: Grid, context: "Floats | Tensor") -> "Floats | Tensor":
    if isinstance(context, np.ndarray):
        return grid.pad(context, stride=CONTEXT_STRIDE)
    from .device import padded

    return padded(context, stride=CONTEXT_STRIDE)


def _neighbour(taken: Taken | None, aligned: Aligned) -> Neighbour | None:
    if taken is None or aligned.laying is None:
        return None
    return Neighbour(taken.frame, taken.view.luma, aligned.laying)


def _repeats(frame: Frame) -> bool:
    return frame.motion is not None and frame.motion.duplicate


def _same(before: Frame, after: Frame) -> bool:
    """Whether two frames show the same, bit for bit; only repetitions are looked at closely."""
    if after.motion is None or not after.motion.duplicate or after.format != before.format:
        return False
    return all(map(np.array_equal, before.planes, after.planes))
