"""Answers bent by a curve that cannot be inverted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from defenses._answers import Altered, normalised, require_classes, require_open
from secure_ml.batch import Tree
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.task import Task
from secure_ml.victim import Victim

EDGE = 1e-9
"""How near to 0 and 1 a probability is taken to lie at least, before its log-odds are taken."""


@dataclass(frozen=True, kw_only=True)
class ReverseSigmoid(Defense):
    """Serves probabilities less a reverse sigmoid of themselves (Lee et al. 2018, https://arxiv.org/abs/1806.00054).

    Of each probability p of answers to ``(B, *shape)`` inputs, at each place of a generator, ``beta (s(gamma logit p)
    - 1/2)`` with the sigmoid s is taken away; what is left is cut off at 0 and 1 and normalised again. Several p give
    one answer, so that it cannot be inverted everywhere.

    Covers: what reads confidence, in part. Does not cover: labels, while the decision is kept; a surrogate that is
    trained to undo the curve, which is known. Raises `NotApplicable` unless answers are probabilities of classes, and
    behind encryption; `UsageError` unless both settings are finite and above 0.
    """

    beta: float = 1.0
    """How much is taken away at most, times two."""
    gamma: float = 0.1
    """How fast that is reached; the steeper, the more probabilities share one answer."""
    keep: bool = True
    """Whether the decision is kept where the curve would turn it."""

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("gamma", self.gamma)):
            require(0 < value < math.inf, f"ReverseSigmoid needs a finite {name} above 0; given {value}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are probabilities."""
        require_classes(self, task)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering along the curve; `NotApplicable` behind encryption."""
        require_open(self, victim)
        return replace(victim, served=Altered(victim.served, self.change, self.keep))

    def change(self, shares: Tensor, inputs: Tree) -> Tensor:
        """The bent probabilities ``(N, K)``."""
        odds = shares.clamp(EDGE, 1 - EDGE).logit()
        return normalised((shares - self.beta * ((self.gamma * odds).sigmoid() - 0.5)).clamp(0, 1))
