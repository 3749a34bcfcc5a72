"""Steps onto the nearest of all planes, until the class changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion._losses import rivals
from attacks.evasion._nearest import MinimumNorm, Nearest
from attacks.evasion._plane import to_plane
from secure_ml.errors import require
from secure_ml.threats import L2, Change, Linf


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNorm):
    """DeepFool: onto the nearest boundary of the module made linear, again and again (Moosavi-Dezfooli et al. 2016).

    https://arxiv.org/abs/1511.04599. From inputs ``(B, *shape)``, in L2 or Linf, until another class is answered: fast,
    and an upper bound on the distance that the others undercut. Raises `UsageError` for settings out of range.

    Differs from the paper: the step to a plane is the shortest within the box, and each step overshoots rather than
    their sum.
    """

    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2)

    steps: int = 50
    """Most steps of each example."""
    candidates: int = 10
    """Classes whose boundaries are compared, the label and those with the largest logits at the start."""
    overshoot: float = 0.02
    """By how much each step goes farther than to the boundary, as a share of it."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"DeepFool needs at least 1 step; given {self.steps}")
        require(self.candidates >= 2, f"DeepFool needs at least 2 candidates; given {self.candidates}")
        require(self.overshoot > 0, f"DeepFool needs an overshoot above 0; given {self.overshoot}")

    def search(self, near: Nearest, rng: torch.Generator) -> None:
        """One run of all examples; each leaves where it is broken for the first time."""
        point, ranked = near.clean, rivals(near.access, near.here, self.candidates - 1)
        for _ in range(self.steps):
            lead, slope = near.plane(point, ranked)
            step = to_plane(near.threat, near.surface, point.flatten(1), slope.flatten(1), lead).view_as(point)
            point = near.surface.clamp(near.clean, point + (1 + self.overshoot) * step)
            point, ranked = near.keep(~near.check(point), point, ranked)
            if not len(point):
                return

    @classmethod
    def tiny(cls) -> DeepFool:
        """Five steps."""
        return cls(steps=5)
