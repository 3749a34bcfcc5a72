"""A bandit that learns which part of a pool is worth asking about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.extraction._bandit import Bandit, rewards
from attacks.extraction._choice import grouped
from attacks.extraction._learned import Asked, Learned, marks, shares, shuffled
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree, leaves
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Tokens
from secure_ml.task import Task
from secure_ml.victim import Plain

Arms = Literal["inputs", "copy"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveKnockoff(Learned):
    """Queries by a gradient bandit: the adaptive policy of Knockoff Nets (Orekondy et al. 2019).

    https://arxiv.org/abs/1812.02766. The pool is divided into ``arms`` groups by k-means, on inputs ``(B, *shape)`` or
    on the copy's own answers to them. After a random share of the ``queries``, rounds draw each next input from an arm
    that the policy draws; an arm is rewarded for answers that are sure, unlike those before, and unlike the copy's (of
    a regression the last two), each on its running scale. Raises `UsageError` for settings out of range,
    `NotApplicable` where tokens would be grouped as if they were numbers.

    Differs from the paper: groups by k-means where the paper has the pool's labels; the policy is updated after each
    query but the copy, trained anew with the victim's recipe, only after each round.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are asked about; the victim's auxiliary split unless given."""
    varied: bool = False
    """Whether every image is turned, zoomed, stretched and moved at random before it is asked about."""
    by: Arms = "inputs"
    """Whether inputs are grouped by what they are or by what the copy answers."""
    arms: int = 10
    """Number of groups."""
    rounds: int = 5
    """After how many parts of the rest of the budget the copy is trained anew."""
    seed: float = 0.2
    """Share of the budget that is spent on random inputs first."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of each copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in get_args(Arms):
            raise unknown("way of grouping a pool", self.by, get_args(Arms))
        require(self.arms >= 2, f"AdaptiveKnockoff needs at least 2 arms; given {self.arms}")
        require(self.rounds >= 1, f"AdaptiveKnockoff needs at least 1 round; given {self.rounds}")
        require(0 < self.seed <= 1, f"AdaptiveKnockoff needs a share of random queries in (0, 1]; given {self.seed}")

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where tokens would be grouped as if they were numbers."""
        if self.by == "inputs" and any(isinstance(surface, Tokens) for surface in task.surfaces):
            raise NotApplicable(f"the tokens of {task.name} have no distances to group them by: use by='copy'")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        pool, asked, copy = self.wide(pool, WIDE * self.queries, rng), Asked(access), None
        bandit = Bandit(min(self.arms, len(pool)))
        left = torch.ones(len(pool), dtype=torch.bool)
        arm = grouped(_numbers(pool.inputs), self.arms, rng) if self.by == "inputs" else None
        for mark in marks(self.stages, max(1, round(self.seed * self.queries)), self.rounds):
            n = min(mark - len(asked), int(left.sum()))
            if copy is None:
                asked.ask(pool.take(take(left, shuffled(len(pool), n, rng))).inputs)
            elif n:
                served = Plain(copy, train.task.chunk)
                if arm is None or self.by == "copy":
                    arm = grouped(shares(train.task.output, served(pool.inputs)), self.arms, rng)
                chosen = take(left, bandit.draw(arm, left, n, rng))
                before = asked.answers
                new = asked.ask(pool.take(chosen).inputs)
                bandit.learn(arm[chosen[: len(new)]], rewards(train.task.output, new, before, served(new.inputs)))
            if n or copy is None:
                copy = self.learn(train, asked.data)
            over = asked.refused or not bool(left.any())
            if mark in self.stages or over:
                yield copy
            if over:
                return

    @classmethod
    def tiny(cls) -> AdaptiveKnockoff:
        """Eight queries in two rounds, from four groups of the copy's answers."""
        return cls(queries=8, budgets=(4,), by="copy", arms=4, rounds=2, epochs=2)


WIDE = 4
"""How many times as many variations as the budget pays for are there to choose from, where images are varied."""


def take(left: Tensor, chosen: Tensor) -> Tensor:
    """The places chosen, which are left no more."""
    left[chosen] = False
    return chosen


def _numbers(inputs: Tree) -> Tensor:
    """Every number of inputs, ``(B, D)``."""
    return torch.cat([leaf.float().reshape(len(leaf), -1) for leaf in leaves(inputs)], 1)
