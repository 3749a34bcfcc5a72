"""Membership inference: telling a model's training examples from others of the same distribution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
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
from secure_ml.surfaces import Surface
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim

AUC_NAME, TPR_NAME = "membership AUC", "TPR at 1 % FPR"
RATES = {TPR_NAME: 0.01, "TPR at 0.1 % FPR": 0.001}
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
        """A shadow behind the same limits as the victim; where a cheaper path gives the same answers, that is asked."""
        return BlackBox(self.task, shadow.served.stand_in(), self.reveal)


class Membership(Attack):
    """The adversary asks the served model, knows the true targets, and holds auxiliary data of its own."""

    family: ClassVar[str] = "membership"
    surfaces: ClassVar[tuple[type[Surface], ...]] = ()
    """What of an input it changes, one of these, where it asks about changed inputs."""
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
        if self.surfaces and not any(isinstance(surface, self.surfaces) for surface in task.surfaces):
            kinds = " or ".join(kind.__name__ for kind in self.surfaces)
            theirs = " and ".join(type(surface).__name__ for surface in task.surfaces) or "no surface"
            raise NotApplicable(f"{type(self).__name__} changes {kinds} inputs; {task.name} has {theirs}")
        self.check_task(task)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where the attack has no meaning for a task for another reason."""

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Score as many members as non-members of the same distribution, in one mixed batch, the same for all attacks.

        The seconds hold the training of those shadows that no other attack had asked for before. The evidence are the
        scores of members and of others ``(n,)``, each in the order of its split.
        """
        self.check(victim.task, threat)
        n = min(len(victim.splits.train), len(victim.splits.nonmembers), examples)
        require(n >= 1, f"{victim.task} has no members and non-members to tell apart")
        batch, order = _mixed(victim, n, generator(seed, "membership"))
        access = Questioned(victim, self.reveal, batch)
        with stopwatch(victim.device) as seconds:
            given = self.score(access, batch, victim.splits.aux, generator(seed, "membership", repr(self)))
        require(given.shape == (2 * n,), f"{self!r} gave scores of shape {tuple(given.shape)} for {2 * n} examples")
        scores = torch.empty(2 * n, dtype=torch.float64)
        scores[order] = given.detach().double().cpu().nan_to_num(nan=-torch.inf)
        members, others = scores.split(n)
        result = Result((), {"members": members.clone(), "others": others.clone()})
        rows = [
            make_row(victim, name, estimate, attack=repr(self), queries=access.queries, seconds=seconds[0], note=note)
            for name, estimate, note in _judge([_pair(result)])
        ]
        return Result(tuple(rows), result.evidence)

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The attack with the highest AUC, from the pooled scores of all victims; a note says how many were tried."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        tried = len(by_attack)
        choice = f"the best of {tried} attacks by AUC on these same examples: its interval does not cover the choice"
        verdicts = []
        for results in by_attack.values():
            judged = _judge([_pair(result) for result in results])
            verdicts.append(
                [
                    pool_rows([result.rows[i] for result in results], estimate, note or (choice if tried > 1 else ""))
                    for i, (_, estimate, note) in enumerate(judged)
                ]
            )
        return max(verdicts, key=lambda rows: rows[0].value or 0.0)


def _judge(victims: list[Pair]) -> list[tuple[str, Estimate | None, str]]:
    others = sum(len(pair[1]) for pair in victims)
    judged: list[tuple[str, Estimate | None, str]] = [(AUC_NAME, pooled(auc, victims), "")]
    for name, rate in RATES.items():
        if others * rate >= FALSE_POSITIVES:
            judged.append((name, pooled(partial(tpr_at, fpr=rate), victims), ""))
            continue
        need = round(FALSE_POSITIVES / rate)
        why = f"a {100 * rate:g} % FPR needs {need} non-members, of one victim or pooled; had {others}"
        judged.append((name, None, why))
    return judged


def _pair(result: Result) -> Pair:
    return result.evidence["members"].numpy(), result.evidence["others"].numpy()


def _mixed(victim: Victim, n: int, rng: torch.Generator) -> tuple[Batch, Tensor]:
    """``n`` members and ``n`` others in a random order ``(2n,)``, in which the members are those below ``n``."""
    members, others = (part.take(slice(0, n)) for part in (victim.splits.train, victim.splits.nonmembers))
    order = torch.randperm(2 * n, generator=rng)
    both = Batch(join([members.inputs, others.inputs]), join([members.target, others.target]))
    return both.take(order.to(victim.device)), order
