"""Audits: training is repeated with planted examples, and what shows of them bounds epsilon from below."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, Splits
from secure_ml.errors import NotApplicable, require
from secure_ml.families.scrutiny import VERDICTS, Finding, worst_row
from secure_ml.randomness import derive, generator, seeded
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Estimate
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.training import Observer, Plan, fit, fit_many, make_plan
from secure_ml.victim import Claim, Victim

MEASURE = "epsilon lower bound (95 %)"
ESTIMATE = "epsilon estimate"
DIFFERENTIAL_PRIVACY = "differential privacy"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What an audit shows: epsilon is at least this, at a delta, with 95 % confidence."""

    name: str
    epsilon: float
    delta: float
    method: str
    n: int
    """Observations that the bound is made of."""
    upper: float = math.inf
    """What was claimed of the very runs that were observed; infinity where nothing was."""
    rests_on: str = ""
    """What it takes for granted beyond the coins that it threw."""
    estimate: bool = False
    """Whether it is no bound, because what it takes for granted is not known to hold: it then accuses nobody."""


class Laboratory:
    """What an auditor holds: everything that the victim was made of, to train again on data of its own."""

    def __init__(self, victim: Victim, seed: int) -> None:
        self.victim, self.task, self.splits, self.seed = victim, victim.task, victim.splits, seed

    def splits_on(self, train: Batch, kept: Tensor) -> Splits:
        """The victim's splits with other training examples.

        The first of them are the victim's own at these places ``(k,)``, the rest is planted: each a new person.
        """
        owner = self.splits.owner
        if owner is not None:
            owner = torch.cat([owner[kept], owner.max() + 1 + torch.arange(len(train) - len(kept))])
        return replace(self.splits, train=train, owner=owner)

    def task_on(self, splits: Splits, task: Task | None = None) -> Task:
        """A task, the victim's unless given, on other data."""
        task = task or self.task
        return replace(task, name=f"{task.name}_audit", data=lambda _: splits)

    def fit(self, task: Task, observers: Sequence[Observer] = ()) -> Victim:
        """A task trained as the victim was: its defenses, its seed."""
        return fit(task, self.victim.defenses, seed=self.victim.seed, device=self.victim.device, observers=observers)

    def fit_many(self, tasks: Sequence[Task]) -> list[Victim]:
        """Tasks trained with the victim's defenses, each with a seed of its own."""
        seeds = [derive(self.seed, "audit", i) % 2**31 for i in range(len(tasks))]
        return fit_many(tasks, self.victim.defenses, seeds=seeds, device=self.victim.device)

    def plan(self, task: Task, observers: tuple[Observer, ...] = ()) -> Plan:
        """The plan by which a task would be trained."""
        with seeded(self.seed, "audit"):
            return make_plan(task, self.victim.defenses, self.victim.seed, self.victim.device, observers)


def privacy_claim(victim: Victim) -> Claim | None:
    """What a victim claims of its differential privacy, if it does."""
    return next((claim for claim in victim.claims if claim.kind == DIFFERENTIAL_PRIVACY), None)


def claimed(victim: Victim, delta: float) -> tuple[float, float]:
    """The epsilon that a victim claims, infinity without a claim, and the delta it is claimed at."""
    claim = privacy_claim(victim)
    return (math.inf, delta) if claim is None else (float(claim.values["epsilon"]), float(claim.values["delta"]))


