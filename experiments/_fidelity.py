"""What the answers of a stack sell at each budget: the strongest attack's copy, in a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_ml.families.extraction import AT, DISTANCES
from secure_ml.rows import Row


@dataclass(frozen=True)
class Offer:
    """The most faithful copy of one stack at one budget."""

    defenses: str
    budget: int
    fidelity: Row
    score: Row
    transfer: Row | None


def offers(rows: Sequence[Row]) -> list[Offer]:
    """Of every stack the strongest attack at each budget, by fidelity."""
    found: dict[tuple[str, int], Offer] = {}
    for name, attack, budget in dict.fromkeys((r.defenses, r.attack, at(r)) for r in rows if AT in r.measure):
        same = {
            r.measure.split(AT)[0]: r
            for r in rows
            if (r.defenses, r.attack) == (name, attack) and AT in r.measure and at(r) == budget
        }
        if "fidelity" not in same:  # a part of the model was found, and no copy was made
            continue
        score = next(r for what, r in same.items() if what.startswith("copy's ") and what not in DISTANCES)
        offer = Offer(name, budget, same["fidelity"], score, same.get("transfer"))
        rival = found.get((name, budget))
        if rival is None or (offer.fidelity.value or 0.0) > (rival.fidelity.value or 0.0):
            found[name, budget] = offer
    return [found[key] for key in found]


def at(row: Row) -> int:
    """The number of queries that a measure names."""
    return int(row.measure.split(AT)[1].split()[0])


def draw_fidelity(found: Sequence[Offer], path: Path, title: str) -> None:
    """A panel for what copies agree on and one for their own score: a line for each stack."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, name in zip(panels, ("fidelity", "score"), strict=True):
        for index, stack in enumerate(dict.fromkeys(offer.defenses for offer in found)):
            mine = sorted((o.budget, getattr(o, name)) for o in found if o.defenses == stack)
            x = [budget for budget, _ in mine]
            panel.plot(x, [row.value for _, row in mine], f"C{index}-", marker=".", label=stack)
            if all(row.low is not None for _, row in mine):
                low, high = ([getattr(row, end) for _, row in mine] for end in ("low", "high"))
                panel.fill_between(x, low, high, color=f"C{index}", alpha=0.1, lw=0)
        panel.set(xscale="log", xlabel="queries", title="fidelity" if name == "fidelity" else "score of the copy")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="x-small")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
