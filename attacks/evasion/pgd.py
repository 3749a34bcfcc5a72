"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion._aim import Aim
from attacks.evasion._losses import check_loss, check_meaning
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Task
from secure_ml.threats import Change, Walk


@dataclass(frozen=True, kw_only=True)
class PGD(Evasion):
    """Projected gradient descent with restarts, in any norm (Madry et al. 2018, https://arxiv.org/abs/1706.06083).

    Climbs the per-example loss over inputs ``(B, *shape)`` by steps of length ``step_size`` (in the unit of the
    threat's radius) along the norm's steepest direction, each projected onto threat and box. Needs gradients.
    Raises `UsageError` for settings out of range, and for a step longer than the radius.

    Differs from the paper: it returns the worst point that it saw rather than the last one, worst by the task's score
    and by the loss among equals; and an example that is answered wrongly leaves the batch. In a table, the gradient
    is taken at the nearest row that keeps the rules and moves a point that need not (straight through).
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Walk,)

    steps: int = 40
    """Gradient steps in each restart."""
    restarts: int = 1
    """Random starting points; each example keeps its worst."""
    step_size: float | None = None
    """Length of a step; 2.5 times the radius over the number of steps unless given."""
    loss: str | Loss = "task"
    """What is climbed: the task's own loss, ce, dlr or margin for classifiers, or a ``(predictor, batch) -> (B,)``."""
    early: bool = True
    """Whether an example leaves once its answer is wrong, which changes no score; else its loss is climbed further."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"PGD needs at least 1 step; given {self.steps}")
        require(self.restarts >= 1, f"PGD needs at least 1 restart; given {self.restarts}")
        require(self.step_size is None or self.step_size > 0, f"PGD needs a step size above 0; given {self.step_size}")
        check_loss(self.loss)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Walk, rng: torch.Generator) -> Tree:
        """The worst inputs found, of the shape of the batch's."""
        aim = Aim(access, batch, threat, self.loss, self.early)
        length = self._step(threat)
        for _ in range(self.restarts):
            point = threat.start(aim.surface, aim.origin, rng)
            point = point[aim.restart()]
            for i in range(self.steps):
                _, gradient = aim.look(point)
                point, gradient = aim.leave(point, gradient)
                if not len(point) or (i == 0 and not gradient.any()):  # without a slope, nothing would ever move
                    break
                point = threat.advance(aim.surface, aim.clean, point, gradient, length)
            if len(point):
                aim.look(point, gradient=False)
        return aim.inputs()

    @classmethod
    def tiny(cls) -> PGD:
        """Three steps."""
        return cls(steps=3)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where a loss of classes is asked of a task without."""
        check_meaning(self.loss, task)

    def check_threat(self, threat: Change) -> None:
        """Raise `UsageError` for a step longer than the radius."""
        if self.step_size is not None and threat.radius > 0:
            require(
                self.step_size <= threat.radius,
                f"PGD's step size {self.step_size} is longer than the radius of {threat}; use at most {threat.radius}",
            )

    def _step(self, threat: Change) -> float:
        length = 2.5 * threat.radius / self.steps if self.step_size is None else self.step_size
        return min(length, threat.radius)
