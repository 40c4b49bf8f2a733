"""Time the network's share alone: the encoder on a frame, the filters on its blurred blocks.

    python -m vdeblur_engines.speed --size 1280x720 --blurred 0.3

Every backend works on the same frame in turn, round after round, so that whatever else the machine
does meets all of them. The CPU's time, which that disturbs less, stands beside the clock's. On a
GPU (`--device cuda`) the blocks lie there already, as they do in a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any, TypeGuard

import click
import numpy as np
from numpy.typing import NDArray

from vdeblur.backend import Backend, DeviceBackend, open_backend, stages_of
from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, MOTION, TILE, Grid
from vdeblur.bundle import Bundle
from vdeblur.parameters import Number

BATCH = 32
"""Blocks at a time, as the pipeline has it on a CPU."""
LARGEST = 1024
"""The same on a GPU."""
Batch = tuple[Backend, int, Sequence[Any]]
"""A stage, the number of its filter, and what that is given."""
BACKENDS = {
    "cpu": ("openvino", "openvino-bf16", "openvino-fp32", "onnxruntime"),
    "cuda": ("torch",),
}
"""Those of each device that need no engine."""


@dataclass(frozen=True, slots=True)
class Share:
    """Medians over all rounds, in milliseconds a frame."""

    backend: str
    encoder: float
    filters: float
    both: float
    cpu: float
    """Of all cores together, for both."""


def measure(
    backends: Sequence[Backend], *, width: int, height: int, blurred: float, rounds: int
) -> list[Share]:
    """Each backend's share for a frame of which `blurred` (0..1) of the blocks are filtered."""
    grid = Grid(height, width)
    counts = _spread(round(blurred * grid.rows * grid.columns), backends[0])
    size = grid.rows * BLOCK, grid.columns * BLOCK
    rng = np.random.default_rng(0)
    luma = rng.integers(0, 256, (1, *size), np.uint8)
    around = rng.integers(0, 256, (2, size[0] // 2, size[1] // 2), np.uint8)
    cells = tuple(edge // CONTEXT_STRIDE for edge in size)
    motion = np.zeros((MOTION, *cells), np.float32)
    given = [_batches(each, counts) for each in backends]
    times: list[list[tuple[float, float, float]]] = [[] for _ in backends]
    for turn in range(rounds + 1):  # the first one prepares
        for backend, batches, spent in zip(backends, given, times, strict=True):
            busy, start = process_time(), perf_counter()
            _embed(backend, luma, around, motion)
            between = perf_counter()
            _apply(backend, batches)
            end = perf_counter()
            if turn:
                spent.append((between - start, end - between, process_time() - busy))
    return [_share(backend.name, spent) for backend, spent in zip(backends, times, strict=True)]


def _share(name: str, spent: Sequence[tuple[float, float, float]]) -> Share:
    encoder, filters, busy = (1e3 * np.array(each) for each in zip(*spent, strict=True))
    return Share(
        name, median(encoder), median(filters), median(encoder + filters), cpu=median(busy)
    )


def _spread(blocks: int, backend: Backend) -> list[int]:
    """How many blocks each filter gets: the same number, as far as it goes."""
    filters = len(backend.bundle.clusters) - 1
    return [(blocks + index) // filters for index in range(filters)]


def _on_device(stage: Backend) -> TypeGuard[DeviceBackend]:
    return stage.device != "cpu" and isinstance(stage, DeviceBackend)


def _embed(
    backend: Backend,
    luma: NDArray[np.uint8],
    around: NDArray[np.uint8],
    motion: NDArray[np.float32],
) -> None:
    """As the restorer does: the context stays on a device, and its latents are waited for."""
    first = stages_of(backend)[0]
    if _on_device(first):
        first.embed_tensors(luma, around, motion)
    else:
        first.embed(luma, around, motion)


def _apply(backend: Backend, given: Sequence[Batch]) -> None:
    for stage, cluster, blocks in given:
        if _on_device(stage):
            stage.apply_tensors(cluster, *blocks)
        else:
            stage.apply(cluster, *blocks)
    _wait(backend.device)


def _batches(backend: Backend, counts: Sequence[int]) -> list[Batch]:
    """What the filters are given for so many blocks of each cluster, where it will lie in a run."""
    given = list[Batch]()
    looks = sum(backend.bundle.looks)
    for stage in stages_of(backend):
        largest = LARGEST if _on_device(stage) else BATCH
        for cluster, count in enumerate((round(looks * each) for each in counts), start=1):
            for start in range(0, count, largest):
                blocks = _blocks(stage.bundle, min(largest, count - start))
                given.append((stage, cluster, _sent(blocks, stage)))
    return given


def _sent(blocks: Sequence[NDArray[Any]], stage: Backend) -> Sequence[Any]:
    if not _on_device(stage):
        return blocks
    import torch

    return [torch.from_numpy(each).to(stage.device) for each in blocks]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _blocks(
    bundle: Bundle, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """What a filter of the bundle is given."""
    edge = TILE // CONTEXT_STRIDE
    return (
        np.full((count, bundle.luma_planes, TILE, TILE), 99, np.uint8),
        np.full((count, bundle.chroma_planes, TILE // 2, TILE // 2), 128, np.uint8),
        np.zeros((count, bundle.context_channels, edge, edge), np.float32),
    )


@click.command()
@click.argument("backends", nargs=-1)
@click.option("--model", default="fast", show_default=True)
@click.option("--size", default="1280x720", show_default=True, metavar="WIDTHxHEIGHT")
@click.option("--blurred", type=Number(0, 1), default=0.3, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--device", type=click.Choice([*BACKENDS]), default="cpu", show_default=True)
def main(
    backends: tuple[str, ...], *, model: str, size: str, blurred: float, rounds: int, device: str
) -> None:
    """Compare BACKENDS (what is there without compiling, if none is named): the network alone."""
    width, height = map(int, size.split("x"))
    names = backends or BACKENDS[device]
    opened = [open_backend(model, device=device, backend=name) for name in names]
    shares = measure(opened, width=width, height=height, blurred=blurred, rounds=rounds)
    click.echo(f"{size}, {blurred:.0%} of the blocks filtered, medians of {rounds} rounds, ms")
    slowest, busiest = (max(each) for each in zip(*((s.both, s.cpu) for s in shares), strict=True))
    for share in shares:
        click.echo(
            f"{share.backend:24}encoder {share.encoder:7.1f}  filters {share.filters:7.1f}  "
            f"both {share.both:7.1f} ({slowest / share.both:.2f} times as fast as the slowest)  "
            f"CPU {share.cpu:7.1f} ({busiest / share.cpu:.2f} times)"
        )


if __name__ == "__main__":
    main()
