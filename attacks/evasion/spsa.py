"""Gradient ascent on estimated gradients, by Adam."""

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
class SPSA(Evasion):
    """Simultaneous perturbation stochastic approximation (Uesato et al. 2018, https://arxiv.org/abs/1802.05666).

    Asks about pairs of inputs ``(B, *shape)`` on both sides of a point, in random directions of signs, takes the mean
    of the differences for the gradient, and climbs it by Adam, each step projected onto threat and box. Raises
    `UsageError` for settings out of range, `NotApplicable` for a loss of classes where there are none.

    Differs from the paper: after each step it asks about the point reached, and an example that is answered wrongly
    leaves; pairs are asked about inside the box.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2, L1)
    sees: ClassVar[Reveal] = "logits"

    queries: int = 10_000
    """Queries for each example."""
    pairs: int = 64
    """Pairs of points for each gradient."""
    width: float = 0.01
    """How far the points of a pair lie from their middle in each coordinate, as a share of the box."""
    learning_rate: float = 0.01
    """Adam's, as a share of the box."""
    loss: str | Loss = "margin"
    """What is climbed: margin, ce or dlr for classifiers, the task's own, or a ``(predictor, batch) -> (B,)``."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"SPSA needs at least 1 query; given {self.queries}")
        require(self.pairs >= 1, f"SPSA needs at least 1 pair; given {self.pairs}")
        require(
            self.width > 0 and self.learning_rate > 0,
            f"SPSA needs a width and a learning rate above 0; given {self.width} and {self.learning_rate}",
        )
        check_loss(self.loss)

    def budget(self, examples: int) -> int:
        """The queries about every example."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """The worst inputs found, of the shape of the batch's."""
        aim = Asking(access, batch, threat, self.loss)
        rows = aim.restart()
        point, whole = aim.origin[rows], aim.surface.high - aim.surface.low
        mean, square = torch.zeros_like(point), torch.zeros_like(point)

        def signs(shape: tuple[int, ...]) -> Tensor:
            return torch.randint(0, 2, shape, generator=rng, dtype=torch.float32) * 2 - 1

        for step in range(1, 1 + (self.queries - 1) // (2 * self.pairs + 1)):
            if not len(point):
                break
            gradient = slope(aim, point, self.pairs, self.width * whole, signs)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
            pace = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            point = threat.project(aim.surface, aim.clean, point + self.learning_rate * whole * pace)
            losses, broken = aim.look(point)
            aim.keep(point, losses, broken)
            if bool(broken.any()):
                aim.stay(~broken)
                point, mean, square = point[~broken], mean[~broken], square[~broken]
        return aim.inputs()

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where there is nothing to climb."""
        check_askable(task, self.loss)

    @classmethod
    def tiny(cls) -> SPSA:
        """Three steps on sixteen pairs."""
        return cls(queries=100, pairs=16, learning_rate=0.1)
