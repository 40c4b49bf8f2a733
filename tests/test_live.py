"""Live mode: real processes and real time; VDEBLUR_LIVE_SECONDS makes the slow run longer."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pytest

from vdeblur import displays
from vdeblur.demo import Demo, render_demo
from vdeblur.errors import DeviceError, SourceError
from vdeblur.frame import Frame
from vdeblur.live import BUSY, LEVELS, Governor, watch
from vdeblur.options import Options, Output
from vdeblur.sources import is_live, open_source
from vdeblur.video import VideoInfo, VideoReader

VDEBLUR = [sys.executable, "-m", "vdeblur"]
SECONDS = float(os.environ.get("VDEBLUR_LIVE_SECONDS", "6"))
WIDTH, HEIGHT, BIT = 512, 192, 32
INTERVAL, PROMISE = 1 / 30, 0.4
SLOW = """
import sys, time
from vdeblur import cli, motion
push = motion.MotionStage.push
def slow(self, frame):
    time.sleep({seconds})
    return push(self, frame)
motion.MotionStage.push = slow
sys.exit(cli.main(sys.argv[1:]))
"""
"""vdeblur on a machine on which each frame takes so much longer."""
NO_MODEL = Options(deblur=False)


@pytest.mark.parametrize("latency", [0.0, float("nan"), float("inf")])
def test_a_latency_that_cannot_be_kept_is_refused(latency: float) -> None:
    with pytest.raises(ValueError, match="latency must be above 0 seconds and finite, got"):
        watch("testsrc2", None, options=NO_MODEL, latency=latency)


def test_what_sends_as_it_happens_is_live(tmp_path: Path) -> None:
    assert is_live("camera:0")
    assert is_live("rtsp://host/stream")
    assert is_live("udp://127.0.0.1:1234")
    assert is_live("/dev/null", "v4l2")
    assert not is_live("testsrc2", "lavfi")
    assert not is_live("clip.mp4", "no-such")
    assert not is_live("clip.mp4")
    assert not is_live("-")
    assert not is_live("http://host/clip.mp4")


def test_a_camera_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SourceError, match=r"there is no camera:977 \(/dev/video977\)"):
        open_source("camera:977")


def test_a_test_source_is_read_at_its_own_pace_and_ends_with_a_file(tmp_path: Path) -> None:
    sink = tmp_path / "out.mp4"
    graph = "lavfi:testsrc2=size=128x96:rate=25:duration=1.2"
    summary = watch(graph, sink, options=NO_MODEL, latency=0.5)
    assert 1.0 < summary.seconds < 6
    assert summary.frames + summary.dropped == 30
    assert times(sink) == sorted(times(sink))
    assert len(times(sink)) == summary.frames
    assert summary.latency <= summary.latency_max
    assert summary.promise == 0.5


def times(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [float(frame.time) for frame in reader]


def test_ctrl_c_ends_a_recording_with_a_playable_file(tmp_path: Path) -> None:
    sink = tmp_path / "out.mp4"
    with running("lavfi:testsrc2=size=128x96:rate=25", "-o", str(sink), "--latency", "0.5") as run:
        wait_for(lambda: any(part.stat().st_size for part in tmp_path.iterdir()))
        time.sleep(2)  # a busy machine drops frames
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=30)
    assert run.returncode == 0, err
    assert b" dropped, latency " in out
    assert len(times(sink)) > 5


def test_ctrl_c_is_heard_while_a_live_source_is_silent(tmp_path: Path) -> None:
    sink = tmp_path / "out.mp4"
    with running("-", "-o", str(sink), "--latency", "0.5", "--no-deblur") as run:
        assert run.stdin is not None
        run.stdin.write(b"YUV4MPEG2 W64 H48 F25:1 C420\n" + 20 * (b"FRAME\n" + bytes(4608)))
        run.stdin.flush()
        wait_for(lambda: any(part.stat().st_size for part in tmp_path.iterdir()))
        time.sleep(2)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) == 0, stderr_of(run)
    assert len(times(sink)) > 5


def test_ctrl_c_before_a_live_source_sends_anything_is_an_interruption(tmp_path: Path) -> None:
    with running("-", "-o", str(tmp_path / "out.mp4"), "--latency", "0.5") as run:
        time.sleep(1.5)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_breaks_leaves_a_playable_file(tmp_path: Path) -> None:
    clip, sink = tmp_path / "in.mkv", tmp_path / "out.mp4"
    render_demo(clip, demo=Demo(seconds=2, width=128, height=96, blur=1))
    with running("-", "-o", str(sink), "--latency", "1", "--no-deblur") as run:
        assert run.stdin is not None
        data = clip.read_bytes()
        run.stdin.write(data[: len(data) // 2])
        run.stdin.flush()
        time.sleep(1.5)
        run.stdin.close()
        assert run.wait(timeout=30) == 0
    assert len(times(sink)) > 3


# The promise


def numbered(number: int, shift: int) -> bytes:
    """A textured frame of 4:2:0 bytes that shakes; 16 squares in it are the number's bits."""
    scene = np.random.default_rng(1).integers(60, 200, (HEIGHT // 8, WIDTH // 8), np.uint8)
    luma = np.roll(scene.repeat(8, 0).repeat(8, 1), shift, axis=1)
    for bit in range(16):
        luma[64:96, bit * BIT : (bit + 1) * BIT] = 235 if number >> (15 - bit) & 1 else 16
    return luma.tobytes() + bytes([128]) * (WIDTH * HEIGHT // 2)


def number_in(picture: bytes) -> int:
    luma = np.frombuffer(picture[: WIDTH * HEIGHT], np.uint8).reshape(HEIGHT, WIDTH)
    bits = luma[80, BIT // 2 :: BIT]
    return int("".join(str(int(value > 125)) for value in bits), 2)


class Loop:
    """Sends numbered frames at 30 frames/s to a process, and notes when each comes back."""

    def __init__(self, run: "subprocess.Popen[bytes]", seconds: float) -> None:
        self.run, self.seconds = run, seconds
        self.sent: dict[int, float] = {}
        self.back: dict[int, float] = {}
        self.memory: list[int] = []
        self.pictures = 0
        self._reader = threading.Thread(target=self._receive)
        self._reader.start()
        self._send()
        self._reader.join(timeout=30)
        assert not self._reader.is_alive()

    def _send(self) -> None:
        pipe = self.run.stdin
        assert pipe is not None
        pipe.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F30:1 Ip A1:1 C420jpeg\n".encode())
        due = time.monotonic()
        end = due + 60
        number = 0
        while due < end:
            picture = numbered(number, number % 5 - 2)
            time.sleep(max(0.0, due - time.monotonic()))
            self.sent[number] = time.monotonic()
            pipe.write(b"FRAME\n" + picture)
            pipe.flush()
            due = max(due + INTERVAL, time.monotonic())  # a camera does not make up for a wait
            if number % 30 == 0:
                self.memory.append(resident(self.run.pid))
            if number == 30:  # by now it runs
                end = due + self.seconds
            number += 1
        pipe.close()

    def _receive(self) -> None:
        pipe = self.run.stdout
        assert pipe is not None
        pipe.readline()
        size = WIDTH * HEIGHT * 3 // 2
        while pipe.readline() == b"FRAME\n" and len(picture := pipe.read(size)) == size:
            self.pictures += 1
            self.back.setdefault(number_in(picture), time.monotonic())

    @property
    def latencies(self) -> list[float]:
        """Seconds, of the frames that came back, without those while all is new."""
        return [self.back[n] - self.sent[n] for n in sorted(self.back) if n in self.sent and n > 30]


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_slow_machine_keeps_the_promise_and_drops_frames() -> None:
    program = SLOW.format(seconds=0.05)  # even the cheapest work takes longer than there is time
    words = ["-", "-o", "-", "--latency", str(PROMISE), "--json"]
    with running(*words, command=[sys.executable, "-c", program]) as run:
        loop = Loop(run, SECONDS)
        code = run.wait(timeout=30)
        said = stderr_of(run)
        assert code == 0, said
        summary = json.loads(said[said.index(b"{") :])
    latencies = sorted(loop.latencies)
    within = sum(latency <= PROMISE + INTERVAL for latency in latencies) / len(latencies)
    print(  # noqa: T201  for the long run by hand
        f"{len(loop.sent)} sent, {len(loop.back)} back, {summary['dropped']} dropped; latency "
        f"median {latencies[len(latencies) // 2]:.3f} max {latencies[-1]:.3f} s, {within:.4f} "
        f"within the promise; said {summary['latency']:.3f}, {summary['latency_max']:.3f}; "
        f"memory {loop.memory[2] >> 20} -> {loop.memory[-1] >> 20} MiB"
    )
    assert summary["frames"] + summary["dropped"] == len(loop.sent)
    assert summary["dropped"] > len(loop.sent) / 5
    assert len(loop.back) == summary["frames"]
    assert within > 0.95  # the machine of a test may be asleep for a moment
    assert summary["only_stabilized"] > 0.5
    assert list(loop.back) == sorted(loop.back)
    # Gaps are filled, so that the time of what is written runs as fast as that of the source;
    # what is missing at the end is a gap for which there was no time any more.
    assert abs(loop.pictures - max(loop.back) + min(loop.back)) <= 15
    assert loop.memory[-1] < loop.memory[min(3, len(loop.memory) - 1)] + 60e6


def test_work_gets_cheaper_when_busy_and_better_when_idle() -> None:
    governor = Governor(INTERVAL)
    now = time.monotonic()
    for step in range(200):
        governor.spent(2 * BUSY * INTERVAL, now + step * INTERVAL)
    assert governor.level == len(LEVELS) - 1
    for step in range(200, 1200):
        governor.spent(0.1 * INTERVAL, now + step * INTERVAL)
    assert governor.level == 0


# The network, over loopback


def test_http_is_read_and_is_no_live_source(tmp_path: Path) -> None:
    render_demo(tmp_path / "in.mp4", demo=Demo(seconds=1, width=128, height=96, blur=1))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/in.mp4"
        sink = tmp_path / "out.mp4"
        done = subprocess.run(
            [*VDEBLUR, url, "-o", str(sink), "--no-deblur"], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(times(sink)) == 30
        done = subprocess.run(
            [*VDEBLUR, url.replace("in.mp4", "none.mp4"), "-o", str(tmp_path / "no.mp4")],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
    finally:
        server.shutdown()
        server.server_close()


def test_a_broadcast_is_live_and_its_end_is_the_end(ffmpeg: str, tmp_path: Path) -> None:
    sink = tmp_path / "out.mp4"
    url = "udp://127.0.0.1:18771"
    with running(url, "-o", str(sink), "--no-deblur", "--latency", "0.5") as run:
        source = ["-re", "-f", "lavfi", "-i", "testsrc2=size=128x96:rate=25:duration=8"]
        sender = subprocess.Popen(
            [ffmpeg, "-v", "error", "-nostdin", *source, "-g", "12", "-f", "mpegts", url]
        )
        wait_for(lambda: any(part.stat().st_size for part in tmp_path.iterdir()))
        sender.kill()
        sender.wait()
        assert run.wait(timeout=40) == 0, stderr_of(run)
    assert len(times(sink)) > 5


# Displays


def info(width: int = 64, height: int = 48) -> VideoInfo:
    with VideoReader("lavfi:testsrc2=size=64x48:rate=30:duration=0.1") as reader:
        return replace(reader.info, width=width, height=height)


def test_without_a_display_preview_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeviceError, match="there is no display here"):
        displays.Preview(info(), on_close=lambda: None)


def test_preview_shows_before_and_after_in_a_window(
    screen: str, ffmpeg: str, tmp_path: Path
) -> None:
    """Green is filmed, of 128x96: a window without a frame shows it twice, side by side."""
    shot = tmp_path / "shot.png"
    source = "lavfi:color=lime:size=128x96:rate=25:duration=60"
    words = [*VDEBLUR, source, "--preview", "--no-deblur", "--latency", "0.5"]
    grab = [ffmpeg, "-v", "error", "-y", "-f", "x11grab", "-video_size", "400x200", "-i", screen]
    with subprocess.Popen(words, env={**os.environ, "DISPLAY": screen}) as run:
        try:
            for _ in range(100):
                time.sleep(0.2)
                subprocess.run([*grab, "-frames:v", "1", str(shot)], check=True)
                picture = cv2.imread(str(shot))
                assert picture is not None
                green = (picture[:, :, 1] > 200) & (picture[:, :, [0, 2]].max(axis=2) < 60)
                if green.sum() > 2 * 128 * 96 - 500:
                    break
            assert run.poll() is None
        finally:
            run.send_signal(signal.SIGINT)
    rows, columns = np.nonzero(green)
    assert np.ptp(rows) + 1 == 96
    assert np.ptp(columns) + 1 == 2 * 128


def test_without_pyvirtualcam_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(DeviceError, match=r"pip install 'vdeblur\[camera\]'"):
        displays.VirtualCamera(info())


def test_a_virtual_camera_gets_every_frame_in_bgr(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    module: Any = ModuleType("pyvirtualcam")

    class Camera:
        device = "/dev/video9"

        def __init__(self, width: int, height: int, fps: float, *, fmt: str) -> None:
            assert (width, height, fps, fmt) == (64, 48, 30.0, "bgr")

        def send(self, picture: Any) -> None:
            sent.append(picture)

        def close(self) -> None:
            sent.append("closed")

    module.Camera, module.PixelFormat = Camera, type("PixelFormat", (), {"BGR": "bgr"})
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    graph = "lavfi:color=red:size=64x48:rate=30:duration=0.3"
    summary = watch(graph, None, displays=[displays.VirtualCamera], options=NO_MODEL, latency=1)
    assert sent[-1] == "closed"
    assert len(sent) - 1 == summary.frames > 0
    assert np.abs(sent[0].astype(int) - [0, 0, 255]).max() < 8


def test_what_is_shown_is_the_frame_before_and_after(tmp_path: Path) -> None:
    seen: list[tuple[Frame, Frame]] = []

    class Display:
        def __init__(self, info: VideoInfo) -> None:
            assert info.width == 128

        def show(self, before: Frame, after: Frame) -> None:
            seen.append((before, after))

        def close(self) -> None:
            pass

    graph = "lavfi:testsrc2=size=128x96:rate=25:duration=0.6"
    watch(graph, tmp_path / "out.mkv", displays=[Display], options=NO_MODEL, latency=1)
    assert seen
    assert all(before.pts == after.pts for before, after in seen)


def test_a_run_can_be_stopped_from_another_thread(tmp_path: Path) -> None:
    stop, sink = Event(), tmp_path / "out.mp4"
    threading.Timer(1, stop.set).start()
    summary = watch(
        "lavfi:testsrc2=size=64x48:rate=25", sink, options=NO_MODEL, stop=stop, output=Output()
    )
    assert summary.seconds < 10
    with av.open(str(sink)) as container:
        assert container.streams.video[0].frames == summary.frames


@contextmanager
def running(*words: str, command: list[str] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """vdeblur with pipes on all sides; killed in the end if it still runs."""
    run = subprocess.Popen(
        [*(command or VDEBLUR), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()
        for pipe in (run.stdin, run.stdout, run.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


def stderr_of(run: "subprocess.Popen[bytes]") -> bytes:
    assert run.stderr is not None
    return run.stderr.read()


def wait_for(done: Any) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 30 s")
