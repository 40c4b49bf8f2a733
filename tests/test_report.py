"""The report's networks, losses, data and scheme, on pictures that the tests make themselves."""

import gzip
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vdeblur.backend import open_backend
from vdeblur.blocks import MOTION, TILE
from vdeblur.cli import main
from vdeblur.errors import SourceError
from vdeblur_training.report import losses, soft_kmeans
from vdeblur_training.report.blocks import Tiling, rising
from vdeblur_training.report.data import (
    DataConfig,
    check_noise,
    load_pairs,
    make_pairs,
    read_pictures,
    rotated,
)
from vdeblur_training.report.document import ROWS, table, write_document
from vdeblur_training.report.evaluate import Result, wins
from vdeblur_training.report.export import TO_YUV, export_report
from vdeblur_training.report.features import label_vector
from vdeblur_training.report.measure import Score, psnr, quality_index, score
from vdeblur_training.report.networks import (
    ClusterHead,
    ConvEncoder,
    ConvFilter,
    ResNetEncoder,
    ResNetFeatures,
    VaeFeatures,
    VariationalEncoder,
    VggFeatures,
    parameters,
    sample,
)
from vdeblur_training.report.noise import NoiseConfig, degrade
from vdeblur_training.report.recipe import experiment_from, known_recipes, load_experiment
from vdeblur_training.report.scheme import Run, adopt, decode, embed, load_trained

Bytes = NDArray[np.uint8]


def counts(module: torch.nn.Module) -> list[int]:
    """Of every layer that has parameters, in order."""
    return [
        parameters(each)
        for each in module.modules()
        if not list(each.children()) and parameters(each)
    ]


