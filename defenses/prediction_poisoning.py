"""Answers that teach a surrogate the wrong direction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses._answers import Altered, require_classes, require_open
from defenses._deviation import climbed, head_products, poisoned, whole_products
from secure_ml.batch import Tree, tree_map
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.task import Task
from secure_ml.victim import Victim, build

ROWS = 256
"""Answers that are poisoned at a time."""


@dataclass(frozen=True, kw_only=True)
class PredictionPoisoning(Defense):
    """MAD, the maximizing angular deviation of Orekondy et al. 2020 (https://arxiv.org/abs/1906.10908).

    Of each answer to ``(B, *shape)`` inputs the probabilities are changed, by an L1 distance of at most ``budget``,
    so that the gradient of a surrogate that learns from them turns away from the true one. The surrogate is the
    task's own architecture with random weights; the gradient is that in the last layer, as in the authors' code, or
    in all layers.

    Covers: surrogates trained on probabilities, as long as they resemble the assumed one. Does not cover: labels, where
    the decision is kept; an adversary who learns to undo the change. Where the decision is not kept, a budget of 1 or
    more turns that of nearly every answer. Raises `NotApplicable` unless answers are probabilities of classes, and
    behind encryption; `UsageError` for a budget outside (0, 2] or less than 0 rounds.

    Differs from the paper: the vertex is chosen for the deviation where the budget ends, not at the vertex itself, and
    its answer, a mixture, is then improved by steps between the vertices of what the budget allows.
    Beyond 10 classes, where the decision is kept, vertices are grown class by class, as in the authors' code.
    """

    budget: float = 0.5
    """L1 distance between what is served and the true probabilities, at most; 2 allows everything."""
    keep: bool = True
    """Whether the decision is kept: MAD-argmax."""
    whole: bool = False
    """Whether the gradient is that in all layers: a backward pass for each class of each query."""
    rounds: int = 5
    """Steps by which the paper's answer is improved, each to another vertex of what the budget allows; 0 for none."""
    secret: int = 0
    """The seed of the assumed surrogate's weights."""

    def __post_init__(self) -> None:
        require(self.rounds >= 0, f"PredictionPoisoning improves its answers in 0 rounds or more; given {self.rounds}")
        require(0 < self.budget <= 2, f"an L1 budget between probabilities lies in (0, 2]; given {self.budget}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are probabilities of classes."""
        require_classes(self, task, places=False)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering with poison; `NotApplicable` behind encryption."""
        require_open(self, victim)
        surrogate = build(victim.task, (), self.secret).to(victim.device).eval()
        products = whole_products if self.whole else head_products

        def change(shares: Tensor, inputs: Tree) -> Tensor:
            here = tree_map(lambda tensor: tensor.to(victim.device), inputs)
            found = [shares[:0]]
            for start in range(0, len(shares), ROWS):
                few = shares[start : start + ROWS]
                inner = products(surrogate, _rows(here, start, ROWS), few.device)
                answers = poisoned(few, inner, self.budget, self.keep)
                found.append(climbed(answers, few, inner, self.budget, self.keep, self.rounds))
            return torch.cat(found)

        return replace(victim, served=Altered(victim.served, change, keep=False))


def _rows(inputs: Tree, start: int, n: int) -> Tree:
    return tree_map(lambda tensor: tensor[start : start + n], inputs)
