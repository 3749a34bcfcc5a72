"""The matrix: a line for each stack, a column for each measure, each cell with how good it is for the defender."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments._report import _style
from experiments._report._kinds import family, risk_order
from experiments._report._taxonomy import RISKS
from secure_ml.direction import direction
from secure_ml.interactions import Effect
from secure_ml.rows import TIMES, Row

STEPS = 9
"""From h0, bad for the defender, to h8, good."""
Effects = Mapping[tuple[str, str, str, str], Effect]
"""By task, stack, attack and measure."""


@dataclass(frozen=True)
class Column:
    """One measure, of one attack where several are told apart."""

    measure: str
    attack: str
    family: str
    title: str
    unit: str
    better: int
    main: bool
    """Whether it is shown before the reader asks for all."""

    @property
    def way(self) -> str:
        """Which way is good, in words."""
        return {1: "more is better", -1: "less is better"}.get(self.better, "to compare with")


@dataclass(frozen=True)
class Cell:
    """One number."""

    value: str
    interval: str
    step: int | None
    sort: float | None
    tip: str
    glyph: str = ""
    change: str = ""
    note: int | None = None
    words: str = ""


@dataclass(frozen=True)
class Line:
    """One stack of defenses."""

    defenses: str
    series: int
    claims: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Matrix:
    """The matrix of one task."""

    task: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def hidden(self) -> int:
        """Columns that are shown only when asked for."""
        return sum(not column.main for column in self.columns)


def make_matrix(
    task: str, rows: Sequence[Row], main: Sequence[Row], effects: Effects, stacks: Mapping[str, int]
) -> Matrix:
    """The matrix of the pooled rows of one task; the ``main`` ones are always in sight."""
    measured = [row for row in rows if row.unit != "verdict"]
    columns = make_columns(measured, main)
    notes: list[str] = []
    lines = []
    for name, series in stacks.items():
        mine = [row for row in measured if row.defenses == name]
        if not mine:
            continue
        cells = [_cell(_find(mine, column), column, measured, effects, notes) for column in columns]
        claims = dict.fromkeys(claim.short for row in mine for claim in row.claims)
        lines.append(Line(name, series, tuple(claims), tuple(cells)))
    return Matrix(task, tuple(columns), tuple(lines), tuple(notes))


def make_columns(rows: Sequence[Row], main: Sequence[Row]) -> list[Column]:
    """A column for each measure, and for each attack where a stack was measured by several; ordered by risk."""
    split = {
        measure
        for measure in dict.fromkeys(row.measure for row in rows)
        if len({(r.defenses, r.attack) for r in rows if r.measure == measure})
        > len({r.defenses for r in rows if r.measure == measure})
    }
    found: dict[tuple[str, str], Column] = {}
    for row in rows:
        key = row.measure, row.attack if row.measure in split else ""
        better = direction(row.measure, row.unit)
        kind = family(row)
        known = found.get(key)
        if known is None or (known.unit != row.unit and row.value is not None):
            found[key] = Column(*key, kind, RISKS[kind].title, row.unit, better, bool(better) and row.unit not in TIMES)
    columns = sorted(found.values(), key=lambda column: risk_order(column.family))
    heads = {(row.measure, row.attack if row.measure in split else "") for row in main}
    return _thinned(columns, heads)


def _thinned(columns: list[Column], heads: set[tuple[str, str]], room: int = 9) -> list[Column]:
    """Where there is no room for all, those that stand for a risk are kept in sight, then one of each other kind."""
    if sum(column.main for column in columns) <= room:
        return columns
    chosen = [column for column in columns if (column.measure, column.attack) in heads]
    kinds = {(column.family, _stem(column)) for column in chosen}
    for column in reversed(columns):  # the largest budget and the last attack come last
        if column.main and len(chosen) < room and (column.family, _stem(column)) not in kinds:
            chosen.append(column)
            kinds.add((column.family, _stem(column)))
    return [Column(**{**vars(column), "main": column in chosen}) for column in columns]


def _stem(column: Column) -> str:
    """What is measured, without the budget, radius or way."""
    return re.split(r" under | at |, ", column.measure)[0]


def _find(rows: Sequence[Row], column: Column) -> Row | None:
    return next(
        (r for r in rows if r.measure == column.measure and (not column.attack or r.attack == column.attack)), None
    )


def _cell(row: Row | None, column: Column, rows: Sequence[Row], effects: Effects, notes: list[str]) -> Cell:
    if row is None:
        return Cell("", "", None, None, "not measured")
    value, interval = _style.value(row)
    note = _note(row.note, notes)
    effect = effects.get((row.task, row.defenses, row.attack, row.measure))
    said = _style.words(effect) if effect else ""
    tip = _tip(row, column, said)
    if row.value is None:
        return Cell(value, "", None, None, tip, note=note, words=row.note)
    glyph = _style.glyph(effect) if effect and effect.better else ""
    change = _style.signed(effect) if effect and effect.better else ""
    return Cell(value, interval, step(row, column, rows), row.value, tip, glyph, change, note, said)


def _note(text: str, notes: list[str]) -> int | None:
    if not text:
        return None
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def _tip(row: Row, column: Column, said: str) -> str:
    """Everything about one number, a line each."""
    lines = [f"{row.measure}: {_style.both(row)} ({column.way})", row.defenses]
    lines += [f"by {row.attack}"] if row.attack else []
    lines += [said] if said else []
    how = f"{row.interval}, n = {row.n}" if row.interval else ""
    seeds = "seed " + str(row.seeds[0]) if len(row.seeds) == 1 else f"seeds {', '.join(map(str, row.seeds))}"
    lines.append(", ".join(part for part in (how, seeds) if part))
    if row.queries or row.gradients:
        lines.append(f"{row.queries:,} queries, {row.gradients:,} gradients, {row.seconds:.3g} s")
    lines += [row.note] if row.note else []
    return "\n".join(lines)


def step(row: Row, column: Column, rows: Sequence[Row]) -> int | None:
    """How good a number is for the defender, from 0 to 8; None where no way is better, or nothing varies."""
    if row.value is None or not column.better or column.unit == "count":
        return None
    low, high = _ends(row, column, rows)
    if not high > low:
        return None
    share = min(max((row.value - low) / (high - low), 0.0), 1.0)
    if row.measure.startswith("TPR at"):
        share = math.sqrt(share)
    if row.unit == "epsilon":
        share = math.log1p(10 * share) / math.log(11)
    good = share if column.better > 0 else 1 - share
    return min(int(good * STEPS), STEPS - 1)


def _ends(row: Row, column: Column, rows: Sequence[Row]) -> tuple[float, float]:
    """Where a column's colours begin and end: a share's at 0 and 1, an AUC's at chance; else what was met."""
    if "AUC" in row.measure and column.better < 0:
        return 0.5, 1.0
    if row.measure.startswith("TPR at"):
        return float(re.findall(r"[\d.]+", row.measure)[0]) / 100, 1.0
    if row.unit == "share":
        return 0.0, 1.0
    if row.unit == "epsilon":
        return 0.0, 10.0
    values = [r.value for r in rows if r.measure == row.measure and r.value is not None]
    return min(values), max(values)
