"""What OpenVINO is given."""

from typing import Any

import numpy as np
import pytest

from vdeblur.blocks import CONTEXT_STRIDE, TILE
from vdeblur.bundle import read_bundle
from vdeblur.runtimes import EVEN, OpenVinoBackend, openvino_options


@pytest.fixture(scope="module")
def backend() -> OpenVinoBackend:
    return OpenVinoBackend(read_bundle("fast"))


def blocks(count: int, backend: OpenVinoBackend) -> tuple[Any, Any, Any]:
    """Luma, chroma and context of so many blocks, all different."""
    noise, coarse = np.random.default_rng(1), TILE // CONTEXT_STRIDE
    return (
        noise.integers(0, 256, (count, 3, TILE, TILE), np.uint8),
        noise.integers(0, 256, (count, 2, TILE // 2, TILE // 2), np.uint8),
        noise.standard_normal((count, backend.bundle.context_channels, coarse, coarse), np.float32),
    )


@pytest.mark.parametrize("count", [1, EVEN - 1, EVEN, EVEN + 3])
def test_blocks_are_filtered_the_same_however_many_come_together(
    count: int, backend: OpenVinoBackend
) -> None:
    inputs = blocks(2 * EVEN, backend)
    luma, chroma = (found.copy() for found in backend.apply(3, *inputs))
    few_luma, few_chroma = backend.apply(3, *(each[:count] for each in inputs))
    assert few_luma.shape == (count, TILE, TILE)
    assert few_chroma.shape == (count, 2, TILE // 2, TILE // 2)
    np.testing.assert_array_equal(few_luma, luma[:count])
    np.testing.assert_array_equal(few_chroma, chroma[:count])


def test_it_prepares_itself_for_multiples_of_eight_alone(
    backend: OpenVinoBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    infer = backend._infer

    def counting(part: str, inputs: dict[str, Any]) -> Any:
        given.append(len(inputs["luma"]))
        return infer(part, inputs)

    monkeypatch.setattr(backend, "_infer", counting)
    for count in (1, 7, 8, 9, 24):
        backend.apply(1, *blocks(count, backend))
    assert given == [8, 8, 8, 16, 24]


def test_its_threads_are_not_bound_to_cores() -> None:
    assert openvino_options("int8")["ENABLE_CPU_PINNING"] is False
