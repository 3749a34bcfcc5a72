"""Scrutiny: whether the numbers of another family can be believed, said with evidence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.errors import UsageError
from secure_ml.kernels import fast_convolutions
from secure_ml.randomness import generator, seeded
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Estimate
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim

Verdict = Literal["PASS", "WARN", "FAIL", "SKIP"]
VERDICTS: tuple[Verdict, ...] = ("PASS", "SKIP", "WARN", "FAIL")
"""From good to bad."""


@dataclass(frozen=True)
class Finding:
    """What one check saw; a check that rests on another which failed is skipped."""

    check: str
    verdict: Verdict
    evidence: str
    remedy: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        """The verdict with its evidence and remedy, on one line."""
        return f"{self.verdict}  {self.check}: {self.evidence}" + (f" -> {self.remedy}" if self.remedy else "")


class Scrutiny(Attack):
    """Looks for the reasons for which robustness or privacy is most often overestimated; judges, and breaks nothing."""

    family: ClassVar[str] = "scrutiny"
    needs_threat: ClassVar[bool] = True
    """Whether what it judges depends on a threat."""

    @abstractmethod
    def examine(self, victim: Victim, threat: Threat | None, examples: int, rng: torch.Generator) -> Iterable[Finding]:
        """One finding for each check, in order; the threat is None only where none is needed."""

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """A row for each check: its verdict as a number (0 pass, 1 skip, 2 warn, 3 fail) and its evidence as a note."""
        self.check(victim.task, threat)
        threat = threat or victim.task.threat
        if threat is None and self.needs_threat:
            raise UsageError(f"{victim.task.name} declares no threat of its own: pass one, threat=Linf(0.1) say")
        rng = generator(seed, "scrutiny", repr(self))
        few = victim.tested(8).inputs
        with seeded(seed, "scrutiny"), fast_convolutions(victim.module, few), stopwatch(victim.device) as seconds:
            found = list(self.examine(victim, threat, examples, rng))
        rows = [
            make_row(
                victim,
                finding.check,
                Estimate(VERDICTS.index(finding.verdict), float("nan"), float("nan"), 1, "judged"),
                attack=repr(self),
                unit="verdict",
                seconds=seconds[0] if i == 0 else 0.0,
                note=str(finding),
            )
            for i, finding in enumerate(found)
        ]
        return Result(tuple(rows))

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """Of each check the worst finding on any victim."""
        checks: dict[str, list[Row]] = {}
        for row in (row for _, result in attempts for row in result.rows):
            checks.setdefault(row.measure, []).append(row)
        return [worst_row(rows) for rows in checks.values()]


def worst_row(rows: Sequence[Row]) -> Row:
    """The row of the worst verdict among several victims'."""
    worst = max(rows, key=lambda row: row.value or 0)
    estimate = Estimate(worst.value or 0, float("nan"), float("nan"), len(rows), "the worst of all victims")
    return pool_rows([worst, *(row for row in rows if row is not worst)], estimate, worst.note)
