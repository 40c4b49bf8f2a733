"""Which block goes to which filter: by known blur at first, then by what each filter gains."""

import torch
from torch import Tensor
from torch.nn import functional

MIN_BLUR = 0.8
"""Streaks below this length in pixels count as sharp."""
MIN_GAIN = 0.03
"""What a filter must gain over leaving a block alone, as a natural logarithm of the squared
error: 0.03 is 0.13 dB."""
DEEPER_GAIN = 0.01
"""What the next deeper filter must gain more."""
ERROR_FLOOR = 0.6
"""Squared 8-bit steps; below it nobody sees a difference."""


def labels_from_blur(blur: Tensor, n_clusters: int) -> Tensor:
    """Streak lengths in pixels -> cluster: 0 sharp, then equal steps on a logarithmic scale."""
    edges = torch.logspace(0.6, 0.95, n_clusters - 2) if n_clusters > 2 else torch.empty(0)
    return torch.bucketize(blur, torch.cat([torch.tensor([MIN_BLUR]), edges]).to(blur.device))


def prices(errors: Tensor) -> Tensor:
    """(N, K) squared errors, cluster 0 unfiltered -> (N, K): what each choice costs.

    The logarithm of the error, which is proportional to decibels, and the cluster's own margin.
    """
    n_clusters = errors.shape[1]
    margins = MIN_GAIN + DEEPER_GAIN * torch.arange(n_clusters - 1.0)
    margins = torch.cat([torch.zeros(1), margins]).to(errors.device)
    return torch.log(errors + ERROR_FLOOR) + margins


def routing_loss(log_responsibilities: Tensor, errors: Tensor, temperature: float = 0.05) -> Tensor:
    """(N, K), (N, K) -> scalar: the expected regret, and the way toward the better clusters.

    The regret alone has no gradient where a wrong cluster is certain; the cross-entropy to the
    softened best choice has.
    """
    cost = prices(errors)
    regret = cost - cost.min(dim=1, keepdim=True).values
    expected = (log_responsibilities.exp() * regret).sum(dim=1).mean()
    target = functional.softmax(-cost / temperature, dim=1)
    entropy = -(target * log_responsibilities).sum(dim=1).mean()
    return expected + 0.2 * entropy


def naming_loss(log_responsibilities: Tensor, known: Tensor) -> Tensor:
    """(N, K), (N,) -> scalar: which of the blurred clusters a truly blurred block belongs to.

    Without it the filters, equal when they begin, stay equal, and the latents use one of them.
    Whether to filter at all is left to `routing_loss`.
    """
    blurred = known > 0
    if not blurred.any():
        return 0 * log_responsibilities.sum()
    among = functional.log_softmax(log_responsibilities[blurred, 1:], dim=1)
    return functional.nll_loss(among, known[blurred] - 1)
