from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.demo import (
    Clip,
    Demo,
    _picture,
    camera_shake,
    exposures,
    picture_of_demo,
    render_demo,
)
from vdeblur.errors import SinkError
from vdeblur.render import Bytes, to_srgb

SMALL = Demo(seconds=1.0, width=192, height=108, blur=3)
EXAMPLE = Path(__file__).parents[1] / "examples" / "shaky.mp4"


def lumas(path: Path) -> list[Bytes]:
    """(H, W) of each frame."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [np.asarray(frame.to_ndarray(format="gray"), np.uint8) for frame in frames]


def sharpness(picture: NDArray[np.uint8]) -> float:
    return float(np.abs(np.diff(picture.astype(float), axis=1)).mean())


def blur_lengths(demo: Demo) -> list[float]:
    middle = np.array([[demo.width / 2, demo.height / 2]])
    return [float(exposure.blur_length(middle)[0]) for exposure in exposures(demo)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("demo")
    blurred, truth = folder / "shaky.mp4", folder / "truth.mp4"
    assert render_demo(blurred, demo=SMALL, truth=truth) == 30
    return blurred, truth


def test_the_clip_is_h264_with_sound_and_colours(clip: tuple[Path, Path]) -> None:
    with av.open(str(clip[0])) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height) == (192, 108)
        assert video.average_rate == 30
        context = video.codec_context
        assert (context.colorspace, context.color_primaries, context.color_range) == (1, 1, 1)
        assert audio.duration == pytest.approx(48_000, abs=2400)


def test_the_truth_is_sharper_and_of_the_same_path(clip: tuple[Path, Path]) -> None:
    blurred, truth = (lumas(path) for path in clip)
    assert len(blurred) == len(truth) == 30
    sharper = [sharpness(t) > sharpness(b) for b, t in zip(blurred, truth, strict=True)]
    assert np.mean(sharper) > 0.8
    off = np.mean([np.abs(b.astype(int) - t).mean() for b, t in zip(blurred, truth, strict=True)])
    assert off < 12  # another path would be off by some 40 grey values


def test_the_same_seed_gives_the_same_clip_and_another_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, write = list[Bytes](), Clip.write

    def spy(clip: Clip, picture: Bytes) -> None:
        shown.append(picture)
        write(clip, picture)

    monkeypatch.setattr(Clip, "write", spy)
    paths = [tmp_path / f"{number}.mp4" for number in range(3)]
    short = [Demo(seconds=0.2, width=64, height=48, seed=seed, blur=1) for seed in (1, 1, 2)]
    count = sum(render_demo(path, demo=demo) for path, demo in zip(paths, short, strict=True)) // 3
    # The pictures first, so that a failure tells which half of the work is to blame.
    np.testing.assert_array_equal(shown[:count], shown[count : 2 * count])
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


def test_most_frames_are_blurred_and_some_are_sharp() -> None:
    lengths = np.array(blur_lengths(Demo(seconds=6, width=320, height=180, blur=5)))
    assert np.median(lengths) == pytest.approx(5, rel=0.2)
    assert (lengths < 2).mean() > 0.04
    assert (lengths > 3).mean() > 0.5


def test_no_blur_is_a_sharp_clip() -> None:
    assert max(blur_lengths(Demo(seconds=0.5, width=64, height=36, blur=0))) < 0.5


@pytest.mark.parametrize("seed", [0, 9, 10])
@pytest.mark.parametrize("shape", [(128, 72), (72, 128)])
def test_the_picture_covers_every_frame(seed: int, shape: tuple[int, int]) -> None:
    demo = Demo(seconds=20, width=shape[0], height=shape[1], seed=seed, blur=2)
    shake = camera_shake(demo)
    picture = _picture(demo, shake, picture_of_demo())
    views = demo.camera.views(shake.angles(demo.times), picture)
    corners = np.array([[0, 0, 1], [shape[0] - 1, 0, 1], [0, shape[1] - 1, 1], [*shape, 1]]).T
    seen = views @ corners
    x, y = seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2]
    assert min(x.min(), y.min()) >= 0
    assert x.max() <= picture.shape[1] - 1
    assert y.max() <= picture.shape[0] - 1


def test_frames_have_something_to_track() -> None:
    exposure = next(exposures(SMALL))
    assert to_srgb(exposure.sharp).std() > 20


def test_an_existing_file_is_not_replaced_unasked(clip: tuple[Path, Path]) -> None:
    before = clip[0].read_bytes()
    with pytest.raises(SinkError, match=r"shaky\.mp4 exists already"):
        render_demo(clip[0], demo=SMALL)
    assert clip[0].read_bytes() == before


@pytest.mark.parametrize("name", ["none/clip.mp4", "clip.unknown", "clip.webm"])
def test_a_place_or_container_that_does_not_work_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(SinkError):
        render_demo(tmp_path / name, demo=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": np.inf},
        {"seconds": 0.0},
        {"width": 63},
        {"height": 8},
        {"blur": -1.0},
        {"blur": 11.0},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Demo(**wrong)  # type: ignore[arg-type]


def test_the_example_is_small_and_what_the_readme_says() -> None:
    assert EXAMPLE.stat().st_size < 1_500_000
    with av.open(str(EXAMPLE)) as container:
        video = container.streams.video[0]
        assert (video.width, video.height, video.frames) == (640, 360, 180)
        assert container.streams.audio
