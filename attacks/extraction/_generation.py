"""Inputs out of nothing: a generator, slopes of what cannot be differentiated, and the steps that use them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secure_ml.randomness import seeded
from secure_ml.surfaces import Box

Field = Callable[[Tensor], Tensor]
"""Points ``(n, d)`` to numbers ``(n,)``."""


def slope(function: Field, point: Tensor, directions: int, width: float, rng: torch.Generator) -> Tensor:
    """The gradient ``(n, d)`` at points, estimated by forward differences along random directions of length 1.

    As in Truong et al. 2021, section 3.3: ``d / m`` times the sum of ``(f(x + w u) - f(x)) / w u`` over m directions,
    whose mean is the gradient where the function is straight. One call, with ``n (m + 1)`` points.
    """
    n, d = point.shape
    towards = torch.randn(n, directions, d, generator=rng).to(point)
    towards = towards / towards.norm(dim=2, keepdim=True)
    moved = (point[:, None] + width * towards).flatten(0, 1)
    values = function(torch.cat([point, moved]))
    rise = (values[n:].view(n, directions) - values[:n, None]) / width
    estimate: Tensor = d / directions * (rise[:, :, None] * towards).sum(1)
    return estimate


class Moments:
    """Adam (Kingma and Ba 2015) on tensors that are replaced, not changed."""

    def __init__(self, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def step(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values after one step down."""
        self.count += 1
        moved = {}
        for name, value in values.items():
            slope_ = gradients[name]
            first = self.first.get(name, torch.zeros_like(value)) * 0.9 + 0.1 * slope_
            second = self.second.get(name, torch.zeros_like(value)) * 0.999 + 0.001 * slope_.square()
            self.first[name], self.second[name] = first, second
            size = (second / (1 - 0.999**self.count)).sqrt() + 1e-8
            moved[name] = value - self.rate * first / (1 - 0.9**self.count) / size
        return moved


class Source:
    """A generator of inputs ``(n, *shape)`` in a box, which learns from slopes at what it made.

    Logistic noise on each number is a part of it, and its last layer begins at 0: what it makes first is uniform.
    """

    def __init__(self, shape: tuple[int, ...], box: Box, latent: int, rate: float, rng: torch.Generator) -> None:
        self.shape, self.box, self.latent, self.rng = shape, box, latent, rng
        with seeded(int(torch.randint(2**31, (), generator=rng)), "generator"):
            self.net = network(shape, latent)
        self.weights = {name: value.detach() for name, value in self.net.named_parameters()}
        self.moments = Moments(rate)

    def to(self, device: torch.device) -> Source:
        """The same, on a device."""
        self.net = self.net.to(device)
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        return self

    def raw(self, n: int, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Numbers ``(n, d)`` from which inputs are made."""
        weights = self.weights if weights is None else weights
        like = next(iter(weights.values()))
        made: Tensor = functional_call(self.net, weights, (torch.randn(n, self.latent, generator=self.rng).to(like),))
        uniform = torch.rand(n, math.prod(self.shape), generator=self.rng).clamp(1e-6, 1 - 1e-6)
        return made.flatten(1) + uniform.logit().to(like)

    def inputs(self, raw: Tensor) -> Tensor:
        """Inputs ``(n, *shape)``, inside the box."""
        return (self.box.low + (self.box.high - self.box.low) * raw.sigmoid()).view(len(raw), *self.shape)

    def climb(self, n: int, function: Field, directions: int, width: float) -> None:
        """Learn to make what the function is larger at; it is asked about ``n (directions + 1)`` raw points."""
        with torch.enable_grad():
            weights = {name: value.detach().requires_grad_() for name, value in self.weights.items()}
            raw = self.raw(n, weights)
            uphill = slope(function, raw.detach(), directions, width, self.rng)
            found = torch.autograd.grad(-(raw * uphill).sum() / n, list(weights.values()))
        gradients = dict(zip(weights, found, strict=True))
        self.weights = self.moments.step(self.weights, gradients)


def network(shape: tuple[int, ...], latent: int) -> nn.Module:
    """Noise ``(n, latent)`` to numbers, all 0 at first: by convolutions for images whose sides four divides."""
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        return nn.Sequential(nn.Linear(latent, 128), nn.LeakyReLU(0.2), _silent(nn.Linear(128, math.prod(shape))))
    channels, height, width = shape
    return nn.Sequential(
        nn.Linear(latent, 32 * (height // 4) * (width // 4)),
        nn.Unflatten(1, (32, height // 4, width // 4)),
        nn.GroupNorm(4, 32),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.LeakyReLU(0.2),
        _silent(nn.Conv2d(16, channels, 3, padding=1)),
    )


def _silent(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with all weights 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
