"""What an assessment comes to: rows, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from secure_ml.appraisal import Tried, duration
from secure_ml.attack import Result
from secure_ml.families.scrutiny import VERDICTS, Finding
from secure_ml.report import verdict
from secure_ml.rows import Row, cell, findings, make_row
from secure_ml.stats import Estimate
from secure_ml.task import Task
from secure_ml.victim import Victim

ASSUMED = "assumptions"
"""What stands as the attack of a row that says what was found out, assumed or planned."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A report card. Printed, it is what was assumed, numbers with intervals, the checks, and what is missing."""

    task: Task
    findings: tuple[Finding, ...]
    """What was found out, assumed or planned."""
    rows: tuple[Row, ...]
    """Every measurement, those that could not be made with the reason as their note, and every assumption."""
    card: tuple[Row, ...]
    """The verdicts: of several attacks the worst case, and every assumption."""
    results: tuple[Result, ...]
    """What is behind the rows, for plots and curves."""
    seconds: float

    @classmethod
    def of(
        cls, victim: Victim, groups: Sequence[tuple[Task, Tried]], found: Sequence[Finding], rest: Tried, seconds: float
    ) -> Assessment:
        """The card of what was tried on each stack of defenses; the ``rest``, which nobody asked for, has no column."""
        told = tuple(
            make_row(
                victim,
                finding.check,
                Estimate(VERDICTS.index(finding.verdict), float("nan"), float("nan"), 1, "judged"),
                attack=ASSUMED,
                unit="verdict",
                note=str(finding),
            )
            for finding in found
        )
        results = tuple(result for tried in (*(tried for _, tried in groups), rest) for _, result in tried)
        rows = tuple(row for result in results for row in (*result.rows, *result.usage))
        card = tuple(row for task, tried in groups for row in verdict(task, tried))
        return cls(
            task=victim.task,
            findings=tuple(found),
            rows=(*told, *rows),
            card=(*told, *card),
            results=results,
            seconds=seconds,
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """What was not measured, and why: one line each."""
        lost = [result.rows[0] for result in self.results if result.obstacle]
        lines = [f"{row.attack or row.measure} ({row.defenses}): {row.note}" for row in lost]
        return tuple(dict.fromkeys(lines))

    @property
    def failed(self) -> bool:
        """Whether anything went wrong on the way, which a row then says."""
        return any(result.failed for result in self.results)

    def __str__(self) -> str:
        """The card, to be read."""
        told = [str(finding) for finding in self.findings]
        checks = [row for row in self.card if row.unit == "verdict" and row.attack != ASSUMED]
        lost = [f"  {line}" for line in self.missing]
        parts = [
            f"{self.task}, in {duration(self.seconds)}: what was found out, assumed and planned",
            *(f"  {line}" for line in told),
            "",
            by_measure([row for row in self.card if row.unit != "verdict"]),
            *findings(checks),
            *(["", "Not measured:", *lost] if lost else []),
        ]
        return "\n".join(parts)


PLAIN = {"scrutiny": "checks"}
"""How a family is called in a table where nothing of it was measured, if not by its own name."""


def by_measure(rows: Sequence[Row]) -> str:
    """A table with a row for each measurement and a column for each stack of defenses, then the footnotes."""
    stacks = list(dict.fromkeys(row.defenses for row in rows))
    notes: list[str] = []
    lines = []
    for measure in dict.fromkeys(row.measure for row in rows):
        same = [[row for row in rows if row.measure == measure and row.defenses == stack] for stack in stacks]
        lines.append([PLAIN.get(measure, measure), *(cell(found, notes) for found in same)])
    claims = ["; ".join(c.short for c in next(r for r in rows if r.defenses == s).claims) or "-" for s in stacks]
    text = tabulate([*lines, ["claims", *claims]], ["measured", *stacks], tablefmt="github", disable_numparse=True)
    return "\n".join([text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])