def pictures(count: int, edge: int = 60) -> Bytes:
    """Structure at several sizes, in colour."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        picture = np.zeros((edge, edge, 3), np.float32)
        for cell in (6, 20, 40):
            size = (edge // cell + 2, edge // cell + 2, 3)
            coarse = rng.random(size, np.float32)
            picture += 80 * np.asarray(cv2.resize(coarse, (edge, edge)), np.float32)
        made.append(picture.astype(np.uint8))
    return np.stack(made)


def test_the_conv_encoder_has_the_report_s_layers() -> None:
    encoder = ConvEncoder()
    assert counts(encoder) == [448, 4640, 13872, 31176, 83072, 512, 307296, 5820]
    assert parameters(encoder) == 446836
    blocks, edges = torch.zeros(2, 3, 18, 18), []
    for layer in encoder.convolutions:
        blocks = layer(blocks)
        edges += [tuple(blocks.shape[1:])] if isinstance(layer, torch.nn.Conv2d) else []
    assert edges == [(16, 18, 18), (32, 9, 9), (48, 9, 9), (72, 5, 5), (128, 5, 5)]
    assert blocks.flatten(1).shape == (2, 3200)


def test_the_conv_filter_has_the_report_s_layers() -> None:
    network = ConvFilter()
    assert counts(network) == [79056, 166016, 83016, 31152, 13856, 4624, 435]
    assert parameters(network) == 378155
    latents, edges = torch.zeros(2, 60), []
    for layer in network.layers:
        latents = layer(latents)
        edges += [latents.shape[2]] if isinstance(layer, torch.nn.ConvTranspose2d) else []
    assert edges == [3, 6, 6, 18, 18, 18]


@pytest.mark.parametrize(("block", "channels"), [(18, 3), (16, 3), (14, 1)])
def test_a_filter_gives_back_the_block_that_was_embedded(block: int, channels: int) -> None:
    blocks = torch.rand(2, channels, block, block)
    restored = ConvFilter(block, channels)(ConvEncoder(block, channels)(blocks))
    assert restored.shape == blocks.shape


def test_the_vae_s_encoder_has_the_report_s_layers() -> None:
    encoder = VariationalEncoder(VaeFeatures())
    assert counts(encoder) == [896, 128, 18496, 256, 16400, 34, 34]
    mean, log_variance = encoder.distribution(torch.rand(3, 3, 16, 16))
    assert mean.shape == log_variance.shape == sample(mean, log_variance).shape == (3, 2)


def test_the_resnet_encoder_has_the_report_s_layers() -> None:
    encoder = VariationalEncoder(ResNetFeatures())
    assert counts(encoder) == [896, 128, 9248, 896, 32784, 34, 34]
    assert ResNetEncoder()(torch.rand(3, 3, 16, 16)).shape == (3, 16)


def test_vgg16_is_whole_and_takes_weights() -> None:
    network = VggFeatures()
    assert parameters(network) == 14714688
    again = VggFeatures()
    again.load_weights(network.state_dict())
    blocks = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(blocks), again(blocks))
    assert network(blocks).shape == (2, 512)
    with pytest.raises(ValueError, match="not weights of VGG16"):
        again.load_weights({"features.0.weight": torch.zeros(1)})


def test_a_cluster_head_gives_shares() -> None:
    shares = ClusterHead(60, 3)(torch.randn(5, 60))
    assert shares.shape == (5, 3)
    assert torch.allclose(shares.sum(dim=1), torch.ones(5))


def test_the_divergence_is_a_divergence() -> None:
    blocks, other = torch.rand(4, 3, 6, 6), torch.rand(4, 3, 6, 6)
    assert losses.divergence(blocks, blocks) == pytest.approx(0, abs=1e-6)
    assert losses.divergence(other, blocks) > 0.01
    assert torch.isfinite(losses.divergence(torch.zeros(4, 3, 6, 6), torch.ones(4, 3, 6, 6)))
    assert losses.divergence(other / 2, other) == pytest.approx(0, abs=2e-3)


def test_the_reconstruction_loss_is_the_sum_of_both() -> None:
    blocks, other = torch.rand(4, 3, 6, 6), torch.rand(4, 3, 6, 6)
    squared = ((blocks - other) ** 2).mean()
    whole = squared + losses.divergence(other, blocks)
    assert losses.reconstruction_loss(other, blocks) == pytest.approx(float(whole))
    assert losses.reconstruction_loss(other, blocks, 0) == pytest.approx(float(squared))


def test_the_latent_divergence_is_that_of_gaussians() -> None:
    normal = torch.distributions.Normal(torch.tensor([[0.3, -1.0]]), torch.tensor([[0.5, 2.0]]))
    unit = torch.distributions.Normal(0.0, 1.0)
    expected = float(torch.distributions.kl_divergence(normal, unit).sum())
    found = losses.latent_divergence(normal.mean, normal.variance.log())
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_soft_cut_is_equation_3_written_out() -> None:
    latents = torch.randn(7, 3)
    shares = torch.rand(7, 2).softmax(dim=1)
    weights = losses.affinities(latents)
    expected = 2.0
    for k in range(2):
        inside = whole = 0.0
        for i in range(7):
            for j in range(7):
                inside += float(shares[i, k] * weights[i, j] * shares[j, k])
                whole += float(shares[i, k] * weights[i, j])
        expected -= inside / whole
    assert float(losses.soft_normalized_cut(shares, weights)) == pytest.approx(expected, rel=1e-5)


def test_the_soft_cut_prefers_the_cut_between_two_groups() -> None:
    latents = torch.cat([torch.randn(20, 2), torch.randn(20, 2) + 30])
    weights = losses.affinities(latents, 0.3)
    right = torch.eye(2)[[0] * 20 + [1] * 20]
    wrong = torch.eye(2)[[0, 1] * 20]
    cut = [float(losses.soft_normalized_cut(each, weights)) for each in (right, wrong)]
    assert cut[0] < 0.05 < 0.9 < cut[1]


def test_compactness_does_not_fall_when_everything_shrinks() -> None:
    latents, shares = torch.randn(30, 4), torch.rand(30, 2).softmax(dim=1)
    whole = losses.compactness(latents, shares)
    assert float(losses.compactness(latents / 100, shares)) == pytest.approx(float(whole), rel=1e-4)
    points = torch.tensor([[0.0, 0.0], [5.0, 1.0]]).repeat_interleave(10, dim=0)
    hard = torch.eye(2).repeat_interleave(10, dim=0)
    assert float(losses.compactness(points, hard)) == pytest.approx(0, abs=1e-6)


def test_contrastive_loss_wants_pairs_together() -> None:
    latents = torch.randn(16, 8)
    together = losses.contrastive_loss(latents, latents)
    apart = losses.contrastive_loss(latents, latents.roll(1, dims=0))
    assert together < 0.5 < apart


def test_regularisation_sums_kernels_only() -> None:
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
        layer.bias.fill_(100.0)
    assert float(losses.regularisation(layer, 0.1).detach()) == pytest.approx(0.1 * (3 + 5))


def test_soft_kmeans_is_kmeans_in_the_hard_limit() -> None:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(4)
    latents = np.concatenate([rng.normal(at, 1, (60, 3)) for at in (0, 2.5)]).astype(np.float32)
    start = latents[[0, -1]]
    ours = soft_kmeans.fit(latents, 2, stiffness=1e5, start=start)
    theirs = KMeans(2, init=start, n_init=1, tol=0).fit(latents)
    assert np.allclose(ours.centroids, theirs.cluster_centers_, atol=1e-3)
    assert (ours.assign(latents) == theirs.labels_).all()


def test_soft_responsibilities_sum_to_one_and_soften() -> None:
    latents = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    soft = soft_kmeans.fit(latents, 3, stiffness=0.5).responsibilities(latents)
    hard = soft_kmeans.fit(latents, 3, stiffness=50).responsibilities(latents)
    assert np.allclose(soft.sum(axis=1), 1, atol=1e-5)
    assert soft.max(axis=1).mean() < hard.max(axis=1).mean()
    with pytest.raises(ValueError, match="too few"):
        soft_kmeans.fit(latents[:1], 2)


def test_clusters_are_named_by_the_few_blocks_that_are_known() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    known = np.array([-1, 1, -1, 0, -1, -1])
    assert soft_kmeans.named(labels, known, 2) == [1, 0]


def test_clusters_may_follow_what_is_known_instead_of_what_varies_most() -> None:
    rng = np.random.default_rng(0)
    blurred = rng.random(2000) < 0.5
    latents = rng.normal(0, 1, (2000, 3)).astype(np.float32)
    latents[:, 0] += 20 * (rng.random(2000) < 0.5)  # brightness, say
    latents[:, 1] += 6 * blurred
    known = np.where(rng.random(2000) < 0.05, blurred, -1)
    axes = soft_kmeans.discriminant(latents, known)
    assert np.abs(axes[1, 0]) > 5 * np.abs(axes[[0, 2], 0]).max()
    plain = soft_kmeans.fit(latents).assign(latents)
    seeded = replace(soft_kmeans.fit(latents @ axes), axes=axes).assign(latents)
    agreement = [
        max((each == blurred).mean(), (each != blurred).mean()) for each in (plain, seeded)
    ]
    assert agreement[0] < 0.6
    assert agreement[1] > 0.98


@pytest.mark.parametrize(
    ("edge", "block", "overlap", "count"),
    [(256, 18, 4, 324), (32, 18, 4, 4), (256, 16, 4, 441), (28, 14, 0, 4)],
)
def test_split_pictures_merge_back_exactly(edge: int, block: int, overlap: int, count: int) -> None:
    tiling = Tiling(edge, edge, block, overlap)
    made = np.random.default_rng(0).integers(0, 256, (2, edge, edge, 3)).astype(np.uint8)
    blocks = tiling.split(made)
    assert len(blocks) == 2 * count
    merged = tiling.merge(blocks.astype(np.float32))
    assert (np.rint(merged) == made).all()
    assert np.abs(merged - made).max() < 1e-3


def test_weights_rise_towards_the_centre() -> None:
    ramp = rising(18)[:, 9, 0]
    assert (np.diff(ramp[:9]) > 0).all()
    assert (ramp == ramp[::-1]).all()


def test_a_picture_that_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        Tiling(250, 250)


def test_noise_is_uneven_and_leaves_the_rest_alone() -> None:
    [picture] = pictures(1, 256)
    noisy, mask = degrade(picture, NoiseConfig(), np.random.default_rng(0))
    assert (noisy[~mask] == picture[~mask]).all()
    assert mask.mean() == pytest.approx(0.45, abs=0.01)
    assert psnr(noisy, picture, mask) < 10
    again, _ = degrade(picture, NoiseConfig(), np.random.default_rng(0))
    assert (noisy == again).all()


def test_each_kind_of_noise_has_its_mark() -> None:
    [picture] = pictures(1, 256)
    marks = {}
    for index, kind in enumerate(("impulse", "gaussian", "speckle", "blur")):
        shares = tuple(float(index == each) for each in range(4))
        config = NoiseConfig(cover=1.0, shares=shares)
        noisy, _ = degrade(picture, config, np.random.default_rng(1))
        marks[kind] = (
            np.isin(noisy, (0, 255)).mean(),
            psnr(noisy, picture, np.ones((256, 256), bool)),
        )
    assert marks["impulse"][0] > 0.5 > 0.1 > marks["gaussian"][0]
    assert marks["impulse"][1] < marks["speckle"][1] < marks["blur"][1]
    assert 15 < marks["gaussian"][1] < 25


def test_noise_of_another_strength_than_the_recipe_says_is_refused() -> None:
    pairs = make_pairs(pictures(3), Tiling(60, 60), NoiseConfig(), np.random.default_rng(0))
    mean = check_noise(pairs, None)
    assert check_noise(pairs, (mean - 0.1, mean + 0.1)) == mean
    with pytest.raises(SourceError, match="the recipe says"):
        check_noise(pairs, (mean + 1, mean + 2))


def test_mosaics_and_idx_files_are_cut_into_pictures(tmp_path: Path) -> None:
    mosaic = np.zeros((64, 75 * 32, 3), np.uint8)
    mosaic[:32] = 90
    mosaic[32:, :64] = 200
    cv2.imwrite(str(tmp_path / "mosaic.png"), mosaic)
    cut = read_pictures(tmp_path / "mosaic.png", 32)
    assert cut.shape == (77, 32, 32, 3)
    assert (cut[75:] == 200).all()
    digits = np.arange(2 * 28 * 28, dtype=np.uint8)
    head = b"\x00\x00\x08\x03" + np.array([2, 28, 28], ">i4").tobytes()
    (tmp_path / "digits.gz").write_bytes(gzip.compress(head + digits.tobytes()))
    assert (read_pictures(tmp_path / "digits.gz", 28).ravel() == digits).all()
    with pytest.raises(SourceError, match="no data at"):
        read_pictures(tmp_path / "nothing", 28)


def test_pictures_that_validate_do_not_train(tmp_path: Path) -> None:
    for index, picture in enumerate(pictures(5)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
    config = DataConfig(".", ".", edge=60, validation_limit=2)
    training, validation = load_pairs(tmp_path, config, NoiseConfig(), 1)
    whole = read_pictures(tmp_path, 60)
    assert np.array_equal(validation.clean, whole[:2])
    assert np.array_equal(training.clean, whole[2:])
    with pytest.raises(SourceError, match="beside the validation"):
        load_pairs(tmp_path, replace(config, validation_limit=5), NoiseConfig(), 1)


def test_augmentation_doubles_the_pictures(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for index, picture in enumerate(pictures(2)):
            cv2.imwrite(str(tmp_path / part / f"{index}.png"), picture)
    config = DataConfig("train", "val", edge=60, augment=True)
    training, validation = load_pairs(tmp_path, config, NoiseConfig(), 0)
    assert (len(training.clean), len(validation.clean)) == (4, 2)
    turned = rotated(pictures(2), np.random.default_rng(0))
    assert (turned != pictures(2)).mean() > 0.5


def test_equal_pictures_score_best() -> None:
    [picture] = pictures(1)
    perfect = score(picture, picture, np.ones((60, 60), bool))
    assert (perfect.psnr, perfect.ssim, perfect.uqi) == (99, pytest.approx(1), pytest.approx(1))
    noisy, mask = degrade(picture, NoiseConfig(), np.random.default_rng(0))
    worse = score(noisy, picture, mask)
    assert worse.regional_psnr < worse.psnr < 30
    assert worse.uqi < worse.uqi_means < 1


def test_the_quality_index_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 8, 8)).astype(np.uint8)
    a, b = x.astype(float), y.astype(float)
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    expected = (4 * covariance * a.mean() * b.mean()) / (
        (a.var() + b.var()) * (a.mean() ** 2 + b.mean() ** 2)
    )
    assert quality_index(x, y) == pytest.approx(expected, rel=1e-6)


def test_shares_count_pictures() -> None:
    low, high = Score(1, 1, 1, 1, 1), Score(2, 2, 1, 2, 2)
    shares = wins([high, high, low, high], [low, low, high, low])
    assert (shares["psnr"], shares["uqi"]) == (0.75, 0.0)


def test_label_vectors_tell_noise_from_structure_and_motion() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((50, 18, 18, 3), np.float32)
    smooth = np.asarray([cv2.GaussianBlur(each, (0, 0), 3) for each in noise], np.float32)
    rough, soft = label_vector(noise), label_vector(smooth, noise)
    assert rough.high > 3 * soft.high
    assert rough.gradient > soft.gradient
    assert rough.change == 0 < soft.change
    assert soft.low + soft.middle + soft.high == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="no label vector"):
        label_vector(noise[:0])


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_is_whole(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert name == "tiny" or experiment.epochs == 100
    assert experiment.data.tiling().rows > 0


def test_every_row_of_the_table_has_a_recipe() -> None:
    assert {row.name for row in ROWS} | {"tiny", "photos"} == set(known_recipes())
    assert all(row.title == load_experiment(row.name).title for row in ROWS)


@pytest.mark.parametrize(
    ("network", "clustering"),
    [
        ("vae", "soft k-means"),
        ("resnet-vae", "soft k-means"),
        ("resnet", "n-cut"),
        ("resnet", "seeded k-means"),
    ],
)
def test_every_network_trains(network: str, clustering: str, tmp_path: Path) -> None:
    experiment = experiment_from(
        {
            "name": "t",
            "title": "T",
            "network": network,
            "clustering": clustering,
            "data": {"train": "", "validation": "", "edge": 64, "block": 16},
            "epochs": 8,
            "filter_epochs": 1,
        }
    )
    tiling = experiment.data.tiling()
    pairs = make_pairs(pictures(6, 64), tiling, NoiseConfig(), np.random.default_rng(0))
    epochs = list(Run(experiment, pairs, tmp_path).epochs())
    first, *_, last = (e.losses["reconstruction"] for e in epochs if e.phase == "encoder")
    assert last < first
    assert math.isfinite(sum(epochs[-1].losses.values()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe by the command that a user calls."""
    folder = tmp_path_factory.mktemp("report")
    for part, count in (("train", 12), ("val", 3)):
        (folder / part).mkdir()
        for index, picture in enumerate(pictures(count)):
            cv2.imwrite(str(folder / part / f"{index}.png"), picture)
    words = ["train", "report", "tiny", "--data", str(folder), "--out", str(folder / "runs")]
    assert main(words) == 0
    return folder


