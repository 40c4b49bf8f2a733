"""What a training run depends on: a recipe in YAML, read into frozen values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vdeblur.model import FilterConfig, ModelConfig

from .data import ClipConfig

RECIPES = Path(__file__).parent / "recipes"
DECIBEL_WEIGHT = 0.03
"""What the log error weighs where a recipe does not say it."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One recipe; the numbers that a run depends on are all here."""

    name: str
    seed: int = 7
    model: ModelConfig = field(default_factory=ModelConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    pool: int = 3000
    """Clips rendered before and during training."""
    patch: int = 192
    """Edge of a training patch, a multiple of the block."""
    batch: int = 4
    """Patches a step."""
    warmup_steps: int = 12000
    """Steps in which the strongest filter alone learns, from all blocks."""
    steps: int = 40000
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-5
    misalignment: float = 0.5
    """Mean of the extra, exponential error of the neighbours' motion, in pixels."""
    harm_from: int = 0
    """The step from which harm to single blocks counts: who does nothing does no harm."""
    harm_weight: float = 0.05
    """Of what single blocks lose."""
    decibel_weight: float = DECIBEL_WEIGHT
    """Of the mean logarithm of the patches' squared errors."""
    rounded_from: int | None = None
    """The step from which weights and activations are rounded to 8 bits; None: never."""
    range_passes: int = 2
    """How often each range of the int8 graphs is fitted."""
    at_rest_share: float = 0.15
    """Patches that show the truth itself, which is to be left alone."""
    ends_share: float = 0.0
    """Patches that are of a clip's first or last frame, which lack a neighbour, beside those that
    chance draws."""
    begin: str | None = None
    """The shipped model whose weights a run begins with; its nets may be smaller."""
    first: str | None = None
    """The shipped model, or a bundle's folder, whose second stage this is."""
    filters_only: bool = False
    """The encoder and the clusters stay those that the run begins with, and so does what other
    models share of them; of a second stage it goes without saying."""
    readier: float = 0.0
    """By so much smaller than what leaves most sharp blocks alone, or than a first stage's, are the
    biases: blocks are tried more readily, since `min_change` tells which ones were in vain."""
    min_change: float | None = None
    """What must be changed of a block for that to be shown, or what a first stage must change of it
    for a second one to filter it, too; None: anything."""
    held_out: tuple[str, ...] = ()
    """Stems of the photos that are kept for evaluation."""

    @property
    def shared(self) -> bool:
        """Whether the encoder and the clusters are those of another model."""
        return self.filters_only or self.first is not None


def load_recipe(recipe: str | Path) -> TrainConfig:
    """Read a recipe by its name in the package or by its path.

    Raises FileNotFoundError for an unknown one, ValueError or TypeError for a wrong entry.
    """
    path = Path(recipe)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f"no recipe {recipe!r}; known are {known}, or give a .yaml file")
    return recipe_from(yaml.safe_load(path.read_text()))


def recipe_from(entries: dict[str, Any]) -> TrainConfig:
    """Build the nested values from plain lists and dictionaries."""
    entries = dict(entries)
    model = dict(entries.pop("model", None) or {})
    if "filters" in model:
        model["filters"] = tuple(FilterConfig(**each) for each in model["filters"])
    model["second_stage"] = entries.get("first") is not None
    clips: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in (entries.pop("clips", None) or {}).items()
    }
    return TrainConfig(
        model=ModelConfig(**model),
        clips=ClipConfig(**clips),
        held_out=tuple(entries.pop("held_out", ())),
        **entries,
    )
