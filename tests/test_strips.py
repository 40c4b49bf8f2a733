import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.backend import open_backend, stages_of
from vdeblur.blocks import BLOCK, MOTION, Grid
from vdeblur.strips import AROUND, LARGEST, embed_in_strips, seen_at_once, strips_of


@pytest.mark.parametrize("blocks", [1, 7, 8, 20, 61])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_strips_cover_all_once_and_see_enough_around(blocks: int, count: int) -> None:
    strips = strips_of(blocks, count)
    assert len(strips) <= count
    assert len({seen.stop - seen.start for seen, _ in strips}) == 1
    assert [n for _, kept in strips for n in range(kept.start, kept.stop)] == [*range(blocks)]
    for seen, kept in strips:
        assert 0 <= seen.start <= max(kept.start - AROUND, 0)
        assert min(kept.stop + AROUND, blocks) <= seen.stop <= blocks


@pytest.mark.parametrize("shape", [(2, 12), (12, 2)])
@pytest.mark.parametrize("model", ["fast", "best"])
def test_strips_of_a_picture_are_embedded_as_the_whole(model: str, shape: tuple[int, int]) -> None:
    height, width = (BLOCK * edge for edge in shape)
    noise = np.random.default_rng(1)
    luma = noise.integers(0, 256, (1, height, width), np.uint8)
    around = noise.integers(0, 256, (2, height // 2, width // 2), np.uint8)
    motion = noise.normal(size=(MOTION, height // 8, width // 8)).astype(np.float32)
    backend, sizes = stages_of(open_backend(model, device="cpu"))[0], list[int]()

    def embed(
        luma: NDArray[np.uint8], around: NDArray[np.uint8], motion: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        sizes.append(luma.size)
        return backend.embed(luma, around, motion)

    context, latents = (each.copy() for each in embed_in_strips(embed, luma, around, motion))
    assert sizes == [luma.size]
    found = embed_in_strips(embed, luma, around, motion, largest=luma.size // 2)
    assert sizes[1:] == [luma.size * 9 // 12] * 2
    assert np.allclose(found[0], context, atol=1e-4)
    assert np.allclose(found[1], latents, atol=1e-4)


def test_only_huge_pictures_come_in_strips() -> None:
    assert 2560 * 1440 < LARGEST < 3840 * 2160


@pytest.mark.parametrize("size", [(720, 1280), (1280, 720), (2160, 3840), (4352, 2300), (8, 8000)])
def test_what_an_encoder_sees_at_once_is_known_before(size: tuple[int, int]) -> None:
    grid, shapes = Grid(*size), set[tuple[int, ...]]()
    luma = np.zeros((1, grid.rows * BLOCK, grid.columns * BLOCK), np.uint8)
    around = np.zeros((2, luma.shape[1] // 2, luma.shape[2] // 2), np.uint8)
    motion = np.zeros((MOTION, luma.shape[1] // 8, luma.shape[2] // 8), np.float32)

    def embed(
        luma: NDArray[np.uint8], _around: NDArray[np.uint8], motion: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        shapes.add(luma.shape[1:])
        return motion, np.moveaxis(motion[:, ::8, ::8], 0, -1)

    embed_in_strips(embed, luma, around, motion)
    assert shapes == {seen_at_once(*size)}
