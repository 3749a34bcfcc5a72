"""One step along the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion._aim import Aim
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import Change, Walk


@dataclass(frozen=True, kw_only=True)
class FGSM(Evasion):
    """One step of the whole radius, the fast gradient method (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572).

    From the clean inputs ``(B, *shape)`` along the norm's steepest direction of the task's loss, in the unit of the
    threat's radius. Weak on purpose: an iterated attack that finds less is a broken one. Raises `UsageError` where
    the module has no gradient.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Walk,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Walk, rng: torch.Generator) -> Tree:
        """The inputs after the step, of the shape of the batch's."""
        aim = Aim(access, batch, threat)
        _, gradient = aim.look(aim.clean)
        point, gradient = aim.leave(aim.clean, gradient)
        if len(point):
            aim.look(threat.advance(aim.surface, aim.clean, point, gradient, threat.radius), gradient=False)
        return aim.inputs()
