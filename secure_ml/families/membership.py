"""Membership inference: telling a model's training examples from others of the same distribution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, join
from secure_ml.errors import NotApplicable, require
from secure_ml.outputs import Reveal
from secure_ml.randomness import generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.shadows import Shadows, shadows_of
from secure_ml.stats import Estimate, Pair, auc, pooled, tpr_at
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim

FPR = 0.01
AUC_NAME, TPR_NAME = "membership AUC", "TPR at 1 % FPR"
FALSE_POSITIVES = 10
"""A rate is not reported where the non-members allow fewer false positives than this."""


class Questioned(BlackBox):
    """The served model behind its meter, and shadows of it: trained when they are first asked for."""

    def __init__(self, victim: Victim, reveal: Reveal, batch: Batch) -> None:
        super().__init__(victim.task, victim.served, reveal)
        self._victim, self._batch = victim, batch

    def shadows(self, count: int, *, online: bool = True) -> Shadows:
        """``count`` models trained like the victim, online each on half of the examples in question, offline on none.

        They answer behind the victim's own defenses; what they are asked is not counted, for they are the adversary's.
        """
        return shadows_of(self._victim, self._batch, count, online=online)

    def like(self, shadow: Victim) -> BlackBox:
        """A shadow behind the same limits as the victim."""
        return BlackBox(self.task, shadow.served, self.reveal)


class Membership(Attack):
    """The adversary asks the served model, knows the true targets, and holds auxiliary data of its own."""

    family: ClassVar[str] = "membership"
    reveal: Reveal
    """How much of each answer the adversary sees."""

    @abstractmethod
    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """How much each example looks like a member, ``(B,)``; higher is more."""

    @final
    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where no set of examples was trained on throughout."""
        super().check(task, threat)
        if task.renew is not None:
            raise NotApplicable(
                f"the examples of {task.name} are drawn anew by what the model does, epoch by epoch: there is no fixed "
                "set of members to infer"
            )

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Score as many members as non-members of the same distribution, in one mixed batch."""
        self.check(victim.task, threat)
        n = min(len(victim.splits.train), len(victim.splits.nonmembers), examples)
        require(n >= 1, f"{victim.task} has no members and non-members to tell apart")
        rng = generator(seed, "membership", repr(self))
        batch, member = _mixed(victim, n, rng)
        access = Questioned(victim, self.reveal, batch)
        with stopwatch(victim.device) as seconds:
            scores = self.score(access, batch, victim.splits.aux, rng)
        require(scores.shape == (2 * n,), f"{self!r} gave scores of shape {tuple(scores.shape)} for {2 * n} examples")
        scores = scores.detach().double().cpu().nan_to_num(nan=-torch.inf)
        result = Result((), {"members": scores[member], "others": scores[~member]})
        rows = [
            make_row(victim, name, estimate, attack=repr(self), queries=access.queries, seconds=seconds[0], note=note)
            for name, estimate, note in _judge([_pair(result)])
        ]
        return Result(tuple(rows), result.evidence)

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The attack with the highest AUC, from the pooled scores of all victims."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        verdicts = []
        for results in by_attack.values():
            judged = _judge([_pair(result) for result in results])
            verdicts.append(
                [
                    pool_rows([result.rows[i] for result in results], estimate, note)
                    for i, (_, estimate, note) in enumerate(judged)
                ]
            )
        return max(verdicts, key=lambda rows: rows[0].value or 0.0)


def _judge(victims: list[Pair]) -> list[tuple[str, Estimate | None, str]]:
    others = sum(len(pair[1]) for pair in victims)
    judged: list[tuple[str, Estimate | None, str]] = [(AUC_NAME, pooled(auc, victims), "")]
    if others * FPR < FALSE_POSITIVES:
        need = int(FALSE_POSITIVES / FPR)
        return [*judged, (TPR_NAME, None, f"a 1 % FPR needs {need} non-members, of one victim or pooled; had {others}")]
    return [*judged, (TPR_NAME, pooled(lambda m, o: tpr_at(m, o, FPR), victims), "")]


def _pair(result: Result) -> Pair:
    return result.evidence["members"].numpy(), result.evidence["others"].numpy()


def _mixed(victim: Victim, n: int, rng: torch.Generator) -> tuple[Batch, Tensor]:
    """``n`` members and ``n`` others in random order, with the mask ``(2n,)`` of the members."""
    members, others = (part.take(slice(0, n)) for part in (victim.splits.train, victim.splits.nonmembers))
    order = torch.randperm(2 * n, generator=rng)
    both = Batch(join([members.inputs, others.inputs]), join([members.target, others.target]))
    return both.take(order.to(victim.device)), order < n
