"""Extraction: a copy of the served model from its answers to a budget of queries."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from secure_ml.access import BlackBox, WhiteBox
from secure_ml.alignment import worst_weight
from secure_ml.attack import Attack, Result
from secure_ml.batch import Batch, leaves
from secure_ml.climb import climb, divergence
from secure_ml.discovery import task as task_named
from secure_ml.errors import NotApplicable, Refused, UsageError, require
from secure_ml.honest import distances
from secure_ml.imitation import Imitation
from secure_ml.outputs import Classes, Ranking, Reveal, Values
from secure_ml.projection import MISSED, Projection
from secure_ml.randomness import derive, generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Estimate, bootstrap, clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import Threat, Walk
from secure_ml.victim import Plain, Victim


class Extraction(Attack):
    """The adversary asks the served model at most ``queries`` times, and knows architecture and recipe."""

    family: ClassVar[str] = "extraction"
    reveal: Reveal
    """How much of each answer the adversary sees."""
    exact: ClassVar[bool] = False
    """Whether a copy is to be the victim itself: then its worst answer and its worst weight are told as well."""
    queries: int
    """The budget; asking for more raises `BudgetExceeded`."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    source: str = ""
    """The document model whose training inputs the adversary asks about; the victim's auxiliary split unless given."""

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where answers hold no label and labels are all that is revealed."""
        super().check(task, threat)
        if self.reveal == "label" and not task.output.labels:
            kind = type(task.output).__name__
            raise NotApplicable(f"{self!r} learns from labels; {task.name} answers {kind}, which hold none")

    @abstractmethod
    def steal(
        self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator
    ) -> Iterator[nn.Module | Projection]:
        """Copies of the victim, one at each of `stages`, each from the queries that were made so far.

        Who steals no predictor but the last layer hands over a `Projection` in a copy's place.
        Who cannot or may not ask any more stops early: the last copy is then what the larger budgets buy.
        """

    @property
    def stages(self) -> tuple[int, ...]:
        """The budgets at which a copy is made, the whole one last."""
        return (*sorted({budget for budget in self.budgets if budget < self.queries}), self.queries)

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Compare each copy with what the victim serves, on test examples that neither has seen."""
        self.check(victim.task, threat)
        test = victim.tested(examples)
        pool = self._pool(victim)
        access = BlackBox(victim.task, victim.served, self.reveal, self.queries)
        name = ("extraction", repr(self))
        copies = self.steal(access, pool, Imitation(victim, derive(seed, *name)), generator(seed, *name))
        truth, note = victim.served(test.inputs), overlap(pool, victim.splits.train)
        rows: list[Row] = []
        found: list[tuple[str, Estimate, str]] = []
        seconds, spent = 0.0, 0
        for budget in self.stages:
            start = time.perf_counter()
            copy = _next(copies, bool(found))
            seconds += time.perf_counter() - start
            if copy is not None:
                spent = access.queries
                if isinstance(copy, Projection):
                    found = copy.judge(victim, self.reveal)
                else:
                    found = judge(victim, copy, test, truth, threat, seed)
                    found += worst(victim, copy, test, truth, self.reveal) if self.exact else []
            rows += [
                make_row(
                    victim,
                    f"{what}{AT}{budget} queries",
                    estimate,
                    attack=repr(self),
                    unit=unit,
                    queries=spent,
                    seconds=seconds,
                    note=note,
                )
                for what, estimate, unit in found
            ]
        require(bool(rows), f"{self!r} made no copy of {victim.task}")
        return Result((*rows, *_honest(victim, test, truth)))

    def _pool(self, victim: Victim) -> Batch:
        """The inputs that the adversary has."""
        if not self.source:
            return victim.splits.aux
        return _foreign(victim, self.source).to(victim.device)

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The most faithful copy at each budget, and its own score; the closest projection: means over victims."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        best: dict[str, list[Row]] = {}
        for results in by_attack.values():
            rows = [pool_rows(same) for same in _by_measure(results)]
            for place, row in enumerate(rows):
                rival = best.get(row.measure)
                better = rival is None or (row.value or 0.0) > (rival[0].value or 0.0)
                if row.measure.startswith("fidelity" + AT) and better:
                    best[row.measure] = rows[place : place + 2]
                closer = rival is None or (row.value or 0.0) < (rival[0].value or 0.0)
                if row.measure.startswith(MISSED + AT) and closer:
                    best[row.measure] = [row, *rows[place - 2 : place]]
        return [row for rows in best.values() for row in rows]


def _by_measure(results: Sequence[Result]) -> list[list[Row]]:
    """The rows of each measure; nothing transfers to a victim that gets no example right, whose row is missing."""
    found: dict[str, list[Row]] = {}
    for row in (row for result in results for row in result.rows):
        found.setdefault(row.measure, []).append(row)
    return list(found.values())


def _next(copies: Iterator[nn.Module | Projection], one_is_there: bool) -> nn.Module | Projection | None:
    """The next copy; None after the last one, and where its client was refused after an earlier one."""
    try:
        return next(copies, None)
    except Refused:
        if one_is_there:
            return None
        raise


