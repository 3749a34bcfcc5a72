"""Answers that are as unlike the true ones as a budget allows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from defenses._answers import Altered, require_classes, require_open
from defenses._spreading import spread
from secure_ml.batch import Tree
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.task import Task
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class ModelGuard(Defense):
    """ModelGuard-W of Tang et al. 2024 (USENIX Security; https://github.com/Yoruko-Tang/ModelGuard).

    Of each answer to ``(B, *shape)`` inputs, at each place of a generator, the probabilities are changed so that they
    minimise the mean of the true log-probabilities, while the decision is kept and the L1 distance, as in Orekondy et
    al. 2020 (https://arxiv.org/abs/1906.10908), is at most ``budget``: mass moves from the likeliest classes to the
    unlikeliest. Nothing about the surrogate is assumed, and nothing is random.

    Covers: surrogates trained on probabilities. Does not cover: labels, which are the floor of every defense that keeps
    the decision; an adversary who learns to undo the change, which is deterministic (ModelGuardS is there against
    that). Raises `NotApplicable` unless answers are probabilities of classes or next
    symbols, and behind encryption; `UsageError` for a budget outside (0, 2].

    Differs from the paper: the linear program is solved by a search over the height of the decision, not by a general
    solver; the decision stays above all others by a margin of 1e-4, less in small budgets.
    """

    budget: float = 1.0
    """L1 distance between what is served and the true probabilities, at most; 2 allows everything."""

    def __post_init__(self) -> None:
        require(0 < self.budget <= 2, f"an L1 budget between probabilities lies in (0, 2]; given {self.budget}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are probabilities."""
        require_classes(self, task)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering with other probabilities; `NotApplicable` behind encryption."""
        require_open(self, victim)
        return replace(victim, served=Altered(victim.served, self.change, keep=False))

    def change(self, shares: Tensor, inputs: Tree) -> Tensor:
        """The spread probabilities ``(N, K)``."""
        return spread(shares, self.budget)