def test_a_run_saves_its_result(trained: Path) -> None:
    result = Result.load(trained / "runs/tiny/result.json")
    assert result.pictures == 3
    assert result.epochs == {"encoder": [2, 2], "filters": [1, 1]}
    assert set(result.curves) == {"contrastive", "encoder", "single", "filter 0", "filter 1"}
    assert result.noisy["psnr"] < 15
    assert len(result.points) == 3 * 16


def test_a_finished_run_is_not_trained_again(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "report", "tiny", "--data", str(trained), "--out", str(trained / "runs")]
    assert main(words) == 0
    assert "encoder" not in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    experiment = load_experiment("tiny")
    pairs, _ = load_pairs(trained, experiment.data, experiment.noise, experiment.seed)
    for epoch in Run(experiment, pairs, tmp_path).epochs():
        if (epoch.phase, epoch.number) == ("encoder", 1):
            break
    for _ in Run(experiment, pairs, tmp_path).epochs():
        pass
    whole = load_trained(experiment, trained / "runs/tiny").parts.state_dict()
    resumed = load_trained(experiment, tmp_path).parts.state_dict()
    assert all(torch.allclose(whole[key], resumed[key], atol=1e-5) for key in whole)


def test_a_run_may_be_cut_short_and_made_longer(trained: Path, tmp_path: Path) -> None:
    longer = replace(load_experiment("tiny"), epochs=3)
    pairs, _ = load_pairs(trained, longer.data, longer.noise, longer.seed)
    for epoch in Run(longer, pairs, tmp_path).epochs():
        if (epoch.phase, epoch.number) == ("encoder", 2):
            break
    short = list(Run(replace(longer, epochs=2), pairs, tmp_path).epochs())
    assert [epoch.phase for epoch in short] == ["single", "filter 0", "filter 1"]


