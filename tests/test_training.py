"""The training package, on a handful of pictures that the tests make themselves."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from vdeblur.align import View
from vdeblur.backend import open_backend
from vdeblur.blocks import BLOCK, HALO, TILE, TOLD
from vdeblur.bundle import read_bundle, shipped
from vdeblur.cli import main
from vdeblur.clusters import Clusters
from vdeblur.errors import ModelError, SinkError, SourceError
from vdeblur.frame import through
from vdeblur.model import (
    Enter,
    FilterConfig,
    Folded,
    ModelConfig,
    Modulation,
    MultiFilter,
    Parted,
    Seen,
    Strided,
    multiply_adds,
)
from vdeblur.motion import MotionStage
from vdeblur.restore import Restorer
from vdeblur.runtimes import torch_model
from vdeblur_training import ablations, carried, rivals
from vdeblur_training.alignment import misses
from vdeblur_training.calibrate import Trial
from vdeblur_training.calibrate import whole as whole_frame
from vdeblur_training.config import TrainConfig, load_recipe, recipe_from
from vdeblur_training.cutting import Blocks, blocks_of, context_of, detail, fading, smoothness
from vdeblur_training.data import (
    RENDERED,
    Clip,
    ClipConfig,
    keep,
    make_clip,
    photos_in,
    split_yuv,
    to_yuv,
)
from vdeblur_training.defocus import random_defocus
from vdeblur_training.evaluate import file_pairs, held_out_pairs, psnr, rgb, ssim
from vdeblur_training.handheld import Handheld, handheld_pairs
from vdeblur_training.patches import aligned, around, at_rest, batches, cut_patch, stack
from vdeblur_training.routing import labels_from_blur, naming_loss, routing_loss
from vdeblur_training.train import (
    Average,
    all_errors,
    harm_loss,
    idle_layers,
    load_average,
    restoration_loss,
    save_checkpoint,
    squared_error,
    train,
)
from vdeblur_training.whitening import whitening

SMALL = ClipConfig(size=208, frames=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with structure at all sizes; `c` is to be held out."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in "abc":
        picture = np.zeros((300, 400, 3), np.float32)
        for cell in (2, 6, 20, 60):
            coarse = rng.random((300 // cell + 2, 400 // cell + 2, 3), np.float32)
            picture += cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / f"{name}.png"), picture * 60)
    return folder


@pytest.fixture(scope="module")
def clip(photos: Path) -> Clip:
    training, _ = photos_in(photos, ["c"])
    return make_clip(training, SMALL, np.random.default_rng(3))


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the tiny recipe, by the command that a user calls."""
    out = tmp_path_factory.mktemp("run")
    recipe = out / "tiny.yaml"
    text = (Path(__file__).parents[1] / "training/recipes/tiny.yaml").read_text()
    recipe.write_text(text + "held_out: [c]\n")
    assert main(["train", str(recipe), "--photos", str(photos), "--out", str(out)]) == 0
    return out


def test_the_same_seed_makes_the_same_clip(photos: Path, clip: Clip) -> None:
    again = make_clip(photos_in(photos, ["c"])[0], SMALL, np.random.default_rng(3))
    assert all((getattr(clip, n) == getattr(again, n)).all() for n in RENDERED)


