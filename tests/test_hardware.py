"""Decoding and encoding by a GPU, and that nothing is lost where there is none."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vdeblur import encoder as encoders
from vdeblur import hardware
from vdeblur.errors import SourceError
from vdeblur.frame import Frame, PixelFormat
from vdeblur.info import VideoInfo
from vdeblur.options import Input
from vdeblur.pipeline import process
from vdeblur.video import VideoReader

FRAMES = 12
INFO = VideoInfo(96, 64, PixelFormat(), "yuv420p", rate=Fraction(25), time_base=Fraction(1, 1000))


def filmed(path: Path, pix_fmt: str = "yuv420p", codec: str = "libx264") -> Path:
    """A short video of noise, 96x64."""
    rng = np.random.default_rng(3)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, width=96, height=64, pix_fmt=pix_fmt)
        assert isinstance(stream, VideoStream)
        for _ in range(FRAMES):
            picture = VideoFrame.from_ndarray(rng.integers(0, 256, (64, 96, 3), np.uint8), "bgr24")
            container.mux(stream.encode(picture.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return path


def read(path: Path, hwaccel: str, said: list[str]) -> list[Frame]:
    with VideoReader(path, given=Input(hwaccel=hwaccel), warn=said.append) as reader:
        return list(reader)


def same(left: Sequence[Frame], right: Sequence[Frame]) -> bool:
    return [f.pts for f in left] == [f.pts for f in right] and all(
        a.format == b.format and all(map(np.array_equal, a.planes, b.planes))
        for a, b in zip(left, right, strict=True)
    )


def test_an_unknown_decoder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no hardware decoder 'quantum' here: use auto, none"):
        read(filmed(tmp_path / "in.mkv"), "quantum", [])


def test_frames_are_the_same_whoever_decodes(tmp_path: Path) -> None:
    said: list[str] = []
    path = filmed(tmp_path / "in.mkv")
    frames = read(path, "none", said)
    assert len(frames) == FRAMES
    assert not said
    assert same(read(path, "cuda", said), frames)
    works = hardware.decoder("auto", said.append) == "cuda"
    assert len(said) == int(not works)
    assert works or "cuda does not decode here" in said[0]


def test_auto_takes_what_works_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["qsv", "cuda", "vulkan"])
    monkeypatch.setattr(hardware, "_reason", lambda device: "broken" if device == "qsv" else None)
    assert hardware.decoder("auto", said.append) == "cuda"
    monkeypatch.setattr(hardware, "_reason", lambda device: "broken")
    assert hardware.decoder("auto", said.append) == "none"
    assert not said


@pytest.mark.parametrize(("codec", "name"), [("ffv1", "ffv1"), ("libx264", "h264")])
def test_what_a_unit_does_not_decode_the_cpu_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, name: str
) -> None:
    """Though the unit itself works, as far as one can see before."""
    path = filmed(tmp_path / "in.mkv", codec=codec)
    frames = read(path, "none", [])
    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["drm"])
    monkeypatch.setattr(hardware, "_reason", lambda device: None)
    said: list[str] = []
    assert same(read(path, "drm", said), frames)
    assert said == [f"in.mkv: drm does not decode it ({name}, yuv420p): the CPU does"]
    assert same(read(path, "auto", said), frames)
    assert len(said) == 1


def test_a_unit_that_fails_at_the_last_moment_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = filmed(tmp_path / "in.mkv"), list[str]()
    frames = read(path, "none", [])
    works = hardware.decoder("cuda", lambda line: None) == "cuda"
    monkeypatch.setattr(hardware, "_reason", lambda device: None)
    assert same(read(path, "cuda", said), frames)
    assert works or said == ["in.mkv: cuda does not decode it (h264, yuv420p): the CPU does"]


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "downloaded"),
    [
        ("yuv420p", "libx264", "nv12"),
        ("yuvj420p", "mjpeg", "nv12"),
        ("yuv420p10le", "libx265", "p010le"),
    ],
)
def test_pictures_from_a_gpu_lie_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pix_fmt: str,
    codec: str,
    downloaded: str,
) -> None:
    """They come with both chroma planes in one, and the frames are the same bit for bit."""
    path = filmed(tmp_path / "in.mkv", pix_fmt, codec)
    frames = read(path, "none", [])
    decoded = VideoReader._decoded

    def from_gpu(self: VideoReader, packet: object) -> list[VideoFrame]:
        range_ = "JPEG" if "yuvj" in pix_fmt else "MPEG"
        ranges = {"src_color_range": range_, "dst_color_range": range_}
        return [p.reformat(format=downloaded, **ranges) for p in decoded(self, packet)]  # type: ignore[arg-type]

    monkeypatch.setattr(VideoReader, "_decoded", from_gpu)
    assert same(read(path, "none", []), frames)


@pytest.mark.parametrize(
    ("encoder", "codec", "preset", "without"),
    [
        ("h264_nvenc", "libx264", "p5", ", without --preset p5"),
        ("h264_nvenc", "libx264", "fast", ""),
        ("hevc_nvenc", "libx265", "p4", ", without --preset p4"),
        ("av1_nvenc", "libsvtav1", "p5", ", without --preset p5"),
    ],
)
def test_a_gpus_encoder_falls_back_to_the_cpus(
    tmp_path: Path, encoder: str, codec: str, preset: str, without: str
) -> None:
    source, sink, said = filmed(tmp_path / "in.mkv"), tmp_path / "out.mkv", list[str]()
    process(source, sink, deblur=False, codec=encoder, preset=preset, warn=said.append)
    with av.open(sink) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
    if hardware.refuses(encoder, width=96, height=64, pix_fmt="yuv420p") is None:
        assert not said
    else:
        reason = "no device or no driver"
        assert said == [f"{encoder} does not encode here ({reason}): {codec} does{without}"]


def test_a_gpus_pixel_format_becomes_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "refuses", lambda encoder, **pictures: "too old")
    source = filmed(tmp_path / "in.mkv", "yuv420p10le", "libx265")
    sink, said = tmp_path / "out.mkv", list[str]()
    process(source, sink, deblur=False, codec="hevc_nvenc", pix_fmt="p010le", warn=said.append)
    assert said == ["hevc_nvenc does not encode here (too old): libx265 does"]
    with av.open(sink) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"


def test_the_best_quality_is_not_taken_for_any() -> None:
    """NVENC takes a constant quality of 0 for no wish."""
    options = encoders._options(
        "h264_nvenc", INFO, crf=0, preset=None, even_times=False, warn=pytest.fail
    )
    assert float(options["cq"]) == 0.1
    assert options["rc"] == "vbr"
