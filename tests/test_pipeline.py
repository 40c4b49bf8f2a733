import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur import pipeline, processor
from vdeblur.backend import open_backend
from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, TILE
from vdeblur.bundle import Bundle
from vdeblur.clusters import Clusters
from vdeblur.demo import Demo, render_demo
from vdeblur.errors import ModelError, SinkError, SourceError
from vdeblur.frame import Frame, PixelFormat, through
from vdeblur.motion import MotionStage
from vdeblur.options import Options
from vdeblur.pipeline import Progress, process
from vdeblur.processor import LOOKED, Processor, _flush, _push
from vdeblur.stabilize import Aim, Planner, Stabilizer
from vdeblur.video import VideoReader, VideoWriter

FRAMES = 24
GREY = PixelFormat(planes=1)

Floats = NDArray[np.float32]


class FakeBackend:
    """The latent of a block is its brightness: below 100 it is clear, filter k adds 10 k."""

    name, device = "fake", "cpu"
    bundle = Bundle(
        folder=Path(),
        name="fake",
        clusters=Clusters(np.array([[60], [120], [180]], np.float32), stiffness=1.0),
        encoder_cost=0.0,
        filter_costs=(0.0, 0.0),
        context_channels=1,
    )

    def load(self) -> None:
        pass

    def embed(
        self, luma: NDArray[np.uint8], around: NDArray[np.uint8], motion: Floats
    ) -> tuple[Floats, Floats]:
        _, height, width = luma.shape
        context = np.zeros((1, height // CONTEXT_STRIDE, width // CONTEXT_STRIDE), np.float32)
        blocks = luma[0].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        return context, blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]

    def apply(
        self, cluster: int, luma: NDArray[np.uint8], chroma: NDArray[np.uint8], context: Floats
    ) -> tuple[Floats, Floats]:
        count = len(luma)
        return (
            np.full((count, TILE, TILE), 10 * cluster, np.float32),
            np.zeros((count, 2, TILE // 2, TILE // 2), np.float32),
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 shaky frames of 256x144."""
    path = tmp_path_factory.mktemp("pipeline") / "shaky.mp4"
    render_demo(path, demo=Demo(seconds=FRAMES / 30, width=256, height=144, blur=3))
    return path


@pytest.fixture(autouse=True)
def _fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "open_backend", lambda model, **_: FakeBackend())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def frames_of(path: Path) -> list[Frame]:
    with VideoReader(path) as reader:
        return list(reader)


def same(one: Frame, other: Frame) -> bool:
    pairs = zip(one.planes, other.planes, strict=True)
    return one.time == other.time and all((a == b).all() for a, b in pairs)


def nothing_said(message: str) -> None:
    raise AssertionError(f"no warning was expected: {message}")


@pytest.mark.parametrize(
    "options",
    [
        Options(lookahead=15),
        Options(stabilize=False),
        Options(deblur=False, lookahead=15, zoom="static"),
        Options(show_clusters=True, lookahead=3),
    ],
    ids=["both", "deblur", "stabilize", "clusters"],
)
def test_a_loop_and_a_file_get_the_same_pictures(
    clip: Path, tmp_path: Path, options: Options
) -> None:
    sink = tmp_path / "fixed.mkv"
    process(clip, sink, codec="ffv1", warn=nothing_said, **asdict(options))
    pushed: list[Frame] = []
    with Processor(options) as processor:
        for frame in frames_of(clip):
            pushed += processor.push(frame)
        pushed += processor.flush()
    written = frames_of(sink)
    assert len(written) == len(pushed) == FRAMES
    for before, after in zip(pushed, written, strict=True):
        # Matroska's clock ticks in milliseconds and may start later, for the sound's sake.
        since = (before.time - pushed[0].time) - (after.time - written[0].time)
        assert abs(since) < Fraction(1, 1000)
        assert same(before, replace(after, pts=before.pts, time_base=before.time_base))


@pytest.mark.parametrize("deblur", [False, True])
@pytest.mark.parametrize("stabilize", [False, True])
def test_delay_says_how_many_frames_are_held_back(
    clip: Path, deblur: bool, stabilize: bool
) -> None:
    options = Options(deblur=deblur, stabilize=stabilize, lookahead=5, model="fast")
    processor = Processor(options)
    counts = [len(processor.push(frame)) for frame in frames_of(clip)]
    assert counts.index(1) == processor.delay == deblur + 5 * stabilize
    assert set(counts[processor.delay :]) == {1}
    assert len(processor.flush()) == processor.delay


def test_after_a_flush_it_is_ready_for_another_video(clip: Path) -> None:
    processor, frames = Processor(), frames_of(clip)
    rounds = [
        [ready for frame in frames for ready in processor.push(frame)] + processor.flush()
        for _ in range(2)
    ]
    assert all(same(first, second) for first, second in zip(*rounds, strict=True))


def shades(shade: int, count: int) -> Iterator[Frame]:
    """Grey frames that are all alike."""
    for pts in range(count):
        yield Frame((np.full((32, 32), shade, np.uint8),), GREY, pts, Fraction(1, 30))


def failing(frames: Iterator[Frame]) -> Iterator[Frame]:
    yield from frames
    raise OSError("the disk is gone")


@pytest.mark.parametrize("deblur", [False, True])
@pytest.mark.parametrize("fails", [False, True], ids=["closed", "failed"])
def test_a_run_that_is_given_up_leaves_nothing_behind(deblur: bool, fails: bool) -> None:
    processor = Processor(Options(deblur=deblur, lookahead=4))
    processor.weaken(0.5)
    if fails:
        with pytest.raises(OSError, match="the disk is gone"):
            list(processor.run(failing(shades(50, 20))))
    else:
        frames = processor.run(shades(50, 20))
        next(frames)
        frames.close()
    seen = processor.clusters
    assert processor.flush() == []
    assert processor.clusters == seen
    ready = list(processor.run(shades(90, 9)))
    assert [int(frame.planes[0][16, 16]) for frame in ready] == [90] * 9
    assert bool(processor.clusters) == deblur


def test_a_flush_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    processor = Processor(Options(deblur=False, lookahead=4))
    assert [ready for frame in shades(50, 4) for ready in processor.push(frame)] == []
    monkeypatch.setattr(Stabilizer, "flush", fail)
    with pytest.raises(MemoryError):
        processor.flush()
    monkeypatch.undo()
    assert processor.flush() == []


def test_without_any_wish_the_frames_pass_as_they_are(clip: Path) -> None:
    frames = frames_of(clip)
    processor = Processor(Options(deblur=False, stabilize=False))
    assert [ready for frame in frames for ready in processor.push(frame)] == frames
    assert processor.flush() == []
    assert processor.delay == 0


@pytest.mark.parametrize(
    ("planes", "said"),
    [
        ([(48, 64, "f4"), (24, 32, "u1"), (24, 32, "u1")], "expected planes of uint8, got float32"),
        ([(48, 64, "u1"), (24, 32, "u2"), (24, 32, "u1")], "expected planes of uint8, got uint16"),
        ([(48, 64, "u1"), (48, 64, "u1"), (48, 64, "u1")], r"expected chroma .* \(24, 32\)"),
        ([(48, 64, "u1"), (24, 32, "u1"), (24, 31, "u1")], r"expected chroma .* \(24, 32\)"),
        ([(0, 0, "u1"), (0, 0, "u1"), (0, 0, "u1")], "a plane has rows and columns"),
        ([(48, "u1"), (24, "u1"), (24, "u1")], "a plane has rows and columns"),
    ],
)
def test_planes_that_are_not_what_their_format_says_are_refused(
    planes: list[tuple[Any, ...]], said: str
) -> None:
    arrays = tuple(np.zeros(shape, kind) for *shape, kind in planes)
    frame = Frame(arrays, PixelFormat(), 0, Fraction(1, 30))
    with pytest.raises(ValueError, match=said):
        Processor(Options(deblur=False)).push(frame)


def test_the_summary_adds_up(clip: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    summary = process(clip, tmp_path / "fixed.mp4", progress=steps.append, show_clusters=True)
    assert (summary.frames, summary.width, summary.height) == (FRAMES, 256, 144)
    assert summary.fps == pytest.approx(FRAMES / summary.seconds)
    assert set(summary.milliseconds) == {
        *("decode", "motion", "plan", "align", "load", "embed", "assign"),
        *("lay", "gather", "filter 1", "filter 2", "merge", "overlay", "warp", "encode"),
    }
    assert all(spent > 0 for spent in summary.milliseconds.values())
    assert sum(summary.clusters) == pytest.approx(1)
    assert len(summary.clusters) == 3
    assert summary.filtered == pytest.approx(1 - summary.clusters[0])
    assert 0 < summary.filtered < 1
    assert summary.memory_mb > 10
    assert (summary.backend, summary.warnings) == ("fake", ())
    assert [step.frames for step in steps] == list(range(1, FRAMES + 1))
    assert {step.total for step in steps} == {FRAMES}


def test_networks_that_are_open_serve_one_video_after_the_other(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_backend("fast", device="cpu")
    monkeypatch.setattr(processor, "open_backend", None)
    for name in ("one.mp4", "other.mp4"):
        summary = process(clip, tmp_path / name, opened=opened, model="no-such")
        assert summary.backend == opened.name
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()


def test_without_deblurring_no_model_is_opened(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object, **_: object) -> None:
        raise AssertionError("the model is not needed")

    monkeypatch.setattr(processor, "open_backend", refuse)
    summary = process(clip, tmp_path / "fixed.mp4", deblur=False)
    assert (summary.backend, summary.clusters, summary.filtered) == (None, (), 0.0)


class Recorder:
    """Stands in for a class and remembers how it was called."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real = real
        self.keywords: dict[str, Any] = {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        self.keywords |= keywords
        return self.real(*args, **keywords)


def test_options_reach_their_stages(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = dict.fromkeys(("open_backend", "expect", "Restorer", "Stabilizer"), processor)
    homes["VideoWriter"] = pipeline
    recorders = {name: Recorder(getattr(home, name)) for name, home in homes.items()}
    for name, recorder in recorders.items():
        monkeypatch.setattr(homes[name], name, recorder)
    process(
        clip,
        tmp_path / "fixed.mp4",
        strength=0.7,
        lookahead=4,
        smoothing=0.9,
        zoom="static",
        max_crop=0.2,
        camera_lock=True,
        border="black",
        interpolation="lanczos",
        field_of_view=100,
        device="cpu",
        backend="onnxruntime",
        codec="libx264",
        crf=30,
        preset="ultrafast",
        pix_fmt="yuv444p",
    )
    seen = {name: recorder.keywords for name, recorder in recorders.items()}
    assert callable(seen["open_backend"].pop("warn"))
    assert seen["open_backend"] == {"device": "cpu", "backend": "onnxruntime", "wait": False}
    assert seen["expect"] == {"size": (144, 256)}
    assert seen["Restorer"]["strength"] == 0.7
    assert seen["Stabilizer"] == {
        **{"lookahead": 4, "smoothing": 0.9, "zoom": "static", "border": "black"},
        **{"interpolation": "lanczos", "field_of_view": 100},
        **{"max_crop": 0.2, "camera_lock": True},
    }
    writing = {"codec": "libx264", "crf": 30, "preset": "ultrafast", "pix_fmt": "yuv444p"}
    assert {name: seen["VideoWriter"][name] for name in writing} == writing


@pytest.mark.parametrize(
    ("stage", "method"),
    [
        ("MotionStage", "push"),
        ("Restorer", "look"),
        ("Restorer", "restored"),
        ("Stabilizer", "push"),
    ],
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_when_a_stage_fails_threads_end_and_nothing_is_left(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    method: str,
    error: type[BaseException],
) -> None:
    calls = iter(range(FRAMES))
    real = getattr(getattr(processor, stage), method)

    def push(self: Any, given: Any) -> Any:
        if next(calls) == 10:
            raise error("broken")
        return real(self, given)

    monkeypatch.setattr(getattr(processor, stage), method, push)
    with pytest.raises(error, match="broken"):
        process(clip, tmp_path / "fixed.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "keywords", "room", "readers"),
    [
        ("the clip", {}, 10**9, 1),
        ("the clip", {}, 10**4, 2),
        ("the clip", {"lookahead": 15}, 10**4, 1),
        ("the clip", {"stabilize": False}, 10**4, 1),
        ("lavfi:testsrc2=size=64x48:duration=0.2", {}, 10**4, 1),
    ],
    ids=["small", "large", "lookahead", "no-stabilize", "lavfi"],
)
def test_only_a_file_too_large_to_be_held_is_read_twice(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    keywords: dict[str, Any],
    room: int,
    readers: int,
) -> None:
    opened: list[object] = []

    def reader(source: str | Path, **given: Any) -> VideoReader:
        opened.append(source)
        return VideoReader(source, **given)

    monkeypatch.setattr(pipeline, "VideoReader", reader)
    monkeypatch.setattr(pipeline, "HELD", room)
    source = str(clip) if source == "the clip" else source
    process(source, tmp_path / "fixed.mp4", deblur=False, **keywords)
    assert len(opened) == readers


def test_pictures_are_held_within_the_room_for_them(clip: Path) -> None:
    planner = Planner(Aim(), most=5)
    waiting = 0
    for frame in through(MotionStage(), frames_of(clip)):
        waiting += 1 - len(planner.push(frame))
        assert waiting < 5
    assert len(planner.flush()) == waiting > 0


def test_a_path_that_is_given_is_not_looked_for_again(clip: Path, tmp_path: Path) -> None:
    path, sink = tmp_path / "path.json", tmp_path / "fixed.mp4"
    process(clip, sink, deblur=False, motion_out=path)
    summary = process(clip, sink, deblur=False, motion_in=path, overwrite=True)
    assert "plan" not in summary.milliseconds


@pytest.mark.parametrize("rolling_shutter", [0.0, 0.5])
@pytest.mark.parametrize("room", [10**4, 10**9], ids=["read twice", "held"])
def test_a_planned_file_is_moved_as_the_planner_says(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rolling_shutter: float,
    room: int,
) -> None:
    monkeypatch.setattr(pipeline, "HELD", room)
    options = Options(deblur=False, rolling_shutter=rolling_shutter, camera_lock=True)
    sink = tmp_path / "fixed.mkv"
    process(clip, sink, codec="ffv1", warn=nothing_said, **asdict(options))
    planner = Planner(Aim(camera_lock=True))
    with Processor(options) as processor:
        frames = [ready for each in frames_of(clip) for ready in _push(processor._motion, [each])]
        frames += _flush(processor._motion)
        places = list(through(planner, frames))
        expected = list(through(processor._picture[0], places))
    written = frames_of(sink)
    assert len(written) == len(expected) == FRAMES
    for before, after in zip(expected, written, strict=True):
        assert same(before, replace(after, pts=before.pts, time_base=before.time_base))


def test_when_the_encoder_fails_threads_end_and_nothing_is_left(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: object, frame: Frame) -> None:
        raise SinkError("disk full")

    monkeypatch.setattr(VideoWriter, "write", write)
    with pytest.raises(SinkError, match="disk full"):
        process(clip, tmp_path / "fixed.mp4")
    assert list(tmp_path.iterdir()) == []


def test_when_the_model_fails_nothing_is_left(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object, **_: object) -> None:
        raise ModelError("no model")

    monkeypatch.setattr(processor, "open_backend", refuse)
    with pytest.raises(ModelError, match="no model"):
        process(clip, tmp_path / "fixed.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_progress_that_raises_stops_the_run(clip: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.frames == 5:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        process(clip, tmp_path / "fixed.mp4", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_told_and_kept(clip: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    process(clip, whole, deblur=False, stabilize=False)  # with its index at the beginning
    data = whole.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) * 2 // 3])
    told: list[str] = []
    summary = process(tmp_path / "half.mp4", tmp_path / "fixed.mp4", warn=told.append)
    assert told == list(summary.warnings)
    assert any("ends early" in line for line in told)
    assert 0 < summary.frames < FRAMES


def test_a_source_that_cannot_be_read_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        process(tmp_path / "none.mp4", tmp_path / "fixed.mp4")


def test_memory_is_bounded_by_the_lookahead_and_the_queue(clip: Path) -> None:
    taken = 0

    def counted() -> Iterator[Frame]:
        nonlocal taken
        (first, *_) = frames_of(clip)
        for pts in range(200):
            taken += 1
            yield replace(first, pts=512 * pts)

    processor = Processor(Options(lookahead=5))
    given = 0
    for _ in processor.run(counted(), depth=4):
        given += 1
        # What each thread is ahead of the next one, and one frame in the consumer's hands.
        assert taken - given <= processor.delay + 4 + 2 * LOOKED + 1
    assert given == 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": 1.5}, "strength must be 0..1, got 1.5"),
        ({"lookahead": -1}, "lookahead must be at least 0, got -1"),
        ({"smoothing": 0.0}, "smoothing must be above 0 and at most 3600 s, got 0.0"),
        ({"smoothing": float("inf")}, "smoothing must be above 0 and at most 3600 s, got inf"),
        ({"zoom": np.float32(9)}, "zoom must be 1 to 4, got 9.0"),
        ({"zoom": "much"}, "zoom must be one of auto, .* none or a number, got 'much'"),
        ({"zoom": 0.5}, "zoom must be 1 to 4, got 0.5"),
        ({"max_crop": 0.5}, "max_crop must be above 0 and below 0.5, got 0.5"),
        ({"border": "red"}, "border must be one of"),
        ({"device": "abacus"}, "device must be one of"),
        ({"backend": "abacus"}, "backend must be one of"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**wrong)


def test_pictures_do_not_pile_up_until_the_garbage_collector_comes(
    clip: Path, tmp_path: Path
) -> None:
    gc.collect()
    gc.disable()
    try:
        process(clip, tmp_path / "fixed.mp4", lookahead=2)
        left = sum(type(each) is av.VideoFrame for each in gc.get_objects())
    finally:
        gc.enable()
    assert left == 0
