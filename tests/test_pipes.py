"""Pipes, with the real ffmpeg before and after."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.frame import Frame
from vdeblur.video import VideoReader

VDEBLUR = [sys.executable, "-m", "vdeblur"]
WIDTH, HEIGHT, BIT = 256, 96, 32
FRAMES = 40
PASS = ("--no-deblur", "--no-stabilize")

Luma = NDArray[Any]


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> Luma:
    """(H, W) uint8: a still picture; in its middle the number is burnt in, 8 squares, MSB left."""
    scene = np.random.default_rng(1).integers(60, 200, (height // 8, width // 8), np.uint8)
    luma = scene.repeat(8, 0).repeat(8, 1)
    for bit in range(8):
        white = number >> (7 - bit) & 1
        luma[BIT : 2 * BIT, bit * BIT : (bit + 1) * BIT] = 235 if white else 16
    return luma


def number_in(luma: Luma, depth: int = 8) -> int:
    """The number that is burnt in."""
    middles = luma[BIT + BIT // 2, BIT // 2 : 8 * BIT : BIT] >> (depth - 8)
    return int("".join(str(int(value > 125)) for value in middles), 2)


def make(path: Path, *, frames: int = FRAMES, codec: str = "ffv1", **options: Any) -> Path:
    """A video with a burnt-in counter and sound, at 30 frames/s or at `times` in ms."""
    pix_fmt = options.pop("pix_fmt", "yuv420p")
    times = options.pop("times", None)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=30, width=WIDTH, height=HEIGHT)
        sound: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for index in range(frames):
            grey = av.VideoFrame.from_ndarray(numbered(index), "gray")
            picture = grey.reformat(format=pix_fmt)
            picture.pts = index if times is None else times[index]
            picture.time_base = Fraction(1, 30 if times is None else 1000)
            container.mux(stream.encode(picture))
        tone = (8000 * np.sin(np.arange(8000 * frames // 30) / 5)).astype(np.int16)
        audio = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        audio.sample_rate, audio.pts = 8000, 0
        container.mux(sound.encode(audio))
        container.mux(sound.encode(None))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pipes") / "clip.mkv")


def frames_of(path: Path) -> list[Frame]:
    with VideoReader(path) as reader:
        return list(reader)


def same(one: Frame, other: Frame) -> bool:
    pairs = zip(one.planes, other.planes, strict=True)
    return one.time == other.time and all(np.array_equal(a, b) for a, b in pairs)


def chain(*commands: list[Any], stdin: bytes | None = None, **options: Any) -> Any:
    """Run programs in a pipe; return the last one's result and check the others' ends."""
    before: IO[bytes] | None = None
    started = []
    for command in commands[:-1]:
        words = [str(word) for word in command]
        started.append(
            subprocess.Popen(
                words, stdin=before, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
            )
        )
        if before is not None:
            before.close()
        before = started[-1].stdout
    words = [str(word) for word in commands[-1]]
    given: Any = {"input": stdin} if before is None else {"stdin": before}
    last = subprocess.run(words, **given, capture_output=True, timeout=120, check=False)
    for each in started:
        if each.stdout is not None:
            each.stdout.close()
        each.wait(timeout=60)
        if each.stderr is not None:
            each.stderr.close()
    return last


def y4m(ffmpeg: str, source: Path, *words: str) -> list[Any]:
    """The command that sends a file as Y4M."""
    options = ["-strict", "-1", "-f", "yuv4mpegpipe"]
    return [ffmpeg, "-v", "error", "-nostdin", "-i", source, *words, *options, "-"]


# What comes through


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p12le", "yuv444p"])
def test_the_pipe_gives_the_pictures_of_the_file_route(
    ffmpeg: str, tmp_path: Path, pix_fmt: str
) -> None:
    clip = make(tmp_path / "in.mkv", pix_fmt=pix_fmt)
    direct, piped = tmp_path / "direct.mkv", tmp_path / "piped.mkv"
    model = () if pix_fmt == "yuv420p" else ("--no-deblur",)
    done = chain([*VDEBLUR, clip, "-o", direct, "--codec", "ffv1", "-q", *model])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    after = [ffmpeg, "-v", "error", "-i", "-", "-c:v", "ffv1", "-strict", "-1", piped]
    done = chain(y4m(ffmpeg, clip), [*VDEBLUR, "-", "-o", "-", *model], after)
    assert (done.returncode, done.stderr) == (0, b"")
    one, other = frames_of(direct), frames_of(piped)
    depth = one[0].format.depth
    assert [number_in(frame.planes[0], depth) for frame in other] == list(range(FRAMES))
    assert one[0].format == other[0].format
    assert all(map(same, one, other))
    assert len(one) == len(other)


@pytest.mark.parametrize(
    ("pix_fmt", "said"),
    [
        ("yuv420p", b"C420jpeg"),
        ("yuv420p10le", b"C420p10"),
        ("yuv422p12le", b"C422p12"),
        ("yuv444p12le", b"C444p12"),
        ("gray", b"Cmono"),
    ],
)
def test_y4m_carries_every_depth_and_sampling(
    ffmpeg: str, tmp_path: Path, pix_fmt: str, said: bytes
) -> None:
    clip = make(tmp_path / "in.mkv", frames=3, pix_fmt=pix_fmt)
    sent = chain(y4m(ffmpeg, clip)).stdout
    done = chain([*VDEBLUR, "-", "-o", "-", "-q", *PASS], stdin=sent)
    assert done.stderr == b""
    header, _, pictures = done.stdout.partition(b"\n")
    assert said in header
    assert pictures == sent.partition(b"\n")[2]


def test_the_shape_of_a_pixel_comes_through(ffmpeg: str, tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    chain(
        [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x48:d=0.2,setsar=16/11", source]
    )
    done = chain([*VDEBLUR, source, "-o", "-", "-q", *PASS])
    assert b" A16:11 " in done.stdout.partition(b"\n")[0]


def test_nut_and_matroska_carry_the_sound(clip: Path, tmp_path: Path) -> None:
    for format in ("nut", "matroska"):
        sink = tmp_path / f"out.{format}"
        words = ["-o", "-", "--output-format", format, "--codec", "ffv1", *PASS]
        first = chain([*VDEBLUR, clip, *words])
        assert first.returncode == 0, first.stderr
        again = chain([*VDEBLUR, "-", *words], stdin=first.stdout)  # and in through the pipe
        assert again.returncode == 0, again.stderr
        sink.write_bytes(again.stdout)
        assert all(map(same, frames_of(clip), frames_of(sink)))
        assert sound_of(sink) == sound_of(clip)


def sound_of(path: Path) -> bytes:
    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(audio=0))


def test_mpegts_is_read_from_a_pipe(ffmpeg: str, clip: Path, tmp_path: Path) -> None:
    before = [ffmpeg, "-v", "error", "-i", clip, "-c:v", "libx264", "-f", "mpegts", "-"]
    done = chain(before, [*VDEBLUR, "-", "-o", tmp_path / "out.mkv", *PASS])
    assert done.returncode == 0, done.stderr
    numbers = [number_in(frame.planes[0]) for frame in frames_of(tmp_path / "out.mkv")]
    assert numbers == list(range(FRAMES))


def test_raw_video_comes_in_and_goes_out(ffmpeg: str, clip: Path) -> None:
    raw = chain([ffmpeg, "-v", "error", "-i", clip, "-f", "rawvideo", "-"]).stdout
    given = ["--input-format", "rawvideo", "--size", f"{WIDTH}x{HEIGHT}", "--rate", "30"]
    given += ["--input-pix-fmt", "yuv420p"]
    done = chain(
        [*VDEBLUR, "-", *given, "-o", "-", "--output-format", "rawvideo", *PASS], stdin=raw
    )
    assert done.stdout == raw


def test_the_short_names_of_formats_are_understood(ffmpeg: str, clip: Path) -> None:
    sent = chain(y4m(ffmpeg, clip)).stdout
    words = ["--input-format", "y4m", "-o", "-", "--output-format", "y4m"]
    assert chain([*VDEBLUR, "-", *words, *PASS], stdin=sent).stdout.startswith(b"YUV4MPEG2 ")


def test_raw_video_without_a_size_is_refused() -> None:
    done = chain([*VDEBLUR, "-", "--input-format", "rawvideo", "-o", "-"], stdin=b"1234")
    assert done.returncode == 1
    assert b"--input-size WIDTHxHEIGHT" in done.stderr


def test_gaps_in_time_are_filled_since_y4m_has_no_times(tmp_path: Path) -> None:
    times = [0, 33, 67, 100, 200, 233, 267, 300]  # ms: three slots of 30 frames/s are empty
    clip = make(tmp_path / "in.mkv", frames=len(times), times=times)
    done = chain([*VDEBLUR, clip, "-o", "-", *PASS])
    (tmp_path / "out.y4m").write_bytes(done.stdout)
    numbers = [number_in(frame.planes[0]) for frame in frames_of(tmp_path / "out.y4m")]
    assert numbers == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]


# What else is said


def test_nothing_but_video_goes_to_stdout(clip: Path) -> None:
    done = chain([*VDEBLUR, clip, "-o", "-", "--json", *PASS])
    size = WIDTH * HEIGHT * 3 // 2 + len(b"FRAME\n")
    assert len(done.stdout.partition(b"\n")[2]) == FRAMES * size
    assert b'"sink": "stdout"' in done.stderr
    assert b"stdout (yuv4mpegpipe) cannot hold audio 1 (pcm_s16le): dropped" in done.stderr


def test_a_terminal_is_no_place_for_video(clip: Path) -> None:
    master, slave = pty.openpty()
    try:
        words = [*VDEBLUR, str(clip), "-o", "-"]
        done = subprocess.run(words, stdout=slave, stderr=subprocess.PIPE, timeout=60, check=False)
        assert done.returncode == 1
        assert b"stdout is a terminal" in done.stderr
        words = [*VDEBLUR, "-", "-o", "-"]
        done = subprocess.run(words, stdin=slave, stderr=subprocess.PIPE, timeout=60, check=False)
        assert b"stdin is a terminal" in done.stderr
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b"stdin ended before there was any data"),
        (b"this is no video\n" * 1000, b"stdin is not a video"),
        (b"YUV4MPEG2 W64 H48 F30:1 C420\n", b"no frames in it"),
    ],
)
def test_what_is_no_video_is_one_line(tmp_path: Path, sent: bytes, said: bytes) -> None:
    done = chain([*VDEBLUR, "-", "-o", tmp_path / "out.mp4"], stdin=sent)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


# Either side may stop


@pytest.mark.parametrize("raw", [False, True])
def test_a_cut_off_last_frame_is_left_out_and_said(
    ffmpeg: str, clip: Path, tmp_path: Path, raw: bool
) -> None:
    words = ["--input-format", "rawvideo", "--size", f"{WIDTH}x{HEIGHT}"] if raw else []
    if raw:
        sent = chain([ffmpeg, "-v", "error", "-i", clip, "-f", "rawvideo", "-"]).stdout
    else:
        sent = chain(y4m(ffmpeg, clip)).stdout
    sink = tmp_path / "out.mkv"
    done = chain([*VDEBLUR, "-", *words, "-o", sink, "-q", *PASS], stdin=sent[:-1000])
    assert done.returncode == 0
    assert done.stderr == (
        b"vdeblur: warning: stdin: it ends in the middle of a frame, which is left out\n"
    )
    assert len(frames_of(sink)) == FRAMES - 1


def test_a_reader_that_stops_ends_the_run_with_a_line(clip: Path) -> None:
    with running(str(clip), "-o", "-", *PASS) as run:
        assert run.stdout is not None
        run.stdout.read(100_000)
        run.stdout.close()
        assert run.wait(timeout=60) == 1
        assert b"the reader of stdout went away after" in stderr_of(run)


def test_a_slow_reader_gets_everything_and_is_waited_for(clip: Path) -> None:
    whole = chain([*VDEBLUR, clip, "-o", "-", *PASS]).stdout
    with running(str(clip), "-o", "-", *PASS) as run:
        pieces = []
        assert run.stdout is not None
        while piece := run.stdout.read(30_000):
            pieces.append(piece)
            time.sleep(0.01)
        assert run.wait(timeout=60) == 0
    assert b"".join(pieces) == whole


@pytest.mark.parametrize("stalled", ["input", "output"])
def test_ctrl_c_is_heard_while_waiting_for_the_other_side(
    ffmpeg: str, clip: Path, stalled: str
) -> None:
    sent = chain(y4m(ffmpeg, clip)).stdout
    source = "-" if stalled == "input" else str(clip)
    with running(source, "-o", "-", *PASS) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        if stalled == "input":
            run.stdin.write(sent[: len(sent) // 5])
            run.stdin.flush()
        run.stdout.read(40_000)
        time.sleep(0.5)  # now it waits
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) == 130
        assert stderr_of(run).endswith(b"vdeblur: interrupted\n")


def test_a_stdin_that_is_closed_is_one_line() -> None:
    run = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *VDEBLUR, "-", "-o", "-"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr == b"vdeblur: error: stdin is closed: there is nothing to read\n"


def test_ctrl_c_is_heard_before_there_is_any_input() -> None:
    with running("-", "-o", "-") as run:
        time.sleep(1.5)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) == 130


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """vdeblur with pipes on all sides; killed in the end if it still runs."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    run = subprocess.Popen(
        [*VDEBLUR, *words],
        **pipes,
        # A shell's background job, in which the tests may run, inherits an ignored SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()
        for pipe in (run.stdin, run.stdout, run.stderr):
            if pipe is not None and not pipe.closed:
                with suppress(BrokenPipeError):
                    pipe.close()


