"""Train one experiment as the report does (sections 2.2 and 3.2.1), top to bottom.

Encoder and one decoder learn together, with the clustering loss; then the clusters are fitted and
named; then each filter learns from the blocks of its own cluster, and the control, a single
filter, from all of them. Filters and control begin as the first decoder and see every block as
often, so that only the split sets them apart. The encoder rests by then, and latents are computed
once; or, in a joint run, it learns on with the filters, and a copy of it with the control. A run
is resumed from its checkpoint after every epoch.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import losses, soft_kmeans
from .data import Pairs
from .networks import (
    ClusterHead,
    ConvEncoder,
    ConvFilter,
    MirrorFilter,
    ResNetEncoder,
    ResNetFeatures,
    VaeFeatures,
    VariationalEncoder,
    VggFeatures,
    sample,
)
from .recipe import Experiment

EMBEDDING = ("contrastive", "encoder")
"""The phases in which the encoder learns."""
STIFFNESS = 8.0
"""Of the soft k-means while the encoder learns, and after."""
FOLLOWING = 0.05
"""How far the centroids move towards those of each batch, since latents drift while they learn."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    phase: str
    """'contrastive', 'encoder', 'single', 'filter 0' ..."""
    number: int
    of: int
    losses: dict[str, float]
    seconds: float


