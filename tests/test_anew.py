"""Sound and words that a container cannot hold are encoded anew."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vdeblur import pixels
from vdeblur.frame import PixelFormat
from vdeblur.video import VideoReader, VideoWriter

WIDTH, HEIGHT = 64, 48
MS = Fraction(1, 1000)


def grey(index: int) -> av.VideoFrame:
    """A picture that differs from the one before."""
    luma = (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) + 5 * index).astype(np.uint8)
    chroma = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
    return pixels.picture_of((luma, chroma, chroma), PixelFormat())


def copy(source: Path, sink: Path) -> list[str]:
    """Read and write without a change; return the warnings."""
    said: list[str] = []
    with (
        VideoReader(source, warn=said.append) as reader,
        VideoWriter(sink, reader, warn=said.append) as writer,
    ):
        for frame in reader:
            writer.write(frame)
    return said


def began(path: Path) -> float:
    """When the first picture is shown, in seconds."""
    with VideoReader(path) as reader:
        return float(next(iter(reader)).time)


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "mov_text"), ("webm", "webvtt")])
def test_words_that_a_container_cannot_hold_are_written_anew(
    tmp_path: Path, ending: str, codec: str
) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("libx264", rate=25, width=WIDTH, height=HEIGHT)
        words: Any = container.add_mux_stream("subrip", time_base=MS)
        words.metadata["language"] = "eng"
        for index in range(3):
            container.mux(video.encode(grey(index)))
        container.mux(video.encode())
        for text, time in ((b"Hello", 0), ("Grüße".encode(), 80)):
            packet = av.Packet(text)
            packet.stream, packet.pts, packet.dts, packet.duration = words, time, time, 40
            packet.time_base = MS
            container.mux(packet)
    sink = tmp_path / f"out.{ending}"
    said = copy(source, sink)
    assert f"{sink.name} cannot hold subtitle 1 (srt, eng): encoded anew as {codec}" in said
    with av.open(str(sink)) as container:
        stream: Any = container.streams.subtitles[0]
        assert (stream.codec_context.codec.canonical_name, stream.language) == (codec, "eng")
        found = [
            (packet.pts * packet.time_base, packet.duration * packet.time_base, shown.dialogue)
            for packet in container.demux(stream)
            for shown in packet.decode()
            if packet.size > 2  # MP4 has empty ones between
        ]
    ms = Fraction(1, 1000)
    assert found == [(0, 40 * ms, b"Hello"), (80 * ms, 40 * ms, "Grüße".encode())]


@pytest.mark.parametrize(
    ("spoken", "rate", "ending", "codec", "anew"),
    [
        ("pcm_u8", 11025, "mp4", "aac", 11025),
        ("adpcm_ms", 44100, "mp4", "aac", 44100),
        ("wmav2", 44100, "mov", "aac", 44100),
        ("pcm_u8", 11025, "webm", "opus", 48000),  # at which it is always decoded
        ("pcm_s16le", 44100, "flv", "mp3", 44100),  # FFmpeg ends the program if it is to copy it
        ("pcm_s16le", 44100, "ts", "mp2", 44100),  # and here copies it to where nobody finds it
    ],
)
def test_sound_that_a_container_cannot_hold_is_encoded_anew(
    tmp_path: Path, spoken: str, rate: int, ending: str, codec: str, anew: int
) -> None:
    """A second of a tone in two of silence, as old cameras record it."""
    time = np.arange(3 * rate) / rate
    wave = np.where((time >= 1) & (time < 2), np.sin(2 * np.pi * 440 * time) / 2, 0)
    source = tmp_path / "in.avi"
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("mjpeg", rate=25, width=WIDTH, height=HEIGHT)
        video.pix_fmt = "yuvj420p"
        track: Any = container.add_stream(spoken, rate=rate, layout="mono")
        track.bit_rate = 64000
        for index in range(75):
            picture = grey(index)
            container.mux(video.encode(picture.reformat(format="yuvj420p")))
        samples = (wave * 32767).astype(np.int16)[None]
        sound = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        sound.sample_rate, sound.pts = rate, 0
        container.mux([*video.encode(), *track.encode(sound), *track.encode()])
    sink = tmp_path / f"out.{ending}"
    said = copy(source, sink)
    assert f"{sink.name} cannot hold audio 1 ({spoken}): encoded anew as {codec}" in said
    with av.open(str(sink)) as container:
        stream: Any = container.streams.audio[0]
        assert (stream.codec_context.codec.canonical_name, stream.rate) == (codec, anew)
        first = began(sink)
        heard = [
            (frame.time - first, abs(frame.to_ndarray()).mean())
            for frame in container.decode(stream)
        ]
    loudest = max(level for _, level in heard)
    loud = [time for time, level in heard if level > loudest / 2]
    assert min(loud) == pytest.approx(1, abs=0.1)
    assert max(loud) == pytest.approx(2, abs=0.1)


def test_sound_that_changes_its_shape_is_encoded_to_the_end(tmp_path: Path) -> None:
    parts = []
    for index, (rate, layout) in enumerate([(48000, "stereo"), (44100, "mono")]):
        part = tmp_path / f"{index}.ts"
        with av.open(str(part), "w") as container:
            video: Any = container.add_stream("mpeg2video", rate=25, width=WIDTH, height=HEIGHT)
            track: Any = container.add_stream("mp2", rate=rate, layout=layout)
            for frame in range(25):
                picture = grey(frame)
                picture.pts = 25 * index + frame
                container.mux(video.encode(picture))
            samples = np.full((1, rate * track.codec_context.channels), 5000, np.int16)
            sound = av.AudioFrame.from_ndarray(samples, "s16", layout)
            sound.sample_rate, sound.pts = rate, rate * index
            container.mux([*video.encode(), *track.encode(sound), *track.encode()])
        parts.append(part.read_bytes())
    source, sink = tmp_path / "in.ts", tmp_path / "out.webm"
    source.write_bytes(b"".join(parts))
    copy(source, sink)
    with av.open(str(sink)) as container:
        heard = [float(frame.time or 0) for frame in container.decode(audio=0)]
    assert heard[-1] - heard[0] == pytest.approx(2, abs=0.1)


def test_what_flv_can_hold_is_copied(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.flv", tmp_path / "out.flv"
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("flv", rate=25, width=WIDTH, height=HEIGHT)
        track: Any = container.add_stream("pcm_s16le", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.arange(22050, dtype=np.int16)[None], "s16", "mono")
        sound.sample_rate, sound.pts = 44100, 0
        for index in range(13):
            container.mux(video.encode(grey(index)))
        container.mux([*video.encode(), *track.encode(sound), *track.encode()])
    assert copy(source, sink) == []
    heard = []
    for path in (source, sink):
        with av.open(str(path)) as container:
            assert container.streams.audio[0].codec_context.name == "pcm_s16le"
            heard.append(b"".join(bytes(packet) for packet in container.demux(audio=0)))
    assert heard[0] == heard[1] != b""
