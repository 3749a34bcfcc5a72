"""Plots of pooled rows: what a protection costs in the task's score against what it buys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from secure_ml.families.membership import AUC_NAME
from secure_ml.identity import digest
from secure_ml.rows import Row, package_version


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Score against membership AUC and against the score under attack, one file a task and plot."""
    written = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task and row.value is not None]
        score = next((row.measure for row in mine), "")
        for axis, name in (
            (AUC_NAME, "privacy"),
            (next((r.measure for r in mine if r.measure.startswith(f"{score} under ")), ""), "robustness"),
        ):
            pairs = [(x, y) for y in mine if y.measure == score for x in mine if _same(x, y) and x.measure == axis]
            if pairs:
                path = folder / f"{_file_name(task)}-{name}.png"
                title = f"{task}: {score} against {name}"
                mark = _mark(pairs, title)
                if not _bears(path, mark):
                    _scatter(pairs, path, title, mark)
                written.append(path)
    return written


def _mark(pairs: Sequence[tuple[Row, Row]], title: str) -> str:
    """What a plot is drawn from and by, which it carries in its text: one that is there already is left as it is."""
    rows = json.dumps([[asdict(x), asdict(y)] for x, y in pairs], sort_keys=True)
    return digest(rows, title, package_version("matplotlib"), Path(__file__).read_text())


def _same(a: Row, b: Row) -> bool:
    return a.defenses == b.defenses


def _bears(path: Path, mark: str) -> bool:
    """Whether a file is there, whole, and drawn from these rows."""
    held = path.read_bytes() if path.is_file() else b""
    return mark.encode() in held and held.endswith(END)


def _scatter(pairs: Sequence[tuple[Row, Row]], path: Path, title: str, mark: str) -> None:
    """One point a stack of defenses, with both intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (x, y) in enumerate(pairs):
        assert x.value is not None
        assert y.value is not None
        axes.errorbar(
            [x.value],
            [y.value],
            xerr=_arms(x),
            yerr=_arms(y),
            fmt="os^Dv<>p*hX"[index % 11],
            capsize=3,
            label=y.defenses,
        )
    first = pairs[0]
    axes.set(xlabel=f"{first[0].measure} (95 % interval)", ylabel=f"{first[1].measure} (95 % interval)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="protection", fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Source": mark})


def _arms(row: Row) -> list[list[float]] | None:
    if row.value is None or row.low is None or row.high is None:
        return None
    return [[max(row.value - row.low, 0.0)], [max(row.high - row.value, 0.0)]]


def _file_name(task: str) -> str:
    return "".join(c if c.isalnum() or c in "_-=." else "-" for c in task).strip("-")


END = b"IEND\xaeB`\x82"
"""The last bytes of a PNG that was written to its end (https://www.w3.org/TR/png-3/#11IEND)."""
