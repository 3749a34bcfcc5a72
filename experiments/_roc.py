"""Plots of what membership attacks find at false-positive rates that an adversary could live with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from secure_ml.errors import require
from secure_ml.roc import Roc


def draw_rocs(panels: Mapping[str, Mapping[str, Roc]], path: Path, title: str) -> None:
    """A panel for each stack of defenses with a curve for each attack, both axes logarithmic; intervals are shaded.

    On the dashed diagonal lies who guesses. Raises `UsageError` where there is nothing to draw.
    """
    from matplotlib.figure import Figure

    require(any(panels.values()), "there is no ROC to draw")
    columns = min(len(panels), 3)
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.8 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True).flatten()
    least = min(roc.fpr[0] for curves in panels.values() for roc in curves.values())
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    for panel, (stack, curves) in zip(axes, panels.items(), strict=False):
        for index, (attack, roc) in enumerate(curves.items()):
            panel.plot(roc.fpr, roc.tpr, f"C{index}-", lw=1.2, label=attack)
            panel.fill_between(roc.fpr, roc.low, roc.high, color=f"C{index}", alpha=0.12, lw=0)
        panel.plot([least, 1], [least, 1], "k--", lw=0.8)
        panel.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
        panel.set_title(stack, fontsize="small")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small", loc="lower right")
    figure.suptitle(title)
    figure.supxlabel("false-positive rate")
    figure.supylabel("true-positive rate")
    figure.savefig(path, dpi=150)
