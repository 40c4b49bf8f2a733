import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import pytest

import vdeblur
from vdeblur import cli, pipeline
from vdeblur.bench import with_share
from vdeblur.bundle import read_bundle
from vdeblur.cli import main
from vdeblur.demo import Demo, render_demo
from vdeblur.errors import ModelError
from vdeblur.options import Options
from vdeblur.pipeline import Summary, filtered_share
from vdeblur.processor import Processor
from vdeblur.video import VideoReader

COMMAND = [sys.executable, "-m", "vdeblur"]
EXAMPLE = Path(__file__).parents[1] / "examples" / "shaky.mp4"
FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 shaky frames of 128x96, with sound."""
    path = tmp_path_factory.mktemp("cli") / "shaky.mp4"
    render_demo(path, demo=Demo(seconds=FRAMES / 30, width=128, height=96, blur=1))
    return path


def fix(*words: str | Path) -> int:
    """Run without a model."""
    return main([*map(str, words), "--no-deblur"])


def test_one_command_gives_one_file_and_one_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = tmp_path / "fixed.mp4"
    assert fix(clip, "-o", sink) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{sink}: {FRAMES} frames in ")
    assert out.endswith(" frames/s)\n")
    assert err == ""
    with av.open(str(sink)) as container:
        assert container.streams.video[0].frames == FRAMES
        assert container.streams.audio


def test_options_may_come_first(clip: Path, tmp_path: Path) -> None:
    assert main(["-q", "--no-deblur", "-o", str(tmp_path / "fixed.mp4"), str(clip)]) == 0


def test_quiet_prints_nothing(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fix(clip, "-o", tmp_path / "fixed.mp4", "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_object_with_the_whole_summary(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fix(clip, "-o", tmp_path / "fixed.mp4", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == FRAMES
    assert set(summary) == set(Summary.__dataclass_fields__)
    assert set(summary["milliseconds"]) == {"decode", "motion", "plan", "warp", "encode"}


def test_what_is_there_is_replaced_only_with_y(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = tmp_path / "fixed.mp4"
    sink.write_text("precious")
    assert fix(clip, "-o", sink) == 1
    assert sink.read_text() == "precious"
    assert "fixed.mp4 exists already" in capsys.readouterr().err
    assert fix(clip, "-o", sink, "-y") == 0
    assert sink.stat().st_size > 1000


class CalledError(Exception):
    """Carries the keywords of a call."""

    def __init__(self, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.keywords = keywords


def keywords(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """What `process` would be called with."""

    def process(source: str, sink: str, **keywords: Any) -> None:
        raise CalledError({"source": source, "sink": sink, **keywords})

    monkeypatch.setattr(pipeline, "process", process)
    with pytest.raises(CalledError) as called:
        main([*words, "--debug"])
    return called.value.keywords


def test_every_option_reaches_process(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "in.mp4 -o out.mkv --no-deblur --no-stabilize --model my/model --strength 0.8 "
        "--lookahead 7 --smoothing 1.5 --zoom none --border black --device cpu "
        "--backend onnxruntime --codec hevc --crf 21 --preset fast --pix-fmt yuv420p10le "
        "--show-clusters -y -q --input-format rawvideo --size 64x48 --rate 30000/1001 "
        "--input-pix-fmt gray --hwaccel auto --output-format nut --interpolation lanczos "
        "--rolling-shutter auto "
        "--field-of-view 110 --max-crop 0.2 --camera-lock "
        "--motion-in a.json --motion-out b.json --plot-motion c.png --start 1:30.5 --duration 5"
    )
    seen = keywords(monkeypatch, *words.split())
    assert (seen.pop("warn"), seen.pop("opened")) == (cli._warn, None)
    assert seen == {
        **{"source": "in.mp4", "sink": "out.mkv", "progress": None},
        **{"deblur": False, "stabilize": False, "show_clusters": True, "overwrite": True},
        **{"model": "my/model", "strength": 0.8, "device": "cpu", "backend": "onnxruntime"},
        **{"lookahead": 7, "smoothing": 1.5, "zoom": "none", "border": "black"},
        **{"interpolation": "lanczos", "rolling_shutter": "auto"},
        **{"max_crop": 0.2, "camera_lock": True, "motion": "similarity"},
        **{"motion_in": Path("a.json"), "motion_out": Path("b.json")},
        **{"plot_motion": Path("c.png"), "field_of_view": 110.0},
        **{"codec": "hevc", "crf": 21.0, "preset": "fast", "pix_fmt": "yuv420p10le"},
        **{"input_format": "rawvideo", "input_size": (64, 48), "input_pix_fmt": "gray"},
        **{"input_hwaccel": "auto", "input_start": 90.5, "input_duration": 5.0},
        **{"input_rate": Fraction(30000, 1001), "output_format": "nut"},
    }
    words = words.replace("--field-of-view 110", "--motion homography")  # they exclude each other
    again = keywords(monkeypatch, *words.split())
    assert (again.pop("warn"), again.pop("opened")) == (cli._warn, None)
    assert again == seen | {"motion": "homography", "field_of_view": None}


def test_defaults_are_those_of_process(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = pipeline.process.__kwdefaults__
    seen = keywords(monkeypatch, "in.mp4", "-o", "out.mp4")
    for name in {"source", "sink", "progress", "warn", "opened"}:
        seen.pop(name)
    assert defaults is not None
    assert seen == {name: defaults[name] for name in seen}
    assert set(seen) == set(defaults) - {"opened", "progress", "warn"}


def test_networks_load_early_where_nothing_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, sink = tmp_path / "in.mp4", tmp_path / "out.mp4"

    def opened(*words: str) -> Any:
        return keywords(monkeypatch, str(source), "-o", str(sink), *words)["opened"]

    assert opened() is None, "there is no such file"
    source.touch()
    assert opened().bundle.name == "fast"
    assert opened("--no-deblur") is None
    sink.touch()
    assert opened() is None
    assert opened("-y") is not None


@pytest.mark.parametrize("word", ["--no-stabilize", "--no-stabilise"])
def test_both_spellings_are_understood(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    assert keywords(monkeypatch, "in.mp4", "-o", "out.mp4", word)["stabilize"] is False


def make_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def make_bad_inputs(folder: Path) -> None:
    """Everything that a source can be but a video."""
    (folder / "folder.mp4").mkdir()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 100)
    make_audio(folder / "sound.wav")


@pytest.mark.parametrize(
    "name", ["none.mp4", "folder.mp4", "text.mp4", "empty.mp4", "noise.mp4", "sound.wav"]
)
def test_a_bad_input_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make_bad_inputs(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / name), "-o", str(tmp_path / "fixed.mp4")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vdeblur: error: ")
    assert err.count("\n") == 1
    assert name in err
    assert "internal error" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-o {here}/none/fixed.mp4", "none does not exist"),
        ("-o {here}", "is a folder"),
        ("-o {here}/fixed.xyz", ".xyz"),
        ("-o {here}/fixed", "without an ending"),
        ("-o {here}/fixed.mp4 --codec nonsense", "nonsense"),
        ("-o {here}/fixed.mp4 --codec aac", "aac"),
        ("-o {here}/fixed.mp4 --pix-fmt nonsense", "nonsense"),
        ("-o {here}/fixed.mp4 --pix-fmt bgra", "bgra"),
        ("-o {here}/fixed.webm --codec libx264", ".webm"),
        ("-o {here}/fixed.mp4 --preset nonsense", "libx264"),
    ],
)
def test_an_output_that_cannot_be_is_one_line_and_exit_1(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    before = clip.read_bytes()
    assert fix(clip, *words.format(here=tmp_path).split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("vdeblur: error: ")
    assert said in err
    assert "internal error" not in err
    assert list(tmp_path.iterdir()) == []
    assert clip.read_bytes() == before


def test_the_source_is_never_the_sink(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = clip.read_bytes()
    alias = tmp_path / "alias.mp4"
    alias.symlink_to(clip)
    for sink in (clip, alias):
        assert fix(clip, "-o", sink, "-y") == 1
        assert "is the source itself" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_an_unknown_model_is_one_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(clip), "-o", str(tmp_path / "fixed.mp4"), "--model", "no-such"]) == 1
    err = capsys.readouterr().err
    assert "no model 'no-such'" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_may_not_be_read_is_one_line(closed: Path) -> None:
    with pytest.raises(ModelError, match="may not be read: permission denied"):
        read_bundle(closed)


def test_a_full_stdout_is_one_line(clip: Path, tmp_path: Path) -> None:
    sink = tmp_path / "fixed.mp4"
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [*COMMAND, str(clip), "-o", str(sink), "--no-deblur"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert run.returncode == 1
    assert run.stderr == b"vdeblur: error: no space is left to write what is to be said\n"
    assert sink.exists()


def test_names_that_lead_round_in_a_circle_are_one_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    one.symlink_to(other)
    other.symlink_to(one)
    assert main([str(clip), "-o", str(one), "--no-deblur"]) == 1
    assert capsys.readouterr().err.startswith(f"vdeblur: error: cannot write {one}: ")


def test_a_truncated_input_gives_its_good_part_and_a_warning(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, half, sink = (tmp_path / name for name in ("whole.mp4", "half.mp4", "fixed.mp4"))
    assert fix(clip, "-o", whole, "--no-stabilize") == 0
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    capsys.readouterr()
    assert fix(half, "-o", sink) == 0
    err = capsys.readouterr().err
    assert all(line.startswith("vdeblur: warning: half.mp4: ") for line in err.splitlines())
    assert "the file ends early" in err
    assert sink.exists()


@pytest.mark.parametrize(
    "words",
    [
        "in.mp4",
        "-o out.mp4",
        "in.mp4 -o out.mp4 more",
        "in.mp4 -o out.mp4 --strength 2",
        "in.mp4 -o out.mp4 --zoom much",
        "in.mp4 -o out.mp4 --smoothing 0",
        "in.mp4 -o out.mp4 --smoothing nan",
        "in.mp4 -o out.mp4 --strength nan",
        "in.mp4 -o out.mp4 --what",
        "in.mp4 -o out.mp4 --motion mesh --rolling-shutter auto",
        "in.mp4 -o out.mp4 --motion homography --field-of-view 90",
        "camera:0 -o out.mp4 --motion-out path.csv",
        "in.mp4 -o out.mp4 --latency 0",
        "- -o out.mp4 --input-format rawvideo --size 64",
        "- -o out.mp4 --input-format rawvideo --size 0x48",
        "- -o out.mp4 --input-format rawvideo --size 64x48 --rate 0",
        "demo",
        "demo clip.mp4 --size 640",
        "demo clip.mp4 --size 641x360",
        "demo clip.mp4 --blur 99",
        "demo clip.mp4 --truth ./clip.mp4",
        "bench --repeats 0",
        "bench --blurred nan",
    ],
)
def test_wrong_usage_is_exit_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("Usage: vdeblur")
    assert "Error: " in err


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        ("--no-deblur --strength 1 --show-clusters", ["--strength", "--show-clusters"]),
        ("--no-deblur --no-stabilize --camera-lock --zoom 2", ["--camera-lock", "--zoom"]),
        ("--no-stabilize --no-deblur --motion-out path.json", []),
        ("--no-deblur --smoothing 0.5", []),
    ],
)
def test_options_of_the_half_that_is_left_out_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    idle: list[str],
) -> None:
    keywords(monkeypatch, *f"in.mp4 -o out.mp4 {words}".split())
    said = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert all(line[:2] == ["vdeblur:", "warning:"] and "nothing" in line for line in said)
    assert sorted(line[2] for line in said) == sorted(idle)


def test_a_missing_output_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["in.mp4"])
    assert "Missing option '-o' / '--output'" in capsys.readouterr().err


def test_an_internal_error_is_one_line_or_with_debug_a_traceback(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def process(*args: Any, **keywords: Any) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(pipeline, "process", process)
    words = [str(clip), "-o", str(tmp_path / "fixed.mp4")]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "vdeblur: error: internal error (ZeroDivisionError: a b): run again with --debug\n"
    )
    with pytest.raises(ZeroDivisionError):
        main([*words, "--debug"])


def test_without_libgl_a_line_names_the_package_that_needs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def process(*args: Any, **keywords: Any) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(pipeline, "process", process)
    assert main(["in.mp4", "-o", "out.mp4"]) == 1
    err = capsys.readouterr().err
    assert "opencv-python-headless" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("times", [1, 5])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: int, code: int, times: int) -> None:
    words = [str(EXAMPLE), "-o", str(tmp_path / "fixed.mp4"), "--no-deblur"]
    run = subprocess.Popen(
        [*COMMAND, *words],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, in which the tests may run, inherits an ignored SIGINT.
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )
    for _ in range(600):
        if any(part.stat().st_size for part in tmp_path.iterdir()):
            break
        time.sleep(0.05)
    for _ in range(times):
        run.send_signal(number)
        time.sleep(0.03)
    _, err = run.communicate(timeout=60)
    assert run.returncode == code
    assert list(tmp_path.iterdir()) == []
    lines = [line for line in err.splitlines() if not line.startswith("[")]  # the codec's own
    assert lines == (["vdeblur: interrupted: nothing was written"] if code == 130 else [])


def test_a_reader_that_goes_away_is_no_reason_to_complain() -> None:
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, b"")


@pytest.mark.parametrize("closed", [1, 2])
def test_neither_stdout_nor_stderr_need_be_open(clip: Path, tmp_path: Path, closed: int) -> None:
    words = [*COMMAND, str(clip), "-o", str(tmp_path / "fixed.mp4"), "--no-deblur"]
    run = subprocess.run(["sh", "-c", f'"$@" {closed}>&-', "sh", *words], check=False)
    assert run.returncode == 0
    assert (tmp_path / "fixed.mp4").exists()


def test_help_lists_options_under_headings_and_all_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: vdeblur INPUT -o OUTPUT [OPTIONS]\n")
    places = [out.index(f"\n{heading}") for heading in (*cli.HEADINGS, "Other commands")]
    assert places == sorted(places)
    for command in ("demo", "doctor", "bench", "compile", "evaluate", "train"):
        assert f"\n  {command} " in out
    assert "stabilise" not in out


def test_no_words_at_all_are_a_wish_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vdeblur {vdeblur.__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom vdeblur.cli import main\nmain(['--help'])\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(out.stdout.splitlines()[-1].split())
    assert not modules & {"numpy", "cv2", "av", "openvino", "onnxruntime", "torch", "rich"}


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize(
    "command",
    [
        *("demo", "doctor", "bench", "compile", "evaluate", "clips", "train", "train report"),
        *("ffmpeg-args", "ffmpeg-install"),
    ],
)
def test_every_command_has_help(
    command: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), word]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: vdeblur {command} ")


def test_a_file_called_like_a_command_is_a_file(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_bytes(clip.read_bytes())
    assert fix("./demo", "-o", "fixed.mp4") == 0


def test_a_command_of_another_package_is_found_and_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.argument("word")
    def other(word: str) -> None:
        click.echo(word)

    monkeypatch.setattr(EntryPoint, "load", lambda self: other)
    assert main(["train", "hello"]) == 0
    assert capsys.readouterr().out == "hello\n"


def test_without_the_train_extra_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(self: EntryPoint) -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(EntryPoint, "load", load)
    assert main(["evaluate"]) == 1
    err = capsys.readouterr().err
    assert "pip install 'vdeblur[train]'" in err
    assert err.count("\n") == 1


def test_demo_writes_a_clip_and_its_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink, truth = tmp_path / "shaky.mp4", tmp_path / "truth.mp4"
    words = ["demo", sink, "--seconds", "0.2", "--size", "64x48", "--blur", "1", "--truth", truth]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out == f"{sink}: 6 frames of 64x48\n"
    assert truth.exists()
    assert main([str(word) for word in words]) == 1


def test_demo_blurs_a_small_clip_as_much_as_it_may(tmp_path: Path) -> None:
    assert main(["demo", str(tmp_path / "a.mp4"), "--seconds", "0.1", "--size", "64x48"]) == 0


def test_a_program_that_is_measured_says_why_it_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path / "none.mp4"), "--repeats", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("vdeblur: error: cannot measure: ")
    assert said.count("error") == said.count("\n") == 1


def test_a_lens_too_wide_for_the_crop_is_one_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--no-deblur", "--field-of-view", "174", "--max-crop", "0.49"]
    assert fix(clip, "-o", tmp_path / "fixed.mp4", *words) == 1
    said = capsys.readouterr().err
    assert said.startswith("vdeblur: error: a crop of 0.49 is too much for so wide a lens")
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_would_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["av"] == av.__version__
    assert report["encoders"]["libx264"] is True
    assert report["cpu"]["cores"] >= 1
    assert bool(report["would_use"]) != bool(report["problem"])
    assert main(["doctor"]) == 0
    assert "will use" in capsys.readouterr().out


def test_bench_measures_each_stage(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(clip), "--no-deblur", "--repeats", "1", "--json"]) == 0
    timing = json.loads(capsys.readouterr().out)
    assert set(timing["milliseconds"]) == {"decode", "motion", "plan", "warp", "encode"}
    assert set(timing["alone"]["milliseconds"]) == {"decode", "motion", "warp", "encode"}
    assert (timing["frames"], timing["repeats"]) == (FRAMES, 1)
    assert timing["fps"] > 0
    assert timing["first_frame"] > 0
    assert timing["peers"] == timing["shares"] == timing["backends"] == {}


def test_bench_has_the_wanted_share_of_blocks_filtered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "bench --size 512x320 --frames 6 --repeats 1 --blurred 0.3 --json"
    assert main(words.split()) == 0
    timing = json.loads(capsys.readouterr().out)
    assert timing["filtered"] == pytest.approx(0.3, abs=0.04)
    assert timing["alone"]["filtered"] == pytest.approx(0.3, abs=0.04)
    fast = read_bundle("fast")
    assert timing["alone"]["multiply_adds"] > fast.encoder_cost + 0.25 * min(fast.filter_costs)
    assert timing["shares"]["none"]["filtered"] == 0
    assert timing["shares"]["all"]["filtered"] == 1
    assert {"align", "embed", "assign", "gather", "merge"} <= set(timing["milliseconds"])
    assert any(stage.startswith("filter ") for stage in timing["milliseconds"])
    assert "openvino" in timing["backends"]


def test_bench_draws_the_line_where_a_first_stage_decides(tmp_path: Path) -> None:
    clip = tmp_path / "shaky.mp4"
    render_demo(clip, demo=Demo(seconds=0.5, width=256, height=128, blur=2))
    given = replace(Options(), model="best", stabilize=False)
    options = with_share(given, clip, 0.5, tmp_path / "model")
    with VideoReader(clip) as reader, Processor(options) as processor:
        assert len(list(processor.run(reader))) == 15
        assert filtered_share(processor.clusters) == pytest.approx(0.5, abs=0.1)
    wanted, shipped = (read_bundle(each) for each in (tmp_path / "model", "best"))
    assert wanted.min_change != shipped.min_change
    assert not np.array_equal(wanted.clusters.biases, shipped.clusters.biases)


def test_bench_prints_a_table_and_times_peers(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench --size 128x72 --frames 3 --repeats 1 --no-deblur --peer"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert out.startswith("128x72, 3 frames, median of 1, no filters on cpu; ")
    assert "| encode | " in out
    assert "| vdeblur --no-deblur | " in out
    if shutil.which("ffmpeg"):
        assert "| decode and encode only (ffmpeg) | " in out
