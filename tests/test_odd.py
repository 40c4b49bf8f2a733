"""Odd files, from other projects' test suites where they are here, else made below."""

import os
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import pytest

from vdeblur.errors import VdeblurError
from vdeblur.video import VideoReader, VideoWriter

FOLDER = Path(
    os.environ.get("VDEBLUR_ODD", Path(__file__).resolve().parents[2] / "shared" / "data" / "odd")
)
ALL = sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []
SLOW = ("hdr10", "hlg10", "portrait_4k60", "colr_mdcv", "color_info", "edit_list", "h265_with")
"""Large pictures: seconds each, and what is odd in them is tested with small ones."""

RIGHT_ERRORS = {
    "sample_malformed_free_box.mp4": "is not a video",
    "sample_with_sdt.ts": "no frames in it",
}
AS_FORMAT = {".webm": ".mkv", "": ".mkv", ".ac4": ".mp4", ".adts": ".mp4", ".ec3": ".mp4"}
LIMIT = 40


def passed(source: Path, folder: Path) -> tuple[Path, list[Fraction], bool]:
    """Copy at most `LIMIT` frames; return the file, their times and whether these are all."""
    sink = folder / f"out{AS_FORMAT.get(source.suffix, source.suffix)}"
    frames = []
    with (
        VideoReader(source, warn=one_line) as reader,
        VideoWriter(sink, reader, warn=one_line) as writer,
    ):
        for frame in islice(reader, LIMIT):
            writer.write(frame)
            frames.append(frame.time)
    return sink, frames, len(frames) < LIMIT


def one_line(warning: str) -> None:
    assert warning
    assert "\n" not in warning


def kinds(path: Path) -> Counter[str]:
    with av.open(str(path), metadata_errors="replace") as container:
        return Counter(stream.type for stream in container.streams)


def sounds(path: Path) -> list[bytes]:
    """The packets of the first sound track that there is."""
    with av.open(str(path), metadata_errors="replace") as container:
        tracks = container.streams.audio
        return [bytes(p) for p in container.demux(tracks[0]) if p.size] if tracks else []


def check(source: Path, folder: Path) -> None:
    """Either the output is right, or an error says in one line what is wrong with the input."""
    try:
        sink, before, whole = passed(source, folder)
    except VdeblurError as error:
        said = str(error)
    else:
        assert source.name not in RIGHT_ERRORS
        compare(source, sink, before, whole=whole)
        return
    assert "\n" not in said
    assert RIGHT_ERRORS.get(source.name, "has no video stream (audio only)") in said
    assert not list(folder.iterdir())


def compare(source: Path, sink: Path, before: list[Fraction], *, whole: bool) -> None:
    """All frames at their times, and all sound."""
    with VideoReader(sink) as reader:
        after = [frame.time for frame in reader]
    assert len(after) == len(before)
    if source.suffix != ".avi":  # which has no times but a count
        drift = [new - after[0] - (old - before[0]) for new, old in zip(after, before, strict=True)]
        unit = Fraction(0) if sink.suffix in (".mp4", ".mov") else Fraction(1, 1000)
        assert max(map(abs, drift)) <= unit
    assert kinds(sink)["audio"] == kinds(source)["audio"]
    if whole:
        assert sounds(sink) == sounds(source)


@pytest.mark.skipif(not ALL, reason=f"{FOLDER} is not here")
@pytest.mark.parametrize("source", ALL, ids=lambda path: path.name)
def test_odd_files_of_others(source: Path, tmp_path: Path) -> None:
    if any(word in source.name for word in SLOW):
        pytest.skip("slow")
    check(source, tmp_path)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        add_streams(container, video=False)


def late(path: Path) -> None:
    with av.open(str(path), "w") as container:
        add_streams(container, start=250)


def tiny(path: Path) -> None:
    with av.open(str(path), "w") as container:
        add_streams(container, width=2, height=2, codec="ffv1")


def one_frame(path: Path) -> None:
    with av.open(str(path), "w") as container:
        add_streams(container, frames=1)


def with_junk(path: Path) -> None:
    late(path)
    path.write_bytes(path.read_bytes() + b"junk" * 1000)


def add_streams(
    container: Any,
    *,
    video: bool = True,
    start: int = 0,
    frames: int = 10,
    width: int = 48,
    height: int = 32,
    codec: str = "libx264",
) -> None:
    picture = av.VideoFrame(width, height, "yuv420p")
    stream: Any = None
    if video:
        stream = container.add_stream(codec, rate=25, width=width, height=height)
    track = container.add_stream("aac", rate=48000)
    for plane in picture.planes:
        plane.update(bytes([100]) * plane.buffer_size)
    for index in range(frames if stream else 0):
        picture.pts, picture.time_base = start + index, Fraction(1, 25)
        container.mux(stream.encode(picture))
    for index in range(10):
        sound = av.AudioFrame("fltp", "stereo", 1024)
        for channel in sound.planes:
            channel.update(bytes(channel.buffer_size))
        sound.sample_rate, sound.pts = 48000, 1024 * index
        container.mux(track.encode(sound))
    for encoder in filter(None, (stream, track)):
        container.mux(encoder.encode())


@pytest.mark.parametrize("make", [sound_only, late, tiny, one_frame, with_junk])
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_odd_files_of_our_own(make: Any, ending: str, tmp_path: Path) -> None:
    if (make, ending) == (tiny, "mp4"):
        pytest.skip("ffv1 is not for MP4")
    source = tmp_path / f"in.{ending}"
    make(source)
    (tmp_path / "out").mkdir()
    check(source, tmp_path / "out")
