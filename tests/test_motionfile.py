import json
from dataclasses import replace
from errno import ENOSPC
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vdeblur.cli import main
from vdeblur.errors import SinkError, SourceError
from vdeblur.frame import Frame, Motion, PixelFormat
from vdeblur.motionfile import CameraPath, KnownMotion, PathRecorder, Record, trajectory
from vdeblur.pipeline import process
from vdeblur.scenes import Stage, render_scene
from vdeblur.similarity import Similarity

BASE = Fraction(1, 90_000)


def move(x: float, y: float = 0.0, **more: object) -> Motion:
    return Motion(np.array([[1, 0, x], [0, 1, y]]), **more)  # type: ignore[arg-type]


TURN = np.array([[1.01, 0.002, -3.25], [-0.002, 0.99, 1.5], [2e-5, -1e-5, 1.0]])

LOCAL = np.arange(81).reshape(9, 9) * (0.25 - 0.5j)

PATH = CameraPath(
    320,
    180,
    BASE,
    (
        Record(0, Motion.none(), Similarity(1.02, 1 + 2j)),
        Record(
            3003,
            move(-3.25, 1.5, confidence=0.75, skew=0.001 - 0.002j, homography=TURN, local=LOCAL),
            Similarity(),
        ),
        Record(6006, Motion(np.eye(2, 3), duplicate=True), Similarity(np.exp(0.01j), -4)),
        Record(9009, Motion.none(cut=True), None),
    ),
)


def frame(pts: int, base: Fraction = BASE, width: int = 320, height: int = 180) -> Frame:
    return Frame((np.zeros((height, width), np.uint8),), PixelFormat(planes=1), pts, base)


