"""Membership from labels alone, by how far an example is from another label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from attacks.evasion.hop_skip_jump import HopSkipJump
from attacks.membership._signals import noisy
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.families.evasion import is_classifier
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Classes, Output, Reveal, check_reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Task
from secure_ml.threats import L2

Search = Literal["noise", "border"]


@dataclass(frozen=True, kw_only=True)
class BoundaryDistance(Membership):
    """Members lie further from the boundary, as labels alone tell (Choquette-Choo et al. 2021, https://arxiv.org/abs/2007.14321).

    An example of ``(B, *shape)`` inputs that is answered wrongly scores below all that are answered rightly. By
    ``border``, it scores the distance in L2 to the nearest error that HopSkipJump finds. By ``noise``, which is cheaper
    and weaker, the share of right labels under noise of ten deviations from a hundredth of the box to all of it: a
    rough rank of the distance, without a way to the border. Raises `UsageError` for settings out of range, and
    `NotApplicable` where inputs are no numbers or answers no classes.

    Differs from the paper: noise has fixed levels instead of one that was tuned on a shadow.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)
    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)

    reveal: Reveal = "label"
    """How much of each answer the adversary sees; no more than labels is used."""
    search: Search = "border"
    """border, or noise."""
    queries: int = 2500
    """Queries about each example; noise can do with a tenth."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(self.queries >= 10, f"BoundaryDistance needs at least 10 queries; given {self.queries}")
        if self.search not in get_args(Search):
            raise unknown("search for the boundary", self.search, get_args(Search))

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where no class is the right one."""
        if not is_classifier(task):
            raise NotApplicable(f"BoundaryDistance needs one right class for each example; {task.name} has none")

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """How far each example is from another label, ``(B,)``."""
        if self.search == "noise":
            return self._steadiness(access, batch, rng)
        return torch.cat([self._distance(access, part, rng) for part in batch.chunks(access.task.chunk)])

    def _steadiness(self, access: Questioned, batch: Batch, rng: torch.Generator) -> Tensor:
        """Whether the label is right, plus the share of right labels under noise."""
        right, held = _right(access, batch), torch.zeros(len(batch))
        rounds = self.queries // len(LEVELS)
        for level in LEVELS:
            for _ in range(rounds):
                held += _right(access, noisy(access.task, batch, level, rng))
        return right + held / (rounds * len(LEVELS))

    def _distance(self, access: Questioned, batch: Batch, rng: torch.Generator) -> Tensor:
        """The distance to the nearest wrong answer found: -1 where it is wrong at once, the box's own where none is."""
        threat = L2(1.0)
        surface = access.task.surface(threat)
        assert isinstance(surface, Box)
        clean = surface.get(batch.inputs)
        right = _right(access, batch) > 0
        attack = HopSkipJump(queries=self.queries, early=False)
        found = surface.get(attack.perturb(access, batch, threat, rng)) if len(batch) else clean
        distance = threat.size(clean, found).cpu()
        whole = (surface.high - surface.low) * clean[:1].numel() ** 0.5
        return torch.where(right, torch.where(distance > 0, distance, whole), -1.0)

    @classmethod
    def tiny(cls) -> BoundaryDistance:
        """Thirty queries."""
        return cls(queries=30)


def _right(access: Questioned, batch: Batch) -> Tensor:
    """1 where the label is right, ``(B,)``, on the CPU."""
    output = access.task.output
    assert isinstance(output, Classes)
    assert isinstance(batch.target, Tensor)
    return (output.decide(access(batch.inputs)) == batch.target).float().cpu()


LEVELS = tuple(10 ** (-2 + 2 * i / 9) for i in range(10))
"""Deviations of noise, as shares of the box."""
