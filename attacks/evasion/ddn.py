"""A sphere that shrinks where its point is broken and grows where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._nearest import MinimumNorm, Nearest
from secure_ml.errors import require
from secure_ml.threats import L2, Change
from secure_ml.threats.base import broadcast


def cosine(first: float, last: float, share: float) -> float:
    """From the first value to the last, along half a period of a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class DDN(MinimumNorm):
    """Decoupled direction and norm (Rony et al. 2019, https://arxiv.org/abs/1811.09600).

    The gradient of the margin gives the direction, in inputs ``(B, *shape)``; the L2 distance is a factor
    smaller after each broken point and larger after each other. Raises `UsageError` for settings out of range.

    Differs from the paper: it climbs the margin, whose gradient does not vanish where the module is sure, as that of
    the cross-entropy does; pixels are not rounded to 8 bits.
    """

    threats: ClassVar[tuple[type[Change], ...]] = (L2,)

    steps: int = 1000
    """Gradient steps."""
    start: float = 1.0
    """The first distance (in the unit of the box)."""
    gamma: float = 0.05
    """By how much the distance changes in a step, as a share of it."""
    step_size: float = 1.0
    """Length of the first step; the last is a hundredth of it."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"DDN needs at least 1 step; given {self.steps}")
        require(self.start > 0, f"DDN needs a first distance above 0; given {self.start}")
        require(0 < self.gamma < 1, f"DDN needs a gamma between 0 and 1; given {self.gamma}")
        require(self.step_size > 0, f"DDN needs a step_size above 0; given {self.step_size}")

    def search(self, near: Nearest, rng: torch.Generator) -> None:
        """One run of all examples from their clean points."""
        point, norm = near.clean, L2(1.0)
        far = torch.full_like(near.size[near.rows], self.start)
        delta = torch.zeros_like(point)
        for i in range(self.steps):
            hit, _, slope = near.look(point)
            delta = delta + cosine(self.step_size, self.step_size / 100, i / self.steps) * norm.steepest(slope)
            far = far * torch.where(hit, 1 - self.gamma, 1 + self.gamma)
            delta = _onto(delta, far)
            point = near.surface.clamp(near.clean, near.clean + delta)
            delta = point - near.clean
            point, delta, far = near.leave(point, delta, far)
            if not len(point):
                return
        near.check(point)

    @classmethod
    def tiny(cls) -> DDN:
        """Five steps."""
        return cls(steps=5)


def _onto(delta: Tensor, length: Tensor) -> Tensor:
    """Changes scaled to lengths ``(n,)``."""
    return delta * broadcast(length / L2(1.0).norm(delta).clamp(min=1e-30), delta)