def stderr_of(run: subprocess.Popen[bytes]) -> bytes:
    assert run.stderr is not None
    return run.stderr.read()


@pytest.mark.parametrize("seed", range(int(os.environ.get("VDEBLUR_KILLS", "3"))))
def test_whoever_is_killed_the_others_end(
    ffmpeg: str, clip: Path, tmp_path: Path, seed: int
) -> None:
    """kill -9 at a random moment; VDEBLUR_KILLS sets how often."""
    dice = random.Random(seed)
    victim = seed % 3
    endless = [ffmpeg, "-v", "error", "-nostdin", "-stream_loop", "-1", "-re", "-i", str(clip)]
    commands = [
        [*endless, "-f", "yuv4mpegpipe", "-"],
        [*VDEBLUR, "-", "-o", "-", "--no-deblur"],
        [ffmpeg, "-v", "error", "-i", "-", "-y", str(tmp_path / "out.mkv")],
    ]
    runs: list[subprocess.Popen[bytes]] = []
    for command in commands:
        runs.append(
            subprocess.Popen(
                command,
                stdin=runs[-1].stdout if runs else subprocess.DEVNULL,
                stdout=subprocess.PIPE if command is not commands[-1] else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
        if len(runs) > 1 and runs[-2].stdout is not None:
            runs[-2].stdout.close()
    try:
        time.sleep(dice.uniform(0.2, 3))
        runs[victim].kill()
        codes = [run.wait(timeout=20) for run in runs]
        said = stderr_of(runs[1])
        assert codes[victim] == -signal.SIGKILL
        assert b"Traceback" not in said
        assert b"internal error" not in said
        if victim != 1:
            assert said.strip().startswith(b"vdeblur: ") or b"frames in" in said
    finally:
        for run in runs:
            run.kill()
            run.wait()
            if run.stderr is not None:
                run.stderr.close()
