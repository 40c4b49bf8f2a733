"""Each way in gives the pictures that the command line gives, in their order and at their time.

The clip is lossless BGR and each frame has its number burnt in: a plugin's host hands over BGR,
so that the command line, given BGR too, starts from the very same planes.
"""

import _thread
import gc
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur import Frame, Options, VideoReader
from vdeblur.cli import main
from vdeblur.demo import Demo, render_demo
from vdeblur.errors import SinkError, VdeblurError
from vdeblur.processor import Processor
from vdeblur.stabilize import Stabilizer as WarpStage
from vdeblur_plugins.ffmpeg import EXCHANGE
from vdeblur_plugins.ffmpeg.cli import build, parse
from vdeblur_plugins.ffmpeg.helper import ANSWERS, MESSAGE, Clock, Conversation
from vdeblur_plugins.opencv import Stabilizer, VideoCapture
from vdeblur_plugins.packed import packed_of, planes_of
from vdeblur_plugins.ticks import SECOND

WIDTH, HEIGHT, FRAMES, RATE = 250, 142, 40, 25
"""Neither side is a multiple of 4, let alone of 8."""
SQUARE, BITS = 20, 6
ROOT = Path(__file__).parents[1]

Picture = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shaky, blurred clip of lossless BGR; each frame has its number burnt in."""
    folder = tmp_path_factory.mktemp("plugins")
    shaky, counted = folder / "shaky.mp4", folder / "counted.mkv"
    render_demo(shaky, demo=Demo(seconds=FRAMES / 30, width=256, height=144, blur=3))
    with av.open(str(counted), "w") as sink:
        stream = sink.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for number, picture in enumerate(pictures_of(shaky)):
            part = picture[:HEIGHT, :WIDTH].copy()
            burn(part, number)
            frame = av.VideoFrame.from_ndarray(part, format="bgr24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode())
    return counted


@pytest.fixture(scope="module")
def expected(clip: Path) -> list[Picture]:
    """What the command line makes of the clip."""
    return command_line(clip, "--lookahead", "15")


@pytest.fixture(scope="module")
def unmoved(clip: Path) -> list[Picture]:
    """The same, only deblurred: the numbers stay where they are."""
    return command_line(clip, "--no-stabilize")


def command_line(clip: Path, *options: str) -> list[Picture]:
    sink = clip.with_name("fixed.mkv")
    words = [str(clip), "-o", str(sink), "-y", "-q", "--codec", "ffv1", *options]
    subprocess.run([sys.executable, "-m", "vdeblur", *words], check=True)
    with av.open(str(sink)) as source:
        frames = [frame.to_ndarray() for frame in source.decode(video=0)]  # yuv444p: (3, H, W)
    format = planes_of(np.zeros((2, 2, 3), np.uint8), 8)[1]
    return [packed_of(tuple(planes), format) for planes in frames]


def pictures_of(path: Path) -> list[Picture]:
    with av.open(str(path)) as source:
        frames = source.decode(video=0)
        return [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in frames]


def times_of(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds."""
    with av.open(str(path)) as source:
        return [Fraction(frame.time or 0) for frame in source.decode(video=0)]


def burn(picture: Picture, number: int) -> None:
    """Write a number as black and white squares into the middle of the picture."""
    top, left = (HEIGHT - SQUARE) // 2, (WIDTH - BITS * SQUARE) // 2
    for bit in range(BITS):
        x = left + bit * SQUARE
        picture[top : top + SQUARE, x : x + SQUARE] = 255 * (number >> bit & 1)


def number_in(picture: Picture) -> int:
    top, left = HEIGHT // 2 - 3, (WIDTH - BITS * SQUARE) // 2 + SQUARE // 2 - 3
    parts = [picture[top : top + 6, left + b * SQUARE : left + b * SQUARE + 6] for b in range(BITS)]
    return sum(1 << bit for bit, part in enumerate(parts) if part.mean() > 127)


def psnr(one: Picture, other: Picture) -> float:
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def everything(capture: VideoCapture) -> list[Picture]:
    pictures = []
    while (found := capture.read())[0]:
        pictures.append(found[1])
    capture.release()
    return pictures


