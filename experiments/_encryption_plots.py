"""Plots of what encryption costs: accuracy, error, latency and bytes over the ring, for each depth and activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments._encryption_cost import ACCURACY, AMORTISED, ERROR, LATENCY, UP
from secure_ml.rows import Row

PANELS = ((ACCURACY, "linear"), (ERROR, "log"), (LATENCY, "log"), (AMORTISED, "log"), (UP, "log"))


@dataclass(frozen=True)
class Setting:
    """One program: its network and activation, its engine and ring, and the pooled rows by measure."""

    activations: int
    activation: str
    engine: str
    degree: int
    rows: Mapping[str, Row]


def draw_costs(settings: Sequence[Setting], path: Path, title: str) -> None:
    """A row of panels for each engine, a line for each network over N; what is simulated is hollow."""
    from matplotlib.figure import Figure

    engines = list(dict.fromkeys(setting.engine for setting in settings))
    figure = Figure(figsize=(4 * len(PANELS), 3.6 * len(engines)), layout="constrained")
    grid = figure.subplots(len(engines), len(PANELS), squeeze=False)
    for line, engine in zip(grid, engines, strict=True):
        mine = [setting for setting in settings if setting.engine == engine]
        for panel, (measure, scale) in zip(line, PANELS, strict=True):
            drawn = _draw(panel, mine, measure)
            panel.set(title=f"{engine}: {measure}", xlabel="N", xscale="log", yscale=scale if drawn else "linear")
            rings = sorted({setting.degree for setting in settings})
            panel.set_xticks(rings, [str(ring) for ring in rings])
            panel.set_xticks([], minor=True)
            panel.grid(alpha=0.3)
        line[0].legend(fontsize="x-small", title="activations")
    figure.suptitle(f"{title}; hollow: most answers are simulated")
    figure.savefig(path, dpi=120)


def _draw(panel: object, settings: Sequence[Setting], measure: str) -> bool:
    """A line for each network; whether there was anything to draw."""
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    drawn, lines = False, list(dict.fromkeys((one.activations, one.activation) for one in settings))
    for index, name in enumerate(lines):
        known = [
            (one.degree, row)
            for one in settings
            if (one.activations, one.activation) == name and (row := one.rows.get(measure)) and row.value is not None
        ]
        x, y = [degree for degree, _ in known], [row.value for _, row in known]
        hollow = any("simulated" in row.note for _, row in known)
        style = {"color": f"C{index}", "marker": "os^Dv<>p*hX"[index % 11], "fillstyle": "none" if hollow else "full"}
        panel.plot(x, y, label=f"{name[0]}, {name[1]}", **style)  # type: ignore[arg-type]
        drawn = drawn or bool(known)
        if known and all(row.low is not None for _, row in known):
            low, high = ([getattr(row, end) for _, row in known] for end in ("low", "high"))
            panel.fill_between(x, low, high, color=f"C{index}", alpha=0.1, lw=0)
    return drawn
