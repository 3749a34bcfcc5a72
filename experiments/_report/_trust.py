"""How far to believe a run: what its checks found, and what is claimed beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments._report import _style
from experiments._report._kinds import family
from experiments._report._plots import Stacks
from experiments._report._pooled import shown
from secure_ml.rows import Row


@dataclass(frozen=True)
class Check:
    """What one check found on one stack."""

    verdict: str
    name: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Promise:
    """A claim beside what was measured of the same thing."""

    defenses: str
    series: int
    short: str
    statement: str
    measured: tuple[tuple[str, str], ...]
    verdict: str


def make_checks(rows: Sequence[Row], stacks: Stacks) -> list[tuple[str, int, tuple[Check, ...]]]:
    order = ("FAIL", "WARN", "SKIP", "PASS")
    found: dict[str, list[Check]] = {}
    for row in rows:
        found.setdefault(row.defenses, []).append(_check(row))
    return [
        (name, stacks[name], tuple(sorted(checks, key=lambda check: order.index(check.verdict))))
        for name, checks in sorted(found.items(), key=lambda item: stacks[item[0]])
    ]


def _check(row: Row) -> Check:
    """The parts of a finding's line: its verdict, its name, evidence and remedy."""
    verdict = ("PASS", "SKIP", "WARN", "FAIL")[min(max(int(row.value or 0), 0), 3)]
    said = row.note.removeprefix(verdict).strip().removeprefix(row.measure).removeprefix(":").strip()
    evidence, _, remedy = said.partition(" -> ")
    return Check(verdict, row.measure, evidence, remedy)


def make_promises(rows: Sequence[Row], main: Sequence[Row], stacks: Stacks) -> list[Promise]:
    found: list[Promise] = []
    for name, series in stacks.items():
        mine = shown([row for row in rows if row.defenses == name])
        for kind, short, statement in dict.fromkeys((c.kind, c.short, c.statement) for r in mine for c in r.claims):
            of = sorted((row for row in mine if _is_of(kind, row)), key=lambda row: row not in main)
            measured = tuple((f"{row.measure}{f', {row.attack}' * bool(row.attack)}", _style.both(row)) for row in of)
            found.append(Promise(name, series, short, statement, measured, _kept(kind, mine, of)))
    return found


def _is_of(kind: str, row: Row) -> bool:
    """Whether a row measures what a claim of this kind is about."""
    kinds = {
        "differential privacy": ("audit", "membership"),
        "robustness": ("certification", "evasion"),
        "encryption": ("protocol",),
    }.get(kind, ())
    counted = kind == "encryption" and row.measure == "queries encrypted"
    return row.value is not None and row.unit != "verdict" and (family(row) in kinds or counted)


def _kept(kind: str, rows: Sequence[Row], of: Sequence[Row]) -> str:
    """Whether what was measured stays within what is claimed, where both are in the same unit."""
    if kind != "differential privacy":
        return ""
    said = [float(c.values["epsilon"]) for row in rows for c in row.claims if c.kind == kind and "epsilon" in c.values]
    bounds = [row.value for row in of if row.measure.startswith("epsilon lower bound") and row.value is not None]
    if not said or not bounds:
        return ""
    within = max(bounds) <= max(said)
    return "within the claim" if within else "ABOVE the claim: it is broken, or the audit is"
