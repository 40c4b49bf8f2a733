import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from vdeblur import pixels
from vdeblur.errors import SinkError, SourceError
from vdeblur.frame import Frame, PixelFormat
from vdeblur.sinks import is_cover
from vdeblur.sources import is_live
from vdeblur.video import Colors, ContentLight, Mastering, VideoInfo, VideoReader, VideoWriter
from vdeblur.writer import _picture

WIDTH, HEIGHT = 64, 48
MS = Fraction(1, 1000)
UNEVEN = (0, 40, 120, 121, 160, 240, 400, 440)
"""Times in ms: gaps of 1 to 160 ms."""


def planes(format: PixelFormat, seed: int, width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Smooth, and different from frame to frame."""
    shapes = [(height, width), *[format.chroma_shape(height, width)] * 2][: format.planes]
    return tuple(
        (
            (np.add.outer(np.arange(rows), np.arange(columns)) + 5 * seed + 40 * index)
            % (format.peak // 2)
            + format.peak // 8
        ).astype(format.dtype)
        for index, (rows, columns) in enumerate(shapes)
    )


def make(
    path: Path,
    *,
    times: Sequence[int] = range(0, 400, 40),
    time_base: Fraction = MS,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    width: int = WIDTH,
    height: int = HEIGHT,
    options: dict[str, str] | None = None,
    audio: int = 0,
    **properties: Any,
) -> Path:
    """Write a video of `times`, with `audio` tracks; `properties` are the encoder's."""
    with av.open(str(path), "w", options={}) as container:
        stream: Any = container.add_stream(
            codec, rate=25, width=width, height=height, time_base=time_base, options=options or {}
        )
        stream.pix_fmt = pix_fmt
        if matrix := properties.pop("display_matrix", None):
            stream.set_display_matrix(matrix)
        for name, value in properties.items():
            setattr(stream.codec_context, name, value)
        tracks: list[Any] = [container.add_stream("aac", rate=48000) for _ in range(audio)]
        for track in tracks:
            track.metadata["language"] = "fra"
        layout = pixels.layout_of(pix_fmt)
        for index, time in enumerate(times):
            planar = pixels.picture_of(planes(layout.format, index, width, height), layout.format)
            picture = planar.reformat(format=pix_fmt)
            picture.pts, picture.time_base, picture.duration = time, time_base, 40
            container.mux(stream.encode(picture))
        for track in tracks:
            add_sound(container, track)
        container.mux(stream.encode())
    return path


def add_sound(container: Any, track: Any) -> None:
    for index in range(20):
        wave = np.sin(np.arange(1024) * (index + 1) / 50).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
        sound.sample_rate, sound.pts = 48000, 1024 * index
        container.mux(track.encode(sound))
    container.mux(track.encode())


def copy(source: Path, sink: Path, **options: Any) -> tuple[VideoInfo, list[str]]:
    """Read and write without a change; return what was read and the warnings."""
    said: list[str] = []
    with VideoReader(source, warn=said.append) as reader:
        with VideoWriter(sink, reader, warn=said.append, **options) as writer:
            for frame in reader:
                writer.write(frame)
        assert not reader.packets
    return reader.info, said


def read(path: Path) -> tuple[VideoInfo, list[Frame]]:
    with VideoReader(path) as reader:
        return reader.info, list(reader)


def times(path: Path) -> list[Fraction]:
    return [frame.time for frame in read(path)[1]]


def packets(path: Path, kind: str) -> list[list[tuple[bytes, Any]]]:
    """Contents and times of the packets, for each stream of a kind."""
    found: dict[int, list[tuple[bytes, Any]]] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.stream.type == kind and packet.size:
                time = None if packet.pts is None else packet.pts * (packet.time_base or 1)
                found.setdefault(packet.stream_index, []).append((bytes(packet), time))
    return list(found.values())


# Times


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "ts"])
@pytest.mark.parametrize("start", [0, 1500])
def test_every_time_survives(tmp_path: Path, ending: str, start: int) -> None:
    uneven = [start + time for time in UNEVEN]
    source = make(tmp_path / "in.mkv", times=uneven, audio=1)
    sink = tmp_path / f"out.{ending}"
    copy(source, sink)
    out = times(sink)
    if ending == "ts":  # its muxer adds a delay
        out = [time - out[0] + times(source)[0] for time in out]
    assert [round(1000 * time) for time in out] == uneven
    assert ending in ("webm", "ts") or out == [time * MS for time in uneven]


