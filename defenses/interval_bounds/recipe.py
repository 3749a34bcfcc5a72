"""How a net learns to keep its bounds tight: the worst answers as a loss, in stages, from a start that suits them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.interval_bounds.layers import Bend, Interval, Layer
from secure_ml.training import Step

TOLERANCE = 0.5
"""The ratio below which the regulariser of Shi et al. 2021 acts."""


class Stages:
    """Where training stands: the share of the radius, growing from 0 to 1 between ``warmup`` and ``ramp``."""

    def __init__(self, warmup: float, ramp: float) -> None:
        self.warmup, self.ramp = warmup, ramp
        self.share = self._share(0.0)

    def __call__(self, step: Step) -> None:
        """Grow with the share of training that is done."""
        self.share = self._share((step.epoch + (step.index + 1) / step.plan.loader.steps) / step.plan.epochs)

    def _share(self, done: float) -> float:
        if done >= self.ramp:
            return 1.0
        return (done - self.warmup) / (self.ramp - self.warmup) if done > self.warmup else 0.0

    def state_dict(self) -> float:
        """The share."""
        return self.share

    def load_state_dict(self, share: float) -> None:
        """Go on from that share."""
        self.share = share


@dataclass(frozen=True)
class Mix:
    """The weights of what is summed, at one moment of training."""

    plain: float
    """Of the ordinary loss; the rest is the worst case's."""
    crown: float
    """Of CROWN bounds in the worst case; the rest is interval arithmetic's."""
    regular: float
    """Of the regulariser."""


def suit_intervals(module: nn.Module, rng: torch.Generator) -> None:
    """Weights drawn anew so that intervals keep their width from layer to layer (Shi et al. 2021, section 3.2).

    Normal, with mean 0 and deviation sqrt(2 pi) / n for n inputs of a neuron; biases 0.
    """
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                spread = math.sqrt(2 * math.pi) / part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=rng) * spread)
                if part.bias is not None:
                    part.bias.zero_()


def regulariser(chain: Sequence[Layer], reached: Sequence[Interval]) -> Tensor:
    """How far intervals grow, and how unevenly neurons are surely on and surely off, of each example ``(B,)``.

    Shi et al. 2021 (https://arxiv.org/abs/2103.17268), section 3.3, but averaged over each example's own neurons
    instead of over the batch's, so that no example's loss depends on another.
    """
    bent = [reached[place] for place, layer in enumerate(chain) if isinstance(layer, Bend)]
    first = _half_width(reached[0])
    total = torch.zeros_like(first)
    for box in bent:
        tight = F.relu(TOLERANCE - first / _half_width(box).clamp(min=1e-12))
        total = total + tight + sum(F.relu(TOLERANCE - ratio) for ratio in _balance(box))
    return total / (TOLERANCE * max(len(bent), 1))


def _half_width(box: Interval) -> Tensor:
    return box.halves()[1].flatten(1).mean(1)


def _balance(box: Interval) -> tuple[Tensor, Tensor]:
    """Sums and spreads of the middles of neurons surely on, over those of neurons surely off; at most 1, ``(B,)``."""
    middle = box.halves()[0].flatten(1)
    on, off = (box.lower > 0).flatten(1), (box.upper < 0).flatten(1)
    spread = (middle - middle.mean(1, keepdim=True)).square()
    return _even((middle * on).sum(1), -(middle * off).sum(1)), _even((spread * on).sum(1), (spread * off).sum(1))


def _even(one: Tensor, other: Tensor) -> Tensor:
    ratio = one / other.clamp(min=1e-12)
    return torch.minimum(ratio, 1 / ratio.clamp(min=1e-12))