def test_a_run_may_begin_with_the_encoder_of_another(trained: Path, tmp_path: Path) -> None:
    experiment = replace(load_experiment("tiny"), clustering="seeded k-means", known_share=0.5)
    pairs, validation = load_pairs(trained, experiment.data, experiment.noise, experiment.seed)
    adopt(experiment, trained / "runs/tiny", tmp_path)
    epochs = list(Run(experiment, pairs, tmp_path).epochs())
    assert [epoch.phase for epoch in epochs] == ["single", "filter 0", "filter 1"]
    mine, theirs = (load_trained(experiment, run) for run in (tmp_path, trained / "runs/tiny"))
    latents = embed(mine.parts.encoder, validation.blocks()[0])
    assert np.allclose(latents, embed(theirs.parts.encoder, validation.blocks()[0]))
    assert mine.kmeans.axes is not None
    assert set(mine.assign(latents)) <= {0, 1}


def test_the_encoder_may_learn_on_with_the_filters(trained: Path, tmp_path: Path) -> None:
    experiment = replace(
        load_experiment("tiny"), clustering="seeded k-means", known_share=0.5, joint_epochs=2
    )
    pairs, validation = load_pairs(trained, experiment.data, experiment.noise, experiment.seed)
    adopt(experiment, trained / "runs/tiny", tmp_path)
    epochs = [(each.phase, each.number) for each in Run(experiment, pairs, tmp_path).epochs()]
    assert epochs == [("control", 1), ("control", 2), ("filters", 1), ("filters", 2)]
    learnt = load_trained(experiment, tmp_path)
    blocks = validation.blocks()[0]
    latents = [
        embed(encoder, blocks)
        for encoder in (learnt.parts.encoder, *map(learnt.parts.encoder_of, experiment.restoring))
    ]
    assert not np.allclose(latents[0], latents[1])
    assert not np.allclose(latents[1], latents[2])
    labels = learnt.assign(latents[0])
    rows = np.flatnonzero(labels == 1)
    filtered = decode(learnt.parts.filter(1), latents[2][rows])
    assert np.allclose(learnt.restore(blocks, labels)[rows], filtered, atol=1e-5)


