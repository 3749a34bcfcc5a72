"""A ball that closes in on the boundary, in any norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.evasion._nearest import MinimumNorm, Nearest
from attacks.evasion._plane import DUAL
from attacks.evasion.ddn import cosine
from secure_ml.errors import require
from secure_ml.threats import L1, L2, Linf
from secure_ml.threats.balls import Ball
from secure_ml.threats.base import broadcast


@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNorm):
    """Fast minimum-norm attack (Pintor et al. 2021, https://arxiv.org/abs/2102.12827).

    Climbs the margin over inputs ``(B, *shape)`` in a ball whose radius is first the estimated distance to the
    boundary, and then a factor smaller after each broken point and larger after each other. Raises `UsageError` for
    settings out of range.

    Differs from the paper: the estimate is taken a factor ``1 + gamma`` larger, without which the points may come ever
    closer to the boundary and never cross it.
    """

    steps: int = 1000
    """Gradient steps."""
    step_size: float = 1.0
    """Euclidean length of the first step; the last is a hundredth of it."""
    gamma: float = 0.05
    """By how much the radius changes at first, as a share of it; 0.0001 at last."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"FMN needs at least 1 step; given {self.steps}")
        require(self.step_size > 0, f"FMN needs a step_size above 0; given {self.step_size}")
        require(0 < self.gamma < 1, f"FMN needs a gamma between 0 and 1; given {self.gamma}")

    def search(self, near: Nearest, rng: torch.Generator) -> None:
        """One run of all examples from their clean points."""
        point, norm, dual = near.clean, near.threat, DUAL[type(near.threat)]
        radius = torch.full_like(near.size[near.rows], torch.inf)
        for i in range(self.steps):
            hit, lead, slope = near.look(point)
            best = near.size[near.rows]
            away = norm.norm(point - near.clean) + (1 + self.gamma) * lead.abs() / (dual.norm(slope) + 1e-12)
            gamma = cosine(self.gamma, min(self.gamma, _LAST), i / self.steps)
            radius = torch.where(best.isfinite(), radius * (1 + gamma), away)
            radius = torch.where(hit, torch.minimum(radius * (1 - gamma) / (1 + gamma), best), radius)
            length = cosine(self.step_size, self.step_size / 100, i / self.steps)
            delta = point - near.clean + length * L2(1.0).steepest(slope)
            point = near.surface.clamp(near.clean, near.clean + into_ball(norm, delta, radius))
            point, radius = near.leave(point, radius)
            if not len(point):
                return
        near.check(point)

    @classmethod
    def tiny(cls) -> FMN:
        """Five steps."""
        return cls(steps=5)


def into_ball(norm: Ball, delta: Tensor, radius: Tensor) -> Tensor:
    """The nearest changes within balls of each one's own radius ``(n,)``."""
    wide = broadcast(radius, delta)
    if isinstance(norm, Linf):
        return torch.maximum(torch.minimum(delta, wide), -wide)
    if isinstance(norm, L1):
        return _into_l1(delta.flatten(1), radius[:, None]).view_as(delta)
    return delta * (wide / broadcast(norm.norm(delta).clamp(min=1e-30), delta)).clamp(max=1.0)


def _into_l1(delta: Tensor, radius: Tensor) -> Tensor:
    """All coordinates give up the same amount, found from their sorted sizes (Duchi et al. 2008)."""
    size = delta.abs()
    order = size.sort(1, descending=True).values
    rank = torch.arange(1, size.shape[1] + 1, device=size.device)
    level = (order.cumsum(1) - radius) / rank
    last = (order > level).sum(1, keepdim=True).clamp(min=1) - 1
    cut = level.gather(1, last).clamp(min=0)
    return delta.sign() * (size - cut).clamp(min=0)


_LAST = 1e-4
