"""What an experiment depends on: a recipe in YAML, read into frozen values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from .data import DataConfig
from .noise import NoiseConfig

RECIPES = Path(__file__).parent / "recipes"

Network = Literal["conv", "vae", "resnet-vae", "resnet", "vgg16-vae"]
Clustering = Literal["soft k-means", "seeded k-means", "n-cut"]
"""Seeded: along the discriminant of the few blocks that are known to be blurred or clear."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of the report's table; the numbers that a run depends on are all here."""

    name: str
    title: str
    """As in the table."""
    network: Network
    clustering: Clustering
    data: DataConfig
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    noise_psnr: tuple[float, float] | None = None
    """Where the mean PSNR of the noisy training pictures must lie, in decibels."""
    seed: int = 1
    epochs: int = 100
    """Of encoder and decoder together, in which also the clusters form."""
    filter_epochs: int = 100
    """Of the filters and of the single-filter control, from the first decoder onwards."""
    joint_epochs: int = 0
    """If not 0, `filter_epochs` do not count: the encoder learns on together with the filters, a
    copy of it with the control, so many epochs each. The clusters stay as they were found."""
    joint_learning_rate: float = 5e-4
    joint_decay: float = 0.8
    contrastive_epochs: int = 0
    """Of pre-training the encoder on pairs of noisy and clean blocks."""
    batch: int = 128
    learning_rate: float = 1e-3
    decay: float = 0.9
    """The learning rate is multiplied by it after each epoch."""
    kl_weight: float = 1.0
    """Of the divergence of equation 2."""
    latent_weight: float = 1e-3
    """Of the VAE's divergence."""
    cluster_weight: float = 1e-3
    """Of the clustering loss."""
    regularisation: float = 1e-9
    """L1 and L2 of every layer; at 1e-6 they already outweigh the squared error."""
    known_share: float = 0.05
    """Of the training blocks: how many say whether they are blurred, to name the clusters."""
    n_clusters: int = 2
    encoder_of: str = ""
    """Another experiment: begin with its encoder and its control, if it has been trained."""

    @property
    def restoring(self) -> tuple[str, ...]:
        """The phases in which the control and the filters learn."""
        if self.joint_epochs:
            return ("control", "filters")
        return ("single", *(f"filter {k}" for k in range(self.n_clusters)))

    @property
    def restoring_epochs(self) -> int:
        """Of each of them."""
        return self.joint_epochs or self.filter_epochs

    def __post_init__(self) -> None:
        for value, known in ((self.network, Network), (self.clustering, Clustering)):
            if value not in get_args(known):
                raise ValueError(f"{value!r} is none of {', '.join(get_args(known))}")


def known_recipes() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_experiment(recipe: str | Path) -> Experiment:
    """Read a recipe by its name in the package or by its path.

    Raises FileNotFoundError for an unknown one, ValueError or TypeError for a wrong entry.
    """
    path = Path(recipe)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"no experiment {str(recipe)!r}; known are {', '.join(known_recipes())}, "
            "or give a .yaml file"
        )
    return experiment_from(yaml.safe_load(path.read_text()))


def experiment_from(entries: dict[str, Any]) -> Experiment:
    """Build the nested values from plain lists and dictionaries."""
    entries = dict(entries)
    noise: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in (entries.pop("noise", None) or {}).items()
    }
    expected = entries.pop("noise_psnr", None)
    return Experiment(
        data=DataConfig(**entries.pop("data")),
        noise=NoiseConfig(**noise),
        noise_psnr=tuple(expected) if expected else None,
        **entries,
    )