def lumas(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [each.to_ndarray(format="gray") for each in container.decode(video=0)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "clip.mp4"
    render_scene("hand", path, stage=Stage(seconds=1, width=320, height=180))
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    PATH.write(tmp_path / "path.json")
    again = CameraPath.read(tmp_path / "path.json")
    assert (again.width, again.height, again.time_base) == (320, 180, BASE)
    for before, after in zip(PATH.records, again.records, strict=True):
        assert after.pts == before.pts
        np.testing.assert_allclose(after.motion.transform, before.motion.transform)
        for name in ("confidence", "cut", "duplicate", "skew"):
            assert getattr(after.motion, name) == getattr(before.motion, name)
        np.testing.assert_allclose(after.motion.way, before.motion.way, atol=1e-9)
        if before.motion.local is None:
            assert after.motion.local is None
        else:
            assert after.motion.local is not None
            assert abs(after.motion.local - before.motion.local).max() < 1e-3
        if before.correction is None:
            assert after.correction is None
        else:
            assert after.correction is not None
            assert abs(after.correction.turn - before.correction.turn) < 1e-8
            assert abs(after.correction.shift - before.correction.shift) < 1e-4


def test_a_file_has_one_line_a_frame_that_a_person_can_edit(tmp_path: Path) -> None:
    PATH.write(tmp_path / "path.json")
    lines = (tmp_path / "path.json").read_text().splitlines()
    assert len(lines) == 1 + 4 + 1
    assert json.loads(lines[1].rstrip(","))["correction"] == {
        "x": 1,
        "y": 2,
        "roll": 0,
        "zoom": 1.02,
    }


def test_frames_are_found_by_their_time_in_another_time_base() -> None:
    stage = KnownMotion(PATH)
    for index, pts in enumerate((0, 33, 67, 100)):  # Matroska's milliseconds
        (done,) = stage.push(frame(pts, Fraction(1, 1000)))
        expected = PATH.records[index].motion
        assert done.motion is not None
        assert done.motion.cut == expected.cut
        np.testing.assert_allclose(done.motion.transform, expected.transform)


def test_a_frame_that_the_path_lacks_is_an_error_that_says_when() -> None:
    with pytest.raises(SourceError, match=r"my\.json has no frame at 0\.050 s"):
        KnownMotion(PATH, "my.json").push(frame(4500))


def test_a_path_fits_a_video_of_twice_the_size() -> None:
    (done,) = KnownMotion(PATH).push(frame(3003, width=640, height=360))
    assert done.motion is not None
    np.testing.assert_allclose(done.motion.transform[:, 2], [-6.5, 3.0])
    assert done.motion.local is not None
    assert abs(done.motion.local - 2 * LOCAL).max() < 1e-3
    small = TURN @ (100, 50, 1)
    large = done.motion.way @ (200.5, 100.5, 1)  # the same place of a picture twice as large
    np.testing.assert_allclose(large[:2] / large[2], 2 * small[:2] / small[2] + 0.5, atol=1e-9)
    with pytest.raises(SourceError, match="the path is of a 320x180 video, this one has 320x240"):
        KnownMotion(PATH).push(frame(0, height=240))


def test_a_path_obeyed_gives_the_same_video_again(clip: Path, tmp_path: Path) -> None:
    first, again, path = (tmp_path / name for name in ("a.mkv", "b.mkv", "path.json"))
    process(clip, first, deblur=False, motion_out=path, codec="ffv1")
    process(clip, again, deblur=False, motion_in=path, codec="ffv1")
    for a, b in zip(lumas(first), lumas(again), strict=True):
        assert np.abs(a.astype(int) - b).mean() < 0.1


def test_an_edited_path_is_obeyed(clip: Path, tmp_path: Path) -> None:
    path, sink = tmp_path / "path.json", tmp_path / "out.mkv"
    process(clip, tmp_path / "a.mkv", deblur=False, motion_out=path)
    said = json.loads(path.read_text())
    for record in said["frames"]:
        record["correction"] = {"x": 10, "y": -6}
    path.write_text(json.dumps(said))
    process(clip, sink, deblur=False, motion_in=path, codec="ffv1")
    for before, after in zip(lumas(clip), lumas(sink), strict=True):
        assert np.abs(after[:-6, 10:].astype(int) - before[6:, :-10]).mean() < 1


def test_without_corrections_a_path_is_smoothed_anew(clip: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "path.json", tmp_path / "again.json"
    process(clip, tmp_path / "a.mkv", deblur=False, motion_out=path)
    said = json.loads(path.read_text())
    for record in said["frames"]:
        del record["correction"]
    path.write_text(json.dumps(said))
    process(clip, tmp_path / "b.mkv", deblur=False, motion_in=path, motion_out=again)
    before = trajectory(CameraPath.read(again), steady=False)
    after = trajectory(CameraPath.read(again), steady=True)
    rough = [np.abs(np.diff(each[:, :2], 2, axis=0)).mean() for each in (before, after)]
    assert rough[1] < rough[0] / 5


def test_a_path_is_recorded_without_stabilising_too(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "path.json"
    process(clip, tmp_path / "a.mkv", deblur=False, stabilize=False, motion_out=path)
    records = CameraPath.read(path).records
    assert len(records) == 30
    assert np.abs([r.motion.transform[:, 2] for r in records[1:]]).max() > 1
    assert all(r.correction == Similarity() for r in records)


def test_the_trajectory_starts_anew_at_a_cut_and_shows_what_was_done() -> None:
    filmed = trajectory(PATH, steady=False)
    np.testing.assert_allclose(filmed[:3, 0], [0, 3.25, 3.25])
    np.testing.assert_allclose(filmed[3], 0)
    steady = trajectory(PATH, steady=True)
    np.testing.assert_allclose(steady[0, 3], np.log2(1.02))
    assert steady[2, 2] == pytest.approx(-np.degrees(0.01))


def test_a_plot_shows_both_curves(clip: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plot.png"
    words = f"{clip} -o {tmp_path / 'a.mkv'} --no-deblur --plot-motion {picture}"
    assert main(words.split()) == 0
    drawn = cv2.imread(str(picture))
    assert drawn is not None
    for colour in ((60, 60, 220), (190, 110, 20)):
        near = (np.abs(drawn.astype(int) - colour).max(axis=2) < 40).any(axis=0)
        assert near.mean() > 0.6  # over most of the time


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "no attribute"),
        ('{"vdeblur": "path", "version": 2}', "its version is 2, known is 1"),
        ('{"vdeblur": "model"}', 'it does not begin with "vdeblur": "path"'),
        ('{"vdeblur": "path", "version": 1, "width": 8}', "'height' is missing"),
    ],
)
def test_what_is_no_path_is_said(
    clip: Path, tmp_path: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sink = tmp_path / "path.json", tmp_path / "a.mkv"
    path.write_text(text)
    assert main([str(clip), "-o", str(sink), "--no-deblur", "--motion-in", str(path)]) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert "internal error" not in said
    assert not sink.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"pts": 1.5},
        {"motion": [1, 0, 0]},
        {"motion": [1, 0, 0, 0, 1, float("nan")]},
        {"correction": {"zoom": 0}},
        {"correction": {"x": "left"}},
    ],
)
def test_nonsense_in_a_frame_is_said(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "path.json"
    PATH.write(path)
    said = json.loads(path.read_text())
    said["frames"][1].update(wrong)
    path.write_text(json.dumps(said))
    with pytest.raises(SourceError, match="is no path of a camera"):
        CameraPath.read(path)


@pytest.mark.parametrize("option", ["--motion-out", "--plot-motion"])
def test_nothing_is_replaced_unasked(
    clip: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there, sink = tmp_path / "there.png", tmp_path / "a.mkv"
    there.write_text("precious")
    assert main([str(clip), "-o", str(sink), "--no-deblur", option, str(there)]) == 1
    assert "there.png exists already" in capsys.readouterr().err
    assert there.read_text() == "precious"
    assert not sink.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--motion-out {here}/in.mp4", "is the source itself"),
        ("--plot-motion {here}/in.mp4", "is the source itself"),
        ("--motion-out {here}/a.mkv", "names of their own"),
        ("--plot-motion {here}/./a.mkv", "names of their own"),
        ("--motion-out {here}/b --plot-motion {here}/b", "names of their own"),
        ("--motion-out {here}", "is a folder"),
        ("--motion-out -", "cannot go to stdout"),
    ],
)
def test_no_video_is_replaced_by_its_path(
    clip: Path, tmp_path: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.mp4", tmp_path / "a.mkv"
    source.write_bytes(clip.read_bytes())
    options = ["--no-deblur", "-y", *words.format(here=tmp_path).split()]
    assert main([str(source), "-o", str(sink), *options]) == 1
    assert said in capsys.readouterr().err
    assert source.read_bytes() == clip.read_bytes()
    assert list(tmp_path.iterdir()) == [source]


def test_a_path_that_cannot_be_kept_leaves_no_video(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _text: str) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SinkError, match="No space left"):
        process(clip, tmp_path / "a.mkv", deblur=False, motion_out=tmp_path / "path.json")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_a_missing_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="does not exist"):
        PATH.write(tmp_path / "none" / "path.json")
    with pytest.raises(SourceError, match="cannot read"):
        CameraPath.read(tmp_path / "none.json")


def test_a_recorder_that_saw_nothing_has_no_path() -> None:
    recorder = PathRecorder()
    with pytest.raises(ValueError, match="no frame has passed"):
        _ = recorder.path
    recorder.push(replace(frame(7), motion=move(2)))
    assert recorder.path.records[0].pts == 7


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("homography", [0] * 9),
        ("homography", [1, 0, 0, 0, 1, 0, -1 / 99.5, 0, 1]),  # a corner lies behind the camera
        ("homography", [1, 0, 0, 0, 1, 0]),
        ("motion", [0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_motion_that_no_camera_makes_is_refused(
    tmp_path: Path, name: str, numbers: list[float]
) -> None:
    path = tmp_path / "path.json"
    PATH.write(path)
    said = json.loads(path.read_text())
    said["frames"][1][name] = numbers
    path.write_text(json.dumps(said))
    with pytest.raises(SourceError, match="at pts 3003"):
        CameraPath.read(path)
