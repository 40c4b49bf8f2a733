"""The model bundle: the folder in which a trained network travels.

    config.json            name, format version, centroids, multiply-adds, recipe, measured quality
    encoder.onnx           luma (1, 1, H, W) and around (1, 2, H/2, W/2) uint8, motion
                           (not all look at all) -> context, latents
    filter_1.onnx ...      one per blurred cluster: blocks -> residuals
    encoder.int8.xml ...   the same graphs quantised for OpenVINO, with .bin files; may be missing
    weights.safetensors    the same weights for torch (half precision); may be missing

A second stage has no encoder, neither as graphs nor as weights: its filters see what those of its
first stage, another bundle that `first` in config.json names, have made of the video, and share
that one's encoder and clusters.

`Encoder` and `Filter` in `vdeblur.model` document the graphs' inputs and outputs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import AHEAD, BLOCK, TILE, WAITING, WINDOW
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
    """Multiply-adds of the encoder per luma pixel; a second stage has none."""
    filter_costs: tuple[float, ...]
    """Multiply-adds of each filter per luma pixel of the blocks that it filters, one way."""
    context_channels: int
    """Of what the encoder gives the filters for each cell."""
    colour_frames: int = 1
    """Whose colours the filters see: 1, only t's; 3, also those of t-1, as restored, and of t+1."""
    both_ways: bool = False
    """Whether filters, those of a first stage, too, look at each block also turned by half."""
    bidirectional: bool = False
    """Whether these also go from later frames to earlier ones: see `backwards`."""
    card: dict[str, Any] = field(default_factory=dict)
    """Recipe and measured quality, for people."""
    first: "Bundle | None" = None
    """The first stage, where this is a second one."""
    min_change: float | None = None
    """What a first stage must change of a block for the second one to filter it, too, or a single
    stage for that to be shown (see `change.relative_change`); None: the encoder alone decides."""

    def graph(self, part: str, kind: str = "onnx") -> Path:
        """The file of 'encoder' or 'filter_1' ... as 'onnx' or 'int8.xml'."""
        return self.folder / f"{part}.{kind}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its own graphs."""
        filters = tuple(f"filter_{k}" for k in range(1, len(self.clusters)))
        return filters if self.first is not None else ("encoder", *filters)

    @property
    def stages(self) -> "tuple[Bundle, ...]":
        """All that must run: the first stage, if there is one, and this."""
        return (self,) if self.first is None else (self.first, self)

    @property
    def luma_planes(self) -> int:
        """Pictures whose luma a filter sees."""
        return 3 if self.first is None else 5

    @property
    def chroma_planes(self) -> int:
        """Planes of chroma that a filter sees."""
        return 2 * self.colour_frames + (0 if self.first is None else 4)

    def multiply_adds(self, shares: Sequence[Sequence[float]]) -> float:
        """Per luma pixel of a frame of whose blocks, in each stage, each cluster has a share.

        The clear one comes first. Only what passes on to the last stage is filtered backwards.
        """
        forth, back = self.looks
        passed = np.array(shares[-1][1:])
        filters = sum(
            float(np.dot(forth * np.array(given[1:]) + back * passed, each.filter_costs))
            for each, given in zip(self.stages, shares, strict=True)
        )
        return self.stages[0].encoder_cost + filters

    @property
    def looks(self) -> tuple[float, float]:
        """How often filters look at a block that they filter, going forth and going back."""
        return 2.0 if self.both_ways else 1.0, 1 + AHEAD / WINDOW if self.bidirectional else 0.0

    def held(self, *, low_delay: bool = False) -> int:
        """Frames that are held back beside the one that a network always waits for.

        For a `low_delay` no filters go backwards in time.
        """
        back = self.bidirectional and not low_delay
        return len(self.stages) - 1 + WAITING * len(self.stages) * back

    @property
    def has_weights(self) -> bool:
        """Whether torch can run it, which a GPU needs."""
        return all((each.folder / "weights.safetensors").is_file() for each in self.stages)

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
    try:
        written = (folder / "config.json").read_text()
    except PermissionError as error:
        raise ModelError(f"the model {str(model)!r} may not be read: permission denied") from error
    except OSError as error:
        known = ", ".join(shipped()) or "none"
        raise ModelError(
            f"no model {str(model)!r}: shipped are {known}; or give a bundle's folder"
        ) from error
    try:
        config = json.loads(written)
        first = None if config.get("first") is None else _first_of(folder, config)
        bundle = _parse(folder, config, first)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the model in {folder} has a damaged config.json: {error}") from error
    for part in bundle.parts:
        if not bundle.graph(part).is_file():
            raise ModelError(f"the model in {folder} lacks {part}.onnx")
    return bundle


