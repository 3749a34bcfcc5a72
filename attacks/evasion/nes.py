"""Projected gradient ascent on estimated gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._asking import Asking, check_askable
from attacks.evasion._losses import check_loss
from attacks.evasion._slopes import slope
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Task
from secure_ml.threats import L1, L2, Ball, Change, Linf


@dataclass(frozen=True, kw_only=True)
class NES(Evasion):
    """Natural evolution strategies: PGD without gradients (Ilyas et al. 2018, https://arxiv.org/abs/1804.08598).

    Asks about pairs of inputs ``(B, *shape)`` on both sides of a point, in Gaussian directions, takes the mean of the
    differences for the gradient, and steps along the norm's steepest direction of its running mean. Raises
    `UsageError` for settings out of range, `NotApplicable` for a loss of classes where there are none.

    Differs from the paper: no target class unless the task asks for one; after each step it asks about the point
    reached, and an example that is answered wrongly leaves; pairs are asked about inside the box.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2, L1)
    sees: ClassVar[Reveal] = "logits"

    queries: int = 10_000
    """Queries for each example."""
    pairs: int = 25
    """Pairs of points for each gradient."""
    width: float = 0.001
    """Standard deviation of the directions, as a share of the box."""
    step_size: float = 0.2
    """Length of a step, as a share of the radius."""
    momentum: float = 0.9
    """Share of the running mean that each new gradient leaves."""
    loss: str | Loss = "task"
    """What is climbed: the task's own loss, ce, dlr or margin for classifiers, or a ``(predictor, batch) -> (B,)``."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"NES needs at least 1 query; given {self.queries}")
        require(self.pairs >= 1, f"NES needs at least 1 pair; given {self.pairs}")
        require(self.width > 0, f"NES needs a width above 0; given {self.width}")
        require(0 < self.step_size <= 1, f"NES needs a step size in (0, 1]; given {self.step_size}")
        require(0 <= self.momentum < 1, f"NES needs a momentum in [0, 1); given {self.momentum}")
        check_loss(self.loss)

    def budget(self, examples: int) -> int:
        """The queries about every example."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """The worst inputs found, of the shape of the batch's."""
        aim = Asking(access, batch, threat, self.loss)
        point = aim.origin[aim.restart()]
        width, mean = self.width * (aim.surface.high - aim.surface.low), torch.zeros_like(point)

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=rng)

        for _ in range((self.queries - 1) // (2 * self.pairs + 1)):
            if not len(point):
                break
            gradient = slope(aim, point, self.pairs, width, normal)
            mean = self.momentum * mean + (1 - self.momentum) * gradient
            point = threat.advance(aim.surface, aim.clean, point, mean, self.step_size * threat.radius)
            losses, broken = aim.look(point)
            aim.keep(point, losses, broken)
            if bool(broken.any()):
                aim.stay(~broken)
                point, mean = point[~broken], mean[~broken]
        return aim.inputs()

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where there is nothing to climb."""
        check_askable(task, self.loss)

    @classmethod
    def tiny(cls) -> NES:
        """Four steps on sixteen pairs."""
        return cls(queries=133, pairs=16, step_size=0.5)
