"""Let the nets learn as their int8 graphs compute: with 8 bits for weights and activations.

Weights and activations are rounded on the way forward, and the gradient passes as if they were not
(Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", 2018). What is rounded, and how ranges are found, is what `export.py` has NNCF do.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn

from vdeblur.model import MultiFilter, Residual

LEVELS = 255
EVERY = 3
"""Calls from one look at the range to the next."""
REMEMBERED = 15
"""Looks; the median of theirs is a filter's range, the largest the encoder's."""
INPUTS_ROUNDED = {"conv", "second", "context", "leave"}
OUTPUTS_ROUNDED = {"second", "down", "up", "context"}


class Round(torch.autograd.Function):
    """Rounds to a multiple of `step`, and hands the gradient on."""

    @staticmethod
    def forward(_ctx: object, x: Tensor, step: float) -> Tensor:
        """(...) -> (...)."""
        return x.mul(1 / step).round_().mul_(step)

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        """Of the output -> of the input."""
        return gradient, None


class Rounded:
    """Rounds what passes one place of a net, between bounds that follow what passes."""

    def __init__(self, of_looks: Callable[[Sequence[float]], float]) -> None:
        """`of_looks` makes one bound of the largest values of the latest batches."""
        self.of_looks = of_looks
        self.lowest: deque[float] = deque(maxlen=REMEMBERED)
        self.highest: deque[float] = deque(maxlen=REMEMBERED)
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same, rounded and clipped."""
        if not self.calls or (torch.is_grad_enabled() and self.calls % EVERY == 0):
            self.lowest.append(max(0.0, -float(x.detach().amin())))
            self.highest.append(max(0.0, float(x.detach().amax())))
        self.calls += 1
        low, high = -self.of_looks(self.lowest), self.of_looks(self.highest)
        step = max(high - low, 1e-6) / LEVELS
        low = step * round(low / step)
        # What is clipped has no gradient: it would only be driven further out.
        rounded: Tensor = Round.apply(x.clamp(low, low + LEVELS * step), step)  # type: ignore[no-untyped-call]
        return rounded

    def before(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As a hook on what a module is given."""
        return (self(inputs[0]), *inputs[1:])

    def after(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """As a hook on what a module gives."""
        return self(output)


def round_activations(model: MultiFilter) -> None:
    """From now on round what passes between the layers of the encoder and of each filter."""
    for part in (model.encoder, *model.filters):
        of_looks = max if part is model.encoder else median
        for path, module in part.named_modules():
            name = path.rpartition(".")[2]
            if path.startswith("moving"):  # few numbers, which stay exact
                continue
            if name in INPUTS_ROUNDED or path in {"fine", "before", "coarse"}:
                module.register_forward_pre_hook(Rounded(of_looks).before)
            if name in OUTPUTS_ROUNDED or isinstance(module, Residual):
                module.register_forward_hook(Rounded(of_looks).after)


@contextmanager
def rounded_weights(model: MultiFilter) -> Iterator[None]:
    """Within, the weights of the convolutions are rounded, each output channel to its own range.

    Gradients found within belong to the weights as they were, and are.
    """
    exact = {
        layer: layer.weight.data
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and ".moving." not in name
    }
    for layer, weight in exact.items():
        layer.weight.data = _rounded(weight)
    try:
        yield
    finally:
        for layer, weight in exact.items():
            layer.weight.data = weight


def _rounded(weight: Tensor) -> Tensor:
    step = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-9) / (LEVELS // 2)
    return torch.round(weight / step) * step