def test_the_runtime_runs_a_trained_experiment(trained: Path, tmp_path: Path) -> None:
    """Its bundle restores blocks as the experiment itself does."""
    pairs = make_pairs(pictures(4, 256), Tiling(256, 256), NoiseConfig(), np.random.default_rng(0))
    experiment = load_trained(load_experiment("tiny"), trained / "runs/tiny")
    export_report(experiment, pairs, tmp_path, "report")
    backend = open_backend(tmp_path, backend="onnxruntime")
    _, latents = backend.embed(
        np.full((1, 128, 192), 90, np.uint8),
        np.full((2, 64, 96), 90, np.uint8),
        np.zeros((MOTION, 16, 24), np.float32),
    )
    assert latents.shape == (2, 3, 1)

    rng = np.random.default_rng(1)
    luma = np.repeat(rng.integers(60, 180, (1, 1, TILE, TILE), dtype=np.uint8), 3, axis=1)
    chroma = np.full((1, 2, TILE // 2, TILE // 2), 128, np.uint8)  # grey
    residual, colour = backend.apply(1, luma, chroma, np.zeros((1, 1, 9, 9), np.float32))
    assert residual.shape == (1, TILE, TILE)
    assert colour.shape == (1, 2, TILE // 2, TILE // 2)
    grey = ((np.pad(luma[0, 0], 1, "edge") - 16.0) / 219 * 255).round().astype(np.uint8)
    tiling = Tiling(74, 74)
    blocks = tiling.split(np.repeat(grey[None, ..., None], 3, axis=3))
    latents = embed(experiment.parts.encoder, blocks)
    restored = tiling.merge(decode(experiment.parts.filter(soft_kmeans.BLURRED), latents))[0]
    expected = 16 + 255 * restored[1:-1, 1:-1] @ np.array(TO_YUV[0])
    assert np.abs(luma[0, 0] + residual[0] - expected).max() < 1.0


def test_a_bundle_without_weights_runs_on_the_cpu(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = make_pairs(pictures(2, 256), Tiling(256, 256), NoiseConfig(), np.random.default_rng(0))
    experiment = load_trained(load_experiment("tiny"), trained / "runs/tiny")
    export_report(experiment, pairs, tmp_path, "report")
    monkeypatch.setattr("vdeblur.backend.has_cuda", lambda: True)
    assert open_backend(tmp_path).device == "cpu"


def test_only_what_the_runtime_can_run_is_exported(trained: Path, tmp_path: Path) -> None:
    experiment = load_trained(load_experiment("tiny"), trained / "runs/tiny")
    pairs, _ = load_pairs(trained, experiment.experiment.data, NoiseConfig(), 1)
    with pytest.raises(ValueError, match="need larger pictures"):
        export_report(experiment, pairs, tmp_path, "report")
    other = replace(experiment, experiment=load_experiment("vae"))
    with pytest.raises(ValueError, match="Conv AE on blocks of 18"):
        export_report(other, pairs, tmp_path, "report")


def test_the_document_says_only_what_was_measured(trained: Path, tmp_path: Path) -> None:
    result = Result.load(trained / "runs/tiny/result.json")
    page = write_document({"conv-ae": result}, tmp_path).read_text()
    assert f"**{result.multi['psnr']:.2f}** (29.07)" in page
    assert "| ResNet + N-cut | - (25.58) |" in page
    assert (tmp_path / "report/losses.png").stat().st_size > 1000
    assert (tmp_path / "report/latents.png").stat().st_size > 1000
    assert "**" not in table({})


def test_rows_that_were_trained_elsewhere_stay_in_the_document(
    trained: Path, tmp_path: Path
) -> None:
    result = Result.load(trained / "runs/tiny/result.json")
    docs = tmp_path / "docs"
    for name in ("vae", "conv-ae"):
        runs = tmp_path / name
        (runs / name).mkdir(parents=True)
        replace(result, name=name).save(runs / name / "result.json")
        assert main(["train", "report", "--out", str(runs), "--docs", str(docs)]) == 0
    page = (docs / "report.md").read_text()
    assert page.count(f"**{result.multi['psnr']:.2f}**") == 2
    assert Result.load(docs / "report/vae.json") == replace(result, name="vae")


def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "runs")]
    assert main(["train", "report", *out]) == 2
    assert "name experiments, or give --all" in capsys.readouterr().err
    assert main(["train", "report", "nothing", "--data", str(tmp_path), *out]) == 1
    assert "no experiment 'nothing'" in capsys.readouterr().err
    assert main(["train", "report", "tiny", "--data", str(tmp_path), *out]) == 1
    assert "no data at" in capsys.readouterr().err
