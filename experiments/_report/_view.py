"""What a page shows of a run: for each task its card, its matrix, what changed, what is traded, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from experiments._report._kinds import Method, kind_of, methods, risk_order
from experiments._report._lines import robustness, rocs
from experiments._report._material import Exhibit, Run
from experiments._report._matrix import Matrix, make_matrix
from experiments._report._plots import Figure, Stacks, pareto
from experiments._report._pooled import shown, verdicts
from experiments._report._tiles import Tile, heads, make_tiles
from experiments._report._trust import Check, Promise, make_checks, make_promises
from secure_ml.interactions import BARE, Effect, effects, stacked
from secure_ml.pareto import trades


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


def _chapter(run: Run, task: str, anchor: str) -> Chapter:
    rows = [row for row in run.rows if row.task == task]
    single = [row for row in run.single if row.task == task]
    pooled = shown(rows)
    names = list(dict.fromkeys(row.defenses for row in rows))
    names.sort(key=lambda name: name != BARE)
    stacks = {name: i for i, name in enumerate(names)}
    main = heads(pooled)
    standing = {(row.defenses, row.attack, row.measure) for row in main}

    def first(effect: Effect) -> bool:
        return (effect.defenses, effect.attack, effect.measure) in standing

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
        tiles=tuple(make_tiles(pooled, by_cell, stacks)),
        matrix=make_matrix(task, pooled, main, by_cell, stacks),
        changes=tuple(effect for effect in found if first(effect)),
        details=tuple(effect for effect in found if not first(effect)),
        together=tuple(effect for effect in together if first(effect)),
        sums=tuple(effect for effect in together if not first(effect)),
        fronts=tuple(pareto(axes, points, stacks, titles)),
        curves=tuple(robustness(pooled, stacks)),
        rates=tuple(rocs([one for one in run.rates if one.task == task], stacks)),
        exhibits=tuple(one for one in run.exhibits if one.task == task),
        checks=tuple(make_checks(verdicts(rows), stacks)),
        promises=tuple(make_promises(rows, main, stacks)),
    )


def _axis_title(name: str, measure: str) -> str:
    return "largest epsilon shown" if name == "epsilon measured" else measure
