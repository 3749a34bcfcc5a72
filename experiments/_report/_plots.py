"""The drawings of a report: where stacks stand, and what they trade."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from markupsafe import Markup

from experiments._report import _style
from experiments._report._svg import Scale, drawing, el, frame, mark, number, padded
from secure_ml.pareto import Axis, Stack, on_front
from secure_ml.rows import Row

Stacks = Mapping[str, int]
"""Every stack, and which series it is drawn as."""


@dataclass(frozen=True)
class Figure:
    """A drawing, what it says, and the numbers in it as a table."""

    title: str
    svg: Markup
    headers: tuple[str, ...]
    numbers: tuple[tuple[str, ...], ...]
    key: tuple[tuple[str, int], ...] = ()
    """Names of series that are not stacks."""
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """Values of several stacks on one axis: a small drawing for each, and the axis below them."""

    drawings: tuple[Markup, ...]
    axis: Markup


def strip(rows: Sequence[Row], stacks: Stacks, best: str) -> Strip:
    """A line for each row: its value as a mark, its interval as a bar; the best value's mark is larger."""
    low, high = _ends(rows)
    x = Scale(low, high, 8, 162)
    ticks = [value for value in x.ticks(3) if low <= value <= high]
    grid = Markup("").join(el("line", x1=x(v), x2=x(v), y1=0, y2=24, class_="grid") for v in ticks)
    names = (el("text", number(v), x=x(v), y=11, class_="tick mid") for v in ticks)
    drawings = tuple(drawing(170, 24, "", grid, *_whisker(row, x, stacks, best), class_="strip") for row in rows)
    return Strip(drawings, drawing(170, 14, "", *names, class_="strip"))


def _whisker(row: Row, x: Scale, stacks: Stacks, best: str) -> list[Markup]:
    if row.value is None or not math.isfinite(row.value):
        return []
    series, parts = stacks[row.defenses], []
    if row.low is not None and row.high is not None:
        parts.append(el("line", x1=x(row.low), x2=x(row.high), y1=12, y2=12, class_=f"bar s{series % 8}"))
    claimed = claimed_epsilon(row) if row.unit == "epsilon" else None
    if claimed is not None and x.low <= claimed <= x.high:
        parts.append(el("line", x1=x(claimed), x2=x(claimed), y1=4, y2=20, class_=f"bar s{series % 8}"))
    scale = 1.3 if row.defenses == best else 1.0
    return [*parts, mark(series, x(row.value), 12, scale=scale)]


def claimed_epsilon(row: Row) -> float | None:
    """The epsilon that is claimed of a row's victim."""
    said = (claim.values.get("epsilon") for claim in row.claims if claim.kind == "differential privacy")
    return next((float(value) for value in said if value is not None), None)


def _ends(rows: Sequence[Row]) -> tuple[float, float]:
    ends = [v for row in rows for v in (row.low, row.value, row.high) if v is not None and math.isfinite(v)]
    ends += [said for row in rows if row.unit == "epsilon" and (said := claimed_epsilon(row)) is not None]
    first = rows[0]
    if not ends:
        return 0.0, 1.0
    if "AUC" in first.measure and min(ends) >= 0.4:
        return 0.4, 1.0
    if first.unit == "share" and "TPR" not in first.measure:
        return 0.0, 1.0
    return (0.0, max(ends) * 1.1 or 1.0) if min(ends) >= 0 else padded(ends, first.unit)


def pareto(axes: Sequence[Axis], stacks: Sequence[Stack], series: Stacks, titles: Mapping[str, str]) -> list[Figure]:
    """The task's score against every other axis, then the others against each other: the front is a line."""
    pairs = [pair for pair in combinations(axes, 2) if pair[0].name == "score"]
    pairs += [pair for pair in combinations(axes, 2) if pair[0].name == "robustness"]
    figures = [_trade(x, y, stacks, series, titles) for y, x in pairs]
    return [figure for figure in figures if len(figure.numbers) > 1]


