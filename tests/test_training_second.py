"""Training a second stage: what it is shown, what it learns, what becomes of it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from vdeblur.backend import TwoStages, open_backend
from vdeblur.blocks import BLOCK, HALO, TILE
from vdeblur.bundle import Bundle, read_bundle
from vdeblur.cli import main
from vdeblur.clusters import Clusters
from vdeblur.frame import Frame, through
from vdeblur.model import ModelConfig
from vdeblur.restore import Restorer
from vdeblur_training.config import load_recipe, recipe_from
from vdeblur_training.data import FIRST, Clip, ClipConfig, clips_in, frames_of, keep, make_clip
from vdeblur_training.patches import aligned, as_filmed, at_rest, motion_at

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
PHOTO = Path(__file__).parents[1] / "vdeblur/assets/colosseum.jpg"
RECIPE = """
name: behind
seed: 1
first: fast
begin: fast
model:
  colour_frames: 3
  filters:
    - {fine: 48, coarse: 64, fine_layers: 1, coarse_layers: 0}
    - {fine: 48, coarse: 64, fine_layers: 1, coarse_layers: 1}
    - {fine: 48, coarse: 64, fine_layers: 1, coarse_layers: 3}
clips: {size: 208, frames: 3}
pool: 4
batch: 2
warmup_steps: 0
range_passes: 0
readier: 0.25
steps: 4
"""

ALONE = """
name: filters
filters_only: true
clips: {size: 208, frames: 3}
pool: 4
batch: 2
warmup_steps: 0
range_passes: 0
steps: 4
"""


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip([PHOTO], ClipConfig(size=208, frames=4), np.random.default_rng(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small second stage behind `fast`, by the command that a user calls."""
    out = tmp_path_factory.mktemp("run")
    photos, recipe = out / "photos", out / "behind.yaml"
    photos.mkdir()
    for name in "ab":
        shutil.copy(PHOTO, photos / f"{name}.jpg")
    recipe.write_text(RECIPE)
    assert main(["train", str(recipe), "--photos", str(photos), "--out", str(out)]) == 0
    return out


def test_one_command_trains_a_second_stage_that_the_runtime_runs(run: Path, clip: Clip) -> None:
    bundle = read_bundle(run / "bundle")
    assert bundle.quantised
    assert bundle.first is not None
    assert bundle.first.name == "fast"
    assert not (bundle.folder / "encoder.onnx").exists()
    assert bundle.clusters.biases[0] == 0
    assert (bundle.clusters.biases[1:] == bundle.first.clusters.biases[1:] - 0.25).all()
    shown = {}
    for backend in ("torch", "openvino-fp32", "onnxruntime", "openvino"):
        opened = open_backend(bundle.folder, backend=backend, device="cpu")
        restored = list(through(Restorer(opened, strength=1.0), moved(clip)))
        shown[backend] = np.stack([frame.planes[0] for frame in restored])
    for backend, least in (("openvino-fp32", 55), ("onnxruntime", 55), ("openvino", 40)):
        assert cv2.PSNR(shown[backend], shown["torch"]) > least


def test_it_learns_filters_and_nothing_else(run: Path) -> None:
    known = load_file(read_bundle("fast").folder / "weights.safetensors")
    kept = load_file(run / "bundle" / "weights.safetensors")
    assert {name.partition(".")[0] for name in kept} == {"filters"}
    learnt = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    for name, value in known.items():
        same = torch.equal(learnt[name].float(), value.float())
        if not name.startswith("filters."):
            assert same, name
    leave = "filters.2.leave.weight"
    assert not torch.equal(learnt[leave].float(), known[leave].float())


def test_a_run_of_filters_alone_keeps_what_others_share(tmp_path: Path) -> None:
    shutil.copy(PHOTO, tmp_path)
    recipe = tmp_path / "filters.yaml"
    recipe.write_text(ALONE)
    given = ["train", str(recipe), "--photos", str(tmp_path), "--out", str(tmp_path / "run")]
    fast = read_bundle("fast")
    assert main([*given, "--begin", str(fast.folder)]) == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    for graph in fast.folder.glob("encoder.*"):
        assert (bundle.folder / graph.name).read_bytes() == graph.read_bytes()
    assert (bundle.clusters.centroids == fast.clusters.centroids).all()
    assert (bundle.clusters.biases == fast.clusters.biases).all()
    learnt, known = (load_file(each.folder / "weights.safetensors") for each in (bundle, fast))
    assert learnt.keys() == known.keys()
    for name, value in known.items():
        if not name.startswith("filters."):
            assert torch.equal(learnt[name], value), name
    leave = "filters.2.leave.weight"
    assert not torch.equal(learnt[leave], known[leave])
    for part in ("filter_3.onnx", "filter_3.int8.bin"):
        assert (bundle.folder / part).read_bytes() != (fast.folder / part).read_bytes()


