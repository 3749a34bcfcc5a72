"""Curves of a report: the score over radii of an attack, and what a membership attack finds at which false alarms."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments._report import _style
from experiments._report._material import Rates
from experiments._report._plots import Figure, Stacks
from experiments._report._svg import Scale, drawing, el, frame, mark, padded
from secure_ml.rows import Row


@dataclass(frozen=True)
class _Curve:
    attack: str
    points: list[tuple[float, Row]]


_RADIUS = re.compile(r"^(?P<what>.+) under (?P<norm>\w+)\((?P<radius>[\d.eE+-]+)\)$")


def robustness(rows: Sequence[Row], stacks: Stacks) -> list[Figure]:
    """The score against the radius: a panel for each stack, a line for each attack; none for a single radius."""
    panels: dict[tuple[str, str], dict[str, _Curve]] = {}
    for row in rows:
        found = _RADIUS.match(row.measure)
        if found is None or row.value is None:
            continue
        proved = found["what"].startswith("certified ")
        attack = "certified" if proved else "worst case" if " | " in row.attack else row.attack
        curves = panels.setdefault((row.defenses, found["norm"]), {})
        curves.setdefault(attack, _Curve(attack, [])).points.append((float(found["radius"]), row))
    whole = {key: of for key, of in panels.items() if any(len(curve.points) > 2 for curve in of.values())}
    names = list(dict.fromkeys(attack for of in whole.values() for attack in of))
    ordered = sorted(whole.items(), key=lambda item: stacks[item[0][0]])
    reach = max((radius for of in whole.values() for curve in of.values() for radius, _ in curve.points), default=0.0)
    return [_panel(stack, norm, of, names, reach) for (stack, norm), of in ordered]


def _panel(stack: str, norm: str, curves: Mapping[str, _Curve], names: Sequence[str], reach: float) -> Figure:
    x, y = Scale(0.0, reach, 56, 400), Scale(0.0, 1.0, 220, 14)
    values = [row.value for curve in curves.values() for _, row in curve.points if row.value is not None]
    if max(values) > 1 or min(values) < 0:
        y = Scale(*padded(values, ""), 220, 14)
    what = next(iter(curves.values())).points[0][1].measure.partition(" under ")[0].removeprefix("certified ")
    parts, numbers = [frame(x, y, f"radius, {norm}", what)], []
    for name, curve in curves.items():
        points = sorted(curve.points, key=lambda point: point[0])
        parts += _line(name, _series(name, names), points, x, y)
        numbers += [(name, f"{radius:g}", _style.both(row)) for radius, row in points]
    key = tuple((name, _series(name, names)) for name in curves)
    title = f"{what} under attack: {stack}"
    return Figure(stack, drawing(412, 264, title, *parts), ("attack", "radius", what), tuple(numbers), key)


def _series(name: str, names: Sequence[str]) -> int:
    """The worst case is drawn in ink."""
    rest = [other for other in names if other != "worst case"]
    return 0 if name == "worst case" else 1 + rest.index(name)


def _line(name: str, series: int, points: Sequence[tuple[float, Row]], x: Scale, y: Scale) -> list[Markup]:
    known = [(x(radius), row) for radius, row in points]
    path = "M" + "L".join(f"{a:.1f} {y(row.value or 0.0):.1f}" for a, row in known)
    bounded = [(a, row.low, row.high) for a, row in known if row.low is not None and row.high is not None]
    bold = " bold" if name == "worst case" else " dashed" if name == "certified" else ""
    band = "M" + "L".join(f"{a:.1f} {y(high):.1f}" for a, _, high in bounded)
    band += "L" + "L".join(f"{a:.1f} {y(low):.1f}" for a, low, _ in reversed(bounded)) + "Z"
    drawn = [el("path", d=band, class_=f"band s{series % 8}")] if len(bounded) > 1 else []
    drawn.append(el("path", d=path, class_=f"line s{series % 8}{bold}"))
    for a, row in known:
        tip = f"{name}\n{row.measure}: {_style.both(row)}"
        drawn.append(mark(series, a, y(row.value or 0.0), tip=tip, scale=0.75))
    return drawn


def rocs(rates: Sequence[Rates], stacks: Stacks) -> list[Figure]:
    """True- against false-positive rates, both by the logarithm: a panel for each stack, a line for each attack."""
    names = list(dict.fromkeys(one.attack for one in rates))
    least = min((one.fpr[0] for one in rates), default=1.0)
    panels = []
    for stack in sorted({one.defenses for one in rates}, key=lambda name: stacks[name]):
        mine = [one for one in rates if one.defenses == stack]
        panels.append(_roc(stack, mine, names, least))
    return panels


def _roc(stack: str, rates: Sequence[Rates], names: Sequence[str], least: float) -> Figure:
    floor = 10.0 ** math.floor(math.log10(min(least, 0.09)))
    x, y = Scale(floor, 1.0, 60, 372, log=True), Scale(floor, 1.0, 300, 14, log=True)
    guess = f"M{x(floor):.1f} {y(floor):.1f}L{x(1.0):.1f} {y(1.0):.1f}"
    parts = [frame(x, y, "false-positive rate", "true-positive rate"), el("path", d=guess, class_="chance")]
    numbers = []
    for one in rates:
        series = 1 + names.index(one.attack)
        band = "M" + "L".join(f"{x(a):.1f} {y(max(b, floor)):.1f}" for a, b in zip(one.fpr, one.high, strict=True))
        back = [(a, b) for a, b in zip(one.fpr, one.low, strict=True)][::-1]
        band += "L" + "L".join(f"{x(a):.1f} {y(max(b, floor)):.1f}" for a, b in back) + "Z"
        line = "M" + "L".join(f"{x(a):.1f} {y(max(b, floor)):.1f}" for a, b in zip(one.fpr, one.tpr, strict=True))
        parts += [el("path", d=band, class_=f"band s{series % 8}"), el("path", d=line, class_=f"line s{series % 8}")]
        for i in range(0, len(one.fpr), 6):
            low, found, high = (f"{rate:.2%}" for rate in (one.low[i], one.tpr[i], one.high[i]))
            said = f"{one.attack}\n{found} [{low}, {high}] of members found at {one.fpr[i]:.2%} false alarms"
            parts.append(mark(series, x(one.fpr[i]), y(max(one.tpr[i], floor)), tip=said, scale=0.7))
            numbers.append((one.attack, f"{one.fpr[i]:.2%}", found, f"[{low}, {high}]"))
    key = tuple((one.attack, 1 + names.index(one.attack)) for one in rates)
    headers = ("attack", "false-positive rate", "true-positive rate", "95 % interval")
    return Figure(stack, drawing(388, 346, f"ROC: {stack}", *parts), headers, tuple(numbers), key)