def _parse(folder: Path, config: dict[str, Any], first: Bundle | None) -> Bundle:
    if config["format"] != FORMAT:
        raise ModelError(
            f"the model in {folder} has format {config['format']}, this version reads {FORMAT}"
        )
    geometry = {"block": BLOCK, "tile": TILE}
    if config["geometry"] != geometry:
        raise ModelError(f"the model in {folder} has blocks {config['geometry']}, not {geometry}")
    clusters = Clusters(
        np.array(config["centroids"], dtype=np.float32),
        float(config["stiffness"]),
        np.array(config["biases"], dtype=np.float32),
    )
    bundle = Bundle(
        folder,
        config["name"],
        clusters,
        encoder_cost=float(config["encoder_cost"]),
        filter_costs=tuple(float(cost) for cost in config["filter_costs"]),
        context_channels=int(config["context_channels"]),
        colour_frames=int(config.get("colour_frames", 1)),
        both_ways=bool(config.get("both_ways", False)),
        bidirectional=bool(config.get("bidirectional", False)),
        card=config.get("card", {}),
        first=first,
        min_change=_min_change(config),
    )
    if first is not None and not _fit(first, bundle):
        raise ModelError(f"the model in {folder} does not fit {first.name}, which comes before it")
    return bundle


def _min_change(config: dict[str, Any]) -> float | None:
    told = config.get("min_change")
    return None if told is None else float(told)


def _first_of(folder: Path, config: dict[str, Any]) -> Bundle:
    """The bundle that comes first: a shipped one, or a folder as seen from beside this one."""
    name = str(config["first"])
    place = MODELS / name if name in shipped() else folder.resolve().parent / name
    if (place / "config.json").is_file():
        told = json.loads((place / "config.json").read_text())
        if told.get("first") is not None:
            raise ModelError(f"the model in {folder} follows {name}, which is a second stage, too")
    return read_bundle(place)


def _fit(first: Bundle, second: Bundle) -> bool:
    """Whether the second one was made for the first one's encoder; biases may differ."""
    ours, theirs = first.clusters, second.clusters
    return (
        np.array_equal(ours.centroids, theirs.centroids)
        and ours.stiffness == theirs.stiffness
        and first.context_channels == second.context_channels
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
    both_ways: bool = False,
    bidirectional: bool = False,
    first: str | None = None,
    min_change: float | None = None,
    card: dict[str, Any],
) -> None:
    """Write a bundle's config.json; the graphs are laid beside it by training.

    `first` is the bundle whose second stage it is: a shipped one's name, or a folder as seen from
    beside this one.
    """
    config = {
        "format": FORMAT,
        "name": name,
        "geometry": {"block": BLOCK, "tile": TILE},
        "stiffness": clusters.stiffness,
        "biases": [float(bias) for bias in clusters.biases],
        "centroids": [[round(float(x), 6) for x in row] for row in clusters.centroids],
        "encoder_cost": encoder_cost,
        "filter_costs": list(filter_costs),
        "context_channels": context_channels,
        "colour_frames": colour_frames,
        "both_ways": both_ways,
        "bidirectional": bidirectional,
        **({} if first is None else {"first": first}),
        **({} if min_change is None else {"min_change": min_change}),
        "card": card,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def encoder_inputs(
    luma: NDArray[np.uint8], around: NDArray[np.uint8], motion: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """An encoder's inputs by the names that they have in its graph, as a batch of one."""
    return {"luma": luma[None], "around": around[None], "motion": motion[None]}
