"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.scores import ClosedLoop
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import Change, Walk


@dataclass(frozen=True, kw_only=True)
class PGD(Evasion):
    """Projected gradient descent with restarts, in any norm (Madry et al. 2018, https://arxiv.org/abs/1706.06083).

    Maximises the task's per-example loss over inputs ``(B, *shape)`` by steps of length ``step_size`` (in the
    unit of the box) along the norm's steepest direction, each projected onto ball and box. Needs gradients.
    Raises `UsageError` for settings out of range, and for a step longer than the radius.

    Differs from the paper: it returns the worst point that it saw rather than the last one: worst by the task's
    score, and by the loss among equals. In a table, the gradient is taken at the nearest row that keeps the rules
    and moves a point that need not (straight through).
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)

    steps: int = 40
    """Gradient steps in each restart."""
    restarts: int = 1
    """Random starting points; each example keeps its worst."""
    step_size: float | None = None
    """Length of a step; 2.5 times the radius over the number of steps unless given."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"PGD needs at least 1 step; given {self.steps}")
        require(self.restarts >= 1, f"PGD needs at least 1 restart; given {self.restarts}")
        require(self.step_size is None or self.step_size > 0, f"PGD needs a step size above 0; given {self.step_size}")

    def perturb(self, access: WhiteBox, batch: Batch, threat: Change, rng: torch.Generator) -> Tree:
        """The worst inputs found, of the shape of the batch's."""
        assert isinstance(threat, Walk)
        surface = access.task.surface(threat)
        length = self._step(threat)
        clean = surface.get(batch.inputs)
        worst = _Worst(access, batch, clean)
        for _ in range(self.restarts):
            point = threat.start(surface, clean, rng)
            for _ in range(self.steps):
                gradient = worst.look(threat.realise(surface, clean, point), surface)
                point = threat.advance(surface, clean, point, gradient, length)
            worst.look(threat.realise(surface, clean, point), surface)
        return surface.put(batch.inputs, worst.point)

    @classmethod
    def tiny(cls) -> PGD:
        """Three steps."""
        return cls(steps=3)

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


class _Worst:
    """The worst point of each example so far: first by the task's score, then by the loss."""

    def __init__(self, access: WhiteBox, batch: Batch, clean: Tensor) -> None:
        self.access, self.batch, self.point = access, batch, clean
        self.harm = clean.new_full((len(batch),), -torch.inf)
        self.loss = clean.new_full((len(batch),), -torch.inf)

    def look(self, point: Tensor, surface: Surface) -> Tensor:
        """Keep the point where it is the worst yet, and return the gradient there."""
        task = self.access.task
        seen = self.access.ascend(Batch(surface.put(self.batch.inputs, point), self.batch.target), surface)
        harm = self.harm
        if not isinstance(task.score, ClosedLoop):
            harm = task.score.harm(task.score.per_example(seen.outputs, self.batch.target)).to(self.loss.dtype)
        better = (harm > self.harm) | ((harm == self.harm) & (seen.losses > self.loss))
        self.harm, self.loss = torch.where(better, harm, self.harm), torch.where(better, seen.losses, self.loss)
        self.point = torch.where(better.reshape(-1, *[1] * (point.ndim - 1)), point, self.point)
        return seen.gradient
