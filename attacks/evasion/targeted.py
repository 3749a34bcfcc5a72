"""An attack with a class to be reached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.evasion.pgd import PGD
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.scores import Reached
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Predictor, Task
from secure_ml.threats import Change


@dataclass(frozen=True, kw_only=True)
class Targeted(Evasion):
    """Any attack that climbs a loss, sent towards one class (Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644).

    Of inputs ``(B, *shape)`` whose class is another, it counts the share that is answered with the class asked for: a
    success of the adversary, so higher is worse, and not to be mixed with robust accuracy. Raises `UsageError` for a
    class below 0, `NotApplicable` where there are no classes, and where the inner attack cannot aim.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    classifies: ClassVar[bool] = True

    attack: Evasion = PGD()
    """How the class is sought."""
    target: int = 0
    """The class to be reached."""

    def __post_init__(self) -> None:
        require(self.target >= 0, f"Targeted needs a class of at least 0; given {self.target}")

    @property
    def threats(self) -> tuple[type[Change], ...]:  # type: ignore[override]
        """Those of the inner attack."""
        return self.attack.threats

    @property
    def sees(self) -> str:  # type: ignore[override]
        """What the inner attack holds."""
        return self.attack.sees

    def budget(self, examples: int) -> int | None:
        """That of the inner attack."""
        return self.attack.budget(examples)

    def judged(self, task: Task, batch: Batch) -> tuple[Task, Batch]:
        """Examples of other classes with the class asked for in the place of their own, and whether it is reached."""
        assert isinstance(batch.target, Tensor)
        batch = batch.take(batch.target != self.target)

        def loss(predictor: Predictor, batch: Batch) -> Tensor:
            return -task.loss(predictor, batch)

        assert isinstance(batch.target, Tensor)
        wanted = torch.full_like(batch.target, self.target)
        return replace(task, loss=loss, score=Reached()), Batch(batch.inputs, wanted)

    def perturb(self, access: Any, batch: Batch, threat: Change, rng: torch.Generator) -> Tree:
        """The inputs that the inner attack found."""
        return self.attack.perturb(access, batch, threat, rng)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where the inner attack cannot aim."""
        self.attack.check(replace(task, score=Reached()), None)

    def check_threat(self, threat: Change) -> None:
        """Raise `UsageError` where the inner attack's settings do not fit."""
        self.attack.check_threat(threat)

    @classmethod
    def tiny(cls) -> Targeted:
        """Three steps."""
        return cls(attack=PGD.tiny())