class Audit(Attack):
    """The auditor holds everything, plants examples into the training data, and watches the training or its result.

    The bound is about the training procedure with the victim's defenses and settings, on data that differ from the
    victim's by what was planted; it is compared with what that very procedure claimed there.
    """

    family: ClassVar[str] = "audit"
    delta: float
    """Of the bound, where nothing is claimed; a claim's own delta else."""

    @abstractmethod
    def bounds(self, lab: Laboratory, rng: torch.Generator) -> Iterable[Bound]:
        """Bounds from one audit, each valid on its own."""

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where no example stays in the training data for good."""
        super().check(task, threat)
        if task.renew is not None:
            raise NotApplicable(
                f"the examples of {task.name} are drawn anew by what the model does: none stays there to be planted"
            )

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """A row for each bound, then one for the verdict: FAIL where a bound exceeds what is claimed.

        ``high`` of a row is what was claimed, and nothing where nothing was. A sound claim fails in at most 5 % of all
        audits for each bound.
        """
        self.check(victim.task, threat)
        with stopwatch(victim.device) as seconds:
            found = list(self.bounds(Laboratory(victim, seed), generator(seed, "audit", repr(self))))
        require(len(found) > 0, f"{self!r} gave no bound")
        rows = [self._row(victim, bound, seconds[0] if i == 0 else 0.0) for i, bound in enumerate(found)]
        finding = judge(type(self).__name__, found)
        verdict = make_row(
            victim,
            finding.check,
            Estimate(VERDICTS.index(finding.verdict), float("nan"), float("nan"), 1, "judged"),
            attack=repr(self),
            unit="verdict",
            note=str(finding),
        )
        scores = torch.tensor([[bound.epsilon, bound.upper] for bound in found], dtype=torch.float64)
        return Result((*rows, verdict), {"bounds": scores})

    def _row(self, victim: Victim, bound: Bound, seconds: float) -> Row:
        require(
            0 <= bound.epsilon < math.inf and 0 <= bound.delta < 1 and bound.n >= 1,
            f"{self!r} gave no finite bound of at least 0: {bound}",
        )
        return make_row(
            victim,
            f"{ESTIMATE if bound.estimate else MEASURE}, {bound.name}",
            Estimate(bound.epsilon, bound.epsilon, bound.upper, bound.n, bound.method),
            attack=repr(self),
            unit="epsilon",
            seconds=seconds,
            note=_note(bound),
        )

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """Of each bound the least over all victims, which holds as surely as one; of the verdicts the worst."""
        kinds: dict[tuple[str, str], list[Row]] = {}
        for row in (row for _, result in attempts for row in result.rows):
            kinds.setdefault((row.attack, row.measure), []).append(row)
        return [worst_row(rows) if rows[0].unit == "verdict" else _least(rows) for rows in kinds.values()]


def judge(name: str, found: Iterable[Bound]) -> Finding:
    """Whether what was shown contradicts what was claimed."""
    proofs = [bound for bound in found if not bound.estimate]
    check = f"audit below claim, {name}"
    over = [bound for bound in proofs if bound.epsilon > bound.upper]
    said = ", ".join(f"{bound.name} {bound.epsilon:.3g} of {_upper(bound)}" for bound in over or proofs)
    if over:
        return Finding(
            check, "FAIL", f"epsilon is above the claim: {said}", "noise, clipping, sampling or accounting is wrong"
        )
    if all(bound.upper == math.inf for bound in proofs):
        return Finding(check, "SKIP", f"no epsilon is claimed; shown is at least {said}")
    return Finding(check, "PASS", said)


def _upper(bound: Bound) -> str:
    return "no claim" if bound.upper == math.inf else f"{bound.upper:.3g}"


def _note(bound: Bound) -> str:
    kind = "no bound but an estimate" if bound.estimate else "lower bound"
    above = "nothing is claimed" if bound.upper == math.inf else f"claimed at most {bound.upper:.4g}"
    given = f", {bound.rests_on}" if bound.rests_on else ""
    return f"{bound.method}, {kind} at delta {bound.delta:g}{given}; {above}"


def _least(rows: Sequence[Row]) -> Row:
    least = min(rows, key=lambda row: row.value or 0.0)
    high = math.inf if least.high is None else least.high
    value = least.value or 0.0
    method = least.interval if len(rows) == 1 else f"{least.interval}, the least of {len(rows)} victims"
    note = least.note if len(rows) == 1 else f"{least.note}; the least of {len(rows)} victims"
    return replace(pool_rows(rows, Estimate(value, value, high, least.n, method)), note=note)
