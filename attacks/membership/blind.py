"""A control: whether members can be told from others without asking the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, leaves
from secure_ml.errors import NotApplicable, require
from secure_ml.randomness import derive
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Floats, Pair, auc, pooled
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim

NAME = "membership AUC without the model"


@dataclass(frozen=True, kw_only=True)
class Blind(Attack):
    """Members told from others by their inputs alone: nobody can, in a fair split (Das et al. 2024, https://arxiv.org/abs/2406.16201).

    A random forest learns from half of the members and others ``(B, *shape)``, with their targets, to tell the other
    half apart; the model is never asked. An AUC whose interval lies above one half means that the two differ before any
    training, and what membership attacks find on this split is no leak. Raises `UsageError` where there are fewer than
    four of a kind, and `NotApplicable` where no set of examples is trained on throughout.

    One half is given up rather than cross-validated: scores of forests that learned from each other's test examples
    are dependent, and their bootstrap interval is too narrow by a quarter.
    """

    family: ClassVar[str] = "blind membership"

    trees: int = 100
    """Trees of the forest."""

    def __post_init__(self) -> None:
        require(self.trees >= 1, f"Blind needs at least 1 tree; given {self.trees}")

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where examples are drawn anew in each epoch."""
        super().check(task, threat)
        if task.renew is not None:
            raise NotApplicable(f"the examples of {task.name} are drawn anew epoch by epoch: it has no fixed members")

    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """The AUC on as many members as others, none of which the forest learned from."""
        self.check(victim.task, threat)
        parts = victim.splits.train, victim.splits.nonmembers
        n = min(*map(len, parts), examples)
        require(n >= 4, f"Blind needs 4 members and 4 others; {victim.task} has {n}")
        members, others = (columns(part.take(slice(0, n))) for part in parts)
        with stopwatch(victim.device) as seconds:
            scores = self._judged(members, others, derive(seed, "blind") % 2**32)
        result = Result((), dict(zip(("members", "others"), map(torch.from_numpy, scores), strict=True)))
        estimate = pooled(auc, [_pair(result)])
        return Result((make_row(victim, NAME, estimate, attack=repr(self), seconds=seconds[0]),), result.evidence)

    def _judged(self, members: Floats, others: Floats, seed: int) -> list[Floats]:
        """What a forest that learned from the first half of the rows ``(n, d)`` thinks of the second half of each."""
        from sklearn.ensemble import RandomForestClassifier

        half = len(members) // 2
        forest = RandomForestClassifier(self.trees, min_samples_leaf=5, random_state=seed)
        forest.fit(np.concatenate([members[:half], others[:half]]), np.repeat([1, 0], half))
        return [np.ascontiguousarray(forest.predict_proba(rows[half:])[:, 1]) for rows in (members, others)]

    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The AUC over all victims; a note where it is above one half."""
        estimate = pooled(auc, [_pair(result) for _, result in attempts])
        skewed = "members and others differ without any model: what membership attacks find here is no leak"
        return [pool_rows([r.rows[0] for _, r in attempts], estimate, skewed if estimate.low > 0.5 else "")]

    @classmethod
    def tiny(cls) -> Blind:
        """Five trees."""
        return cls(trees=5)


def columns(batch: Batch) -> Floats:
    """Every number of inputs and target ``(B, d)``; of symbols also how often each comes; evenly thinned where many."""
    parts = []
    for leaf in (*leaves(batch.inputs), *leaves(batch.target)):
        flat = leaf.detach().cpu().reshape(len(leaf), -1)
        parts.append(flat.double())
        if not flat.is_floating_point() and flat.shape[1] > 1:
            parts.append(_counts(flat.long()))
    table = torch.cat(parts, 1)
    step = -(-table.shape[1] // MOST)
    found: Floats = table[:, ::step].numpy()
    return found


def _counts(symbols: Tensor) -> Tensor:
    """How often each symbol, modulo `BINS`, stands in each row."""
    counts = torch.zeros(len(symbols), BINS, dtype=torch.double)
    return counts.scatter_add_(1, symbols % BINS, torch.ones(symbols.shape, dtype=torch.double))


def _pair(result: Result) -> Pair:
    return result.evidence["members"].double().numpy(), result.evidence["others"].double().numpy()


BINS, MOST = 256, 2000
"""Kinds of symbols that are told apart, and columns that are looked at."""
