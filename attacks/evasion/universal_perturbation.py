"""One change for all inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion._losses import check_loss, check_meaning, objective
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Task
from secure_ml.threats import Ball, Change


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Evasion):
    """One change that is added to every input (Moosavi-Dezfooli et al. 2017, https://arxiv.org/abs/1610.08401).

    Climbs the mean loss of the whole batch ``(B, *shape)`` by projected steps of one change ``shape``, in the unit of
    the threat's radius, and keeps the change that broke most. It is sought on the very examples that it is judged on, a
    chunk at a time, so it bounds from above what a change sought on other examples does. Raises `UsageError` for
    settings out of range.

    Differs from the paper: gradient ascent on the mean loss (Shafahi et al. 2020, https://arxiv.org/abs/1811.11304)
    instead of a sum of DeepFool steps.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Ball,)

    steps: int = 100
    """Gradient steps."""
    loss: str | Loss = "task"
    """What is climbed: the task's own loss, ce, dlr or margin for classifiers, or a ``(predictor, batch) -> (B,)``."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"UniversalPerturbation needs at least 1 step; given {self.steps}")
        check_loss(self.loss)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """All inputs with the same change added, cut at the box."""
        task, surface = access.task, access.task.surface(threat)
        clean = surface.get(batch.inputs)
        change = torch.zeros_like(clean[:1])
        best, reached = change, clean.new_tensor(-torch.inf)
        climbed = objective(task, self.loss)
        for step in range(self.steps + 1):
            there = threat.project(surface, clean, clean + change)
            seen = access.ascend(Batch(surface.put(batch.inputs, there), batch.target), surface, climbed)
            mean = seen.losses.mean()
            best, reached = torch.where(mean > reached, change, best), torch.maximum(mean, reached)
            length = 2.5 * threat.radius / self.steps * (1 - step / (self.steps + 1))
            slope = torch.nan_to_num(seen.gradient).mean(0, keepdim=True)
            change = threat.shrink(change + 2 * length * threat.steepest(slope))
        return surface.put(batch.inputs, threat.project(surface, clean, clean + best))

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where a loss of classes is asked of a task without."""
        check_meaning(self.loss, task)

    @classmethod
    def tiny(cls) -> UniversalPerturbation:
        """Three steps."""
        return cls(steps=3)
