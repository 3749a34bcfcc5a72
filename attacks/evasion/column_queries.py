"""A table's numbers moved and its words replaced by somebody who can only ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._asking import Asking, check_askable
from attacks.evasion._losses import check_loss
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Surface, Table
from secure_ml.task import Loss, Task
from secure_ml.threats import Change, Features


@dataclass(frozen=True, kw_only=True)
class ColumnQueries(Evasion):
    """Search over a table's categories and numbers by asking (after Square, https://arxiv.org/abs/1912.00049).

    Asks about rows ``(B, d)`` without weights or gradients, so trees are searched like nets. First every category of
    every group is tried in the place of the one that is there, in random order and for at most half of the
    ``queries``; then a few numbers at a time move, to an end of what the threat allows or to anywhere within, or a
    category changes. What is no worse for the adversary is kept: the answers of trees do not change with every step.
    Where more groups would be changed than may be, one of the others goes back. Raises `UsageError` for settings out
    of range, `NotApplicable` for a loss of classes where there are none.

    Differs from the paper, which is about images: columns in the place of windows, and categories.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Table,)
    threats: ClassVar[tuple[type[Change], ...]] = (Features,)
    sees: ClassVar[Reveal] = "logits"

    queries: int = 1000
    """Queries for each example."""
    loss: str | Loss = "margin"
    """What is climbed: margin, ce or dlr for classifiers, the task's own, or a ``(predictor, batch) -> (B,)``."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"ColumnQueries needs at least 1 query; given {self.queries}")
        check_loss(self.loss)

    def budget(self, examples: int) -> int:
        """The queries about every example."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Features, rng: torch.Generator) -> Tree:
        """Rows ``(B, d)`` in the place of the batch's."""
        if threat.radius == 0:
            return batch.inputs
        aim = Asking(access, batch, threat, self.loss)
        if len(aim.restart()):
            self._search(aim, threat, rng)
        return aim.inputs()

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where there is nothing to climb."""
        check_askable(task, self.loss)

    @classmethod
    def tiny(cls) -> ColumnQueries:
        """Forty queries."""
        return cls(queries=40)

    def _search(self, aim: Asking, threat: Features, rng: torch.Generator) -> None:
        """Propose, ask, and keep what is no better for the defender; broken examples leave."""
        assert isinstance(aim.surface, Table)
        moves = _Moves(aim.surface, threat, rng)
        point, loss = aim.clean.clone(), aim.peak[aim.rows].clone()
        offers = moves.offers()[: (self.queries - 1) // 2]
        for query in range(1, self.queries):
            if query <= len(offers):
                proposal = moves.replaced(aim.clean, point, offers[query - 1].expand(len(point), 2))
            else:
                proposal = moves.moved(aim.clean, point, (query - len(offers)) / (self.queries - len(offers)))
            there, wrong = aim.look(proposal)
            kept = (there >= loss) | wrong
            point[kept], loss = proposal[kept], torch.where(kept, there, loss)
            if bool(wrong.any()):
                aim.keep(point, loss, wrong)
                stay = (~wrong).nonzero()[:, 0]
                aim.stay(stay)
                point, loss = point[stay], loss[stay]
                if not len(stay):
                    return
        aim.keep(point, loss, torch.zeros_like(loss, dtype=torch.bool))


class _Moves:
    """Changes of rows that the threat allows."""

    def __init__(self, surface: Table, threat: Features, rng: torch.Generator) -> None:
        self.threat, self.rng = threat, rng
        self.groups = surface.free_groups if threat.flips else []
        self.fixed = [*surface.frozen, *(column for group in surface.groups for column in group)]
        self.sizes = torch.tensor([len(group) for group in self.groups])

    def offers(self) -> Tensor:
        """Every group and category ``(m, 2)``, in random order."""
        every = [(g, c) for g, group in enumerate(self.groups) for c in range(len(group))]
        return torch.tensor(every).reshape(-1, 2)[torch.randperm(len(every), generator=self.rng)]

    def replaced(self, clean: Tensor, point: Tensor, offer: Tensor) -> Tensor:
        """Rows with a category ``(n, 2)`` each, and one of the others back in its place where that is one too many."""
        codes, first = self._codes(point), self._codes(clean)
        offer = offer.to(codes.device)
        chosen = torch.zeros_like(codes, dtype=torch.bool).scatter(1, offer[:, :1], True)
        codes = torch.where(chosen, offer[:, 1:], codes)
        changed = codes != first
        lots = self._rand(*codes.shape).to(codes.device).masked_fill(chosen | ~changed, -1.0)
        back = torch.zeros_like(chosen).scatter(1, lots.argmax(1, keepdim=True), True)
        too_many = (changed.sum(1, keepdim=True) > self.threat.flips) & back
        return self._written(point, torch.where(too_many, first, codes))

    def moved(self, clean: Tensor, point: Tensor, done: float) -> Tensor:
        """Rows in which fewer and fewer numbers move as the search goes on, or a category changes."""
        n, d = point.shape
        free = torch.ones(d, dtype=torch.bool)
        free[self.fixed] = False
        share = max(FIRST * (1 - done), 1.5 / max(int(free.sum()), 1))
        some = self._rand(n, d) < share
        ends = self._rand(n, d) < 0.5
        way = 2 * self._rand(n, d) - 1
        step = self.threat.radius * torch.where(ends, torch.where(way < 0, -1.0, 1.0), way)
        at = (some & free).to(point.device)
        moved = torch.where(at, clean + step.to(point), point)
        if not self.groups:
            return moved
        g = torch.randint(len(self.groups), (n, 1), generator=self.rng)
        c = (self._rand(n, 1) * self.sizes[g]).long()
        another = self.replaced(clean, point, torch.cat([g, c], 1))
        chosen = self._rand(n, 1) < (0.25 if bool(free.any()) else 1.0)
        return torch.where(chosen.to(point.device), another, moved)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng)

    def _codes(self, rows: Tensor) -> Tensor:
        """The category ``(n, G)`` of every group."""
        return torch.stack([rows[:, list(group)].argmax(1) for group in self.groups], 1)

    def _written(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Rows with these categories."""
        out = rows.clone()
        for g, group in enumerate(self.groups):
            out[:, list(group)] = torch.nn.functional.one_hot(codes[:, g], len(group)).to(rows)
        return out


FIRST = 0.8
"""The share of the numbers that moves at first, as Square's windows cover."""