def _trade(x: Axis, y: Axis, stacks: Sequence[Stack], series: Stacks, titles: Mapping[str, str]) -> Figure:
    known = [s for s in stacks if not (math.isnan(s.value(x.name)) or math.isnan(s.value(y.name)))]
    kept = on_front(known, [x, y])
    title = f"{titles[y.name]} against {titles[x.name]}"
    numbers = tuple(
        (s.defenses, _style.both(s.rows[x.name]), _style.both(s.rows[y.name]), "on the front" if on else "beaten")
        for s, on in zip(known, kept, strict=True)
    )
    headers = ("stack", titles[x.name], titles[y.name], "")
    if len(known) < 2:
        return Figure(title, Markup(""), headers, numbers)
    scales = _scale(x, known, 64, 430), _scale(y, known, 270, 18)
    parts = [frame(*scales, _named(x, titles), _named(y, titles)), _front(known, kept, x, y, scales)]
    for stack, on in zip(known, kept, strict=True):
        parts += _point(stack, on, x, y, scales, series, titles)
    if any(math.isinf(s.value(x.name)) for s in known):
        parts.append(el("text", "no claim", x=430.0, y=286.0, class_="tick end"))
    return Figure(title, drawing(448, 316, title, *parts), headers, numbers)


def _named(axis: Axis, titles: Mapping[str, str]) -> str:
    return f"{titles[axis.name]} ({'more' if axis.better > 0 else 'less'} is better)"


def _scale(axis: Axis, stacks: Sequence[Stack], start: float, end: float) -> Scale:
    """An axis for what is finite; infinity lies at its far end."""
    rows = [stack.rows[axis.name] for stack in stacks]
    values = [v for row in rows for v in (row.low, row.value, row.high) if v is not None and math.isfinite(v)]
    if not values:
        return Scale(0.0, 1.0, start, end)
    low, high = padded(values, axis.unit)
    low = 0.0 if axis.unit == "epsilon" else low
    if any(row.value is not None and math.isinf(row.value) for row in rows):
        high += (high - low) * 0.5
    return Scale(max(low, 0.0) if min(values) >= 0 else low, high, start, end)


def _front(stacks: Sequence[Stack], kept: Sequence[bool], x: Axis, y: Axis, scales: tuple[Scale, Scale]) -> Markup:
    """Steps through what is not beaten: everything beyond the line is better than anything that was met."""
    points = sorted((s.value(x.name), s.value(y.name)) for s, on in zip(stacks, kept, strict=True) if on)
    places = [(scales[0](a), scales[1](b)) for a, b in points]
    if len(places) < 2:
        return Markup("")
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for a, b in places[1:]:  # a corner lies where the worse of both neighbours is met on each axis
        path += f"V{b:.1f}H{a:.1f}" if x.better > 0 else f"H{a:.1f}V{b:.1f}"
    return el("path", d=path, class_="front")


def _point(
    stack: Stack,
    on: bool,
    x: Axis,
    y: Axis,
    scales: tuple[Scale, Scale],
    series: Stacks,
    titles: Mapping[str, str],
) -> list[Markup]:
    across, up = stack.rows[x.name], stack.rows[y.name]
    at = scales[0](stack.value(x.name)), scales[1](stack.value(y.name))
    name = f"s{series[stack.defenses] % 8}"
    bars = []
    if across.low is not None and across.high is not None:
        ends = scales[0](across.low), scales[0](across.high)
        bars.append(el("line", x1=ends[0], x2=ends[1], y1=at[1], y2=at[1], class_=f"bar {name}"))
    if up.low is not None and up.high is not None:
        ends = scales[1](up.low), scales[1](up.high)
        bars.append(el("line", x1=at[0], x2=at[0], y1=ends[0], y2=ends[1], class_=f"bar {name}"))
    place = "on the front" if on else "beaten on both by another stack"
    tip = f"{stack.defenses}: {place}\n{titles[y.name]}: {_style.both(up)}\n{titles[x.name]}: {_style.both(across)}"
    return [*bars, mark(series[stack.defenses], *at, tip=tip, hollow=not on, scale=1.35)]
