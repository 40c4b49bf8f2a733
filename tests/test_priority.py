"""Threads that give way to others."""

import os
import sys
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread, get_native_id

import av
import numpy as np
import pytest

from vdeblur.priority import POLITE, giving_way
from vdeblur.video import VideoReader, VideoWriter

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux knows how nice a thread is"
)


def nice() -> dict[int, int]:
    """How nice each thread of this program is."""
    threads = [int(each.name) for each in Path("/proc/self/task").iterdir()]
    return {each: os.getpriority(os.PRIO_PROCESS, each) for each in threads}


@linux
def test_threads_that_it_starts_give_way_and_ours_do_not() -> None:
    ended, own = Event(), nice()[get_native_id()]

    def started() -> Thread:
        thread = Thread(target=ended.wait)
        thread.start()
        return thread

    thread = giving_way(started)
    found = nice()
    ended.set()
    assert found[thread.native_id or 0] == own + POLITE
    assert found[get_native_id()] == own


def test_what_is_raised_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        giving_way(lambda: 1 / 0)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=320, height=192)
        for count in range(3):
            picture = np.full((288, 320), 40 * count, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "yuv420p")
            frame.pts, frame.time_base = count, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@linux
@pytest.mark.parametrize("live", [False, True])
def test_an_encoder_gives_way_but_not_a_live_one(clip: Path, tmp_path: Path, *, live: bool) -> None:
    with VideoReader(clip) as reader:
        known, own = nice(), nice()[get_native_id()]
        writer = VideoWriter(tmp_path / "out.mkv", reader, codec="libx264", low_delay=live)
        with writer:
            encoding = [value for thread, value in nice().items() if thread not in known]
            for frame in reader:
                writer.write(frame)
    assert encoding or live, "x264 has threads"
    assert set(encoding) <= {own if live else own + POLITE}
