"""The gate: conditions on rows under which a run has failed, judged on the end of the interval that is worse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import eq, ge, gt, le, lt, ne
from typing import Literal, cast

from secure_ml.errors import UsageError
from secure_ml.families.scrutiny import VERDICTS
from secure_ml.measures import CHECK, asked, resolve, short
from secure_ml.rows import Row
from secure_ml.selectors import names, pieces

On = Literal["bound", "point", "both"]
OPERATORS: dict[str, Callable[[float, float], bool]] = {"<=": le, ">=": ge, "==": eq, "!=": ne, "<": lt, ">": gt}
ANY = CHECK + "any"
EXAMPLE = "robust_accuracy@linf:0.03 < 0.6, say, or [dp_sgd] epsilon_lower > 2, or check:any == FAIL"
_FORM = re.compile(
    r"\s*(?:\[(?P<where>.*?)\])?\s*(?P<name>(?:check:)?[A-Za-z_]\w*)\s*(?:@(?P<tail>[^<>=!]+?))?\s*"
    r"(?P<operator><=|>=|==|!=|<|>)\s*(?P<limit>\S+)(?:\s+on\s+(?P<on>\w+))?\s*",
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What must not hold: a measurement, or a check, beyond a limit.

    ``on="bound"`` judges on the end of the 95 % interval at which it holds more easily, so that a run passes only where
    the contrary is shown; ``"point"`` on the value; ``"both"`` on both ends, so that a run fails only where it is
    shown. ``where`` names tasks, stacks or attacks, of which each must be the row's.
    """

    text: str
    name: str
    tail: str = ""
    """Of the name: the threat, budget or rate; any unless given."""
    operator: str = "<"
    limit: float = 0.0
    where: tuple[str, ...] = ()
    on: On = "bound"

    @property
    def is_check(self) -> bool:
        """Whether it asks for the verdict of a check."""
        return self.name.startswith(CHECK)

    @property
    def wanted(self) -> str:
        """The name as it was asked for."""
        return f"{self.name}@{self.tail}" if self.tail else self.name


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a condition on one stack of defenses; ``why`` is a sentence with the numbers."""

    condition: Condition
    failed: bool
    why: str
    task: str = ""
    defenses: str = ""
    row: Row | None = None
    """The row that it was judged on: of several, the worst."""


def conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Conditions such as ``robust_accuracy@linf:0.03 < 0.6``; `UsageError` where one cannot be read."""
    return tuple(map(_condition, texts))


def judge(
    rows: Sequence[Row], wanted: Iterable[Condition], groups: Mapping[str, Sequence[str]] | None = None
) -> list[Verdict]:
    """A verdict for each condition on each stack of each task; a condition that meets no row has failed.

    ``groups`` are names for several checks, ``{"masking": ("zero gradients", ...)}``.
    """
    known = {
        CHECK + name: {short(check, "verdict").head for check in checks} for name, checks in (groups or {}).items()
    }
    return [verdict for condition in wanted for verdict in _judge(rows, condition, known)]


def _condition(text: str) -> Condition:
    met = _FORM.fullmatch(text)
    if met is None:
        raise UsageError(f"the condition {text!r} cannot be read; expected {EXAMPLE}")
    name, on, sign = met["name"].lower(), met["on"] or "bound", met["operator"]
    is_check = name.startswith(CHECK)
    if on not in ("bound", "point", "both"):
        raise UsageError(f"the condition {text!r} is judged on {on!r}; expected on bound, on point or on both")
    if not is_check and sign in ("==", "!="):
        raise UsageError(f"the condition {text!r} compares a measured number by {sign}; use <, <=, > or >=")
    return Condition(
        text=text.strip(),
        name=name,
        tail=(met["tail"] or "").strip(),
        operator=sign,
        limit=_verdict(met["limit"], text) if is_check else _number(met["limit"], text),
        where=tuple(pieces(met["where"] or "", ",")),
        on=cast("On", on),
    )


def _verdict(limit: str, text: str) -> float:
    order: dict[str, float] = {name: float(place) for place, name in enumerate(VERDICTS)}
    if limit.upper() not in order:
        raise UsageError(f"the condition {text!r} compares a check with {limit!r}; expected {', '.join(order)}")
    return order[limit.upper()]


def _number(limit: str, text: str) -> float:
    share, _, below = limit.removesuffix("%").partition("/")
    try:
        number = float(share) / float(below or 1) / (100 if limit.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"the condition {text!r} compares with {limit!r}; expected a number: 0.6, 60% or 8/255")
    return number


