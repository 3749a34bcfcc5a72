"""Noise and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion._asking import Asking, check_askable
from attacks.evasion._losses import check_loss
from attacks.evasion._slopes import portions
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Task
from secure_ml.threats import Ball, Change


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Evasion):
    """The worst of many random changes (Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 4.3).

    Draws inputs ``(B, *shape)`` from the threat, in turn inside it and at its outermost corners. An attack that finds
    no more than this is broken, and so is a defense that this beats. Raises `UsageError` for settings out of range,
    `NotApplicable` for a loss of classes where there are none.

    Differs from the paper: half of the draws are as large as the threat allows.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Ball,)
    sees: ClassVar[Reveal] = "logits"

    queries: int = 10_000
    """Draws for each example; the first is its clean input."""
    loss: str | Loss = "task"
    """What is worst: by the task's own loss, ce, dlr or margin for classifiers, or a ``(predictor, batch) -> (B,)``."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"RandomNoise needs at least 1 query; given {self.queries}")
        check_loss(self.loss)

    def budget(self, examples: int) -> int:
        """The draws for every example."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """The worst inputs drawn, of the shape of the batch's."""
        aim = Asking(access, batch, threat, self.loss)
        aim.restart()
        left = self.queries - 1
        while left and len(aim.rows):
            n, k = len(aim.rows), next(portions(left, len(aim.rows), access.task.chunk))
            which = torch.arange(n, device=aim.rows.device).repeat(k)
            clean = aim.clean[which]
            change = threat.sample(clean, rng)
            outermost = (torch.arange(left, left - k, -1, device=aim.rows.device) % 2 == 1).repeat_interleave(n)
            change[outermost] = threat.radius * change[outermost].sign()
            point = threat.project(aim.surface, clean, clean + change)
            losses, broken = aim.look(point, which)
            best = (losses + torch.where(broken, torch.inf, 0.0)).view(k, n).argmax(0) * n
            best = best + torch.arange(n, device=best.device)
            aim.keep(point[best], losses[best], broken[best])
            aim.stay(~broken[best])
            left -= k
        return aim.inputs()

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where nothing says what is worst."""
        check_askable(task, self.loss)

    @classmethod
    def tiny(cls) -> RandomNoise:
        """Thirty draws."""
        return cls(queries=30)
