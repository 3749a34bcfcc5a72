"""Reports on victims: one victim's card, one victim under attack, and the verdict on many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from secure_ml.attack import Attack, Result
from secure_ml.errors import NotApplicable
from secure_ml.latency import latency
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Estimate
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim


def card(victim: Victim) -> Result:
    """The victim's own score, as served, what its training took, and what an answer takes."""
    task = victim.task
    rows = (
        make_row(victim, task.score.name, victim.score(), unit=task.score.unit),
        *(make_row(victim, s.name, s.measure(victim.served, victim.splits.test), unit=s.unit) for s in task.also),
        make_row(victim, "training seconds", _exactly(victim.seconds), unit="seconds"),
        latency(victim),
    )
    return with_usage(victim, Result(rows))


def evaluate(
    victim: Victim,
    attacks: Sequence[Attack],
    *,
    threat: Threat | None = None,
    seed: int = 0,
    examples: int = 1000,
) -> list[Row]:
    """The rows of a victim's card and of each attack on it; an attack that has no meaning is a row that says why.

    ``threat`` is the task's own unless given; at most ``examples`` test examples are attacked.
    """
    results = [card(victim)]
    for attack in attacks:
        try:
            results.append(with_usage(victim, attack.evaluate(victim, threat=threat, seed=seed, examples=examples)))
        except NotApplicable as why:
            results.append(Result((make_row(victim, attack.family, attack=repr(attack), note=str(why)),)))
    return [row for result in results for row in result.rows] + list(with_usage(victim, Result(())).usage)


def verdict(task: Task, attempts: Sequence[tuple[Attack | None, Result]]) -> list[Row]:
    """The pooled rows of one stack of defenses, from all cells on all of its victims.

    An attack without meaning is left out where another of its family has one; else its row says why.
    """
    rows = []
    for family in dict.fromkeys(attack and attack.family for attack, _ in attempts):
        tried = [(attack, result) for attack, result in attempts if (attack and attack.family) == family]
        met = [(attack, result) for attack, result in tried if not result.obstacle]
        if not met:
            rows.append(pool_rows([result.rows[0] for _, result in tried]))
            if family is None:
                return rows
        elif family is None:
            lost = {result.obstacle for _, result in tried} - {""}
            note = f"{len(met)} of {len(tried)} seeds: {'; '.join(sorted(lost))}" if lost else ""
            rows += [
                replace(pool_rows(same), note=note) for same in zip(*(result.rows for _, result in met), strict=True)
            ]
        else:
            known = [(attack, result) for attack, result in met if attack is not None]
            rows += with_failures(known[0][0].pool(task, known), [result for _, result in tried])
    return rows + _total_usage([result for _, result in attempts])


def with_failures(rows: Sequence[Row], results: Sequence[Result]) -> list[Row]:
    """Pooled rows with a note on those of the results that went wrong, and which the rows say nothing about."""
    lost = [result for result in results if result.failed]
    if not lost or len(lost) == len(results):
        return list(rows)
    first = lost[0].rows[0]
    which = f"{first.attack or 'report'}, seed {first.seeds[0]}, {first.note}"
    about = f"{len(lost)} of {len(results)} are missing: {which}"
    return [replace(row, note="; ".join(filter(None, (row.note, about)))) for row in rows]


def with_usage(victim: Victim, result: Result) -> Result:
    """The result with what the served model has counted so far."""
    usage = victim.served.usage().items()
    return replace(result, usage=tuple(make_row(victim, name, _exactly(count), unit="count") for name, count in usage))


def _total_usage(results: Sequence[Result]) -> list[Row]:
    by_name: dict[str, list[Row]] = {}
    for row in (row for result in results for row in result.usage):
        by_name.setdefault(row.measure, []).append(row)
    return [pool_rows(same, _exactly(sum(row.value or 0 for row in same))) for same in by_name.values()]


def _exactly(value: float) -> Estimate:
    return Estimate(float(value), float("nan"), float("nan"), 1, "counted")
