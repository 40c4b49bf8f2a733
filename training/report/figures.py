"""Loss curves, scatter plots of the latents, and pictures before and after, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .evaluate import Result

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """The reconstruction loss of every phase of each experiment over its epochs."""
    figure, axes = _axes(len(results))
    for axis, result in zip(axes, results, strict=True):
        for phase, epochs in result.curves.items():
            losses = [each.get("reconstruction", each.get("contrastive", 0.0)) for each in epochs]
            axis.plot(range(1, len(losses) + 1), losses, marker=".", label=phase)
        axis.set(title=result.title, xlabel="epoch", ylabel="loss", yscale="log")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def draw_scatter(results: Sequence[Result], path: Path) -> None:
    """The latents of each experiment on their two principal axes."""
    figure, axes = _axes(len(results))
    for axis, result in zip(axes, results, strict=True):
        points = np.array(result.points)
        for label in np.unique(points[:, 2]):
            x, y, _ = points[points[:, 2] == label].T
            name = "clear" if label == 0 else "blurred"
            axis.scatter(x, y, s=3, color=COLOURS[int(label) % len(COLOURS)], label=name)
        axis.set(title=result.title, xlabel=f"silhouette {result.silhouette:.3f}")
        axis.set(xticks=[], yticks=[])
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def _axes(count: int):  # type: ignore[no-untyped-def]
    """A row of axes, four at most beside each other, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def side_by_side(pictures: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Pictures (H, W, 3) of one size in a row, with a white line between them."""
    import cv2

    white = np.full((len(pictures[0]), 4, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (picture, white)][:-1]
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(row, axis=1), cv2.COLOR_RGB2BGR))