def test_filters_alone_need_something_to_begin_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PHOTO, tmp_path)
    recipe = tmp_path / "filters.yaml"
    recipe.write_text(ALONE)
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--photos", str(tmp_path), "--out", str(run)]) == 1
    assert "filters_only needs a bundle to begin with" in capsys.readouterr().err
    assert not run.exists()


def test_the_first_stage_restores_each_clip_once(run: Path) -> None:
    pool = run / "pool"
    assert len(clips_in(pool)) == len(clips_in(pool, previewed=True)) == 4
    loaded = Clip.load(clips_in(pool)[0])
    assert loaded.first is not None
    assert loaded.first.shape == loaded.luma.shape


def test_a_clip_remembers_what_the_first_stage_made_of_it(clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    clip.save(path)
    assert Clip.load(path).first is None
    assert clips_in(tmp_path, previewed=True) == []
    keep(clip.luma // 2, clip.chroma // 2, path, FIRST)
    loaded = Clip.load(path)
    assert loaded.first is not None
    assert (loaded.first == clip.luma // 2).all()
    assert (loaded.restored == loaded.first).all(), "until the second stage knows better"
    assert clips_in(tmp_path, previewed=True) == clips_in(tmp_path) == [path]
    keep(clip.luma // 3, clip.chroma // 3, path)
    assert (Clip.load(path).restored == clip.luma // 3).all()
    resting = at_rest(loaded)
    assert resting.first is resting.sharp_luma
    assert as_filmed(loaded).first is loaded.first


@dataclass
class Recording:
    """A second stage's filters that add 5, and keep what they see."""

    bundle: Bundle
    name: str = "recording"
    device: str = "cpu"
    seen: list[tuple[Bytes, Bytes]] = field(default_factory=list)

    def load(self) -> None:
        pass

    def embed(self, luma: Bytes, around: Bytes, motion: Floats) -> tuple[Floats, Floats]:
        raise AssertionError("a second stage embeds nothing")

    def apply(
        self, cluster: int, luma: Bytes, chroma: Bytes, context: Floats
    ) -> tuple[Floats, Floats]:
        assert cluster == 1
        self.seen.append((luma.copy(), chroma.copy()))
        shapes = (len(luma), TILE, TILE), (len(luma), 2, TILE // 2, TILE // 2)
        return np.full(shapes[0], 5, np.float32), np.full(shapes[1], 5, np.float32)


def test_training_shows_what_the_runtime_shows(clip: Clip) -> None:
    first = open_backend("fast", device="cpu")
    latents = first.bundle.clusters.centroids
    all_mild = Clusters(np.zeros_like(latents[:2]), 1.0, np.array([0, -100], np.float32))
    looking = replace(first.bundle, both_ways=True, bidirectional=True)
    first.bundle = replace(looking, clusters=all_mild, min_change=None)
    second = Recording(replace(read_bundle("best"), clusters=all_mild, min_change=None))
    at_once = Restorer(TwoStages(first, second), batch=32, back=1)  # a frame's 16 blocks, both ways
    restored = _planes(through(at_once, moved(clip)))
    previewed = _planes(through(Restorer(first), moved(clip)))
    shown = replace(
        clip,
        restored=restored[0],
        restored_chroma=restored[1],
        first=previewed[0],
        first_chroma=previewed[1],
    )
    assert len(second.seen) == len(clip.luma)
    block = 4 + 1  # second row, second column; its halo ends before the frame does
    for t, (luma, chroma) in enumerate(second.seen):
        near = aligned(shown, t)
        part = slice(BLOCK - HALO, 2 * BLOCK)
        half = slice((BLOCK - HALO) // 2, BLOCK)
        assert (luma[block] == near.luma[:, part, part]).all()
        assert (chroma[block] == near.chroma[:, half, half]).all()


def moved(clip: Clip) -> Iterator[Frame]:
    """Its frames with their motion."""
    for t, frame in enumerate(frames_of(clip.luma, clip.chroma)):
        yield replace(frame, motion=motion_at(clip, t, None, 0))


def _planes(frames: Iterator[Frame]) -> tuple[Bytes, Bytes]:
    planes = [frame.planes for frame in frames]
    return np.stack([p[0] for p in planes]), np.stack([np.stack(p[1:]) for p in planes])


def test_a_second_stage_sees_all_colours() -> None:
    with pytest.raises(ValueError, match="colour_frames 3"):
        ModelConfig(second_stage=True)
    assert recipe_from({"name": "x"}).model.second_stage is False
    assert load_recipe("best").model.second_stage