def judge(
    victim: Victim, copy: nn.Module, test: Batch, truth: Tensor, threat: Threat | None, seed: int
) -> list[tuple[str, Estimate, str]]:
    """Name, estimate and unit of all that a copy is measured by; ``truth`` is what the victim serves for the test."""
    task, served = victim.task, Plain(copy.eval(), victim.task.chunk)
    answers = served(test.inputs).to(truth)
    apart = divergence(task, truth, answers).double().cpu().numpy()
    kind, unit = (DISTANCES[1], "") if isinstance(task.output, Values) else (DISTANCES[0], "nats")
    found = [
        ("fidelity", task.output.fidelity(answers, truth), "share"),
        (f"copy's {task.score.name}", task.score.measure(served, test), task.score.unit),
        (kind, bootstrap(lambda a: float(a.mean()), apart), unit),
    ]
    moved = transfer(victim, copy, test, truth, threat or task.threat, seed)
    return [*found, *([("transfer", moved, "share")] if moved else [])]


def worst(
    victim: Victim, copy: nn.Module, test: Batch, truth: Tensor, reveal: Reveal
) -> list[tuple[str, Estimate, str]]:
    """The largest difference of any answer to what is served, and of any weight, up to the order and scale of units.

    What all classes share is left out where only probabilities are revealed; no weights where a defense changed layers.
    """
    shift = reveal != "logits" and not isinstance(victim.task.output, Values)
    apart = Plain(copy, victim.task.chunk)(test.inputs).double() - truth.double()
    apart = apart - apart.mean(-1, keepdim=True) if shift and apart.ndim > 1 else apart
    found = [(WORST[0], float(apart.abs().max()))]
    with suppress(UsageError):
        found.append((WORST[1], worst_weight(copy, victim.module, shift)))
    return [(name, Estimate(value, math.nan, math.nan, 1, "computed"), "") for name, value in found]


def transfer(
    victim: Victim, copy: nn.Module, test: Batch, truth: Tensor, threat: Threat | None, seed: int
) -> Estimate | None:
    """The share of examples, right before, that a change made on the copy turns wrong; None where nothing is climbed.

    At most `TRANSFERRED` examples, and `CLIMB` steps up the copy's own loss within the threat.
    """
    task = victim.task
    if not isinstance(task.output, Classes) or isinstance(task.output, Ranking) or threat is None:
        return None
    if not all(isinstance(part, Walk) for part in threat.parts()) or not isinstance(test.target, Tensor):
        return None
    chosen = (task.output.decide(truth) == test.target).nonzero()[:TRANSFERRED, 0]
    if not len(chosen):
        return None
    attacked = climb(WhiteBox(task, copy), test.take(chosen), threat, None, generator(seed, "transfer"), steps=CLIMB)
    after = task.output.decide(victim.served(attacked))
    return clopper_pearson(int((after != test.target[chosen]).sum()), len(chosen))


def _honest(victim: Victim, test: Batch, truth: Tensor) -> list[Row]:
    """What the answers that are served are to those who mean no harm, beside the module's own."""
    output, bare = victim.task.output, Plain(victim.module, victim.task.chunk)(test.inputs)
    moved = distances(truth, bare.to(truth), isinstance(output, Values)).double().cpu().numpy()
    return [
        make_row(victim, KEPT, output.fidelity(truth, bare.to(truth))),
        make_row(victim, MOVED, bootstrap(lambda d: float(d.mean()), moved), unit=""),
    ]


def overlap(pool: Batch, members: Batch) -> str:
    """A warning where the victim was trained on some inputs of the pool; empty where it was not."""
    mine = set(_rows(members))
    known = sum(row in mine for row in _rows(pool))
    return f"{known} of {len(pool)} inputs of the pool are training examples: overstated" if known else ""


def _rows(batch: Batch) -> list[bytes]:
    tables = [leaf.detach().cpu().reshape(len(batch), -1).contiguous().numpy() for leaf in leaves(batch.inputs)]
    return [b"".join(table[i].tobytes() for table in tables) for i in range(len(batch))]


def _foreign(victim: Victim, source: str) -> Batch:
    """The training inputs of another document model; `UsageError` where they are none of this one's inputs."""
    task = victim.task
    pool = task_named(source, **({"tiny": True} if "tiny=True" in task.options else {})).draw(0).train
    mine, theirs = ([tuple(leaf.shape[1:]) for leaf in leaves(batch.inputs)] for batch in (victim.splits.train, pool))
    require(mine == theirs, f"inputs of {source} have shapes {theirs}; {task.name} takes {mine}: choose another pool")
    try:
        for surface in task.surfaces:
            surface.check(pool.inputs)
    except UsageError as error:
        raise UsageError(f"the pool of {source} holds what is no input of {task.name}: {error}") from None
    return pool


AT = " at "
"""Between what was measured and the number of queries, in the name of a measurement."""
DISTANCES = ("copy's divergence", "copy's squared distance")
"""How a copy's answers are apart from the victim's: Kullback-Leibler, from the victim's; of values, squared."""
WORST = ("copy's worst answer", "copy's worst weight")
"""How far a copy that is to be the victim itself is from it anywhere: over the test examples, over the weights."""
KEPT, MOVED = "answers kept", "answers moved (L1)"
"""What the defenses that serve leave of the module's answers to honest questions."""
TRANSFERRED = 200
CLIMB = 20
