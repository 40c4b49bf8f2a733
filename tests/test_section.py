"""A part of a video, by `--start` and `--duration`."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vdeblur import pixels
from vdeblur.cli import main
from vdeblur.errors import SourceError
from vdeblur.frame import Frame, PixelFormat
from vdeblur.options import AS_IT_IS, Input
from vdeblur.video import VideoReader, VideoWriter

RATE, SECONDS = 25, 4
MS = Fraction(1, 1000)


def make(path: Path, *, words: bool = False) -> Path:
    """Four seconds, a key picture in each 20, three pictures that look both ways, and a tone."""
    with av.open(str(path), "w") as container:
        options = {"g": "20", "keyint_min": "20", "bf": "3", "sc_threshold": "0"}
        if path.suffix == ".avi":  # which knows no times for these
            options["bf"] = "0"
        video: Any = container.add_stream(
            "libx264", rate=RATE, width=64, height=48, options=options
        )
        track: Any = container.add_stream("aac", rate=48000, layout="mono")
        told: Any = container.add_mux_stream("subrip", time_base=MS) if words else None
        if words:
            container.set_chapters(
                [
                    {"id": k, "start": 2000 * k, "end": 2000 * k + 2000, "time_base": MS,
                     "metadata": {"title": str(k)}}
                    for k in range(2)
                ]
            )  # fmt: skip
        for index in range(RATE * SECONDS):
            field = (np.add.outer(np.arange(48), np.arange(64)) + 2 * index).astype(np.uint8)
            grey = np.full((24, 32), 128, np.uint8)
            container.mux(video.encode(pixels.picture_of((field, grey, grey), PixelFormat())))
            time = np.arange(1920) + 1920 * index
            wave = (np.sin(time / 20) / 2).astype(np.float32)[None]
            sound = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            sound.sample_rate, sound.pts = 48000, 1920 * index
            container.mux(track.encode(sound))
        container.mux([*video.encode(), *track.encode()])
        for text, begin in ((b"Hello", 500), (b"there", 2500), (b"again", 3900)) if words else ():
            packet = av.Packet(text)
            packet.stream, packet.pts, packet.dts, packet.duration = told, begin, begin, 1000
            packet.time_base = MS
            container.mux(packet)
    return path


def read(path: Path, given: Input = AS_IT_IS) -> list[Frame]:
    with VideoReader(path, given=given) as reader:
        return list(reader)


def sounds(path: Path) -> list[tuple[bytes, Fraction]]:
    """The packets of its sound, and their times from its first picture on."""
    first = read(path)[0].time
    with av.open(str(path)) as container:
        return [
            (bytes(packet), packet.pts * Fraction(packet.time_base) - first)
            for packet in container.demux(audio=0)
            if packet.size and packet.pts is not None and packet.time_base
        ]


def copy(source: Path, sink: Path, given: Input) -> None:
    with (
        VideoReader(source, given=given) as reader,
        VideoWriter(sink, reader) as writer,
    ):
        for frame in reader:
            writer.write(frame)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize(("start", "duration"), [(0, 1), (1.5, 1), (3.3, None), (3.3, 100)])
def test_a_part_has_the_pictures_of_the_whole(
    tmp_path: Path, ending: str, start: float, duration: float | None
) -> None:
    source = make(tmp_path / f"in.{ending}")
    whole = read(source)
    begin = whole[0].time + Fraction(start).limit_denominator(100)
    end = begin + (SECONDS if duration is None else Fraction(duration))
    wanted = [frame for frame in whole if begin <= frame.time < end]
    assert 0 < len(wanted) < len(whole)
    part = read(source, Input(start=start, duration=duration))
    # A container may begin with its sound, a moment before its pictures.
    assert abs(len(part) - len(wanted)) <= 1
    by_time = {frame.time: frame.planes[0] for frame in whole}
    for frame in part:
        assert np.array_equal(frame.planes[0], by_time[frame.time])


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_its_sound_stays_with_its_pictures(tmp_path: Path, ending: str) -> None:
    source, sink = make(tmp_path / f"in.{ending}"), tmp_path / f"out.{ending}"
    copy(source, sink, Input(start=1.5, duration=1))
    frames, heard = read(sink), sounds(sink)
    first = read(source, Input(start=1.5, duration=1))[0].time - read(source)[0].time
    assert len(frames) == RATE
    assert frames[-1].time - frames[0].time == pytest.approx(1 - 1 / RATE, abs=0.002)
    assert 0.9 < heard[-1][1] - heard[0][1] < 1
    before = dict(sounds(source))
    for data, time in heard:
        assert abs(before[data] - first - time) <= 2 * MS


def test_words_and_chapters_are_cut(tmp_path: Path) -> None:
    source, sink = make(tmp_path / "in.mkv", words=True), tmp_path / "out.mkv"
    copy(source, sink, Input(start=1, duration=2))
    with av.open(str(sink)) as container:
        chapters = [
            (each["start"] * (each["time_base"] or 1), each["end"] * (each["time_base"] or 1))
            for each in container.chapters()
        ]
        said = [
            (bytes(packet), packet.pts * packet.time_base, packet.duration * packet.time_base)
            for packet in container.demux(subtitles=0)
            if packet.size and packet.pts is not None and packet.time_base and packet.duration
        ]
    assert [float(time) for each in chapters for time in each] == pytest.approx(
        [0, 1, 1, 2], abs=0.03
    )
    assert [text for text, _, _ in said] == [b"Hello", b"there"]
    assert [float(time) for _, time, _ in said] == pytest.approx([0, 1.5], abs=0.03)
    assert [float(length) for _, _, length in said] == pytest.approx([0.5, 1], abs=0.03)


def test_a_time_code_is_that_of_the_first_frame_or_none(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv")
    with av.open(str(source)) as container, av.open(str(tmp_path / "coded.mkv"), "w") as coded:
        coded.metadata["timecode"], coded.metadata["title"] = "10:00:00:00", "a clip"
        stream = coded.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                coded.mux(packet)
    both = {"title", "timecode"}
    cases = [(Input(), both), (Input(duration=1), both), (Input(start=1), {"title"})]
    for index, (given, known) in enumerate(cases):
        sink = tmp_path / f"{index}.mkv"
        copy(tmp_path / "coded.mkv", sink, given)
        with av.open(str(sink)) as container:
            tags = {name.lower() for name in container.metadata}
        assert tags & {"title", "timecode"} == known


def test_what_cannot_be_sought_is_read_from_its_beginning() -> None:
    with VideoReader("lavfi:testsrc2=s=64x48:r=25:d=4", given=Input(start=1, duration=1)) as reader:
        assert [frame.time for frame in reader] == [1 + Fraction(k, 25) for k in range(25)]


def test_what_is_known_is_that_of_the_part(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4")
    with VideoReader(source, given=Input(start=3, duration=10)) as reader:
        assert reader.info.frames == RATE
        assert reader.info.duration == 1
        assert reader.info.start == 3


def test_a_part_without_a_picture_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, sink = make(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    with pytest.raises(SourceError, match="no frame in the part that was asked for"):
        VideoReader(source, given=Input(start=5))
    assert main([str(source), "-o", str(sink), "--start", "0:05"]) == 1
    assert main([str(source), "-o", str(sink), "--start", "1:60"]) == 2
    assert main([str(source), "-o", str(sink), "--duration", "0"]) == 2
    assert "'1:60' is no time like 90, 1:30 or 0:01:30.5" in capsys.readouterr().err
    assert not sink.exists()


def test_a_part_is_steadied_and_sharpened(tmp_path: Path) -> None:
    source, sink = make(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    assert main([str(source), "-o", str(sink), "-q", "--start", "1", "--duration", "0.8"]) == 0
    assert len(read(sink)) == 20