def _judge(rows: Sequence[Row], condition: Condition, groups: Mapping[str, set[str]]) -> list[Verdict]:
    stacks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if all(names(item, row.task, row.defenses, row.attack) for item in condition.where):
            stacks.setdefault((row.task, row.defenses), []).append(row)
    if not stacks:
        there = ", ".join(dict.fromkeys(row.defenses for row in rows)) or "nothing at all"
        said = f"no row is of {', '.join(condition.where)}" if condition.where else "there is no row"
        return [Verdict(condition=condition, failed=True, why=f"{said}; measured was {there}")]
    try:
        heads = _heads(rows, condition, groups)
    except UsageError as error:
        said = _with_reasons(str(error), [row for mine in stacks.values() for row in mine])
        return [Verdict(condition=condition, failed=True, why=said)]
    return [
        replace(_on_stack(mine, condition, heads), task=task, defenses=defenses)
        for (task, defenses), mine in stacks.items()
    ]


def _heads(rows: Sequence[Row], condition: Condition, groups: Mapping[str, set[str]]) -> set[str]:
    """The heads of short names that a condition speaks of."""
    heads = {short(row.measure, row.unit).head for row in rows}
    known = {head for head in heads if head.startswith(CHECK) == condition.is_check}
    if condition.name == ANY and known:
        return known
    if condition.name in groups and groups[condition.name] & known:
        return groups[condition.name]
    return {resolve(condition.name, known)}


def _on_stack(rows: Sequence[Row], condition: Condition, heads: set[str]) -> Verdict:
    """The verdict on one stack: on the worst of its rows that bear the name, and the qualifier if one was given."""
    named = [(row, name) for row in rows if (name := short(row.measure, row.unit)).head in heads]
    if condition.tail:
        met = [row for row, name in named if name.meets(asked(condition.name, condition.tail))]
    else:
        met = [row for row, name in named if str(name) == name.head] or [row for row, _ in named]
    if not met:
        there = ", ".join(dict.fromkeys(str(name) for _, name in named))
        said = f"{condition.wanted} was not measured here" + (f"; there are: {there}" if there else "")
        return Verdict(condition=condition, failed=True, why=_with_reasons(said, rows))
    worst = min((_on_row(row, condition) for row in met), key=_rank)
    return replace(worst, why=worst.why + (f" (the worst of {len(met)} rows)" if len(met) > 1 else ""))


def _on_row(row: Row, condition: Condition) -> Verdict:
    """The verdict on one row; what is n/a is not shown, and fails."""
    name, holds = short(row.measure, row.unit), OPERATORS[condition.operator]
    by = f" by {row.attack}" if row.attack else ""
    if row.value is None:
        why = f"{name}{by} is n/a: {row.note or 'there is no number'}"
        return Verdict(condition=condition, failed=True, why=why, row=row)
    if condition.is_check:
        why = row.note or f"{VERDICTS[round(row.value)]}  {row.measure}"
        return Verdict(condition=condition, failed=holds(row.value, condition.limit), why=why, row=row)
    ends, called = _ends(row, condition)
    failed = all(holds(end, condition.limit) for end in ends)
    known = "" if called == "value" else f", 95 % interval {_end(row.low)} to {_end(row.high)}"
    verb = "are" if len(ends) > 1 else "is"
    said = f"its {called} {' and '.join(map(_end, ends))} {verb}{'' if failed else ' not'} {_limit(condition)}"
    why = f"{name}{by} is {row.value:.4g}{known}: {said}"
    return Verdict(condition=condition, failed=failed, why=why, row=row)


def _ends(row: Row, condition: Condition) -> tuple[list[float], str]:
    """The numbers that a condition is judged on, and what they are called.

    What is itself a bound, of epsilon say, and what has no interval is judged on the value.
    """
    assert row.value is not None
    if condition.on == "point" or row.unit == "epsilon" or (row.low is None and row.high is None):
        return [row.value], "value"
    low, high = -math.inf if row.low is None else row.low, math.inf if row.high is None else row.high
    if condition.on == "both":
        return [low, high], "bounds"
    return ([low], "lower bound") if condition.operator in ("<", "<=") else ([high], "upper bound")


def _rank(verdict: Verdict) -> tuple[bool, bool, float]:
    """What is n/a comes first, then what failed, then what is nearest to failing."""
    row, condition = verdict.row, verdict.condition
    assert row is not None
    if row.value is None:
        return False, False, 0.0
    end = row.value if condition.is_check else _ends(row, condition)[0][0]
    return True, not verdict.failed, end if condition.operator in ("<", "<=") else -end


def _limit(condition: Condition) -> str:
    words = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}
    return f"{words[condition.operator]} {condition.limit:.4g}"


def _end(value: float | None) -> str:
    return "unbounded" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _with_reasons(said: str, rows: Sequence[Row]) -> str:
    """A sentence, and after it what was n/a, with the reasons."""
    reasons = dict.fromkeys(f"{row.measure} is n/a: {row.note}" for row in rows if row.value is None and row.note)
    return "; ".join([said, *reasons])
