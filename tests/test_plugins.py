"""Each way in gives the pictures that the command line gives, in their order and at their time.

The clip is lossless BGR and each frame has its number burnt in: a plugin's host hands over BGR,
so that the command line, given BGR too, starts from the very same planes.
"""

import gc
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur import Options
from vdeblur.demo import Demo, render_demo
from vdeblur_plugins.opencv import Stabilizer, VideoCapture
from vdeblur_plugins.packed import packed_of, planes_of

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
    return command_line(clip)


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


def test_a_sequence_of_pictures_is_read_too(clip: Path, tmp_path: Path) -> None:
    pictures = pictures_of(clip)[:5]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), picture)
    capture = VideoCapture(str(tmp_path / "%03d.png"), options=Options(deblur=False, lookahead=2))
    assert len(everything(capture)) == 5


def test_a_loop_gets_what_the_command_line_writes(clip: Path, expected: list[Picture]) -> None:
    with Stabilizer(rate=RATE) as stabilizer:
        ready = [stabilizer.apply(picture) for picture in pictures_of(clip)]
        assert [len(some) for some in ready] == [0] * 16 + [1] * (FRAMES - 16)
        assert stabilizer.delay == 16
        pictures = [picture for some in ready for picture in some] + stabilizer.flush()
    assert same(pictures, expected)


def test_a_loop_may_start_again_after_a_flush(clip: Path) -> None:
    pictures = pictures_of(clip)[:8]
    with Stabilizer(Options(deblur=False, lookahead=3), rate=RATE) as stabilizer:
        runs = [
            [ready for picture in pictures for ready in stabilizer.apply(picture)]
            + stabilizer.flush()
            for _ in range(2)
        ]
    assert same(*runs)


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