@pytest.mark.parametrize("time_base", [Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 48)])
def test_odd_time_bases_are_kept_exactly_in_mp4(tmp_path: Path, time_base: Fraction) -> None:
    step = 1 if time_base > MS else 3003
    source = make(tmp_path / "in.mp4", times=range(0, 12 * step, step), time_base=time_base)
    copy(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == [n * step * time_base for n in range(12)]


def test_a_broadcast_begins_at_zero_in_other_containers(tmp_path: Path) -> None:
    source = make(tmp_path / "in.ts", times=[3_600_000 + time for time in UNEVEN])
    before = times(source)
    assert before[0] >= 3600
    copy(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == [time - before[0] for time in before]


def test_the_last_frame_keeps_its_duration(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", times=[0, 40, 80])
    copy(source, tmp_path / "out.mp4")
    assert read(tmp_path / "out.mp4")[0].duration == Fraction(120, 1000)


def test_avi_warns_of_a_variable_frame_rate(tmp_path: Path) -> None:
    _, said = copy(make(tmp_path / "in.mkv", times=UNEVEN), tmp_path / "out.avi")
    assert said == [".avi has no variable frame rate: times are rounded"]
    assert len(times(tmp_path / "out.avi")) == len(UNEVEN)


def test_avi_keeps_a_constant_frame_rate(tmp_path: Path) -> None:
    _, said = copy(make(tmp_path / "in.mkv"), tmp_path / "out.avi")
    assert not said
    assert times(tmp_path / "out.avi") == [n * Fraction(1, 25) for n in range(10)]


def test_frames_without_times_get_sensible_ones(tmp_path: Path) -> None:
    raw = make(tmp_path / "in.h264", options={"bf": "0"})
    copy(raw, tmp_path / "out.mp4")
    out = times(tmp_path / "out.mp4")
    assert len(out) == 10
    assert {after - before for before, after in pairwise(out)} == {Fraction(1, 25)}


# Samples


FORMATS = [
    *("yuv420p", "yuv422p", "yuv444p", "yuv440p", "gray", "yuv420p10le", "yuv422p10le"),
    *("yuv444p10le", "gray10le", "yuv420p12le", "yuv422p12le", "yuv444p12le", "yuv444p16le"),
]


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("width", [64, 61])
def test_samples_survive_a_lossless_codec_bit_for_bit(
    tmp_path: Path, pix_fmt: str, width: int
) -> None:
    source = make(tmp_path / "in.mkv", codec="ffv1", pix_fmt=pix_fmt, width=width)
    copy(source, tmp_path / "out.mkv", codec="ffv1")
    info, frames = read(tmp_path / "out.mkv")
    assert (info.pix_fmt, len(frames)) == (pix_fmt, 10)
    for index, frame in enumerate(frames):
        for plane, expected in zip(frame.planes, planes(info.format, index, width), strict=True):
            assert (plane == expected).all()


@pytest.mark.parametrize(
    ("pix_fmt", "encoder"),
    [
        ("yuv420p", "libx264"),
        ("yuv444p", "libx264"),
        ("gray", "libx264"),
        ("yuv420p10le", "libx265"),
        ("yuv422p10le", "libx265"),
        ("yuv444p12le", "libx265"),
    ],
)
def test_depth_and_chroma_are_kept_by_the_default_codec(
    tmp_path: Path, pix_fmt: str, encoder: str
) -> None:
    source = make(tmp_path / "in.mkv", codec="ffv1", pix_fmt=pix_fmt, times=range(0, 120, 40))
    with VideoReader(source) as reader, VideoWriter(tmp_path / "out.mp4", reader) as writer:
        assert (writer.encoder.name, writer.encoder.pix_fmt) == (encoder, pix_fmt)
        for frame in reader:
            writer.write(frame)
    info, frames = read(tmp_path / "out.mp4")
    error = frames[1].planes[0].astype(float) - planes(info.format, 1)[0]
    assert np.abs(error).mean() < 0.02 * info.format.peak


@pytest.mark.parametrize(
    ("size", "preset", "spares"),
    [((64, 48), None, False), ((2576, 1456), None, True), ((2576, 1456), "veryfast", False)],
)
def test_x264_spares_memory_only_with_huge_pictures(
    tmp_path: Path, size: tuple[int, int], preset: str | None, spares: bool
) -> None:
    source = make(
        tmp_path / "in.mkv", codec="ffv1", times=range(0, 80, 40), width=size[0], height=size[1]
    )
    copy(source, tmp_path / "out.mp4", preset=preset)
    told = (tmp_path / "out.mp4").read_bytes()  # x264 writes its settings into the stream
    assert (b"sliced_threads=1" in told) == (b"rc_lookahead=2" in told) == spares
    assert b"rc_lookahead=" in told
    assert len(times(tmp_path / "out.mp4")) == 2


def test_rgb_encoders_get_as_many_bits_as_there_are() -> None:
    for depth, name in ((8, "rgb24"), (10, "rgb48be")):
        chosen = pixels.nearest(
            PixelFormat(depth),
            ["bgr8", "rgb24", "rgb48be", "rgba"],
            width=64,
            height=48,
            whole_chroma=False,
        )
        assert chosen == name


@pytest.mark.parametrize(
    ("packed", "planar"),
    [
        ("nv12", "yuv420p"),
        ("yuyv422", "yuv422p"),
        ("p010le", "yuv420p10le"),
        ("yuv420p10be", "yuv420p10le"),
        ("gray12be", "gray12le"),
    ],
)
def test_packed_formats_become_planar(packed: str, planar: str) -> None:
    layout = pixels.layout_of(packed)
    assert layout.name == planar
    before = planes(layout.format, 3)
    picture = pixels.picture_of(before, layout.format).reformat(format=packed)
    picture = pixels.normalise(picture, layout, width=WIDTH, height=HEIGHT)
    for plane, expected in zip(pixels.views(picture, layout.format), before, strict=True):
        assert np.abs(plane.astype(int) - expected).max() <= 1


def test_full_range_stays_full_when_a_picture_is_scaled() -> None:
    black = tuple(
        np.full_like(plane, level)
        for plane, level in zip(planes(PixelFormat(), 0, 96, 64), (0, 128, 128), strict=True)
    )
    with_range = pixels.layout_of("yuvj420p")
    picture = pixels.picture_of(black, PixelFormat()).reformat(
        format="yuvj420p", src_color_range="JPEG", dst_color_range="JPEG"
    )
    scaled = pixels.normalise(picture, with_range, width=64, height=48)
    assert (pixels.views(scaled, PixelFormat())[0] == 0).all()


def test_planes_are_views_that_outlive_the_reader(tmp_path: Path) -> None:
    _, frames = read(make(tmp_path / "in.mkv", codec="ffv1", width=61))
    assert not any(plane.flags.owndata for plane in frames[0].planes)
    assert (frames[0].planes[0] == planes(frames[0].format, 0, 61)[0]).all()


def test_full_range_is_a_property_not_a_format(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", codec="mjpeg", pix_fmt="yuvj420p", color_range=2)
    info, said = copy(source, tmp_path / "out.mp4")
    assert (info.pix_fmt, info.colors.range, said) == ("yuvj420p", 2, [])
    assert read(tmp_path / "out.mp4")[0].colors.range == 2


def test_lost_transparency_is_said_once(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", codec="ffv1", pix_fmt="yuva420p")
    _, said = copy(source, tmp_path / "out.mkv")
    assert said == ["in.mkv: yuva420p is read as yuv420p: transparency is lost"]


def test_transparency_that_no_decoder_shows_is_said_to_be_lost(tmp_path: Path) -> None:
    source = make(tmp_path / "in.webm", codec="libvpx-vp9", pix_fmt="yuva420p")
    _, said = copy(source, tmp_path / "out.mkv")
    assert said == ["in.webm: transparency is lost"]
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert not {name.lower() for name in out.streams.video[0].metadata} & {"alpha_mode"}


def test_rgb_becomes_yuv_of_the_right_colour(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25, width=16, height=16)
        stream.pix_fmt = "bgr0"
        red = np.zeros((16, 16, 3), np.uint8)
        red[..., 0] = 255
        picture = av.VideoFrame.from_ndarray(red, "rgb24").reformat(format="bgr0")
        container.mux([*stream.encode(picture), *stream.encode()])
    said: list[str] = []
    with VideoReader(tmp_path / "in.mkv", warn=said.append) as reader:
        (frame,) = reader
    assert reader.info.colors == Colors(
        1, reader.info.colors.primaries, reader.info.colors.transfer, 1
    )
    bt709_red = (63, 102, 240)
    assert [int(plane[8, 8]) for plane in frame.planes] == pytest.approx(bt709_red, abs=2)
    assert len(said) == 1


@pytest.mark.parametrize(("width", "height", "chosen"), [(61, 47, "yuv444p"), (62, 47, "yuv422p")])
def test_an_odd_size_is_kept_with_finer_chroma(
    tmp_path: Path, width: int, height: int, chosen: str
) -> None:
    source = make(tmp_path / "in.mkv", codec="ffv1", width=width, height=height)
    _, said = copy(source, tmp_path / "out.mp4")
    info, frames = read(tmp_path / "out.mp4")
    assert (info.width, info.height, info.pix_fmt) == (width, height, chosen)
    assert len(said) == 1
    assert chosen in said[0]
    error = frames[2].planes[0].astype(float) - planes(PixelFormat(), 2, width, height)[0]
    assert np.abs(error).mean() < 4


def test_an_odd_size_stays_420_in_webm(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", codec="ffv1", width=61, height=47)
    assert copy(source, tmp_path / "out.webm")[1] == []
    info, _ = read(tmp_path / "out.webm")
    assert (info.width, info.height, info.pix_fmt) == (61, 47, "yuv420p")


# What a container knows


COLORS: dict[str, Any] = {"color_range": 2, "color_primaries": 9, "color_trc": 18, "colorspace": 9}
MIRRORED = (0, -65536, 0, -65536, 0, 0, 48 * 65536, 64 * 65536, 1 << 30)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_colours_and_the_shape_of_pixels_survive(tmp_path: Path, ending: str) -> None:
    aspect = Fraction(4, 3)
    source = make(tmp_path / "in.mp4", sample_aspect_ratio=aspect, **COLORS)
    copy(source, tmp_path / f"out.{ending}")
    info, _ = read(tmp_path / f"out.{ending}")
    assert (info.sample_aspect_ratio, info.colors) == (aspect, Colors(2, 9, 18, 9))


@pytest.mark.parametrize("matrix", [(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30), MIRRORED])
def test_rotation_and_mirroring_survive(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    source = make(tmp_path / "in.mp4", display_matrix=matrix)
    copy(source, tmp_path / "out.mp4")
    before, after = read(source)[0], read(tmp_path / "out.mp4")[0]
    assert before.rotation
    assert "turn the picture" in "".join(copy(source, tmp_path / "out.avi")[1])
    assert (after.rotation, after.display_matrix) == (before.rotation, before.display_matrix)


MASTERING = Mastering(
    red=(Fraction(34000, 50000), Fraction(16000, 50000)),
    green=(Fraction(13250, 50000), Fraction(34500, 50000)),
    blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
    white=(Fraction(15635, 50000), Fraction(16450, 50000)),
    min_luminance=Fraction(50, 10000),
    max_luminance=Fraction(1000),
)


def test_hdr10_survives(tmp_path: Path) -> None:
    words = (
        "log-level=error:max-cll=1000,400:master-display="
        "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    )
    source = make(
        tmp_path / "in.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": words},
        times=range(0, 160, 40),
        **(COLORS | {"color_trc": 16, "color_range": 1}),
    )
    assert read(source)[0].mastering == MASTERING
    for codec in ("hevc", "h264"):
        copy(source, tmp_path / f"{codec}.mp4", codec=codec)
        info, _ = read(tmp_path / f"{codec}.mp4")
        assert (info.mastering, info.content_light) == (MASTERING, ContentLight(1000, 400))
        assert info.colors == Colors(1, 9, 16, 9)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_sound_is_copied_byte_for_byte_at_its_time(tmp_path: Path, ending: str) -> None:
    source = make(tmp_path / "in.mp4", audio=2)
    copy(source, tmp_path / f"out.{ending}")
    before, after = packets(source, "audio"), packets(tmp_path / f"out.{ending}", "audio")
    assert [[data for data, _ in track] for track in after] == [
        [data for data, _ in track] for track in before
    ]
    shift = times(tmp_path / f"out.{ending}")[0] - times(source)[0]
    for old, new in zip(before[0], after[0], strict=True):
        assert abs(new[1] - old[1] - shift) <= (MS if ending == "mkv" else 0)


def test_chapters_tags_and_languages_survive(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("libx264", rate=25, width=WIDTH, height=HEIGHT)
        video.metadata["language"] = "deu"
        sound: Any = container.add_stream("aac", rate=48000)
        sound.metadata.update(language="fra", title="commentary")
        sound.disposition = Disposition.comment
        container.metadata.update(title="A film", camera="mine")
        container.set_chapters(
            [
                {
                    "id": n,
                    "start": 200 * n,
                    "end": 200 * (n + 1),
                    "time_base": MS,
                    "metadata": {"title": f"part {n}"},
                }
                for n in range(2)
            ]
        )
        for index in range(10):
            picture = pixels.picture_of(planes(PixelFormat(), index), PixelFormat())
            picture.pts = index
            container.mux(video.encode(picture))
        container.mux(video.encode())
        add_sound(container, sound)
    for ending in ("mkv", "mp4"):
        sink = tmp_path / f"out.{ending}"
        copy(source, sink)
        with av.open(str(sink)) as container:
            chapters = [
                (c["start"] * (c["time_base"] or 1), c["metadata"]) for c in container.chapters()
            ]
            assert chapters == [(n * Fraction(1, 5), {"title": f"part {n}"}) for n in range(2)]
            tags = {key.lower(): value for key, value in container.metadata.items()}
            assert (tags["title"], tags["camera"]) == ("A film", "mine")
            first, second = container.streams.video[0], container.streams.audio[0]
            assert (first.language, second.language) == ("deu", "fra")
            assert second.disposition & Disposition.comment


def test_what_the_container_cannot_hold_is_named_in_one_line(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("libx264", rate=25, width=WIDTH, height=HEIGHT)
        words: Any = container.add_mux_stream("subrip", time_base=MS)
        words.metadata["language"] = "eng"
        container.add_attachment("font.ttf", "font/ttf", b"glyphs")
        picture = pixels.picture_of(planes(PixelFormat(), 0), PixelFormat())
        packet = av.Packet(b"Hello")
        packet.stream, packet.pts, packet.dts, packet.duration = words, 0, 0, 40
        packet.time_base = MS
        container.mux([*video.encode(picture), *video.encode(), packet])
    assert copy(source, tmp_path / "out.mkv")[1] == []
    assert packets(tmp_path / "out.mkv", "subtitle") == [[(b"Hello", 0)]]
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [stream.type for stream in container.streams][1:] == ["subtitle", "attachment"]
    _, said = copy(source, tmp_path / "out.ts")
    assert said == ["out.ts cannot hold subtitle 1 (srt, eng), attachment 2 (font.ttf): dropped"]


def test_cover_art_is_copied_and_not_taken_for_the_video(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1, width=32, height=32)
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        video: Any = container.add_stream("libx264", rate=25, width=WIDTH, height=HEIGHT)
        small = pixels.picture_of(planes(PixelFormat(), 0, 32, 32), PixelFormat())
        art = cover.encode(small.reformat(format="yuvj420p"))
        container.mux(art)
        for index in range(5):
            picture = pixels.picture_of(planes(PixelFormat(), index), PixelFormat())
            picture.pts = index
            container.mux(video.encode(picture))
        container.mux(video.encode())
    info, said = copy(source, tmp_path / "out.mp4")
    assert (info.width, said) == (WIDTH, [])
    with av.open(str(tmp_path / "out.mp4")) as container:
        covers = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
        assert [(s.width, s.height) for s in covers] == [(32, 32)]
    assert len(read(tmp_path / "out.mp4")[1]) == 5
    assert copy(source, tmp_path / "out.mkv")[1] == []
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert len(container.streams) == 2
        assert is_cover(container.streams[1])
    _, said = copy(source, tmp_path / "out.webm")
    assert len(said) == 1
    assert "cannot hold video" in said[0]


# Interlaced, changing and damaged sources


def test_interlaced_frames_are_merged_one_for_one(tmp_path: Path) -> None:
    options = {"x264-params": "tff=1:interlaced=1"}
    source = make(tmp_path / "in.mp4", options=options, times=UNEVEN)
    info, said = copy(source, tmp_path / "out.mp4")
    assert info.interlaced
    assert len(said) == 1
    assert "interlaced" in said[0]
    assert times(tmp_path / "out.mp4") == [time * MS for time in UNEVEN]
    assert not read(tmp_path / "out.mp4")[0].interlaced


def test_a_change_of_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    first = make(tmp_path / "1.h264", options={"bf": "0"})
    second = make(tmp_path / "2.h264", options={"bf": "0"}, width=96, height=64)
    both = tmp_path / "both.h264"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    _, said = copy(both, tmp_path / "out.mp4")
    assert said == ["both.h264: the size changes from 64x48 to 96x64: scaled to the first"]
    info, frames = read(tmp_path / "out.mp4")
    assert (info.width, info.height, len(frames)) == (64, 48, 20)


def test_a_broadcast_whose_clock_jumps_is_joined(tmp_path: Path) -> None:
    late = [100_000 + time for time in range(0, 400, 40)]
    first = make(tmp_path / "1.ts", times=late, audio=1, options={"bf": "0"})
    second = make(tmp_path / "2.ts", audio=1, options={"bf": "0"})
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    _, said = copy(both, tmp_path / "out.mp4")
    assert said == ["both.ts: the clock jumps (1): times are joined"]
    out = times(tmp_path / "out.mp4")
    assert len(out) == 20
    assert max(after - before for before, after in pairwise(out)) < Fraction(1, 2)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_truncated_file_gives_what_it_has(tmp_path: Path, ending: str) -> None:
    options = {"movflags": "+faststart"} if ending == "mp4" else {}
    whole = make(tmp_path / f"in.{ending}", times=range(0, 8000, 40), options={"bf": "0"})
    if options:  # the index must come first, or nothing is left of an MP4
        with VideoReader(whole) as reader, VideoWriter(tmp_path / "fast.mp4", reader) as writer:
            for frame in reader:
                writer.write(frame)
        whole = tmp_path / "fast.mp4"
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    _, said = copy(cut, tmp_path / "out.mp4")
    assert any("ends early" in line and "\n" not in line for line in said)
    assert 60 < len(read(tmp_path / "out.mp4")[1]) < 180


def test_damage_in_the_middle_is_survived(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", times=range(0, 4000, 40), options={"g": "10"})
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    source.write_bytes(data)
    copy(source, tmp_path / "out.mp4")
    assert len(read(tmp_path / "out.mp4")[1]) > 60


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("damaged", [[27], [26, 28]])
def test_damage_near_the_end_costs_only_the_damaged(
    tmp_path: Path, damaged: list[int], threads: int
) -> None:
    source = make(
        tmp_path / "in.mp4", times=range(0, 1200, 40), options={"bf": "0", "g": "5", "slices": "1"}
    )
    with av.open(str(source)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    data = bytearray(source.read_bytes())
    for index in damaged:
        data[places[index] : places[index] + 4] = b"\xff" * 4  # a length that cannot be
    source.write_bytes(data)
    said: list[str] = []
    with VideoReader(source, threads=threads, warn=said.append) as reader:
        seen = [frame.pts * reader.info.time_base * 1000 for frame in reader]
    assert seen == [40 * index for index in range(30) if index not in damaged]
    assert said == [f"in.mp4: {len(damaged)} of 30 video packets are damaged"]


def test_a_late_beginning_is_no_early_end(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", times=range(3000, 4000, 40))
    assert copy(source, tmp_path / "out.mp4")[1] == []


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        add_sound(container, container.add_stream("aac", rate=48000))
    return path


def test_what_is_not_a_video_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(b"this is not a video at all" * 100)
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "broken.mp4").write_bytes(make(tmp_path / "in.mp4").read_bytes()[:600])
    (tmp_path / "dir").mkdir()
    sound_only(tmp_path / "sound.mp4")
    cases = {
        "missing.mp4": "does not exist",
        "dir": "is a folder",
        "empty.mp4": "is empty",
        "noise.mp4": "is not a video",
        "text.txt": "is not a video",
        "broken.mp4": "",
        "sound.mp4": "has no video stream (audio only)",
    }
    for name, words in cases.items():
        with pytest.raises(SourceError) as caught:
            VideoReader(tmp_path / name)
        assert name in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


# Sinks


@contextmanager
def writing(tmp_path: Path, sink: str, **options: Any) -> Iterator[tuple[VideoReader, VideoWriter]]:
    with (
        VideoReader(make(tmp_path / "in.mkv")) as reader,
        VideoWriter(tmp_path / sink, reader, **options) as writer,
    ):
        yield reader, writer


@pytest.mark.parametrize(
    ("sink", "options", "words"),
    [
        ("no/out.mp4", {}, "does not exist"),
        ("out.xyz", {}, "cannot tell the container"),
        ("out", {}, "cannot tell the container"),
        ("out.wav", {}, "does not hold videos"),
        ("out.png", {}, "would be many files"),
        ("out.png", {"codec": "png"}, "would be many files"),
        ("out.m3u8", {}, "would be many files"),
        (f"{'n' * 256}.mp4", {}, "name too long"),
        ("loop.mp4", {}, "symbolic links"),
        (".", {}, "is a folder"),
        ("in.mkv", {"overwrite": True}, "is the source itself"),
        ("link.mkv", {"overwrite": True}, "is the source itself"),
        ("hard.mkv", {"overwrite": True}, "is the source itself"),
        ("there.mp4", {}, "exists already"),
        ("out.mp4", {"codec": "nonsense"}, "use h264"),
        ("out.webm", {"codec": "h264"}, "cannot hold"),
        ("out.mp4", {"pix_fmt": "yuv410p"}, "yuv420p"),
        ("out.mp4", {"preset": "nonsense"}, "no preset 'nonsense': use ultrafast"),
    ],
)
def test_a_wrong_sink_is_refused_before_anything_is_written(
    tmp_path: Path, sink: str, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "there.mp4").write_text("precious")
    (tmp_path / "link.mkv").symlink_to("in.mkv")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "in.mkv").touch()
    os.link(tmp_path / "in.mkv", tmp_path / "hard.mkv")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SinkError) as caught, writing(tmp_path, sink, **options):
        pass
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.mp4").read_text() == "precious"


def test_two_writers_of_one_name_have_files_of_their_own(tmp_path: Path) -> None:
    make(tmp_path / "in.mkv")
    with writing(tmp_path, "out.mkv"), writing(tmp_path, "out.mkv"):
        assert len(list(tmp_path.glob(".out.*"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv"]


def test_a_source_in_a_folder_that_may_not_be_entered_is_one_line(closed: Path) -> None:
    assert not is_live(str(closed / "in.mkv"))
    with pytest.raises(SourceError, match="may not be read: permission denied"):
        VideoReader(str(closed / "in.mkv"))


def test_a_private_file_stays_private_when_it_is_replaced(tmp_path: Path) -> None:
    sink = tmp_path / "out.mp4"
    sink.touch(mode=0o600)
    copy(make(tmp_path / "in.mkv"), sink, overwrite=True)
    assert sink.stat().st_mode & 0o777 == 0o600


def test_raw_video_holds_pictures_alone(tmp_path: Path) -> None:
    source, sink = make(tmp_path / "in.mkv", audio=2), tmp_path / "out.yuv"
    info, said = copy(source, sink, format="rawvideo")
    _, frames = read(source)
    assert info.width * info.height * 3 // 2 * len(frames) == sink.stat().st_size
    assert len(said) == 1
    assert said[0].startswith("out.yuv cannot hold audio 1 (aac, fra), audio 2 (aac, fra)")


def test_a_time_code_goes_from_one_mov_into_another(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.mov", tmp_path / "out.mov"
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, width=64, height=48)
        stream.metadata["timecode"] = "01:00:00:00"
        for index in range(5):
            picture = av.VideoFrame(64, 48, "yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    _, said = copy(source, sink)
    assert said == []
    with av.open(str(source)) as before, av.open(str(sink)) as after:
        assert [each.type for each in before.streams] == ["video", "data"]
        assert [each.type for each in after.streams] == ["video", "data"]
        assert after.streams[1].metadata["timecode"] == "01:00:00:00"


def test_an_existing_file_is_replaced_when_asked_and_only_when_complete(tmp_path: Path) -> None:
    old = tmp_path / "out.mp4"
    old.write_text("precious")
    with writing(tmp_path, "out.mp4", overwrite=True) as (reader, writer):
        for frame in reader:
            writer.write(frame)
            assert old.read_text() == "precious"
    assert len(read(old)[1]) == 10


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_nothing_remains_of_a_failure(
    tmp_path: Path, error: type[BaseException], ending: str
) -> None:
    def fail() -> None:
        with writing(tmp_path, f"out.{ending}") as (reader, writer):
            for frame in reader:
                writer.write(frame)
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_full_disk_is_said_in_one_line(tmp_path: Path, ending: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = make(tmp_path / "in.mkv", times=range(0, 4000, 40), width=320, height=240)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(SinkError) as caught:
            copy(source, tmp_path / f"out.{ending}", crf=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"cannot write {tmp_path / f'out.{ending}'}: File too large"
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.mp4").touch()
    (tmp_path / "out.mp4").symlink_to("real.mp4")
    with writing(tmp_path, "out.mp4", overwrite=True) as (reader, writer):
        for frame in reader:
            writer.write(frame)
    assert (tmp_path / "out.mp4").is_symlink()
    assert len(read(tmp_path / "real.mp4")[1]) == 10


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "ü 'x'.mp4", "-o.mp4"])
def test_names_that_confuse_ffmpeg_are_only_names(tmp_path: Path, name: str) -> None:
    copy(make(tmp_path / "in.mkv"), tmp_path / name)
    copy(tmp_path / name, tmp_path / f"again {name}")
    assert len(read(tmp_path / f"again {name}")[1]) == 10


@pytest.mark.parametrize(
    ("codec", "sink", "name"),
    [
        ("h264", "out.mkv", "h264"),
        ("libx265", "out.mp4", "hevc"),
        ("vp9", "out.webm", "vp9"),
        ("ffv1", "out.mkv", "ffv1"),
        ("prores", "out.mov", "prores"),
        ("mpeg4", "out.mp4", "mpeg4"),
    ],
)
def test_codecs_by_the_names_that_users_know(
    tmp_path: Path, codec: str, sink: str, name: str
) -> None:
    copy(make(tmp_path / "in.mkv"), tmp_path / sink, codec=codec)
    with av.open(str(tmp_path / sink)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == name
    assert len(read(tmp_path / sink)[1]) == 10


def test_side_data_of_the_decoded_picture_is_kept(tmp_path: Path) -> None:
    with av.open(str(make(tmp_path / "in.mp4"))) as container:
        decoded = next(container.decode(video=0))  # the first one of x264 has a message in it
    black = tuple(np.zeros_like(plane) for plane in pixels.views(decoded, PixelFormat()))
    frame = Frame(black, PixelFormat(), 0, MS, attachment=decoded)
    picture = _picture(frame)
    assert len(picture.side_data) == len(decoded.side_data) > 0
    assert all((plane == 0).all() for plane in pixels.views(picture, PixelFormat()))
    assert pixels.views(decoded, PixelFormat())[0].any()


def test_a_second_video_is_copied_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        streams: list[Any] = [
            container.add_stream(codec, rate=25, width=WIDTH, height=HEIGHT)
            for codec in ("libx264", "mpeg4")
        ]
        for stream in streams:
            for index in range(5):
                picture = pixels.picture_of(planes(PixelFormat(), index), PixelFormat())
                picture.pts = index
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    for ending in ("mkv", "mp4"):
        assert copy(source, tmp_path / f"out.{ending}")[1] == []
        before, after = packets(source, "video")[1], packets(tmp_path / f"out.{ending}", "video")[1]
        assert [data for data, _ in after] == [data for data, _ in before]


def test_frames_may_come_from_anywhere(tmp_path: Path) -> None:
    with writing(tmp_path, "out.mkv", codec="ffv1") as (reader, writer):
        for frame in reader:
            bright = replace(frame, planes=(np.full_like(frame.planes[0], 200), *frame.planes[1:]))
            writer.write(bright)
    assert all((frame.planes[0] == 200).all() for frame in read(tmp_path / "out.mkv")[1])
