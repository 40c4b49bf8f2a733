from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from vdeblur.align import Aligner, View
from vdeblur.backend import Backend, open_backend
from vdeblur.calm import LEFT_OUT, PATIENCE, Calm, speed_around
from vdeblur.frame import Frame, Motion, PixelFormat, through
from vdeblur.laying import Laying
from vdeblur.restore import Restorer

WIDTH, HEIGHT = 256, 192
SHARP = np.asarray(np.kron(np.indices((24, 32)).sum(axis=0) % 2, np.ones((8, 8))) * 200 + 20)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend("fast", device="cpu", backend="auto")


def moved(x: float, **more: object) -> Motion:
    return Motion(np.array([[1, 0, x], [0, 1, 0.0]]), **more)  # type: ignore[arg-type]


def frames_of(motions: Sequence[Motion]) -> list[Frame]:
    form = PixelFormat(planes=1)
    luma = SHARP.astype(np.uint8)
    return [
        Frame((np.roll(luma, i % 5, axis=1),), form, i, Fraction(1, 30), motion=motion)
        for i, motion in enumerate(motions)
    ]


def looks(calm: Calm, speeds: Sequence[float | None], *, clear: bool = True) -> list[bool]:
    """Whether each frame was looked at."""
    seen = []
    for speed in speeds:
        seen.append(not calm.leaves_out(speed))
        if seen[-1]:
            calm.looked(speed, clear=clear)
    return seen


def test_after_a_while_every_third_frame_is_looked_at() -> None:
    seen = looks(Calm(), [1.0] * (PATIENCE + 9))
    assert all(seen[:PATIENCE])
    assert seen[PATIENCE:] == ([False] * LEFT_OUT + [True]) * 3


def test_what_is_faster_is_looked_at() -> None:
    calm = Calm()
    looks(calm, [1.0] * PATIENCE)
    assert not calm.leaves_out(2.0)
    assert not calm.leaves_out(None)
    assert calm.leaves_out(1.2)


def test_a_find_begins_the_waiting_anew() -> None:
    calm = Calm()
    looks(calm, [1.0] * PATIENCE)
    calm.looked(1.0, clear=False)
    assert all(looks(calm, [1.0] * PATIENCE))
    assert all(looks(Calm(), [1.0] * 40, clear=False))


def test_a_speed_is_that_of_the_fastest_corner_before_or_after() -> None:
    slow, fast, cut = frames_of([moved(2), moved(-5), moved(1, cut=True)])
    assert speed_around(slow, fast) == pytest.approx(5)
    assert speed_around(slow, cut) is None
    assert speed_around(slow, None) is None
    assert speed_around(replace(slow, motion=moved(1, confidence=0.1)), fast) is None
    turned = Motion(np.array([[1, -0.1, 0], [0.1, 1, 0.0]]))
    speed = speed_around(replace(slow, motion=turned), slow)
    assert speed == pytest.approx(0.1 * np.hypot(WIDTH, HEIGHT))


def test_sharp_frames_come_back_as_they_are_with_a_third_of_the_looks(backend: Backend) -> None:
    restorer = Restorer(backend, strength=0.0)
    embed, looked = backend.embed, []
    backend.embed = lambda *seen: (looked.append(1), embed(*seen))[1]  # type: ignore[method-assign, func-returns-value]
    try:
        given = frames_of([moved(1.0)] * (PATIENCE + 30))
        done = list(through(restorer, given))
    finally:
        backend.embed = embed  # type: ignore[method-assign]
    assert [frame.pts for frame in done] == [frame.pts for frame in given]
    assert all(np.array_equal(a.planes[0], b.planes[0]) for a, b in zip(done, given, strict=True))
    assert PATIENCE + 10 <= len(looked) <= PATIENCE + 12
    assert int(restorer.blocks.sum()) == len(given) * 12  # those left out count as clear


def test_more_strength_ends_the_waiting(backend: Backend) -> None:
    restorer = Restorer(backend, strength=0.0)
    given = frames_of([moved(1.0)] * (PATIENCE + 6))
    for frame in given[:-3]:
        restorer.push(frame)
    restorer.strength = 1.0
    last = [frame for each in given[-3:] for frame in restorer.push(each)] + restorer.flush()
    assert all(frame.labels is not None and frame.labels.all() for frame in last)


def test_in_the_calm_only_a_find_makes_it_follow_what_moves_on_its_own(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[View] = []
    laying = Aligner._laying

    def counted(self: Aligner, neighbour: View, current: View, *others: Any) -> Laying:
        followed.append(current)
        return laying(self, neighbour, current, *others)

    monkeypatch.setattr(Aligner, "_laying", counted)
    restorer = Restorer(backend, strength=0.0)
    given = frames_of([moved(1.0)] * (PATIENCE + 12))
    for frame in given[:-6]:
        restorer.push(frame)
    assert len(followed) == 2 * PATIENCE - 1  # the first frame has one neighbour
    restorer.strength = 1.0
    for frame in given[-6:]:
        restorer.push(frame)
    assert len(followed) == 2 * PATIENCE - 1 + 2 * 6
    assert len({id(view) for view in followed[-12:]}) == 6
