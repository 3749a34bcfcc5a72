"""Plots of what privacy costs and what still shows: accuracy, bounds from below and leakage against epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_ml.rows import Row


@dataclass(frozen=True)
class Point:
    """One stack of defenses: its claimed epsilon (none without a claim), its score, its bounds, its attacks' AUC."""

    epsilon: float | None
    score: Row
    bounds: Mapping[str, Row]
    leaks: Mapping[str, Row]


def draw_privacy(points: Sequence[Point], path: Path, title: str) -> None:
    """Three panels over the claimed epsilon; what nothing is claimed of is a dashed line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    price, below, leak = figure.subplots(1, 3)
    _draw(price, points, lambda point: {points[0].score.measure: point.score})
    _draw(below, points, lambda point: point.bounds)
    _draw(leak, points, lambda point: point.leaks)
    claimed = sorted(point.epsilon for point in points if point.epsilon)
    below.plot(claimed, claimed, "k--", lw=0.8, label="claimed")
    for panel, name in ((price, points[0].score.measure), (below, "epsilon, at least"), (leak, "membership AUC")):
        panel.set(xscale="log", xlabel="epsilon claimed", title=name)
        panel.set_xticks(claimed, [f"{epsilon:.2g}" for epsilon in claimed])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw(panel: object, points: Sequence[Point], rows: object) -> None:
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    assert callable(rows)
    names = list(dict.fromkeys(name for point in points for name in rows(point)))
    for index, name in enumerate(names):
        known = [(point.epsilon, row) for point in points if (row := rows(point).get(name)) and row.value is not None]
        private = sorted((epsilon, row) for epsilon, row in known if epsilon) if known else []
        x = [epsilon for epsilon, _ in private]
        panel.plot(x, [row.value for _, row in private], f"C{index}-", marker=".", label=name)
        if all(row.low is not None and row.unit != "epsilon" for _, row in private):
            low, high = ([getattr(row, end) for _, row in private] for end in ("low", "high"))
            panel.fill_between(x, low, high, color=f"C{index}", alpha=0.12, lw=0)
        for epsilon, row in known:
            if not epsilon and row.value is not None:
                panel.axhline(row.value, color=f"C{index}", ls=":", lw=1)
