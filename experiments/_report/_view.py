"""What a page shows of a run: for each task its card, its matrix, what changed, what is traded, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments._report import _style
from experiments._report._kinds import Method, family, kind_of, methods, risk_order
from experiments._report._lines import robustness, rocs
from experiments._report._material import Exhibit, Run
from experiments._report._matrix import Effects, Matrix, make_matrix
from experiments._report._plots import Figure, Stacks, claimed_epsilon, pareto, strip
from experiments._report._taxonomy import OTHER, RISKS, Risk
from secure_ml.direction import direction
from secure_ml.interactions import BARE, Effect, effects, stacked
from secure_ml.pareto import trades
from secure_ml.rows import Row, pool_rows


@dataclass(frozen=True)
class TileLine:
    """One stack on a tile."""

    defenses: str
    series: int
    drawing: Markup
    value: str
    interval: str
    glyph: str
    said: str
    """What it changed, in words."""


@dataclass(frozen=True)
class Tile:
    """One risk on the card: the measure that stands for it, on every stack."""

    kind: str
    risk: Risk
    measure: str
    way: str
    lines: tuple[TileLine, ...]
    axis: Markup
    said: str


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


@dataclass(frozen=True)
class Chapter:
    """All about one task."""

    task: str
    anchor: str
    stacks: Stacks
    tiles: tuple[Tile, ...]
    matrix: Matrix
    changes: tuple[Effect, ...]
    """What each stack changed, one measure a risk; then in everything else."""
    details: tuple[Effect, ...]
    together: tuple[Effect, ...]
    """The same against the sum of the parts."""
    sums: tuple[Effect, ...]
    fronts: tuple[Figure, ...]
    curves: tuple[Figure, ...]
    rates: tuple[Figure, ...]
    exhibits: tuple[Exhibit, ...]
    checks: tuple[tuple[str, int, tuple[Check, ...]], ...]
    """Of each stack its findings, the bad ones first."""
    promises: tuple[Promise, ...]

    def count(self, verdict: str) -> int:
        """How many checks ended so."""
        return sum(check.verdict == verdict for _, _, checks in self.checks for check in checks)

    def moved(self, *verdicts: str) -> int:
        """How many comparisons with the bare model ended so, of one measure a risk."""
        return sum(effect.verdict in verdicts for effect in self.changes)

    @property
    def told(self) -> bool:
        """Whether any difference could be told from noise, or found to be within it."""
        return any(effect.difference.p is not None for effect in self.changes)

    @property
    def failed(self) -> dict[str, str]:
        """The checks that failed, of each stack that failed one: its numbers are not to be believed."""
        found = {name: [c.name for c in checks if c.verdict == "FAIL"] for name, _, checks in self.checks}
        return {name: ", ".join(checks) for name, checks in found.items() if checks}

    @property
    def alarms(self) -> list[tuple[Check, tuple[str, ...]]]:
        """What should be looked at, the worst first, each with the stacks that it was found on."""
        found: dict[tuple[str, str, str], tuple[Check, list[str]]] = {}
        for name, _, checks in self.checks:
            for check in checks:
                if check.verdict in ("FAIL", "WARN"):
                    key = check.verdict, check.name, check.remedy
                    found.setdefault(key, (check, []))[1].append(name)
        ordered = sorted(found.values(), key=lambda item: item[0].verdict != "FAIL")
        return [(check, tuple(names)) for check, names in ordered]

    @property
    def grid(self) -> list[tuple[str, list[Check | None]]]:
        """Every check by name, and what it found on each of the stacks that were checked."""
        names = dict.fromkeys(check.name for _, _, checks in self.checks for check in checks)
        by_stack = [{check.name: check for check in checks} for _, _, checks in self.checks]
        return [(name, [of.get(name) for of in by_stack]) for name in names]


def chapters(run: Run) -> list[Chapter]:
    """A chapter for each task."""
    tasks = list(dict.fromkeys(row.task for row in run.rows))
    return [_chapter(run, task, f"t{i}") for i, task in enumerate(tasks)]


def cited(run: Run) -> list[Method]:
    """The methods that the rows name."""
    return methods(run.rows)


def shown(rows: Sequence[Row]) -> list[Row]:
    """The rows that stand for several victims: as the run pooled them, or the mean of each attack where it did not."""
    pooled = [row for row in rows if row.pooled]
    if any(row.unit != "verdict" for row in pooled):
        return pooled
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.defenses, row.attack, row.measure), []).append(row)
    return [same[0] if len(same) == 1 else pool_rows(same) for same in groups.values() if same[0].unit != "verdict"]


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """What checks found: pooled where it was, else all."""
    found = [row for row in rows if row.unit == "verdict"]
    pooled = {(row.task, row.defenses, row.attack, row.measure) for row in found if row.pooled}
    return [r for r in found if r.pooled or (r.task, r.defenses, r.attack, r.measure) not in pooled]


def _chapter(run: Run, task: str, anchor: str) -> Chapter:
    rows = [row for row in run.rows if row.task == task]
    single = [row for row in run.single if row.task == task]
    pooled = shown(rows)
    names = list(dict.fromkeys(row.defenses for row in rows))
    names.sort(key=lambda name: name != BARE)
    stacks = {name: i for i, name in enumerate(names)}
    main = _heads(pooled)
    heads = {(row.defenses, row.attack, row.measure) for row in main}

    def first(effect: Effect) -> bool:
        return (effect.defenses, effect.attack, effect.measure) in heads

    def place(effect: Effect) -> tuple[int, str, str, int]:
        kind = risk_order(kind_of(effect.attack, effect.measure, effect.unit))
        return kind, effect.measure, effect.attack, stacks[effect.defenses]

    found, together = (sorted(of(single, first=first), key=place) for of in (effects, stacked))
    by_cell = {(e.task, e.defenses, e.attack, e.measure): e for e in found}
    axes, points = trades(pooled)
    titles = {axis.name: _axis_title(axis.name, axis.measure) for axis in axes}
    return Chapter(
        task=task,
        anchor=anchor,
        stacks=stacks,
        tiles=tuple(_tiles(pooled, by_cell, stacks)),
        matrix=make_matrix(task, pooled, main, by_cell, stacks),
        changes=tuple(effect for effect in found if first(effect)),
        details=tuple(effect for effect in found if not first(effect)),
        together=tuple(effect for effect in together if first(effect)),
        sums=tuple(effect for effect in together if not first(effect)),
        fronts=tuple(pareto(axes, points, stacks, titles)),
        curves=tuple(robustness(pooled, stacks)),
        rates=tuple(rocs([one for one in run.rates if one.task == task], stacks)),
        exhibits=tuple(one for one in run.exhibits if one.task == task),
        checks=tuple(_checks(verdicts(rows), stacks)),
        promises=tuple(_promises(rows, main, stacks)),
    )


def _axis_title(name: str, measure: str) -> str:
    return "largest epsilon shown" if name == "epsilon measured" else measure


def _by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows that can stand for a risk."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        told = row.value is not None and row.unit not in ("count", "seconds", "verdict", "p-value")
        if told and direction(row.measure, row.unit) and "(0.0)" not in row.measure:
            found.setdefault(family(row), []).append(row)
    return {kind: found[kind] for kind in sorted(found, key=risk_order) if kind != OTHER}


def _heads(rows: Sequence[Row]) -> list[Row]:
    """Of each risk one row a stack: the worst for the defender of the measure that stands for the risk."""
    return [row for kind, of in _by_kind(rows).items() for row in _chosen(kind, of)]


def _chosen(kind: str, rows: Sequence[Row]) -> list[Row]:
    measure = _headline(rows)
    way = direction(measure, rows[0].unit)
    chosen: dict[str, Row] = {}
    for row in rows:
        if row.measure != measure and not (kind == "audit" and row.measure.startswith("epsilon lower bound")):
            continue
        rival = chosen.get(row.defenses)
        worse = 0.0 if rival is None else ((rival.value or 0.0) - (row.value or 0.0)) * way
        if rival is None or worse > 0 or (worse == 0 and " | " in row.attack):  # all attacks together say it best
            chosen[row.defenses] = row
    return list(chosen.values())


def _tiles(rows: Sequence[Row], found: Effects, stacks: Stacks) -> list[Tile]:
    return [_tile(kind, of, found, stacks) for kind, of in _by_kind(rows).items()]


def _tile(kind: str, rows: Sequence[Row], found: Effects, stacks: Stacks) -> Tile:
    mine = sorted(_chosen(kind, rows), key=lambda row: stacks[row.defenses])
    way = direction(mine[0].measure, mine[0].unit)
    best = max(mine, key=lambda row: (row.value or 0.0) * way)
    title = "largest epsilon shown from below" if kind == "audit" else mine[0].measure
    drawn = strip(mine, stacks, best.defenses)
    lines = tuple(_line(row, small, found, stacks) for row, small in zip(mine, drawn.drawings, strict=True))
    word = "more is better" if way > 0 else "less is better"
    return Tile(kind, RISKS[kind], title, word, lines, drawn.axis, _sentence(mine, best, found))


def _headline(rows: Sequence[Row]) -> str:
    """The measure that stands for a risk: at the largest budget, at the middle radius, else the first."""
    first = rows[0].measure
    names = list(dict.fromkeys(row.measure for row in rows))
    stem, budget, _ = first.partition(" at ")
    if budget and "queries" in first:
        return max((n for n in names if n.startswith(stem + " at ")), key=lambda n: int(n.split(" at ")[1].split()[0]))
    stem, threat, _ = first.partition(" under ")
    same = [name for name in names if threat and name.startswith(stem + " under ")]
    return same[(len(same) - 1) // 2] if same else first


def _line(row: Row, drawn: Markup, found: Effects, stacks: Stacks) -> TileLine:
    effect = found.get((row.task, row.defenses, row.attack, row.measure))
    value, interval = _style.value(row)
    claimed = claimed_epsilon(row)
    if row.unit == "epsilon" and claimed is not None:
        interval = f"of {claimed:.3g} claimed"
    glyph, said = (_style.glyph(effect), _style.words(effect)) if effect else ("", "")
    return TileLine(row.defenses, stacks[row.defenses], drawn, value, interval, glyph, said)


def _sentence(rows: Sequence[Row], best: Row, found: Effects) -> str:
    """What the tile says, in a sentence that claims no more than the seeds bear."""
    known = {row.defenses: found.get((row.task, row.defenses, row.attack, row.measure)) for row in rows}
    better = [name for name, effect in known.items() if effect and effect.verdict == "better"]
    worse = [name for name, effect in known.items() if effect and effect.verdict == "worse"]
    if not any(known.values()):
        return f"Best value: {_style.both(best)}, {best.defenses}. Differences were not told seed by seed."
    if all(effect.verdict.startswith("cannot tell") for effect in known.values() if effect):
        return f"Best value: {_style.both(best)}, {best.defenses}. One seed cannot tell a difference from noise."
    effect = known.get(best.defenses)
    perhaps = [name for name, effect in known.items() if effect and effect.verdict == "perhaps better"]
    if best.defenses in better and effect:
        told = f"{best.defenses} is better than the bare model beyond noise: {_change(effect)}."
    else:
        told = f"{_list(better)} better than the bare model beyond noise." if better else "No gain beyond noise."
    told += f" Perhaps better, before correction: {_list(perhaps)}." if perhaps else ""
    return told + (f" Worse beyond noise: {_list(worse)}." if worse else "")


def _change(effect: Effect) -> str:
    return f"{_style.signed(effect)} {_style.interval(effect)}".strip()


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _checks(rows: Sequence[Row], stacks: Stacks) -> list[tuple[str, int, tuple[Check, ...]]]:
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


def _promises(rows: Sequence[Row], main: Sequence[Row], stacks: Stacks) -> list[Promise]:
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
