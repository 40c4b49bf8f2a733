import numpy as np
import pytest

from vdeblur.clusters import Clusters

LINE = Clusters(np.array([[0.0], [1.0], [2.0]], np.float32), stiffness=4.0)


def latents(*values: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array(values, np.float32)[:, None]


def test_the_nearest_centroid_wins() -> None:
    assert LINE.assign(latents(-1, 0.1, 0.9, 1.6, 7)).tolist() == [0, 0, 1, 2, 2]


def test_responsibilities_sum_to_one_even_far_away() -> None:
    shares = LINE.responsibilities(latents(-1000, 0.5, 1000))
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[1, :2], shares[1, 0], rtol=1e-6)  # half way: equal


def test_responsibilities_become_hard_as_the_stiffness_grows() -> None:
    hard = Clusters(LINE.centroids, stiffness=1e4).responsibilities(latents(0.1, 1.4))
    np.testing.assert_allclose(hard, [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_strength_0_leaves_all_blocks_alone_and_1_filters_all() -> None:
    values = latents(-5, 0, 0.5, 3)
    assert LINE.assign(values, strength=0).tolist() == [0, 0, 0, 0]
    assert (LINE.assign(values, strength=1) > 0).all()


def test_more_strength_never_filters_fewer_blocks() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.5, (200, 1)).astype(np.float32)
    counts = [(LINE.assign(values, strength=s) > 0).sum() for s in np.linspace(0, 1, 9)]
    assert counts == sorted(counts)


def test_a_bias_leaves_the_doubtful_blocks_alone() -> None:
    wary = Clusters(LINE.centroids, LINE.stiffness, np.array([0, 1, 1], np.float32))
    assert LINE.assign(latents(0.55, 0.9)).tolist() == [1, 1]
    assert wary.assign(latents(0.55, 0.9)).tolist() == [0, 1]


def test_the_shape_of_a_grid_of_blocks_is_kept() -> None:
    assert LINE.assign(np.zeros((3, 4, 1), np.float32)).shape == (3, 4)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_is_a_share(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength must be 0\.\.1"):
        LINE.assign(latents(0), strength=strength)


def test_biases_are_one_a_cluster() -> None:
    with pytest.raises(ValueError, match="biases must be"):
        Clusters(LINE.centroids, 1.0, np.zeros(2, np.float32))


def test_one_centroid_is_not_enough() -> None:
    with pytest.raises(ValueError, match="centroids must be"):
        Clusters(np.zeros((1, 3), np.float32), 1.0)


def test_a_block_keeps_its_cluster_unless_another_is_clearly_nearer() -> None:
    clusters = Clusters(np.array([[0.0], [1.0], [2.0]], np.float32), stiffness=1.0)
    between = np.array([[0.49], [0.51], [1.49], [1.51]], np.float32)
    assert clusters.assign(between).tolist() == [1, 1, 1, 2]
    for label in (1, 2):
        before = np.full(4, label, np.uint8)
        assert clusters.assign(between[2:], before=before[2:]).tolist() == [label, label]
    clear = np.zeros(4, np.uint8)
    assert clusters.assign(np.full((4, 1), 3, np.float32), before=clear).tolist() == [2] * 4
    assert clusters.assign(between, strength=1, before=clear).all()
    assert not clusters.assign(between, strength=0, before=clear).any()
