"""Pareto fronts: which stacks of defenses no other one beats."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secure_ml.direction import DOWN, UP, attacked, direction, is_score
from secure_ml.rows import Row


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that is traded: the measure behind it and which way is better, 1 up or -1 down."""

    name: str
    measure: str
    better: int
    unit: str = "share"


@dataclass(frozen=True)
class Stack:
    """One stack of defenses: on each axis the row that tells where it stands; none where nothing was measured."""

    defenses: str
    rows: Mapping[str, Row] = field(default_factory=dict)

    def value(self, axis: str) -> float:
        """Where it stands on an axis; NaN where nothing is known."""
        row = self.rows.get(axis)
        return math.nan if row is None or row.value is None else row.value


def front(points: Sequence[Sequence[float]], better: Sequence[int]) -> list[bool]:
    """Which points ``(n, axes)`` no other one beats: as good on every axis and better on one.

    A point that is not known on every axis is on no front and beats nobody.
    """
    if not points:
        return []
    good: NDArray[np.float64] = np.asarray(points, dtype=np.float64) * np.asarray(better, dtype=np.float64)
    known = [not any(map(math.isnan, point)) for point in points]
    return [ok and not _beaten(point, good[known]) for ok, point in zip(known, good, strict=True)]


def _beaten(point: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    return bool(np.any(np.all(others >= point, axis=1) & np.any(others > point, axis=1)))


def on_front(stacks: Sequence[Stack], axes: Sequence[Axis]) -> list[bool]:
    """Which stacks are on the front over these axes."""
    points = [[stack.value(axis.name) for axis in axes] for stack in stacks]
    return front(points, [axis.better for axis in axes])


def trades(rows: Sequence[Row]) -> tuple[list[Axis], list[Stack]]:
    """The axes of one task on which more than one stack stands, and the stacks, from pooled rows.

    The task's score; that score under attack; what copies agree on at the largest budget; what is found of members;
    the epsilon that is claimed (infinite without a claim) and the largest that shows from below; the latency of an
    answer; the seconds that training took.
    """
    names = list(dict.fromkeys(row.defenses for row in rows))
    found: dict[str, Axis] = {}
    stacks: dict[str, dict[str, Row]] = {name: {} for name in names}
    for row in rows:
        axis = _axis(row)
        if axis is None or row.value is None:
            continue
        axis = found.setdefault(axis.name, axis)
        if axis.name in ("robustness", "latency") and row.measure != axis.measure:  # another radius, or unit
            continue
        rival = stacks[row.defenses].get(axis.name)
        if rival is None or _tells_more(row, rival, axis):
            stacks[row.defenses][axis.name] = row
    claims = {name: _claimed([row for row in rows if row.defenses == name]) for name in names}
    if any(row.value != math.inf for row in claims.values()):
        found[CLAIMED] = Axis(name=CLAIMED, measure=CLAIMED, better=DOWN, unit="epsilon")
        for name, row in claims.items():
            stacks[name][CLAIMED] = row
    axes = [axis for axis in found.values() if sum(axis.name in of for of in stacks.values()) > 1]
    axes.sort(key=lambda axis: ORDER.index(axis.name))
    return axes, [Stack(name, of) for name, of in stacks.items()]


CLAIMED = "epsilon claimed"
ORDER = ("score", "robustness", "fidelity", "membership", CLAIMED, "epsilon measured", "latency", "training")


def _axis(row: Row) -> Axis | None:
    """The axis that a row belongs to; what is compared is what the first such row measured."""
    better = direction(row.measure, row.unit)
    name = ""
    if is_score(row.measure) and not row.attack:
        name = "score"
    elif attacked(row.measure) is not None and "(0.0)" not in row.measure:
        name = "robustness"
    elif row.measure.startswith("fidelity at "):
        name = "fidelity"
    elif row.measure == "membership AUC":
        name = "membership"
    elif row.measure.startswith("epsilon lower bound"):
        name = "epsilon measured"
    elif row.measure in ("latency", "milliseconds a query"):
        name = "latency"
    elif row.measure == "training seconds":
        name = "training"
    return Axis(name=name, measure=row.measure, better=better or UP, unit=row.unit) if name else None


def _tells_more(row: Row, rival: Row, axis: Axis) -> bool:
    """Whether a row replaces another on its axis: the larger budget, then the stronger attack."""
    mine, theirs = _queries(row), _queries(rival)
    if axis.name == "fidelity" and mine != theirs:
        return mine > theirs
    assert row.value is not None
    assert rival.value is not None
    return axis.name != "score" and (row.value - rival.value) * axis.better < 0


def _queries(row: Row) -> int:
    found = re.search(r" at (\d+) queries", row.measure)
    return int(found[1]) if found else 0


def _claimed(rows: Sequence[Row]) -> Row:
    """The claim of a stack as a row: the epsilon, or infinity."""
    said = [claim for row in rows for claim in row.claims if claim.kind == "differential privacy"]
    value = float(said[0].values["epsilon"]) if said else math.inf
    return Row(
        task=rows[0].task,
        defenses=rows[0].defenses,
        attack="",
        seeds=rows[0].seeds,
        measure=CLAIMED,
        value=value,
        unit="epsilon",
    )
