"""The share of examples whose right answer is proved to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.certificate import Certificate
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Certified(Attack):
    """Certified accuracy: the share of examples proved right everywhere in the ball (https://arxiv.org/abs/1711.00851).

    No attack: the other side of one. Asks the victim's own certificates for a radius of each example ``(B, *shape)``,
    in the unit of the box, and counts those whose radius is at least the threat's. The certified radii are kept as
    evidence. Raises `NotApplicable` where no defense of the victim proves anything in the threat's norm.
    """

    family: ClassVar[str] = "certification"
    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)

    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Certified accuracy on at most ``examples`` test examples, as a row, and the radii ``(n,)`` as evidence."""
        threat = threat or victim.task.threat
        if threat is None:
            raise UsageError(f"{victim.task.name} declares no threat of its own: pass one, threat=Linf(0.1) say")
        rng = generator(seed, "certification", repr(self))
        certificate, batch = certificate_for(victim, threat), victim.tested(examples)
        with stopwatch(victim.device) as seconds:
            radii = torch.cat([certificate.radii(part, rng) for part in batch.chunks(victim.task.chunk)])
        row = make_row(
            victim,
            f"certified accuracy under {threat}",
            clopper_pearson(int((radii >= _radius(threat)).sum()), len(radii)),
            attack=repr(self),
            seconds=seconds[0],
            note=f"each radius is wrong with a chance of at most {certificate.alpha:g}" if certificate.alpha else "",
        )
        return Result((row,), {"radii": radii.cpu()})

    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The mean over victims."""
        return [pool_rows([result.rows[0] for _, result in attempts])]


def certificate_for(victim: Victim, threat: Threat) -> Certificate:
    """The victim's certificate in the norm of a threat; `NotApplicable` where it has none."""
    for certificate in victim.certificates:
        if isinstance(threat, certificate.norm):
            return certificate
    raise NotApplicable(f"no defense of this victim proves anything about {type(threat).__name__} changes")


def _radius(threat: Threat) -> float:
    (part,) = threat.parts()
    return part.radius
