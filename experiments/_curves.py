"""Plots of accuracy against the radius of an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_ml.rows import Row


@dataclass(frozen=True)
class Curve:
    """One stack of defenses under one attack: a pooled row at each radius."""

    defenses: str
    attack: str
    radii: list[float]
    rows: list[Row]


def draw_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """A panel for each stack; the worst case is bold, what is certified is dashed, intervals are shaded."""
    from matplotlib.figure import Figure

    stacks = list(dict.fromkeys(curve.defenses for curve in curves))
    columns = min(len(stacks), 3)
    height = -(-len(stacks) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * height), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel in panels[len(stacks) :]:
        panel.set_axis_off()
    for panel, stack in zip(panels, stacks, strict=False):
        for index, curve in enumerate(curve for curve in curves if curve.defenses == stack):
            known = [(r, row) for r, row in zip(curve.radii, curve.rows, strict=True) if row.value is not None]
            if not known:
                continue
            style = {"worst case": "k-", "certified": "k--"}.get(curve.attack, f"C{index}-")
            width = 2.5 if curve.attack == "worst case" else 1.2
            x = [radius for radius, _ in known]
            panel.plot(x, [row.value for _, row in known], style, lw=width, marker=".", label=curve.attack)
            if curve.attack in ("worst case", "certified"):
                low, high = ([getattr(row, end) for _, row in known] for end in ("low", "high"))
                panel.fill_between(x, low, high, color="k", alpha=0.1, lw=0)
        panel.set_title(stack, fontsize="small")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    figure.suptitle(title)
    figure.supxlabel("radius")
    figure.savefig(path, dpi=150)
