"""What the report minimises, equation by equation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST = 1 / 512
"""Half of an 8-bit step: what counts as black in a distribution."""


def divergence(restored: Tensor, sharp: Tensor) -> Tensor:
    """Equation 2, as a mean over blocks: the Kullback-Leibler divergence KL(sharp || restored).

    Pixel values are no distribution, and log 0 is not finite. It is made well-defined by raising
    values to `SMALLEST` at least and dividing each block by its sum, so that its C * E * E values
    are the probabilities of one distribution. It is then never negative, 0 only for blocks equal
    up to a factor, and blind to that factor, for which the squared error is there.
    """
    truth = functional.normalize(sharp.flatten(1).clamp_min(SMALLEST), p=1, dim=1)
    guess = functional.normalize(restored.flatten(1).clamp_min(SMALLEST), p=1, dim=1)
    return (truth * (truth / guess).log()).sum(dim=1).mean()


def reconstruction_loss(restored: Tensor, sharp: Tensor, kl_weight: float = 1.0) -> Tensor:
    """Equation 1: the mean squared error plus the divergence; blocks (N, C, E, E) in 0..1."""
    loss = functional.mse_loss(restored, sharp)
    return loss + kl_weight * divergence(restored, sharp) if kl_weight else loss


def latent_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The VAE's: KL of N(mean, variance) to N(0, 1), summed over (N, D)'s D, mean over N."""
    each = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * each.sum(dim=1).mean()


def affinities(latents: Tensor, width: float = 1.0) -> Tensor:
    """(N, D) -> (N, N) in 0..1: exp(-squared distance / (width^2 * their mean squared distance)).

    The mean is taken as a constant, so that the latents' scale alone changes nothing.
    """
    distances = (latents[:, None] - latents[None]).square().sum(dim=2)
    scale = distances.detach().mean().clamp_min(1e-12)
    return torch.exp(-distances / (width**2 * scale))


def soft_normalized_cut(responsibilities: Tensor, weights: Tensor) -> Tensor:
    """Equation 3: K - sum over k of assoc(A_k, A_k) / assoc(A_k, V), in 0..K - 1 at its best.

    `responsibilities` (N, K) say how much each of N blocks belongs to cluster k, `weights` (N, N)
    are symmetric affinities. assoc(A_k, A_k) = sum_ij r_ik w_ij r_jk and assoc(A_k, V) =
    sum_i r_ik sum_j w_ij (Shi and Malik 2000; soft as in Xia and Kulis 2017).
    """
    inside = torch.einsum("ik,ij,jk->k", responsibilities, weights, responsibilities)
    whole = responsibilities.T @ weights.sum(dim=1)
    return responsibilities.shape[1] - (inside / whole.clamp_min(1e-12)).sum()


def centroids_of(latents: Tensor, responsibilities: Tensor) -> Tensor:
    """(N, D), (N, K) -> (K, D): each cluster's mean."""
    sizes = responsibilities.sum(dim=0).clamp_min(1e-6)
    return responsibilities.T @ latents / sizes[:, None]


def compactness(latents: Tensor, responsibilities: Tensor) -> Tensor:
    """Soft k-means' distortion over the variance, 0..1: 0 for clusters that are points.

    As a ratio it does not fall when all latents shrink, which would be the cheapest way to make
    clusters tight.
    """
    centroids = centroids_of(latents, responsibilities)
    distances = (latents[:, None] - centroids).square().sum(dim=2)
    variance = (latents - latents.mean(dim=0)).square().sum(dim=1).mean()
    return (responsibilities * distances).sum(dim=1).mean() / variance.clamp_min(1e-12)


def contrastive_loss(noisy: Tensor, clean: Tensor, temperature: float = 0.2) -> Tensor:
    """Each noisy block's latent (N, D) against the clean ones': its own is to be the nearest.

    Cross-entropy over cosine similarities, both ways (InfoNCE). The pairs of a noisy and a clean
    view are the idea of the report's successor (Yang, Zheng, Bajaj: arXiv 2104.00253).
    """
    similarities = functional.normalize(noisy) @ functional.normalize(clean).T / temperature
    own = torch.arange(len(noisy), device=noisy.device)
    return (
        functional.cross_entropy(similarities, own) + functional.cross_entropy(similarities.T, own)
    ) / 2


def regularisation(module: nn.Module, strength: float) -> Tensor:
    """`strength` times the L1 norm plus the squared L2 norm of the weights of every layer.

    Layers are those with a kernel, and biases are left out, as with Keras's kernel_regularizer.
    """
    total = torch.zeros(())
    if strength:
        for name, weight in module.named_parameters():
            if name.endswith("weight") and weight.ndim > 1:
                total = total + weight.abs().sum() + weight.square().sum()
    return strength * total