class Parts(nn.Module):
    """All networks of one experiment; the checkpoint holds their state."""

    def __init__(self, experiment: Experiment, vgg16: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        channels = 1 if "mnist" in experiment.data.train else 3
        block = experiment.data.block
        self.encoder = make_encoder(experiment, channels)
        latent_dim: int = self.encoder.latent_dim  # type: ignore[assignment]
        if experiment.network == "conv":
            self.filters = nn.ModuleList(
                ConvFilter(block, channels, latent_dim) for _ in range(1 + experiment.n_clusters)
            )
        else:
            self.filters = nn.ModuleList(
                MirrorFilter(channels, latent_dim) for _ in range(1 + experiment.n_clusters)
            )
        self.head = ClusterHead(latent_dim, experiment.n_clusters)
        if experiment.joint_epochs:
            self.joint = nn.ModuleDict(
                {phase: make_encoder(experiment, channels) for phase in experiment.restoring}
            )
        if vgg16 is not None and isinstance(self.encoder, VariationalEncoder):
            features = next(m for m in self.encoder.modules() if isinstance(m, VggFeatures))
            features.load_weights(vgg16)

    @property
    def single(self) -> nn.Module:
        """The first decoder, then the control."""
        first: nn.Module = self.filters[0]
        return first

    def filter(self, cluster: int) -> nn.Module:
        """The filter of a cluster."""
        mine: nn.Module = self.filters[1 + cluster]
        return mine

    def encoder_of(self, phase: str) -> nn.Module:
        """What 'control' and 'filters' decode: the encoder, or a copy that learnt on with them."""
        joint = getattr(self, "joint", None)
        mine: nn.Module = self.encoder if joint is None else joint[phase]
        return mine

    def decoders(self, phase: str) -> list[nn.Module]:
        """Those that 'control' or 'filters' trains."""
        return [self.single] if phase == "control" else list(self.filters)[1:]

    def filter_of(self, phase: str) -> nn.Module:
        """What 'single', 'filter 0' ... trains."""
        return self.single if phase == "single" else self.filter(int(phase.split()[1]))

    def inherit(self) -> None:
        """Let every filter begin as the first decoder, and each copy of the encoder as that."""
        for each in list(self.filters)[1:]:
            each.load_state_dict(self.single.state_dict())
        for copied in getattr(self, "joint", nn.ModuleDict()).values():
            copied.load_state_dict(self.encoder.state_dict())


def make_encoder(experiment: Experiment, channels: int) -> nn.Module:
    """The encoder that a recipe names."""
    if experiment.network == "conv":
        return ConvEncoder(experiment.data.block, channels)
    if experiment.network == "resnet":
        return ResNetEncoder(channels)
    if experiment.network == "vae":
        return VariationalEncoder(VaeFeatures(channels))
    if experiment.network == "resnet-vae":
        return VariationalEncoder(ResNetFeatures(channels))
    return VariationalEncoder(VggFeatures(), hidden=16)


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished experiment: what embeds, clusters and filters."""

    experiment: Experiment
    parts: Parts
    kmeans: soft_kmeans.SoftKMeans
    names: tuple[int, ...]
    """The name of each cluster: see `soft_kmeans.named`."""
    curves: dict[str, list[dict[str, float]]]
    """Losses of every epoch, by phase."""
    seconds: float
    """Of training."""

    def assign(self, latents: Floats) -> NDArray[np.int64]:
        """(N, D) -> (N,): named clusters."""
        if self.experiment.clustering == "n-cut":
            with torch.inference_mode():
                labels = self.parts.head(torch.from_numpy(latents)).argmax(dim=1).numpy()
        else:
            labels = self.kmeans.assign(latents)
        named: NDArray[np.int64] = np.array(self.names)[labels]
        return named

    def restore(self, blocks: Bytes, labels: NDArray[np.int64] | None) -> Floats:
        """(N, E, E, C) -> the same in 0..1: by each block's filter, or by the control."""
        phase = "control" if labels is None else "filters"
        latents = embed(self.parts.encoder_of(phase), blocks)
        if labels is None:
            return decode(self.parts.single, latents)
        restored = np.empty(0, np.float32)
        for cluster in range(self.experiment.n_clusters):
            rows = labels == cluster
            if not rows.any():
                continue
            mine = decode(self.parts.filter(cluster), latents[rows])
            if not len(restored):
                restored = np.empty((len(latents), *mine.shape[1:]), np.float32)
            restored[rows] = mine
        return restored


def as_input(blocks: Bytes) -> Tensor:
    """(N, E, E, C) bytes -> (N, C, E, E) in 0..1, channels last in memory."""
    return torch.from_numpy(blocks).permute(0, 3, 1, 2).float().div_(255)


def embed(encoder: nn.Module, blocks: Bytes, batch: int = 1024) -> Floats:
    """(N, E, E, C) -> (N, D), batch norms at rest."""
    encoder.eval()
    with torch.inference_mode():
        parts = [
            encoder(as_input(blocks[start : start + batch])).numpy()
            for start in range(0, len(blocks), batch)
        ]
    return np.concatenate(parts)


def decode(network: nn.Module, latents: Floats, batch: int = 1024) -> Floats:
    """(N, D) -> (N, E, E, C) in 0..1."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(latents[start : start + batch])).permute(0, 2, 3, 1).numpy()
            for start in range(0, len(latents), batch)
        ]
    return np.concatenate(parts)


class Run:
    """A run of one experiment: `epochs` trains and yields, `finish` hands over what was learned."""

    def __init__(
        self,
        experiment: Experiment,
        training: Pairs,
        out: Path,
        *,
        vgg16: dict[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(experiment.seed)
        self.experiment, self.out = experiment, out
        self.parts: Parts = Parts(experiment, vgg16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.noisy, self.clean = training.blocks()
        self.degraded = training.degraded_share()
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.seconds = 0.0
        self.kmeans: soft_kmeans.SoftKMeans | None = None
        self.names: tuple[int, ...] = ()
        self._optimizer: tuple[str, dict[str, Any]] | None = None
        self._resume()

    def epochs(self, deadline: float = math.inf) -> Iterator[Epoch]:
        """Train what is left to train, up to `deadline` on `time.monotonic`'s clock."""
        experiment = self.experiment
        for phase in EMBEDDING:
            yield from self._phase(phase, self._embedding_epoch, deadline)
        if self.kmeans is None and self._finished("encoder"):
            self._find_clusters()
        latents = embed(self.parts.encoder, self.noisy)
        labels = self._labels(latents)
        everything = np.arange(len(latents))
        if experiment.joint_epochs:
            yield from self._phase("control", JointEpoch(self, np.zeros_like(labels)), deadline)
            yield from self._phase("filters", JointEpoch(self, labels), deadline)
            return
        rows = {"single": everything} | {
            f"filter {k}": everything[labels == k] for k in range(experiment.n_clusters)
        }
        for phase, mine in rows.items():
            yield from self._phase(phase, FilterEpoch(self, latents, mine), deadline)

    def finish(self) -> Trained:
        """What has been learned; RuntimeError before the clusters are found."""
        if self.kmeans is None:
            raise RuntimeError("the encoder has not been trained to its end")
        return Trained(
            self.experiment, self.parts.eval(), self.kmeans, self.names, self.curves, self.seconds
        )

    def planned(self, phase: str) -> int:
        """Epochs of a phase."""
        experiment = self.experiment
        return {
            "contrastive": experiment.contrastive_epochs,
            "encoder": experiment.epochs,
        }.get(phase, experiment.restoring_epochs)

    def _finished(self, phase: str) -> bool:
        return len(self.curves.get(phase, [])) >= self.planned(phase)

    def _phase(self, phase: str, epoch: Any, deadline: float) -> Iterator[Epoch]:
        if self._finished(phase):
            return
        experiment, first = self.experiment, len(self.curves.get(phase, []))
        trained = self._trained_in(phase)
        optimizer = torch.optim.Adam(trained.parameters(), experiment.learning_rate, fused=True)
        if self._optimizer is not None and self._optimizer[0] == phase:
            optimizer.load_state_dict(self._optimizer[1])
        self._optimizer = None
        joint = phase in ("control", "filters")
        rate = experiment.joint_learning_rate if joint else experiment.learning_rate
        decay = experiment.joint_decay if joint else experiment.decay
        for number in range(first, self.planned(phase)):
            if time.monotonic() > deadline:
                raise TimeoutError(phase)
            for group in optimizer.param_groups:
                group["lr"] = rate * decay**number
            began = time.monotonic()
            order = np.random.default_rng([experiment.seed, len(phase), number])
            torch.manual_seed(experiment.seed * 1000 + number)
            means = epoch(phase, optimizer, order)
            seconds = time.monotonic() - began
            self.seconds += seconds
            self.curves.setdefault(phase, []).append(means)
            self._save((phase, optimizer.state_dict()))
            yield Epoch(phase, number + 1, self.planned(phase), means, seconds)

    def _trained_in(self, phase: str) -> nn.Module:
        parts = self.parts
        if phase == "contrastive":
            return parts.encoder
        if phase == "encoder":
            return nn.ModuleList([parts.encoder, parts.single, parts.head])
        if phase in ("control", "filters"):
            return nn.ModuleList([parts.encoder_of(phase), *parts.decoders(phase)])
        return parts.filter_of(phase)

    def _embedding_epoch(
        self, phase: str, optimizer: torch.optim.Optimizer, order: np.random.Generator
    ) -> dict[str, float]:
        self.parts.train()
        step = self._contrastive_step if phase == "contrastive" else self._encoder_step
        centroids = self._rough_centroids(order) if phase == "encoder" else None
        return run_epoch(
            self.batches(np.arange(len(self.noisy)), order),
            lambda rows: step(rows, centroids),
            optimizer,
        )

    def batches(
        self, rows: NDArray[np.intp], order: np.random.Generator
    ) -> Iterator[NDArray[np.intp]]:
        """All rows once, shuffled; a last batch of one would break the batch norms."""
        shuffled, batch = order.permutation(rows), self.experiment.batch
        for start in range(0, len(shuffled), batch):
            if len(shuffled) - start > 1:
                yield shuffled[start : start + batch]

    def _contrastive_step(
        self, rows: NDArray[np.intp], centroids: Tensor | None
    ) -> dict[str, Tensor]:
        encoder = self.parts.encoder
        noisy, clean = as_input(self.noisy[rows]), as_input(self.clean[rows])
        return {"contrastive": losses.contrastive_loss(encoder(noisy), encoder(clean))}

    def _encoder_step(self, rows: NDArray[np.intp], centroids: Tensor | None) -> dict[str, Tensor]:
        experiment, parts = self.experiment, self.parts
        noisy, clean = as_input(self.noisy[rows]), as_input(self.clean[rows])
        found: dict[str, Tensor] = {}
        if isinstance(parts.encoder, VariationalEncoder):
            mean, log_variance = parts.encoder.distribution(noisy)
            latents = sample(mean, log_variance)
            divergence = losses.latent_divergence(mean, log_variance)
            found["latent"] = experiment.latent_weight * divergence
        else:
            mean = latents = parts.encoder(noisy)
        restored = parts.single(latents)
        found["reconstruction"] = losses.reconstruction_loss(restored, clean, experiment.kl_weight)
        if experiment.cluster_weight:
            found["clusters"] = experiment.cluster_weight * self._cluster_loss(mean, centroids)
        if experiment.regularisation:
            found["regularisation"] = losses.regularisation(parts, experiment.regularisation)
        return found

    def _cluster_loss(self, latents: Tensor, centroids: Tensor | None) -> Tensor:
        if self.experiment.clustering == "n-cut":
            return losses.soft_normalized_cut(self.parts.head(latents), losses.affinities(latents))
        assert centroids is not None
        with torch.no_grad():
            distances = torch.cdist(latents, centroids).square()
            variance = latents.var(dim=0).sum().clamp_min(1e-12)
            shares = (-STIFFNESS * distances / variance).softmax(dim=1)
            centroids.lerp_(losses.centroids_of(latents, shares), FOLLOWING)
        return losses.compactness(latents, shares)

    def _rough_centroids(self, order: np.random.Generator) -> Tensor:
        """Where the clusters are as an epoch begins, from some of the blocks."""
        rows = order.choice(len(self.noisy), min(4096, len(self.noisy)), replace=False)
        latents = embed(self.parts.encoder, self.noisy[rows])
        self.parts.train()
        known = self._known()[rows]
        return torch.from_numpy(self._fit(latents, known).centroids)

    def _known(self) -> NDArray[np.int64]:
        """(N,): for a few blocks whether they are blurred, for all others -1."""
        order = np.random.default_rng([self.experiment.seed, 99])
        known = np.where(self.degraded > 0.5, soft_kmeans.BLURRED, soft_kmeans.CLEAR)
        hidden = order.random(len(known)) >= self.experiment.known_share
        return np.where(hidden, -1, known)

    def _fit(self, latents: Floats, known: NDArray[np.int64]) -> soft_kmeans.SoftKMeans:
        """Begin at the means of the known blocks, where both kinds are among them."""
        groups = [latents[known == name] for name in (soft_kmeans.CLEAR, soft_kmeans.BLURRED)]
        two = self.experiment.n_clusters == 2 and all(len(group) for group in groups)
        start = np.stack([group.mean(axis=0) for group in groups]) if two else None
        return soft_kmeans.fit(
            latents,
            self.experiment.n_clusters,
            stiffness=STIFFNESS,
            start=start,
            seed=self.experiment.seed,
        )

    def _fit_seeded(self, latents: Floats, known: NDArray[np.int64]) -> soft_kmeans.SoftKMeans:
        axes = soft_kmeans.discriminant(latents, known)
        return replace(self._fit(latents @ axes, known), axes=axes)

    def _find_clusters(self) -> None:
        latents, known = embed(self.parts.encoder, self.noisy), self._known()
        seeded = self.experiment.clustering == "seeded k-means"
        self.kmeans = (self._fit_seeded if seeded else self._fit)(latents, known)
        plain = Trained(
            self.experiment,
            self.parts,
            self.kmeans,
            tuple(range(self.experiment.n_clusters)),
            {},
            0.0,
        )
        labels = plain.assign(latents)
        self.names = tuple(soft_kmeans.named(labels, known, self.experiment.n_clusters))
        self.parts.inherit()
        self._save(None)

    def _labels(self, latents: Floats) -> NDArray[np.int64]:
        return self.finish().assign(latents)

    def _save(self, optimizer: tuple[str, dict[str, Any]] | None) -> None:
        """Write everything that is needed to go on, complete or not at all."""
        self.out.mkdir(parents=True, exist_ok=True)
        kmeans = self.kmeans
        state = {
            "parts": self.parts.state_dict(),
            "optimizer": optimizer,
            "curves": self.curves,
            "seconds": self.seconds,
            "names": list(self.names),
            "kmeans": kmeans
            and (torch.from_numpy(kmeans.centroids), kmeans.stiffness, kmeans.variance),
            "axes": kmeans and kmeans.axes is not None and torch.from_numpy(kmeans.axes),
        }
        partial = self.out / "checkpoint.part"
        torch.save(state, partial)
        partial.replace(self.out / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.parts.load_state_dict(state["parts"])
        self.curves, self.seconds = state["curves"], state["seconds"]
        self._optimizer, self.names = state["optimizer"], tuple(state["names"])
        self.kmeans = _kmeans_from(state)


def _kmeans_from(state: dict[str, Any]) -> soft_kmeans.SoftKMeans | None:
    if not state["kmeans"]:
        return None
    centroids, stiffness, variance = state["kmeans"]
    axes = state.get("axes")
    found = soft_kmeans.SoftKMeans(centroids.numpy(), stiffness, variance)
    return found if axes is None or axes is False else replace(found, axes=axes.numpy())


def adopt(experiment: Experiment, finished: Path, out: Path) -> None:
    """Let the run `out`, if it has not begun, begin with the encoder and control of another."""
    if (out / "checkpoint.pt").exists() or not (finished / "checkpoint.pt").exists():
        return
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    learnt = {key: state["curves"][key] for key in EMBEDDING if key in state["curves"]}
    parts = Parts(experiment)
    parts.load_state_dict(state["parts"], strict=False)  # what only a joint run has comes later
    out.mkdir(parents=True, exist_ok=True)
    begun: dict[str, Any] = {
        "parts": parts.state_dict(),
        "curves": learnt,
        "optimizer": None,
        "names": [],
        "kmeans": None,
        "axes": None,
    }
    torch.save(state | begun, out / "checkpoint.pt")


def load_trained(experiment: Experiment, out: Path) -> Trained:
    """Read a run's checkpoint without its data; RuntimeError if it holds no clusters yet."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    kmeans = _kmeans_from(state)
    if kmeans is None:
        raise RuntimeError(f"the run {out} has not found its clusters yet")
    parts = Parts(experiment)
    parts.load_state_dict(state["parts"])
    names = tuple(state["names"])
    return Trained(experiment, parts.eval(), kmeans, names, state["curves"], state["seconds"])


@dataclass(frozen=True, slots=True)
class FilterEpoch:
    """One epoch of one filter on its own rows, from latents that no longer change."""

    run: Run
    latents: Floats
    rows: NDArray[np.intp]

    def __call__(
        self, phase: str, optimizer: torch.optim.Optimizer, order: np.random.Generator
    ) -> dict[str, float]:
        """Train and return the mean losses."""
        run = self.run
        network = run.parts.filter_of(phase)
        network.train()

        def step(rows: NDArray[np.intp]) -> dict[str, Tensor]:
            restored = network(torch.from_numpy(self.latents[rows]))
            clean = as_input(run.clean[rows])
            experiment = run.experiment
            return {
                "reconstruction": losses.reconstruction_loss(restored, clean, experiment.kl_weight),
                "regularisation": losses.regularisation(network, experiment.regularisation),
            }

        return run_epoch(run.batches(self.rows, order), step, optimizer)


@dataclass(frozen=True, slots=True)
class JointEpoch:
    """One epoch of an encoder and the decoders behind it, each on the blocks of its own cluster."""

    run: Run
    labels: NDArray[np.int64]

    def __call__(
        self, phase: str, optimizer: torch.optim.Optimizer, order: np.random.Generator
    ) -> dict[str, float]:
        """Train and return the mean losses."""
        run, experiment = self.run, self.run.experiment
        encoder, decoders = run.parts.encoder_of(phase), run.parts.decoders(phase)
        trained = nn.ModuleList([encoder, *decoders]).train()

        def step(rows: NDArray[np.intp]) -> dict[str, Tensor]:
            rows = rows[np.argsort(self.labels[rows], kind="stable")]
            latents = encoder(as_input(run.noisy[rows]))
            sizes = np.bincount(self.labels[rows], minlength=len(decoders)).tolist()
            parts = zip(decoders, latents.split(sizes), strict=True)
            restored = torch.cat([decoder(part) for decoder, part in parts if len(part)])
            clean = as_input(run.clean[rows])
            return {
                "reconstruction": losses.reconstruction_loss(restored, clean, experiment.kl_weight),
                "regularisation": losses.regularisation(trained, experiment.regularisation),
            }

        everything = np.arange(len(self.labels))
        return run_epoch(run.batches(everything, order), step, optimizer)


def run_epoch(batches: Any, step: Any, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Go through the batches once and return the mean of each loss.

    Raises FloatingPointError if one is not finite.
    """
    sums: dict[str, float] = {}
    count = 0
    for rows in batches:
        found = step(rows)
        loss = sum(found.values(), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        count += 1
    means = {key: value / max(count, 1) for key, value in sums.items()}
    if not all(math.isfinite(value) for value in means.values()):
        raise FloatingPointError(f"the loss is no longer finite: {means}")
    return means


def shortened(experiment: Experiment, epochs: int | None, filters: int | None) -> Experiment:
    """The same experiment with at most so many epochs of the encoder and of the filters."""
    most = epochs or math.inf
    return replace(
        experiment,
        epochs=int(min(most, experiment.epochs)),
        filter_epochs=int(min(filters or most, experiment.filter_epochs)),
        joint_epochs=int(min(filters or most, experiment.joint_epochs)),
        contrastive_epochs=int(min(most, experiment.contrastive_epochs)),
    )
