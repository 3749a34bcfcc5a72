"""Distance plus a weighted margin, minimised without a box; the weight is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._nearest import MinimumNorm, Nearest
from secure_ml.errors import require
from secure_ml.threats import L2, Change
from secure_ml.threats.base import broadcast


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(MinimumNorm):
    """The L2 attack of Carlini and Wagner (2017, https://arxiv.org/abs/1608.04644).

    Minimises the squared distance plus ``c`` times the margin by which the label still leads, with Adam, over inputs
    ``(B, *shape)`` written as a tanh, so that they keep to the box; the least ``c`` that breaks an example is found by
    a binary search for each. Raises `UsageError` for settings out of range.

    Differs from the authors' program: 1,000 steps a search in place of 10,000, and examples leave a search one by one
    where a tenth of the steps has not lowered their objective.
    """

    threats: ClassVar[tuple[type[Change], ...]] = (L2,)

    searches: int = 9
    """Values of ``c`` that are tried for each example."""
    steps: int = 1000
    """Most gradient steps for each of them."""
    step_size: float = 0.01
    """Adam's."""
    weight: float = 1e-3
    """The first ``c``."""
    kappa: float = 0.0
    """How far another class must lead, in logits."""

    def __post_init__(self) -> None:
        for name in ("searches", "steps"):
            require(getattr(self, name) >= 1, f"CarliniWagner needs {name} of at least 1; given {getattr(self, name)}")
        for name in ("step_size", "weight"):
            require(getattr(self, name) > 0, f"CarliniWagner needs a {name} above 0; given {getattr(self, name)}")
        require(self.kappa >= 0, f"CarliniWagner needs a kappa of at least 0; given {self.kappa}")

    def confidence(self) -> float:
        """The margin asked for."""
        return self.kappa

    def search(self, near: Nearest, rng: torch.Generator) -> None:
        """A run for each ``c``: ten times as much until one breaks an example, then between the last two."""
        weight = torch.full_like(near.size, self.weight)
        low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for _ in range(self.searches):
            rows = near.restart()
            if not len(rows):
                return
            broke = self._run(near, weight[rows])
            low[rows], high[rows] = (
                torch.where(broke[rows], low[rows], weight[rows]),
                torch.where(broke[rows], weight[rows], high[rows]),
            )
            weight = torch.where(high.isfinite(), (low + high) / 2, low * 10)

    def _run(self, near: Nearest, weight: Tensor) -> Tensor:
        """Minimise from the clean points of the rows in play; which examples ``(B,)`` were broken on the way."""
        middle, half = (near.surface.high + near.surface.low) / 2, (near.surface.high - near.surface.low) / 2
        free = torch.atanh(((near.clean - middle) / half).clamp(-1, 1) * _INSIDE)
        mean, square, start = torch.zeros_like(free), torch.zeros_like(free), half * free.tanh() + middle
        broke = torch.zeros_like(near.size, dtype=torch.bool)
        best = before = torch.full_like(weight, torch.inf)
        for i in range(self.steps):
            bend = free.tanh()
            point = near.surface.clamp(near.clean, half * bend + middle)
            hit, lead, slope = near.look(point)
            broke[near.rows[hit]] = True
            cost = (point - start).flatten(1).square().sum(1) + weight * (self.kappa - lead).clamp(min=0)
            pull = broadcast(weight * (lead < self.kappa), point)
            gradient = (2 * (point - start) - pull * slope) * half * (1 - bend.square())
            mean, square = torch.lerp(gradient, mean, 0.9), torch.lerp(gradient.square(), square, 0.999)
            rate = self.step_size * (1 - 0.999 ** (i + 1)) ** 0.5 / (1 - 0.9 ** (i + 1))
            free = free - rate * mean / (square.sqrt() + 1e-8)
            best = torch.minimum(best, cost)
            if (i + 1) % max(self.steps // 10, 1) == 0:
                stay = best <= before * _FALLS
                before = best
                free, mean, square, start, weight, best, before = near.keep(
                    stay, free, mean, square, start, weight, best, before
                )
            free, mean, square, start, weight, best, before = near.leave(
                free, mean, square, start, weight, best, before
            )
            if not len(free):
                break
        return broke

    @classmethod
    def tiny(cls) -> CarliniWagner:
        """Three searches of five large steps."""
        return cls(searches=3, steps=5, step_size=0.1, weight=1.0)


_INSIDE = 0.999999
_FALLS = 0.9999
