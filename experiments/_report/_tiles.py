"""The card: for each risk one measure, on every stack, and what it says in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments._report import _style
from experiments._report._kinds import family, risk_order
from experiments._report._matrix import Effects
from experiments._report._plots import Stacks, claimed_epsilon, strip
from experiments._report._taxonomy import OTHER, RISKS, Risk
from secure_ml.direction import direction
from secure_ml.interactions import Effect
from secure_ml.rows import TIMES, Row


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


def make_tiles(rows: Sequence[Row], found: Effects, stacks: Stacks) -> list[Tile]:
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


def heads(rows: Sequence[Row]) -> list[Row]:
    """Of each risk one row a stack: the worst for the defender of the measure that stands for the risk."""
    return [row for kind, of in _by_kind(rows).items() for row in _chosen(kind, of)]


def _by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows that can stand for a risk."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        told = row.value is not None and row.unit not in ("count", *TIMES, "verdict", "p-value")
        if told and direction(row.measure, row.unit) and "(0.0)" not in row.measure:
            found.setdefault(family(row), []).append(row)
    return {kind: found[kind] for kind in sorted(found, key=risk_order) if kind != OTHER}


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
    if len(rows) == 1:
        return _alone(rows[0])
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


ALONE = {
    "utility": "It scores {}.",
    "evasion": "{} is left under attack.",
    "certification": "{} is proved.",
    "extraction": "The best copy agrees with {} of the answers.",
    "audit": "epsilon {}: so much of a single example shows, if not more.",
    "poisoning": "{} of the triggered inputs go where the adversary wants.",
}


def _alone(row: Row) -> str:
    """What one stack's number says by itself."""
    kind = family(row)
    if kind == "membership" and row.low is not None:
        told = "better than" if row.low > 0.5 else "no better than"
        return f"{_style.both(row)}: members are told from others {told} by chance."
    return ALONE.get(kind, "{}.").format(_style.both(row))


def _change(effect: Effect) -> str:
    return f"{_style.signed(effect)} {_style.interval(effect)}".strip()


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