def test_a_chroma_sample_is_of_the_mean_of_its_pixels() -> None:
    stripes = np.zeros((4, 8, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    purple = np.zeros_like(stripes)
    purple[...] = (128, 0, 128)
    luma, chroma = split_yuv(to_yuv(stripes))
    assert int(np.ptp(luma)) > 30
    assert np.abs(chroma.astype(int) - split_yuv(to_yuv(purple))[1]).max() <= 1


def test_a_clip_says_how_long_its_streaks_are(photos: Path) -> None:
    sharp = ClipConfig(size=208, frames=3, sharp_share=1.0)
    blurred = ClipConfig(size=208, frames=3, sharp_share=0.0, blur=(15.0, 16.0))
    training, _ = photos_in(photos, ["c"])
    still = make_clip(training, sharp, np.random.default_rng(1))
    shaken = make_clip(training, blurred, np.random.default_rng(1))
    assert still.blur.mean() < 1.5
    assert 5 < shaken.blur.mean() < 40
    assert psnr(still.luma, still.sharp_luma) > psnr(shaken.luma, shaken.sharp_luma)


def test_a_clip_survives_the_disk(clip: Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "clip.npz")
    loaded = Clip.load(tmp_path / "clip.npz")
    assert all((getattr(clip, n) == getattr(loaded, n)).all() for n in RENDERED)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.npz"]
    better = clip.luma // 2, clip.chroma // 2
    keep(*better, tmp_path / "clip.npz")
    loaded = Clip.load(tmp_path / "clip.npz")
    assert (loaded.restored == better[0]).all()
    assert (loaded.restored_chroma == better[1]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.npz", "clip.restored.npz"]


def test_the_pool_is_restored_by_the_weights_that_were_learnt(
    trained: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("00", "01", "02"):
        clip.save(tmp_path / f"{name}.npz")
    monkeypatch.setattr(carried, "count", lambda: range(1))
    recipe = load_recipe(str(trained / "tiny.yaml"))
    carried.keep_restored(tmp_path, trained / "checkpoint.pt", recipe, 1, 2)
    model, steps = load_average(trained / "checkpoint.pt", recipe.model)
    assert steps == 40
    model.centroids.data[0] = 100  # no block is near the clear cluster
    (changed,) = (path.name for path in tmp_path.glob("*.restored.npz"))
    assert changed == "01.restored.npz"
    unmoved, colours = carried.restored(model, clip, np.random.default_rng(0))
    assert unmoved.shape == clip.luma.shape
    assert colours.shape == clip.chroma.shape
    assert (unmoved != clip.luma).any()
    assert (colours != clip.chroma).any()
    with_errors, _ = carried.restored(model, clip, np.random.default_rng(0), recipe.misalignment)
    assert psnr(with_errors, unmoved) > psnr(clip.luma, unmoved)


def test_the_frame_before_is_seen_as_it_was_restored(clip: Clip) -> None:
    luma, chroma = (np.clip(plane, 0, 245) + 10 for plane in (clip.luma, clip.chroma))
    brighter = replace(clip, restored=luma, restored_chroma=chroma)
    filmed, seen = (aligned(each, 1) for each in (clip, brighter))
    inner = np.s_[60:-60, 60:-60]
    assert np.abs(seen.luma[1][inner] - np.clip(filmed.luma[1][inner], 0, 245.0) - 10).max() <= 2
    colours = np.s_[2:4, 30:-30, 30:-30]
    expected = np.clip(filmed.chroma[colours], 0, 245.0) + 10
    assert np.abs(seen.chroma[colours] - expected).max() <= 2
    unchanged = [0, 1, 4, 5]
    assert (seen.chroma[unchanged] == filmed.chroma[unchanged]).all()


def test_rivals_are_measured_after_the_same_steps(trained: Path, photos: Path) -> None:
    arguments = [str(photos), str(trained / "pool"), "--recipe", str(trained / "tiny.yaml")]
    assert CliRunner().invoke(rivals.main, [*arguments, "--only", "two nets"]).exit_code == 2
    names = (
        "the same with an N-cut",
        "one filter, three frames",
        "one filter, three frames, RGB",
        "one net, three frames, RGB",
        "one net, one frame",
    )
    only = [word for name in names for word in ("--only", name)]
    told = CliRunner().invoke(rivals.main, [*arguments, "--steps", "12", *only])
    assert told.exit_code == 0, told.output
    first, _, *rows = told.output.strip().splitlines()
    assert first.startswith("| 12 steps |")
    costs = {row.split("|")[1].strip(): float(row.split("|")[4]) for row in rows}
    assert tuple(costs) == names
    assert costs["one net, one frame"] == 11.7 < costs["one net, three frames, RGB"]
    assert all(abs(float(row.split("|")[2])) < 3 for row in rows)


def test_a_filter_in_rgb_sees_the_colours_at_the_luma_s_size() -> None:
    config = FilterConfig(48, 64, 1, 1)
    plain, rgb = rivals.Filter(config, 32), rivals.RgbFilter(config, 32)
    grey = torch.full((1, 3, TILE, TILE), 90, dtype=torch.uint8)
    colours = torch.full((1, 2, TILE // 2, TILE // 2), 128, dtype=torch.uint8)
    colours[:, 1] += 50
    (shown,) = rgb.pictures(grey, colours)
    assert shown.shape == (1, 5, TILE, TILE)
    assert shown[0, :, 9, 9].tolist() == pytest.approx([160.1, 54.3, 90, 90, 90], abs=0.5)
    wider = rgb.enter.conv.weight.numel() - plain.enter.conv.weight.numel()
    assert rgb.more == wider / 16 * (TILE / BLOCK) ** 2 > 500


@pytest.mark.parametrize("rgb", [False, True])
def test_a_rival_learns(clip: Clip, rgb: bool) -> None:
    torch.manual_seed(0)
    patch = stack([cut_patch(clip, aligned(clip, 1), 1, 192, np.random.default_rng(0))])
    rival = rivals.alone("a net", (1, 1, 1), frames=3, rgb=rgb)
    assert rivals.net_cost(rival.net) < rivals.net_cost(rivals.UNet((1, 4, 4)))
    rivals.learn(rival, repeat(patch), replace(TrainConfig("one"), learning_rate=2e-3), 24)
    with torch.inference_mode():
        seen = rival.look(patch)
    assert seen.after < 0.98 * seen.before


def test_a_variant_without_neighbours_sees_what_the_runtime_shows_without_them(clip: Clip) -> None:
    names = (*RENDERED, "restored", "restored_chroma")
    parts = {name: getattr(clip, name)[1:2] for name in names}
    lonely = whole_frame(replace(clip, **parts), 0)
    shown = ablations.by_itself(stack([whole_frame(clip, 1)]))
    for name in ("luma", "around", "motion"):
        assert torch.equal(getattr(shown, name)[0], getattr(lonely, name)), name


def test_filters_in_rgb_begin_with_what_those_in_yuv_have_learnt(clip: Clip) -> None:
    patch = stack([whole_frame(clip, t) for t in range(len(clip.luma))])
    known = ablations.as_it_is()
    variant = ablations.in_rgb([patch])
    assert all(more > cost for more, cost in zip(variant.costs, known.costs, strict=True))
    blocks = blocks_of(patch, known.model.config)
    given = blocks.luma, blocks.chroma, torch.zeros(len(blocks.luma), 41, TILE // 8, TILE // 8)
    for one, other in zip(known.model.filters, variant.model.filters, strict=True):
        with torch.inference_mode():
            wanted, found = one(*given)[0], other(*given)[0]
        assert (found - wanted).square().mean() < 0.05 * wanted.square().mean()


def test_the_ablations_begin_with_what_ships_and_are_measured_by_the_runtime(
    trained: Path, photos: Path
) -> None:
    arguments = [str(photos), str(trained / "pool"), "--recipe", str(trained / "tiny.yaml")]
    told = CliRunner().invoke(ablations.main, [*arguments, "--steps", "1"])
    assert told.exit_code == 0, told.output
    _, _, *rows = told.output.strip().splitlines()
    cells = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in rows}
    gains = {name: float(each[0]) for name, each in cells.items()}
    costs = {name: float(each[3]) for name, each in cells.items()}
    assert tuple(cells) == (
        "as it is",
        "all blocks filtered",
        "one frame",
        "one filter",
        "with an N-cut",
        "RGB",
    )
    assert gains["as it is"] > 0.1 + max(0, gains["one frame"])
    assert costs["as it is"] <= costs["all blocks filtered"]
    assert costs["as it is"] < costs["one filter"]
    assert costs["as it is"] < costs["RGB"]
    assert all(float(each[4]) > 0 for each in cells.values())


@pytest.mark.parametrize("recurrent", [True, False])
def test_filters_see_what_was_restored_if_they_shall(
    recurrent: bool, clip: Clip, tmp_path: Path
) -> None:
    clip.save(tmp_path / "1.npz")
    keep(np.full_like(clip.luma, 255), clip.chroma, tmp_path / "1.npz")
    recipe = TrainConfig("one", batch=16, at_rest_share=0)
    source = batches(tmp_path, recipe, 1, recurrent=recurrent)
    patch = next(source)
    source.close()
    assert bool((patch.luma[:, 1] == 255).all(dim=(1, 2)).any()) == recurrent


def test_a_run_that_begins_with_a_bundle_keeps_each_of_its_filters(
    trained: Path, tmp_path: Path
) -> None:
    recipe = replace(
        load_recipe(str(trained / "tiny.yaml")),
        warmup_steps=0,
        steps=1,
        learning_rate=0.0,
        min_learning_rate=0.0,
    )
    for _ in train(recipe, trained / "pool", tmp_path, begin=trained / "bundle"):
        pass
    model, _ = load_average(tmp_path / "checkpoint.pt", recipe.model)
    known = load_file(trained / "bundle" / "weights.safetensors")
    for name, value in model.filters.state_dict().items():
        assert (value == known[f"filters.{name}"]).all(), name


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no \.jpg or \.png"):
        photos_in(tmp_path, [])


def test_held_out_photos_are_never_trained_on(photos: Path) -> None:
    training, held_out = photos_in(photos, ["c"])
    assert [path.stem for path in training] == ["a", "b"]
    assert [path.stem for path in held_out] == ["c"]


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """A recipe that holds out a picture which is not there."""
    recipe = tmp_path / "elsewhere.yaml"
    recipe.write_text("name: x\nclips: {size: 208, frames: 3}\nheld_out: [far]\n")
    return str(recipe)


def test_of_photos_of_one_s_own_none_is_held_out(
    photos: Path, elsewhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clips", elsewhere, "--photos", str(photos), "--count", "1"]) == 0
    err = capsys.readouterr().err
    assert "warning" in err
    assert f"{photos} holds none of the recipe's held-out pictures: all are trained on" in err
    for renderer in ("training", "scene"):
        words = ["--photos", str(photos), "--recipe", elsewhere, "--renderer", renderer]
        assert main(["evaluate", *words]) == 1
        assert "holds none of the held-out pictures, e.g. far" in capsys.readouterr().err


def test_photos_may_end_in_jpeg(photos: Path, tmp_path: Path) -> None:
    for index, photo in enumerate(sorted(photos.iterdir())):
        shutil.copy(photo, tmp_path / f"{index}.JPEG")
    assert len(photos_in(tmp_path, ["1"])[0]) == len(list(photos.iterdir())) - 1


def test_a_recipe_must_leave_something_to_train_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "all.yaml"
    recipe.write_text("name: x\nheld_out: [a, b, c]\n")
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--photos", str(photos), "--out", str(run)]) == 1
    assert f"holds out all pictures of {photos}" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize("seed", [0, 1])  # it is drawn for the scene, or to go past it
def test_a_picture_that_cannot_be_read_is_named(photos: Path, tmp_path: Path, seed: int) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    covered = replace(SMALL, foreground_share=1.0)
    with pytest.raises(SourceError, match=r"cannot read the picture .*bad\.jpg"):
        make_clip([photos / "a.png", bad], covered, np.random.default_rng(seed))


def test_a_damaged_clip_is_named(clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    clip.save(path)
    whole = path.read_bytes()
    for part in (b"", whole[:1000], whole[:-30]):
        path.write_bytes(part)
        with pytest.raises(SourceError, match=r"0\.npz is damaged .*: remove it"):
            Clip.load(path)
    source = batches(tmp_path, TrainConfig("one"), 1)  # a process of its own reads it
    with pytest.raises(SourceError, match=r"0\.npz is damaged"):
        next(source)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such disk here")
def test_a_full_disk_is_one_error_and_leaves_no_parts(clip: Clip, tmp_path: Path) -> None:
    def full(name: str) -> None:
        (tmp_path / name).symlink_to("/dev/full")

    full("0.part.npz")
    with pytest.raises(SinkError, match=r"cannot write .*0\.npz: No space left"):
        clip.save(tmp_path / "0.npz")
    full("0.restored.part.npz")
    with pytest.raises(SinkError, match=r"cannot write .*0\.restored\.npz: No space left"):
        keep(clip.luma, clip.chroma, tmp_path / "0.npz")
    model = MultiFilter(ModelConfig())
    full("checkpoint.part")
    with pytest.raises(SinkError, match=r"cannot write .*checkpoint\.pt: No space left"):
        save_checkpoint(
            tmp_path / "checkpoint.pt", model, Average(model), torch.optim.Adam([torch.ones(1)]), 1
        )
    assert list(tmp_path.iterdir()) == []


def test_a_patch_and_its_truth_are_turned_alike(clip: Clip) -> None:
    near = aligned(clip, 1)
    patches = [cut_patch(clip, near, 1, 192, np.random.default_rng(s)) for s in range(8)]
    assert {tuple(patch.luma.shape) for patch in patches} == {(3, 192 + HALO, 192 + HALO)}
    assert {tuple(patch.around.shape) for patch in patches} == {(2, 96, 96)}
    for patch in patches:
        smaller = View(patch.luma[2, HALO:, HALO:].numpy()).half
        assert np.abs(patch.around[1].numpy() - smaller.astype(int)).mean() < 4
        matching = psnr(patch.luma[0].numpy(), patch.sharp_luma[0].numpy())
        turned = psnr(patch.luma[0].numpy(), patch.sharp_luma[0].flip(0).numpy())
        assert matching > turned + 3


def test_the_motion_turns_with_its_patch(clip: Clip) -> None:
    """A field that points outwards does so however it is turned; a turning one changes sides."""
    y, x = np.mgrid[-11.5:12, -11.5:12]
    field = np.stack([x, y, -y, x, np.zeros_like(x)]).astype(np.float32)
    near = aligned(clip, 1)
    near = near._replace(luma=near.luma[:, :192, :192], motion=field)
    sides = set()
    for seed in range(16):
        patch = cut_patch(clip, near, 1, 192, np.random.default_rng(seed))
        motion = patch.motion.numpy()
        assert (motion[:2] == field[:2]).all()
        sides |= {side for side in (1, -1) if (motion[2:4] == side * field[2:4]).all()}
    assert sides == {1, -1}


def test_a_neighbour_that_is_missing_is_the_frame_itself(clip: Clip) -> None:
    lumas, chromas, around_it, motion = aligned(clip, 0)
    assert (lumas[1] == lumas[0]).all()
    assert (chromas[2:4] == chromas[:2]).all()
    assert (around_it[0] == View(clip.luma[0]).half).all()
    assert (motion[4] == 0.5).all()


def test_a_frame_alone_with_its_neighbours_is_aligned_as_in_its_clip(clip: Clip) -> None:
    for t in range(3):
        few, now = around(clip, t)
        for part, same in zip(aligned(few, now), aligned(clip, t), strict=True):
            assert (part == same).all()


def test_a_clip_out_of_focus_is_as_soft_in_truth_and_is_shaken_as_before(photos: Path) -> None:
    training, _ = photos_in(photos, ["c"])
    sharp, soft = (
        make_clip(training, replace(SMALL, defocus_share=share), np.random.default_rng(1))
        for share in (0.0, 1.0)
    )
    assert _detail(soft.sharp_luma) < 0.95 * _detail(sharp.sharp_luma)
    assert _detail(soft.sharp_chroma) < _detail(sharp.sharp_chroma)
    assert psnr(soft.luma, soft.sharp_luma) > psnr(sharp.luma, sharp.sharp_luma)
    assert (soft.blur == sharp.blur).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_lens_keeps_the_light_and_what_is_in_focus(seed: int) -> None:
    """Disks and Gaussians, of the whole picture and of a part."""
    picture = np.random.default_rng(0).random((96, 96, 3), np.float32)
    lens = random_defocus(96, np.random.default_rng(seed))
    soft = lens.of(picture)
    assert abs(soft.mean() - picture.mean()) < 0.01
    assert (soft[lens.amount == 0] == picture[lens.amount == 0]).all()
    assert soft[lens.amount == 1].std() < 0.8 * picture.std()


def test_errors_count_more_where_the_truth_is_smooth() -> None:
    flat = torch.full((1, 1, 80, 80), 90.0)
    rough = flat + 30 * torch.randn(flat.shape, generator=torch.manual_seed(0))
    assert smoothness(flat).min() == 1
    assert smoothness(rough).max() < 0.01
    errors = []
    for truth in (flat, rough):
        filmed = torch.full((1, 3, 88, 88), 90, dtype=torch.uint8)
        dots = torch.zeros_like(truth)
        dots[..., ::4, ::4] = 2
        chroma = torch.zeros(1, 2, 40, 40)
        residual, even = torch.zeros_like(truth), torch.ones(1)
        blocks = Blocks(filmed, chroma, residual, chroma, smoothness(truth), even, even)
        errors.append(restoration_loss(dots, chroma, blocks, torch.arange(1)))
    assert errors[0] > 1.2 * errors[1]
    dots = torch.zeros_like(flat)
    dots[..., ::4, ::4] = 2
    ramp = torch.linspace(0, 8, 80).expand_as(flat)
    assert detail(dots).abs().mean() > 0.1
    assert detail(ramp).abs().max() < 0.2


def test_no_block_that_gains_hides_one_that_loses() -> None:
    before = torch.tensor([99.0, 9.0, 0.0])
    assert harm_loss(before, before) == 0
    assert harm_loss(before / 2, before) == 0
    mixed = harm_loss(torch.tensor([49.0, 99.0, 0.0]), before)
    assert torch.isclose(mixed, torch.tensor(10.0).log() / 3)


def test_what_is_at_rest_has_nothing_to_undo(clip: Clip) -> None:
    still = at_rest(clip)
    assert (still.luma == clip.sharp_luma).all()
    assert (still.restored == clip.sharp_luma).all()
    assert (still.chroma == clip.sharp_chroma).all()
    assert not still.blur.any()


def _detail(planes: NDArray[np.uint8]) -> float:
    return float(np.abs(np.diff(planes.astype(np.float32))).mean())


def test_blocks_are_cut_as_the_runtime_cuts_them(clip: Clip) -> None:
    patch = cut_patch(clip, aligned(clip, 1), 1, 192, np.random.default_rng(0))
    batch = type(patch)(*(getattr(patch, n)[None] for n in patch.__slots__))
    blocks = blocks_of(batch, ModelConfig())
    assert len(blocks.luma) == 9
    part = slice(BLOCK, BLOCK + TILE)
    assert (blocks.luma[4] == patch.luma[:, part, part]).all()
    target = patch.sharp_luma[:, part, part].float() - patch.luma[:1, part, part].float()
    assert (blocks.luma_target[4] == target).all()
    rows = torch.arange(9)
    perfect = squared_error(blocks.luma_target, blocks.chroma_target, blocks, rows)
    assert (perfect == 0).all()


def test_a_patch_s_halo_shows_what_lies_there(clip: Clip) -> None:
    near = aligned(clip, 1)
    room, edge = clip.luma.shape[1] - 192, clip.luma.shape[1]
    frames = [np.pad(each, HALO, mode="edge") for each in (clip.luma[1], clip.luma[1][::-1])]
    places = set()
    for seed in range(40):
        shown = cut_patch(clip, near, 1, 192, np.random.default_rng(seed)).luma[0].numpy()
        found = [
            (which, y, x)
            for which, frame in enumerate(frames)
            for turns in range(4)
            for y in range(0, room + HALO + 1, 8)
            for x in range(0, room + HALO + 1, 8)
            if (np.rot90(frame, turns)[y : y + 192 + HALO, x : x + 192 + HALO] == shown).all()
        ]
        places |= {place[1:] for place in found[:1]}
    assert edge > 192
    assert len(places) > 3


def test_blocks_that_fade_into_each_other_show_every_pixel_once() -> None:
    for stride in (1, 2):
        halo, block = HALO // stride, BLOCK // stride
        weight = fading(stride=stride)[0, 0]
        folded = weight[halo:, halo:].clone()
        folded[-halo:] += weight[:halo, halo:]
        folded[:, -halo:] += weight[halo:, :halo]
        folded[-halo:, -halo:] += weight[:halo, :halo]
        assert weight.mean() == pytest.approx(1)
        assert folded.shape == (block, block)
        assert folded.numpy() == pytest.approx(float(folded[halo, halo]), rel=1e-5)


@pytest.mark.parametrize("name", [n for n in shipped() if read_bundle(n).has_weights])
def test_every_layer_of_a_shipped_model_takes_part(name: str) -> None:
    """A ReLU whose inputs have all become negative cuts off whatever lies before it."""
    photo = Path(__file__).parents[1] / "vdeblur/assets/colosseum.jpg"
    clip = make_clip([photo], ClipConfig(frames=5), np.random.default_rng(0))
    bundle = read_bundle(name)
    if bundle.first is not None:
        clip = replace(clip, first=clip.luma, first_chroma=clip.chroma)
    model = torch_model(bundle)
    rng, within = np.random.default_rng(0), range(1, len(clip.luma) - 1)
    patch = stack([cut_patch(clip, aligned(clip, t), t, 192, rng) for t in within])
    context, latents = model.encoder(patch.own, patch.around, patch.motion)
    blocks = blocks_of(patch, model.config)
    seen = all_errors(model, blocks, context_of(context))
    (seen.sum() + model.log_responsibilities(latents).square().sum()).backward()
    assert idle_layers(model) == []


def test_the_context_s_edge_is_repeated() -> None:
    x = torch.arange(256.0).reshape(1, 1, 16, 16)  # a block has 8 cells, a halo 1
    blocks = context_of(x)
    assert blocks.shape == (4, 1, 9, 9)
    assert blocks[0, 0, 0].tolist() == [0, *range(8)]
    assert blocks[3, 0, 0].tolist() == [*range(7 * 16 + 7, 8 * 16)]


def test_labels_rise_with_the_length_of_the_blur() -> None:
    blur = torch.tensor([0.0, 0.7, 0.9, 3.0, 5.0, 8.0, 9.5, 30.0])
    assert labels_from_blur(blur, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert labels_from_blur(blur, 2).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_routing_prefers_a_filter_only_if_it_pays() -> None:
    errors = torch.tensor([[20.0, 10.0, 9.99], [20.0, 19.8, 19.6], [20.0, 15.0, 5.0]])
    best = [1, 0, 2]  # the deeper one gains nothing; none gains enough; the deeper one is best
    for row, wanted in enumerate(best):
        losses = [
            float(routing_loss(torch.eye(3)[k : k + 1].clamp(1e-6).log(), errors[row : row + 1]))
            for k in range(3)
        ]
        assert int(np.argmin(losses)) == wanted


def test_a_name_is_given_only_to_blurred_blocks() -> None:
    logs = torch.tensor([[0.98, 0.01, 0.01], [0.5, 0.1, 0.4]]).log()
    nothing = naming_loss(logs, torch.tensor([0, 0]))
    assert float(nothing) == 0
    right, wrong = (float(naming_loss(logs, torch.tensor([0, k]))) for k in (2, 1))
    assert right == pytest.approx(-np.log(0.8), rel=1e-4)  # 0.4 of the 0.5 that are blurred
    assert wrong == pytest.approx(-np.log(0.2), rel=1e-4)


def test_whitened_directions_weigh_alike() -> None:
    torch.manual_seed(0)
    shared = torch.randn(20000, 1) * 0.3
    vectors = shared + torch.randn(20000, 4) * 0.1
    white = vectors @ whitening(vectors)[:, :, 0, 0].T
    spread = white.std(dim=0)
    assert spread.max() / spread.min() < 1.3
    assert vectors.std(dim=0).max() > 0.25  # it was all in one direction before


@pytest.mark.parametrize("way", [Folded, Strided])
def test_another_way_to_whiten_changes_nothing(way: Callable[[Enter], nn.Module]) -> None:
    torch.manual_seed(0)
    enter = Enter([Seen(3, 4), Seen(2, 2)], 5)
    enter.whitening.copy_(torch.randn(56, 56, 1, 1))
    pictures = (
        torch.randint(0, 256, (2, 3, 36, 28), dtype=torch.uint8),
        torch.randint(0, 256, (2, 2, 18, 14), dtype=torch.uint8),
    )
    torch.testing.assert_close(way(enter)(*pictures), enter(*pictures), rtol=1e-4, atol=1e-3)


def test_scales_and_shifts_found_apart_change_nothing() -> None:
    torch.manual_seed(0)
    whole = Modulation(6)
    for each in whole.parameters():
        torch.nn.init.normal_(each)
    x, told = torch.randn(2, 6, 5, 4), torch.randn(2, TOLD, 5, 4)
    torch.testing.assert_close(Parted(whole)(x, told), whole(x, told))


def test_folders_of_pictures_and_of_clips_as_pictures_are_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side in ("blurred", "sharp"):
        (tmp_path / side / "walk").mkdir(parents=True)
        for name in ("alone.png", "walk/01.png", "walk/02.png"):
            picture = rng.integers(0, 255, (33, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / side / name), picture)
    alone, walk = file_pairs(tmp_path / "blurred", tmp_path / "sharp")
    assert (alone.name, len(alone.blurred), len(alone.sharp)) == ("alone", 1, 1)
    assert (walk.name, len(walk.blurred), walk.blurred[1].pts) == ("walk", 2, 1)
    assert alone.blurred[0].planes[0].shape == (32, 40)
    (tmp_path / "sharp" / "walk" / "02.png").unlink()
    with pytest.raises(SourceError, match="has 2 frames and"):
        list(file_pairs(tmp_path / "blurred", tmp_path / "sharp"))
    (tmp_path / "sharp" / "walk" / "01.png").write_text("no picture")
    with pytest.raises(SourceError, match="no picture that can be read"):
        list(file_pairs(tmp_path / "blurred", tmp_path / "sharp"))


def test_the_camera_of_a_clip_is_found_where_it_was(clip: Clip) -> None:
    found = list(misses(clip))
    assert found
    for _, errors in found:
        best = np.median(errors["the best similarity"])
        assert best < np.median(errors["the stabiliser's similarity"]) + 1e-6
        assert np.median(errors["a turning camera"]) < 1


def test_the_default_model_costs_what_the_documents_say() -> None:
    encoder, filters = multiply_adds(ModelConfig())
    assert encoder == pytest.approx(2038, abs=1)
    assert filters == pytest.approx([6584, 6949, 7678], abs=1)
    assert encoder + max(filters) < 12_000


def test_milder_filters_inherit_what_they_can() -> None:
    deep, flat = FilterConfig(16, 16, 1, 2), FilterConfig(16, 16, 1, 0)
    model = MultiFilter(ModelConfig(filters=(flat, deep)))
    model.inherit()
    ours, theirs = (each.state_dict() for each in model.filters)
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match="known are best, fast, tiny"):
        load_recipe("grand")
    with pytest.raises(TypeError):
        recipe_from({"name": "x", "nonsense": 1})


def test_one_command_trains_a_bundle_that_the_runtime_runs(trained: Path, photos: Path) -> None:
    bundle = read_bundle(trained / "bundle")
    assert bundle.quantised
    assert bundle.card["recipe"]["held_out"] == ["c"]
    recipe = recipe_from({"name": "x", "held_out": ["c"]})
    (pair,) = held_out_pairs(photos, recipe, clip=SMALL)
    for backend in ("openvino", "openvino-fp32", "onnxruntime", "torch"):
        device = "cpu" if backend == "torch" else "auto"
        opened = open_backend(bundle.folder, backend=backend, device=device)
        restorer = Restorer(opened, strength=1.0)
        restored = list(through(restorer, through(MotionStage(), pair.blurred)))
        assert len(restored) == len(pair.blurred)
        assert not restorer.blocks[:, 0].any()


def test_all_backends_agree(trained: Path, photos: Path) -> None:
    recipe = recipe_from({"name": "x", "held_out": ["c"]})
    (pair,) = held_out_pairs(photos, recipe, clip=SMALL)
    results = {}
    for backend in ("torch", "openvino-fp32", "onnxruntime", "openvino"):
        opened = open_backend(trained / "bundle", backend=backend, device="cpu")
        restorer = Restorer(opened, strength=1.0)
        results[backend] = list(through(restorer, through(MotionStage(), pair.blurred)))
    for backend, least in (("openvino-fp32", 55), ("onnxruntime", 55), ("openvino", 40)):
        for ours, theirs in zip(results[backend], results["torch"], strict=True):
            assert psnr(ours.planes[0], theirs.planes[0]) > least


def test_an_interrupted_run_goes_on(trained: Path, photos: Path) -> None:
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert state["step"] == 40
    recipe = str(trained / "tiny.yaml")
    assert main(["train", recipe, "--photos", str(photos), "--out", str(trained)]) == 0
    again = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert again["step"] == 40  # nothing was left to do


@pytest.mark.parametrize("size", [0, 9, 5000, -10])
def test_a_damaged_checkpoint_is_named(
    size: int, trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "checkpoint.pt"
    damaged.write_bytes((trained / "checkpoint.pt").read_bytes()[:size])
    words = [str(trained / "tiny.yaml"), "--photos", str(photos), "--out", str(tmp_path)]
    assert main(["train", *words]) == 1
    assert capsys.readouterr().err == (
        f"vdeblur: error: {damaged} is damaged: remove it, and the run begins anew\n"
    )
    assert list(tmp_path.iterdir()) == [damaged]


def test_a_run_folder_of_a_recipe_with_other_nets_is_refused(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.rglob("*"))
    recipe = tmp_path / "wider.yaml"
    recipe.write_text((trained / "tiny.yaml").read_text().replace("coarse: 16", "coarse: 32"))
    assert main(["train", str(recipe), "--photos", str(photos), "--out", str(trained)]) == 1
    err = capsys.readouterr().err
    assert f"{trained / 'checkpoint.pt'} is of a recipe with other nets: choose another" in err
    assert err.count("\n") == 1
    assert sorted(trained.rglob("*")) == before


def test_evaluate_reports_all_numbers(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["evaluate", "--photos", str(photos), "--recipe", str(trained / "tiny.yaml")]
    words += ["--model", str(trained / "bundle"), "--json", "--sheet", str(sheet)]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    report = result["report"]
    assert report["frames"] == len(result["frames"]) == 12
    assert report["gain"] == pytest.approx(np.mean([row["gain"] for row in result["frames"]]))
    assert sum(report["clusters"]) == pytest.approx(1)
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape == (3 * 192, 3 * 192, 3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("{here}/a.png {here}/a.png --sheet {here}/a.png", 1, "is the source itself"),
        ("{here}/a.png {here}/there.png --sheet {here}/there.png -y", 1, "is the source itself"),
        ("{here}/a.png {here}/a.png --sheet {here}/there.png", 1, "exists already"),
        ("{here}/a.png {here}/a.png --sheet {here}/sheet.pdf", 2, "the sheet is a PNG"),
        ("{here}/a.png {here}/a.png", 1, "is too small to be measured: 11 pixels at least"),
        ("{here}/none {here}/a.png", 1, "does not exist"),
        ("--photos {here} --recipe nosuch", 1, "no recipe 'nosuch'; known are"),
        ("{here}/a.png {here}/a.png --strength nan", 2, "is not a number"),
    ],
)
def test_what_evaluate_cannot_do_is_said(
    tmp_path: Path, words: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "there.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["evaluate", *words.format(here=tmp_path).split()]) == code
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--sheet {here}/sheet.txt", 2, "the sheet is a PNG"),
        ("--sheet {here}/there.png", 1, "exists already"),
        ("--sheet {here}/there.png -y --beside {here}/there.png", 1, "is the source itself"),
    ],
)
def test_where_clips_cannot_put_its_sheet_is_said_at_once(
    tmp_path: Path, words: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.png").write_bytes(b"")
    assert main(["clips", "--photos", str(tmp_path), *words.format(here=tmp_path).split()]) == code
    assert said in capsys.readouterr().err  # and not that there are no photos
    assert (tmp_path / "there.png").read_bytes() == b""


def test_clips_replaces_its_sheet_if_it_may(photos: Path, elsewhere: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"")
    words = ["--photos", str(photos), "--count", "1", "--sheet", str(sheet), "-y"]
    assert main(["clips", elsewhere, *words]) == 0
    assert cv2.imread(str(sheet)) is not None


def test_another_renderer_films_the_same_clip_again_and_its_truth_is_sharp(photos: Path) -> None:
    config = Handheld(width=160, height=128, frames=4, samples=6)
    pictures = sorted(photos.glob("*.png"))
    first, second = (list(handheld_pairs(pictures, config)) for _ in range(2))
    assert [pair.name for pair in first] == ["a", "b", "c"]
    for pair, same in zip(first, second, strict=True):
        assert len(pair.blurred) == len(pair.sharp) == 4
        lumas = [np.stack([f.planes[0] for f in each]) for each in (pair.blurred, pair.sharp)]
        again = np.stack([f.planes[0] for f in same.sharp])
        # Sums may round otherwise, and an encoder makes more of that.
        assert np.abs(lumas[1].astype(int) - again).mean() < 0.1
        assert _detail(lumas[0]) < 0.9 * _detail(lumas[1])
        for blurred, sharp in zip(pair.blurred, pair.sharp, strict=True):
            assert psnr(rgb(blurred), rgb(sharp)) > 15  # the same view at the same time


def test_peers_need_clips_whose_blur_is_known(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--photos", str(photos), "--renderer", "scene", "--peers"]) == 2
    assert "--peers needs" in capsys.readouterr().err


def test_evaluate_needs_something_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 2
    assert "give BLURRED and SHARP, or --photos" in capsys.readouterr().err


def test_a_damaged_bundle_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    for name, text, message in (
        ("empty", "{}", "damaged config.json"),
        ("format", '{"format": 99}', "has format 99"),
        ("noise", "not json", "damaged config.json"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            read_bundle(folder)
    config = (trained / "bundle/config.json").read_text()
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"lacks encoder\.onnx"):
        read_bundle(folder)
    for part in read_bundle(trained / "bundle").parts:
        (folder / f"{part}.onnx").write_bytes(b"junk")
    for backend in ("onnxruntime", "openvino-fp32"):
        with pytest.raises(ModelError, match="cannot load encoder"):
            open_backend(folder, backend=backend)


def test_a_folder_in_the_way_does_not_hide_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fast").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_bundle("fast").name == "fast"
    with pytest.raises(ModelError, match=r"no model .*fast.: shipped are best, fast"):
        read_bundle("./fast")


def test_psnr_and_ssim_are_the_textbook_ones(photos: Path) -> None:
    black, grey = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    assert psnr(black, grey) == 0
    assert psnr(black, black) == float("inf")
    assert ssim(grey, grey) == 1
    recipe = recipe_from({"name": "x", "held_out": ["c"]})
    (pair,) = held_out_pairs(photos, recipe, clip=SMALL)
    assert rgb(pair.sharp[0]).shape == (208, 208, 3)


def test_calibration_takes_what_is_safe_and_leaves_what_is_not() -> None:
    clusters = Clusters(np.array([[0.0], [1.0], [2.0]], np.float32), stiffness=1.0)
    latents = np.array([[[1.0]], [[1.0]], [[2.0]], [[2.0]]], np.float32)
    errors = np.array([[[9, 3, 9]], [[9, 3, 9]], [[9, 9, 20]], [[9, 9, 20]]], np.float32)
    moving = np.zeros(4, bool)
    trial = Trial(latents, errors, np.full((4, 1), 5, np.float32), moving)
    assert trial.gains(clusters)[:2] == pytest.approx(10 * np.log10(3), abs=1e-3)
    assert not trial.is_safe(clusters)
    wary = Clusters(clusters.centroids, 1.0, np.array([0, 0, 9], np.float32))
    assert trial.is_safe(wary)
    assert not Trial(latents, errors, np.zeros((4, 1), np.float32), moving).is_safe(wary)
    one_rests = Trial(latents, errors, trial.blur, np.arange(4) == 2)
    assert len(one_rests.gains(clusters)) == 3
