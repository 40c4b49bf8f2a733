"""The model bundle: the folder in which a trained network travels.

    config.json            name, format version, centroids, multiply-adds, recipe, measured quality
    encoder.onnx           luma (1, 1, H, W) and around (1, 2, H/2, W/2) uint8, motion
                           (not all look at all) -> context, latents
    filter_1.onnx ...      one per blurred cluster: blocks -> residuals
    encoder.int8.xml ...   the same graphs quantised for OpenVINO, with .bin files; may be missing
    weights.safetensors    the same weights for torch (half precision); may be missing

`Encoder` and `Filter` in `vdeblur.model` document the graphs' inputs and outputs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK, HALO, SEAM
from .clusters import Clusters
from .errors import ModelError

FORMAT = 4
MODELS = Path(__file__).parent / "models"
"""The bundles that ship with the package."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model on disk, checked but not loaded."""

    folder: Path
    name: str
    clusters: Clusters
    encoder_cost: float
    """Multiply-adds of the encoder per luma pixel."""
    filter_costs: tuple[float, ...]
    """Multiply-adds of each filter per luma pixel of the blocks that it filters."""
    context_channels: int
    """Of what the encoder gives the filters for each cell."""
    colour_frames: int = 1
    """Whose colours the filters see: 1, only t's; 3, also those of t-1, as restored, and of t+1."""
    card: dict[str, Any] = field(default_factory=dict)
    """Recipe and measured quality, for people."""

    def graph(self, part: str, kind: str = "onnx") -> Path:
        """The file of 'encoder' or 'filter_1' ... as 'onnx' or 'int8.xml'."""
        return self.folder / f"{part}.{kind}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its graphs."""
        return ("encoder", *(f"filter_{k}" for k in range(1, len(self.clusters))))

    @property
    def has_weights(self) -> bool:
        """Whether torch can run it, which a GPU needs."""
        return (self.folder / "weights.safetensors").is_file()

    @property
    def quantised(self) -> bool:
        """Whether every graph has an int8 version."""
        return all(self.graph(part, "int8.xml").is_file() for part in self.parts)


def shipped() -> list[str]:
    """The names of the bundles inside the package."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def read_bundle(model: str | Path) -> Bundle:
    """Find a bundle by its name in the package or by its folder; ModelError if that fails.

    A folder that is called like a shipped model is written ./fast.
    """
    folder = MODELS / model if model in shipped() else Path(model)
    if not (folder / "config.json").is_file():
        known = ", ".join(shipped()) or "none"
        raise ModelError(f"no model {str(model)!r}: shipped are {known}; or give a bundle's folder")
    try:
        config = json.loads((folder / "config.json").read_text())
        bundle = _parse(folder, config)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the model in {folder} has a damaged config.json: {error}") from error
    for part in bundle.parts:
        if not bundle.graph(part).is_file():
            raise ModelError(f"the model in {folder} lacks {part}.onnx")
    return bundle


def _parse(folder: Path, config: dict[str, Any]) -> Bundle:
    if config["format"] != FORMAT:
        raise ModelError(
            f"the model in {folder} has format {config['format']}, this version reads {FORMAT}"
        )
    geometry = {"block": BLOCK, "halo": HALO, "seam": SEAM}
    if config["geometry"] != geometry:
        raise ModelError(f"the model in {folder} has blocks {config['geometry']}, not {geometry}")
    clusters = Clusters(
        np.array(config["centroids"], dtype=np.float32),
        float(config["stiffness"]),
        np.array(config["biases"], dtype=np.float32),
    )
    return Bundle(
        folder,
        config["name"],
        clusters,
        float(config["encoder_cost"]),
        tuple(float(cost) for cost in config["filter_costs"]),
        int(config["context_channels"]),
        int(config.get("colour_frames", 1)),
        config.get("card", {}),
    )


def write_config(
    folder: Path,
    name: str,
    clusters: Clusters,
    *,
    encoder_cost: float,
    filter_costs: Sequence[float],
    context_channels: int,
    colour_frames: int = 1,
    card: dict[str, Any],
) -> None:
    """Write a bundle's config.json; the graphs are laid beside it by training."""
    config = {
        "format": FORMAT,
        "name": name,
        "geometry": {"block": BLOCK, "halo": HALO, "seam": SEAM},
        "stiffness": clusters.stiffness,
        "biases": [float(bias) for bias in clusters.biases],
        "centroids": [[round(float(x), 6) for x in row] for row in clusters.centroids],
        "encoder_cost": encoder_cost,
        "filter_costs": list(filter_costs),
        "context_channels": context_channels,
        "colour_frames": colour_frames,
        "card": card,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def encoder_inputs(
    luma: NDArray[np.uint8], around: NDArray[np.uint8], motion: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """An encoder's inputs by the names that they have in its graph, as a batch of one."""
    return {"luma": luma[None], "around": around[None], "motion": motion[None]}