def same(some: list[Picture], others: list[Picture]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def readme_example(heading: str) -> str:
    """The block of Python after a heading of the README."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"{heading}.*?```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_clip_tells_its_frames_apart(clip: Path, unmoved: list[Picture]) -> None:
    assert [number_in(picture) for picture in pictures_of(clip)] == list(range(FRAMES))
    assert [number_in(picture) for picture in unmoved] == list(range(FRAMES))


@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_colours_survive_the_way_through_the_planes(depth: int) -> None:
    noise = np.random.default_rng(1).random((30, 41, 3))
    dtype = np.uint8 if depth == 8 else np.uint16
    picture = np.rint(noise * ((1 << depth) - 1)).astype(dtype)
    picture[0, :3] = 0
    picture[1, :3] = (1 << depth) - 1
    back = packed_of(*planes_of(picture, depth))
    assert back.dtype == dtype
    assert np.abs(back.astype(int) - picture).max() <= 2
    assert np.array_equal(back[:2, :3], picture[:2, :3])


@pytest.mark.parametrize("depth", [8, 10, 16])
@pytest.mark.parametrize("shape", [(30, 40), (31, 41)])
def test_half_the_chroma_is_enough_for_video(depth: int, shape: tuple[int, int]) -> None:
    # Colours that change slowly, as those of 4:2:0 do, over fine detail in grey.
    rows, columns = np.indices(shape)
    colour = np.stack([100 + rows, 140 - columns, 60 + rows + columns], axis=2)
    detail = 30 * np.random.default_rng(1).random(shape)
    dtype = np.uint8 if depth == 8 else np.uint16
    scale = ((1 << depth) - 1) / 255
    picture = np.rint((colour + detail[:, :, None]) * scale).astype(dtype)
    planes, format = planes_of(picture, depth, "420")
    assert planes[1].shape == format.chroma_shape(*shape)
    assert np.abs(packed_of(planes, format).astype(int) - picture).max() <= 3 * scale


def test_half_the_chroma_of_a_video_is_near_the_command_line(clip: Path, tmp_path: Path) -> None:
    video, sink = clip.with_name("shaky.mp4"), tmp_path / "fixed.mkv"
    words = [str(video), "-o", str(sink), "-q", "--codec", "ffv1", "--lookahead", "15"]
    words += ["--strength", "1"]  # else a block at the line may be filtered by one of them alone
    subprocess.run([sys.executable, "-m", "vdeblur", *words], check=True)
    pictures = everything(VideoCapture(str(video), chroma="420", options=Options(strength=1.0)))
    near = [psnr(*pair) for pair in zip(pictures, pictures_of(sink), strict=True)]
    assert min(near) > 40
    assert np.mean(near) > 43
    with pytest.raises(ValueError, match="chroma must be one of"):
        Stabilizer(chroma="411")


@pytest.mark.parametrize("depth", [8, 10])
def test_grey_is_passed_bit_for_bit(depth: int) -> None:
    dtype = np.uint8 if depth == 8 else np.uint16
    picture = np.random.default_rng(1).integers(0, 1 << depth, (30, 41), dtype)
    back = packed_of(*planes_of(picture, depth))
    assert np.array_equal(back, picture)
    assert not np.shares_memory(back, picture)


def test_the_capture_reads_what_the_command_line_writes(
    clip: Path, expected: list[Picture]
) -> None:
    capture = VideoCapture(str(clip))
    assert capture.isOpened()
    assert same(everything(capture), expected)
    assert not capture.isOpened()


def test_the_capture_keeps_count_order_and_time(clip: Path) -> None:
    capture = VideoCapture(str(clip), options=Options(stabilize=False))
    plain = cv2.VideoCapture(str(clip))
    for number in range(FRAMES):
        found, picture = capture.read()
        assert found
        assert picture is not None
        assert number_in(picture) == number
        plain.read()
        for place in (cv2.CAP_PROP_POS_MSEC, cv2.CAP_PROP_POS_FRAMES):
            assert capture.get(place) == plain.get(place)
    assert capture.read() == (False, None)
    for known in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_WIDTH):
        assert capture.get(known) == plain.get(known)
    assert capture.getBackendName() == plain.getBackendName()
    capture.release()


def test_the_capture_seeks(clip: Path) -> None:
    capture = VideoCapture(str(clip), options=Options(deblur=False, zoom="none"))
    assert capture.grab()
    assert capture.set(cv2.CAP_PROP_POS_FRAMES, 30)
    assert capture.get(cv2.CAP_PROP_POS_FRAMES) == 30
    room = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    found, picture = capture.read(room)
    assert found
    assert picture is room
    assert number_in(picture) == 30
    assert len(everything(capture)) == FRAMES - 31


def test_a_capture_that_is_dropped_ends_its_thread(clip: Path) -> None:
    capture = VideoCapture(str(clip))
    capture.read()
    del capture
    gc.collect()  # the fixture counts the threads


def test_what_cannot_be_opened_is_not_open(tmp_path: Path) -> None:
    capture = VideoCapture(str(tmp_path / "nothing.mp4"))
    assert not capture.isOpened()
    assert capture.read() == (False, None)
    assert not capture.grab()
    assert capture.retrieve() == (False, None)
    capture.setExceptionMode(True)
    with pytest.raises(cv2.error):
        capture.open(str(tmp_path / "nothing.mp4"))


def test_exceptions_end_a_capture_behind_its_last_picture(clip: Path) -> None:
    capture = VideoCapture(str(clip), options=Options(deblur=False, lookahead=5))
    capture.setExceptionMode(True)
    for _ in range(FRAMES):
        assert capture.read()[0]
    for _ in range(2):
        with pytest.raises(cv2.error):
            capture.read()
    capture.setExceptionMode(False)
    assert capture.read() == (False, None)
    capture.release()


def test_exceptions_tell_that_nothing_is_open() -> None:
    capture = VideoCapture(options=Options(deblur=False))
    capture.setExceptionMode(True)
    with pytest.raises(cv2.error):
        capture.read()
    with pytest.raises(cv2.error):
        capture.grab()


def test_several_threads_may_read_one_capture(clip: Path) -> None:
    capture = VideoCapture(str(clip), options=Options(deblur=False, stabilize=False))
    numbers: list[int] = []

    def read() -> None:
        while (picture := capture.read()[1]) is not None:
            numbers.append(number_in(picture))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(FRAMES))
    capture.release()


class Camera:
    """Stands in for `cv2.VideoCapture`: a grey picture every few milliseconds, for ever."""

    taken = 0
    opened = True

    def read(self) -> tuple[bool, Picture]:
        assert self.opened
        time.sleep(0.002)
        self.taken += 1
        return True, np.full((32, 32), 99, np.uint8)

    def get(self, place: int) -> float:
        return 0.0

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def getExceptionMode(self) -> bool:  # noqa: N802
        return False

    def release(self) -> None:
        self.opened = False


def test_a_capture_is_released_while_another_thread_waits_for_a_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    capture, found = VideoCapture(options=Options(deblur=False, lookahead=5000)), []
    camera = capture._source.capture
    assert isinstance(camera, Camera)

    def read() -> None:
        while capture.read()[0]:
            found.append(camera.taken)

    reader = threading.Thread(target=read)
    reader.start()
    while camera.taken < 10:
        time.sleep(0.001)
    capture.release()
    reader.join()
    assert not capture.isOpened()
    assert camera.taken < 5000, "the one that was waited for came with the camera's 5001st"
    assert len(found) <= 1


def test_a_sequence_of_pictures_is_read_too(clip: Path, tmp_path: Path) -> None:
    pictures = pictures_of(clip)[:5]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), picture)
    capture = VideoCapture(str(tmp_path / "%03d.png"), options=Options(deblur=False, lookahead=2))
    assert len(everything(capture)) == 5


def test_a_loop_gets_what_the_command_line_writes(clip: Path, expected: list[Picture]) -> None:
    with Stabilizer(Options(model="fast"), rate=RATE) as stabilizer:
        ready = [stabilizer.apply(picture) for picture in pictures_of(clip)]
        assert [len(some) for some in ready] == [0] * 18 + [1] * (FRAMES - 18)
        assert stabilizer.delay == 18
        pictures = [picture for some in ready for picture in some] + stabilizer.flush()
    assert same(pictures, expected)


def test_a_loop_that_works_ahead_gets_the_same(clip: Path) -> None:
    pictures = pictures_of(clip)[:12]
    runs, delays = [], []
    for ahead in (0, 1, 5):
        with Stabilizer(Options(lookahead=3, model="fast"), rate=RATE, ahead=ahead) as stabilizer:
            ready = [each for picture in pictures for each in stabilizer.apply(picture)]
            runs.append(ready + stabilizer.flush())
            delays.append(stabilizer.delay)
            assert len(ready) == len(pictures) - stabilizer.delay
    assert delays == [4, 5, 9]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    with pytest.raises(ValueError, match="ahead must be at least 0 pictures, got -1"):
        Stabilizer(ahead=-1)


def test_no_thread_is_left_by_a_loop_that_is_dropped(clip: Path) -> None:
    pictures, before = pictures_of(clip)[:6], threading.active_count()
    stabilizer = Stabilizer(Options(deblur=False, lookahead=1), rate=RATE)
    for picture in pictures:
        stabilizer.apply(picture)
    assert threading.active_count() > before
    del stabilizer
    assert threading.active_count() == before


def test_a_loop_learns_what_went_wrong_in_a_thread(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    pictures, before = pictures_of(clip)[:8], threading.active_count()
    monkeypatch.setattr(WarpStage, "push", fail)
    with Stabilizer(Options(deblur=False, lookahead=1), rate=RATE) as stabilizer:
        ready = map(stabilizer.apply, pictures)
        with pytest.raises(RuntimeError, match="no more"):
            list(ready)
    assert threading.active_count() == before


def test_a_loop_may_start_again_after_a_flush(clip: Path) -> None:
    pictures = pictures_of(clip)[:8]
    with Stabilizer(Options(deblur=False, lookahead=3), rate=RATE) as stabilizer:
        runs = [
            [ready for picture in pictures for ready in stabilizer.apply(picture)]
            + stabilizer.flush()
            for _ in range(2)
        ]
    assert same(*runs)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C, also where the tests run as a job that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ahead", [0, 2])
def test_nothing_of_an_interrupted_video_is_in_the_next(
    ahead: int, monkeypatch: pytest.MonkeyPatch, heard: None
) -> None:
    push, steps = WarpStage.push, iter(range(100))

    def interrupting(stage: WarpStage, frame: Frame) -> list[Frame]:
        if next(steps) == 6:
            _thread.interrupt_main()
            time.sleep(0.05)  # the loop waits for this picture
        return push(stage, frame)

    monkeypatch.setattr(WarpStage, "push", interrupting)
    old, new = (np.full((32, 32), shade, np.uint8) for shade in (50, 200))
    with Stabilizer(Options(deblur=False, lookahead=4), ahead=ahead) as stabilizer:
        with pytest.raises(KeyboardInterrupt):
            list(map(stabilizer.apply, [old] * 50))
        stabilizer.flush()
        pictures = [ready for _ in range(9) for ready in stabilizer.apply(new)]
        pictures += stabilizer.flush()
    assert [int(picture[16, 16]) for picture in pictures] == [200] * 9


def test_numpy_s_numbers_are_a_time_and_a_rate_too() -> None:
    picture, options = np.zeros((32, 32), np.uint8), Options(deblur=False, lookahead=0)
    with Stabilizer(options, rate=np.float32(29.97), ahead=0) as stabilizer:
        assert len(stabilizer.apply(picture)) == 1
        assert len(stabilizer.apply(picture, time=np.float32(0.1))) == 1
        assert len(stabilizer.apply(picture, time=Fraction(1, 5))) == 1
        for wrong in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="time must be finite seconds, got"):
                stabilizer.apply(picture, time=wrong)


@pytest.mark.parametrize("rate", [0, -30, 1e-9, 1e9, float("inf"), float("nan")])
def test_a_rate_that_no_video_has_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate must be 1e-6 to 1e6 .* got {rate}"):
        Stabilizer(Options(deblur=False), rate=rate)


def test_times_count_as_the_rate_does(clip: Path) -> None:
    pictures = pictures_of(clip)[:20]
    options = Options(deblur=False, lookahead=3)
    with Stabilizer(options, rate=RATE) as by_rate, Stabilizer(options) as by_time:
        for number, picture in enumerate(pictures):
            one, other = by_rate.apply(picture), by_time.apply(picture, number / RATE)
            assert all(psnr(a, b) > 50 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("depth", [8, 10, 16])
@pytest.mark.parametrize("grey", [False, True])
def test_a_deep_or_grey_picture_stays_so(clip: Path, depth: int, grey: bool) -> None:
    pictures = [p.mean(axis=2) if grey else p.astype(float) for p in pictures_of(clip)[:6]]
    peak, dtype = (1 << depth) - 1, np.uint8 if depth == 8 else np.uint16
    with Stabilizer(Options(lookahead=2), depth=None if depth == 10 else depth) as stabilizer:
        out = [
            ready
            for picture in pictures
            for ready in stabilizer.apply(np.rint(picture / 255 * peak).astype(dtype))
        ]
        out += stabilizer.flush()
    assert len(out) == 6
    assert {(each.shape, each.dtype) for each in out} == {(pictures[0].shape, np.dtype(dtype))}
    assert all(peak // 2 < each.max() <= peak for each in out)


@pytest.mark.parametrize(
    ("picture", "error", "match"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8 or uint16, got float32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(H, W, 3\) BGR"),
        (np.zeros((0, 4), np.uint8), ValueError, "must have pixels"),
        (np.full((4, 4), 1024, np.uint16), ValueError, "1024 has more than 10 bits"),
        (None, TypeError, "uint8 or uint16, got NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(
    picture: Picture, error: type[Exception], match: str
) -> None:
    with Stabilizer(Options(deblur=False)) as stabilizer, pytest.raises(error, match=match):
        stabilizer.apply(picture)


def test_another_size_is_refused_by_a_loop() -> None:
    with Stabilizer(Options(deblur=False)) as stabilizer:
        stabilizer.apply(np.zeros((32, 32), np.uint8))
        with pytest.raises(ValueError, match="flush first"):
            stabilizer.apply(np.zeros((32, 34), np.uint8))


@pytest.mark.parametrize("heading", ["### OpenCV", "### A loop that has its pictures"])
def test_the_readme_s_examples_run(
    heading: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shaky.mp4").symlink_to(clip.with_name("shaky.mp4"))
    shown: list[Picture] = []
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda milliseconds=0: -1)
    exec(readme_example(heading), {})
    written = tmp_path / "fixed.avi"
    assert len(shown) + (len(pictures_of(written)) if written.exists() else 0) == FRAMES


def test_the_packages_are_those_in_the_folders() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {"vdeblur": "vdeblur", "training": "vdeblur_training"}
    folders |= {"engines": "vdeblur_engines", "plugins": "vdeblur_plugins"}
    found = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for folder, name in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(listed) == found


def test_type_checkers_are_told_that_the_packages_are_typed() -> None:
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for name in (name for name in setup["packages"] if "." not in name):
        assert (ROOT / setup["package-dir"].get(name, name) / "py.typed").exists()
        assert "py.typed" in setup["package-data"][name]


PROGRAMS = {"ffmpeg": "ffmpeg", "melt": "melt", "gst-launch-1.0": "gstreamer1.0-tools"}
"""Debian's packages of what the filter is tried in."""


def needed(program: str) -> str:
    """The program; without it the test is skipped aloud, or fails where all must be there."""
    if shutil.which(program) is None:
        missing = f"{program} is not installed (apt-get install {PROGRAMS[program]})"
        if os.environ.get("VDEBLUR_REQUIRE_PROGRAMS"):
            pytest.fail(missing)
        pytest.skip(missing)
    return program


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frei0r")
    build(folder / "vdeblur.so")
    return folder


@pytest.fixture
def environment(plugin: Path) -> dict[str, str]:
    """Of a host: it finds this build of the filter, and the filter this Python."""
    return {**os.environ, "FREI0R_PATH": str(plugin), "VDEBLUR_PYTHON": sys.executable}


def host(words: list[str], environment: dict[str, str]) -> str:
    """Run a program to its end; return what it said."""
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def arguments(clip: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `vdeblur ffmpeg-args` prints."""
    capsys.readouterr()
    assert main(["ffmpeg-args", str(clip), *options]) == 0
    return shlex.split(capsys.readouterr().out)


def lossless(words: list[str]) -> list[str]:
    """The same, without the step back to the source's pixel format, into lossless BGR."""
    graph = words[words.index("-vf") + 1].partition(",scale=")[0]
    return [*words[:2], "-vf", graph, "-c:v", "ffv1", "-pix_fmt", "bgr0"]


def test_ffmpeg_writes_what_the_command_line_writes(
    clip: Path,
    expected: list[Picture],
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = tmp_path / "fixed.mkv"
    words = lossless(arguments(clip, capsys=capsys))
    said = host([needed("ffmpeg"), "-v", "warning", *words, str(sink)], environment)
    assert "vdeblur" not in said
    assert same(pictures_of(sink), expected)
    assert times_of(sink) == times_of(clip)


def test_ffmpeg_keeps_count_order_and_time(
    clip: Path,
    unmoved: list[Picture],
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = tmp_path / "fixed.mkv"
    words = lossless(arguments(clip, "--no-stabilize", "--strength", "0.5", capsys=capsys))
    host([needed("ffmpeg"), "-v", "warning", *words, str(sink)], environment)
    pictures = pictures_of(sink)
    assert [number_in(picture) for picture in pictures] == list(range(FRAMES))
    assert same(pictures, unmoved)


def test_ffmpeg_s_arguments_keep_format_and_colours(
    clip: Path,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, sink = clip.with_name("shaky.mp4"), tmp_path / "fixed.mp4"
    # Nothing is done to the pictures: what differs is the way through BGRA and the encoder.
    words = [*arguments(source, "--no-deblur", "--no-stabilize", capsys=capsys), "-crf", "1"]
    host([needed("ffmpeg"), "-v", "warning", *words, str(sink)], environment)
    with av.open(str(source)) as before, av.open(str(sink)) as after:
        one, other = (container.streams.video[0].codec_context for container in (before, after))
        assert one.pix_fmt == other.pix_fmt
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
            assert getattr(one, name) == getattr(other, name), name
        assert len(before.streams.audio) == len(after.streams.audio)
    pairs = list(zip(pictures_of(source), pictures_of(sink), strict=True))
    assert min(psnr(before, after) for before, after in pairs) > 40
    assert times_of(source) == times_of(sink)


def test_ffmpeg_turns_no_picture_and_keeps_all_sound(
    clip: Path,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upright, source, sink = clip.with_name("shaky.mp4"), tmp_path / "a.mp4", tmp_path / "b.mp4"
    with av.open(str(upright)) as given, av.open(str(source), "w") as made:
        (video,), (sound,) = given.streams.video, given.streams.audio
        turned = made.add_stream_from_template(video)
        turned.set_display_rotation(90)
        streams = [turned, *(made.add_stream_from_template(sound) for _ in range(2))]
        for packet in given.demux(video, sound):
            for stream in streams[1:] if packet.stream is sound else streams[:1]:
                if packet.size:
                    again = av.Packet(bytes(packet))
                    again.pts, again.dts, again.time_base = packet.pts, packet.dts, packet.time_base
                    again.is_keyframe, again.stream = packet.is_keyframe, stream
                    made.mux(again)
    words = arguments(source, "--no-deblur", "--no-stabilize", capsys=capsys)
    host([needed("ffmpeg"), "-v", "warning", *words, "-qp", "0", str(sink)], environment)
    with VideoReader(source) as before, VideoReader(sink) as after:
        assert before.info.rotation == after.info.rotation == 90
        assert len(after.container.streams.audio) == 2
    assert same(planes_in(sink), planes_in(source))


def planes_in(path: Path) -> list[Picture]:
    """All planes of a video as they were decoded."""
    with VideoReader(path) as reader:
        return [np.array(plane, np.uint8) for frame in reader for plane in frame.planes]


@pytest.mark.parametrize(
    ("pix_fmt", "size"),
    [
        ("yuv420p", "336x180"),
        ("yuvj420p", "250x142"),  # its planes lie between padding
        ("yuv422p", "250x143"),
        ("yuv444p", "251x143"),
    ],
)
def test_ffmpeg_hands_planes_over_as_they_are(
    pix_fmt: str,
    size: str,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shaky, clip, sink = (tmp_path / name for name in ("shaky.mp4", "clip.mkv", "fixed.mkv"))
    render_demo(shaky, demo=Demo(seconds=1, width=352, height=192, blur=3))
    cut = f"crop={size.replace('x', ':')}:0:0:exact=1,format={pix_fmt},setsar=4/3"
    ffmpeg = [needed("ffmpeg"), "-v", "warning"]
    host([*ffmpeg, "-i", str(shaky), "-vf", cut, "-an", "-c:v", "ffv1", str(clip)], environment)
    words = arguments(clip, "--lookahead", "4", capsys=capsys)
    assert f"{pix_fmt.replace('j', '')} {size}" in words[3]
    said = host([*ffmpeg, *words, "-c:v", "ffv1", str(sink)], environment)
    assert said == ""
    expected = clip.with_name("fixed-by-command-line.mkv")
    options = ["-y", "-q", "--codec", "ffv1", "--lookahead", "4"]
    subprocess.run(
        [sys.executable, "-m", "vdeblur", str(clip), "-o", str(expected), *options], check=True
    )
    assert same(planes_in(sink), planes_in(expected))
    assert times_of(sink) == times_of(clip)
    with av.open(str(sink)) as fixed, av.open(str(clip)) as source:
        one, other = (each.streams.video[0] for each in (fixed, source))
        assert one.sample_aspect_ratio == other.sample_aspect_ratio
        assert one.codec_context.color_range == other.codec_context.color_range


@pytest.mark.parametrize("size", ["32x17", "336x181"])
def test_several_filters_and_odd_sizes(size: str, environment: dict[str, str]) -> None:
    # Two instances in one graph: each has its own helper.
    one = "frei0r=vdeblur:--no-deblur --lookahead 2"
    words = ["-f", "lavfi", "-i", f"testsrc2=size={size}:duration=1", "-vf", f"{one},{one}"]
    words += ["-f", "framemd5", "-"]
    said = host([needed("ffmpeg"), "-v", "warning", *words], environment)
    assert "vdeblur" not in said
    assert len([line for line in said.splitlines() if line.startswith("0,")]) == 25


@pytest.mark.parametrize(
    ("python", "options", "match"),
    [
        ("/nowhere/python", "", "cannot be started .set VDEBLUR_PYTHON"),
        (sys.executable, "--lookahead many", "did not start .exit code 1"),
    ],
)
def test_without_a_helper_the_frames_pass_through_as_late(
    clip: Path,
    environment: dict[str, str],
    tmp_path: Path,
    python: str,
    options: str,
    match: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = tmp_path / "fixed.mkv"
    words = lossless(arguments(clip, capsys=capsys))
    words[3] = words[3].replace("filter_params=", f"filter_params={options}")
    environment["VDEBLUR_PYTHON"] = python
    said = host([needed("ffmpeg"), "-v", "warning", *words, str(sink)], environment)
    assert len(re.findall("pass through unchanged", said)) == 1
    assert re.search(match, said)
    assert same(pictures_of(sink), pictures_of(clip))


QUICK = ("--no-deblur", "--lookahead", "3")
LATE = 3 + EXCHANGE


@pytest.fixture(scope="module")
def quick(clip: Path) -> list[Picture]:
    """What the command line makes of the clip without deblurring."""
    return command_line(clip, *QUICK)


def test_mlt_writes_what_the_command_line_writes(
    clip: Path, quick: list[Picture], environment: dict[str, str], tmp_path: Path
) -> None:
    sink = tmp_path / "fixed.mkv"
    words = [needed("melt"), "-silent", str(clip), "color:#00000000", f"out={LATE - 1}"]
    words += ["-filter", "frei0r.vdeblur", f"options={' '.join(QUICK)}", "-consumer"]
    words += [f"avformat:{sink}", "vcodec=ffv1", "pix_fmt=bgr0", "an=1", "real_time=-1"]
    assert "vdeblur:" not in host(words, environment)
    assert same(pictures_of(sink)[LATE:], quick)


def test_gstreamer_writes_what_the_command_line_writes(
    clip: Path, quick: list[Picture], environment: dict[str, str], tmp_path: Path
) -> None:
    source, sink = tmp_path / "source.raw", tmp_path / "fixed.raw"
    opaque = [cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA) for picture in pictures_of(clip)]
    transparent = np.zeros((LATE, HEIGHT, WIDTH, 4), np.uint8)
    np.concatenate([np.stack(opaque), transparent]).tofile(source)
    words = [needed("gst-launch-1.0"), "-q", "filesrc", f"location={source}", "!"]
    words += ["rawvideoparse", "format=bgra", f"width={WIDTH}", f"height={HEIGHT}"]
    words += [f"framerate={RATE}/1", "!", "frei0r-filter-vdeblur", f"options={' '.join(QUICK)}"]
    words += ["!", "filesink", f"location={sink}"]
    environment["GST_REGISTRY"] = str(tmp_path / "registry")
    assert "vdeblur:" not in host(words, environment)
    pictures = np.fromfile(sink, np.uint8).reshape(-1, HEIGHT, WIDTH, 4)[..., :3]
    assert same(list(pictures[LATE:]), quick)


def children(parent: int) -> list[int]:
    """The processes that a process has started, those not yet waited for included."""
    found = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(happened: "object", seconds: float = 10.0) -> bool:
    """Poll `happened()`."""
    assert callable(happened)
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("moment", range(20))
def test_whoever_is_killed_nothing_is_left(
    moment: int, clip: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """At a random moment the host or the helper is killed; half of the times each."""
    before = set(Path("/dev/shm").iterdir())
    log = tmp_path / "log"
    words = ["-v", "warning", "-stream_loop", "-1", "-re", "-i", str(clip)]
    words += ["-vf", "frei0r=vdeblur:--no-deblur --lookahead 3", "-f", "null", "-"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [needed("ffmpeg"), *words], env=environment, stdin=subprocess.PIPE, stderr=stderr
        ) as ffmpeg,
    ):
        try:
            assert wait_until(lambda: children(ffmpeg.pid))
            (helper,) = children(ffmpeg.pid)
            time.sleep(random.Random(moment).uniform(0, 1.5))
            if moment % 2:
                ffmpeg.kill()
                ffmpeg.wait()
            else:
                os.kill(helper, signal.SIGKILL)
                assert wait_until(lambda: not children(ffmpeg.pid))  # not even a zombie
                assert ffmpeg.poll() is None
                ffmpeg.communicate(b"q", timeout=20)
                assert ffmpeg.returncode == 0
                assert log.read_text().count("(signal 9): frames pass through unchanged") == 1
        finally:
            ffmpeg.kill()
    assert wait_until(lambda: not is_alive(helper))
    assert set(Path("/dev/shm").iterdir()) <= before


WITHOUT_END = {
    "melt": "color:red out=1000000 -filter frei0r.vdeblur options={} -consumer null real_time=-1",
    "gst-launch-1.0": "videotestsrc ! videoconvert ! frei0r-filter-vdeblur options={} ! fakesink",
}
"""Words with which other hosts run the filter for ever."""


@pytest.mark.parametrize("moment", range(10))
@pytest.mark.parametrize("program", list(WITHOUT_END))
def test_whoever_is_killed_in_other_hosts_nothing_is_left(
    program: str, moment: int, environment: dict[str, str], tmp_path: Path
) -> None:
    before = set(Path("/dev/shm").iterdir())
    log = tmp_path / "log"
    words = [each.format("--no-deblur --lookahead 3") for each in WITHOUT_END[program].split()]
    environment["GST_REGISTRY"] = str(tmp_path / "registry")
    environment["GST_REGISTRY_FORK"] = "no"  # a scanner would be a child, too
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [needed(program), *words], env=environment, stdout=subprocess.PIPE, stderr=stderr
        ) as running,
    ):
        try:
            assert wait_until(lambda: children(running.pid), 30)
            time.sleep(random.Random(moment).uniform(0, 1.5))
            assert wait_until(lambda: children(running.pid))  # melt tries the filter out at first
            (helper,) = children(running.pid)
            if moment % 2:
                running.kill()
                running.wait()
            else:
                os.kill(helper, signal.SIGKILL)
                assert wait_until(lambda: helper not in children(running.pid))
                assert running.poll() is None
                # Unless that was the helper of a filter which melt gave up anyway, after its trial.
                told = "frames pass through unchanged"
                assert wait_until(lambda: told in log.read_text() or children(running.pid))
        finally:
            helpers = {helper, *children(running.pid)}
            running.kill()
    assert wait_until(lambda: not any(map(is_alive, helpers)))
    assert set(Path("/dev/shm").iterdir()) <= before


def answers(options: Options, asked: list[tuple[Picture, float]]) -> list[Picture]:
    """What the helper answers to pictures and their times, as the host in C takes it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    out: list[Picture] = []
    with ours, theirs, Processor(options) as processor:
        count = processor.delay + EXCHANGE + 1
        slots = np.zeros((count + ANSWERS, *asked[0][0].shape), np.uint8)
        helper = threading.Thread(
            target=Conversation(theirs, lambda: slots, processor).hold, name="helper"
        )
        helper.start()

        def hear() -> int:
            return int(MESSAGE.unpack(ours.recv(MESSAGE.size, socket.MSG_WAITALL))[1])

        assert hear() == count - 1
        for number, (picture, moment) in enumerate(asked):
            slots[number % count] = picture
            ours.sendall(MESSAGE.pack(2, number % count, moment))
            if number >= EXCHANGE:
                out.append(slots[count + hear()].copy())
        while len(out) < len(asked):
            out.append(slots[count + hear()].copy())
        ours.shutdown(socket.SHUT_RDWR)
        helper.join(60)
        assert not helper.is_alive()
    return out


def test_an_editor_may_jump() -> None:
    pictures = [np.full((32, 48, 4), 255, np.uint8) for _ in range(12)]
    for number, picture in enumerate(pictures):
        picture[:, :, :3] = 20 * number
    jumps = [0, 1, 2, 3, 9, 10, 11, 4, 5, 6]  # one a second
    asked = [(pictures[number], 25 + number / 1.0) for number in jumps]
    found = answers(Options(deblur=False, lookahead=2), asked)
    # Two late, and after a jump a new beginning.
    seen = [round(int(out[16, 24, 0]) / 20) for out in found]
    assert seen == [0, 1, 0, 1, 9, 10, 9, 4, 5, 4]


def test_what_is_transparent_ends_the_video_and_alpha_is_kept() -> None:
    picture = np.full((32, 48, 4), 200, np.uint8)
    nothing = np.zeros_like(picture)
    asked = [picture, picture, picture, nothing, nothing, nothing]
    options = Options(deblur=False, lookahead=2)
    found = answers(options, [(each, 40.0 * number) for number, each in enumerate(asked)])
    assert [int(out[0, 0, 3]) for out in found] == [200] * 5 + [0]


def test_transparent_pictures_in_the_middle_keep_their_place() -> None:
    asked = []
    for number in range(16):
        picture = np.full((32, 48, 4), 255, np.uint8)
        picture[:, :, :3] = 15 * number
        asked.append(np.zeros_like(picture) if number in (0, 7, 13, 14, 15) else picture)
    options = Options(deblur=False, lookahead=3)
    found = answers(options, [(each, 40.0 * number) for number, each in enumerate(asked)])
    seen = [round(int(out[16, 24, 0]) / 15) if out[16, 24, 3] else None for out in found]
    assert seen == [None, 1, 2, None, 1, 2, 3, 4, 5, 6, None, 8, 9, 10, 11, 12]


def test_when_a_stage_of_the_helper_fails_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host, which waits for an answer, then hears that nobody is there any more."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    slots = np.full((20, 32, 48, 4), 200, np.uint8)
    failed: list[BaseException] = []

    def push(self: object, frame: object) -> list[object]:
        time.sleep(0.3)  # the next picture is being waited for by then
        raise ValueError("broken")

    def helper() -> None:
        with theirs, Processor(Options(deblur=False, lookahead=1)) as processor:
            try:
                Conversation(theirs, lambda: slots, processor).hold()
            except ValueError as error:
                failed.append(error)

    monkeypatch.setattr(WarpStage, "push", push)
    thread = threading.Thread(target=helper, name="helper")
    thread.start()
    with ours:
        ours.recv(MESSAGE.size, socket.MSG_WAITALL)
        for number in range(3):
            ours.sendall(MESSAGE.pack(2, number, 40.0 * number))
        while ours.recv(MESSAGE.size, socket.MSG_WAITALL):
            pass
        thread.join(30)
    assert not thread.is_alive()
    assert [str(error) for error in failed] == ["broken"]


def test_a_video_may_begin_or_consist_of_transparent_pictures() -> None:
    nothing = np.zeros((32, 48, 4), np.uint8)
    # The jump back comes while the video has ended already.
    asked = [(nothing, 40.0 * number) for number in (0, 1, 2, 3, 0, 1, 2, 3)]
    found = answers(Options(deblur=False, lookahead=2), asked)
    assert not np.concatenate(found).any()


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_the_clock_knows_seconds_from_milliseconds(unit: float) -> None:
    clock = Clock()
    assert [clock.tick(unit * number / 25) for number in range(4)] == [
        SECOND // 25 * number for number in range(4)
    ]
    assert clock.tick(0.0) is None


def test_a_host_without_a_clock_gets_one() -> None:
    clock = Clock()
    ticks = [clock.tick(0.0) for _ in range(3)]
    assert ticks == sorted(set(ticks))


def test_the_filter_s_options_are_those_of_the_command_line() -> None:
    assert parse("--no-deblur --lookahead 4 --zoom none") == Options(
        deblur=False, lookahead=4, zoom="none"
    )
    assert parse("") == Options()
    with pytest.raises(VdeblurError, match="--lookahead"):
        parse("--lookahead many")
    with pytest.raises(VdeblurError, match="No such option"):
        parse("--output x")


def test_what_cannot_be_built_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(SinkError, match="cannot build"):
        build(tmp_path / "vdeblur.so")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(VdeblurError, match="no C compiler here"):
        build(tmp_path / "vdeblur.so")
    assert not list(tmp_path.iterdir())


def test_the_makefile_builds_the_filter_without_a_warning(tmp_path: Path) -> None:
    folder = ROOT / "plugins" / "ffmpeg"
    words = ["make", "-C", str(folder), f"PREFIX={tmp_path}", "CFLAGS=-Wall -Wextra -Werror"]
    subprocess.run([*words, "install"], check=True, capture_output=True)
    subprocess.run([*words, "clean"], check=True, capture_output=True)
    assert (tmp_path / "vdeblur.so").exists()
