"""What comes out: tidy rows, one measurement each, and the table that is a view on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from secure_ml.defense import stack_name
from secure_ml.stats import Estimate, clopper_pearson, over_seeds
from secure_ml.victim import Claim, Victim

SCHEMA = 1
TIMES = ("seconds", "milliseconds")
"""Units of what depends on the machine and what else it does: no two runs agree on it, and no risk is judged by it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement on one victim, or (``pooled``) on several; a ``note`` instead of a value says why there is none.

    ``low`` and ``high`` bound the 95 % interval that ``interval`` names, over ``n`` observations. ``claims``
    are what the victim promises, beside what was measured.
    """

    task: str
    defenses: str
    attack: str
    seeds: tuple[int, ...]
    measure: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    n: int = 0
    unit: str = "share"
    queries: int = 0
    gradients: int = 0
    seconds: float = 0.0
    note: str = ""
    claims: tuple[Claim, ...] = ()
    pooled: bool = False
    device: str = "cpu"
    threads: int = 1
    version: str = ""
    schema: int = SCHEMA


def package_version(name: str = "secure-ml") -> str:
    """The version of an installed package, this library's unless another is named."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def make_row(
    victim: Victim,
    measure: str,
    estimate: Estimate | None = None,
    *,
    attack: str = "",
    unit: str = "share",
    queries: int = 0,
    gradients: int = 0,
    seconds: float = 0.0,
    note: str = "",
) -> Row:
    """A row about one victim; numbers that do not exist are None."""
    return Row(
        task=repr(victim.task),
        defenses=stack_name(victim.defenses),
        attack=attack,
        seeds=(victim.seed,),
        measure=measure,
        **_numbers(estimate),
        unit=unit,
        queries=queries,
        gradients=gradients,
        seconds=seconds,
        note=note,
        claims=victim.claims,
        device=victim.device.type,
        threads=torch.get_num_threads(),
        version=package_version(),
    )


def pool_rows(rows: Sequence[Row], estimate: Estimate | None = None, note: str = "") -> Row:
    """One row for the same measurement on several victims: the mean over seeds, unless another estimate is given.

    Of several attacks that share a measurement, the row names all.
    """
    first = rows[0]
    values = [row.value for row in rows if row.value is not None]
    if estimate is None and values and len(rows) > 1:
        estimate = _mean(rows, values)
    numbers = _numbers(estimate) if estimate else {k: getattr(first, k) for k in _NUMBERS}
    note = note if estimate else note or first.note
    return Row(
        **{**{k: getattr(first, k) for k in _KEPT}, **numbers},
        attack=" | ".join(dict.fromkeys(row.attack for row in rows)),
        seeds=tuple(sorted({seed for row in rows for seed in row.seeds})),
        queries=sum(row.queries for row in rows),
        gradients=sum(row.gradients for row in rows),
        seconds=sum(row.seconds for row in rows),
        note=note,
        pooled=True,
    )


def save_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def row_from(record: dict[str, Any]) -> Row:
    """The row that was written as this JSON object."""
    claims = tuple(Claim(**claim) for claim in record["claims"])
    return Row(**{**record, "claims": claims, "seeds": tuple(record["seeds"])})


def table(rows: Iterable[Row]) -> str:
    """A table with a row for each task and stack of defenses and a column for each measure, then the footnotes.

    Several seeds of one measurement are shown as their mean; pooled rows are shown as they are. Where several attacks
    measured the same, each has its column.
    """
    everything = list(rows)
    found = [row for row in everything if row.unit == "verdict"]
    rows = [row for row in everything if row.unit != "verdict"]
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        rivals = {other.attack for other in rows if other.measure == row.measure and not other.pooled}
        name = f"{row.measure}: {row.attack}" if len(rivals) > 1 else row.measure
        groups.setdefault((row.task, row.defenses), {}).setdefault(name, []).append(row)
    measures = list(dict.fromkeys(m for group in groups.values() for m in group))
    many_tasks = len({task for task, _ in groups}) > 1
    notes: list[str] = []
    lines = []
    for (task, defenses), group in groups.items():
        any_row = next(iter(group.values()))[0]
        cells = [cell(group.get(measure, []), notes) for measure in measures]
        claims = "; ".join(claim.short for claim in any_row.claims) or "-"
        lines.append([*([task] if many_tasks else []), defenses, *cells, claims])
    headers = [*(["task"] if many_tasks else []), "protection", *measures, "claims"]
    text = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return "\n".join([text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1)), *findings(found)])


def findings(rows: Sequence[Row]) -> list[str]:
    """What checks found, stack by stack: the lines under a table that say how far to trust it."""
    lines: list[str] = []
    for defenses in dict.fromkeys(row.defenses for row in rows):
        mine = [row for row in rows if row.defenses == defenses]
        lines += ["", f"Checks of {defenses}:", *(f"  {row.note}" for row in mine)]
    return lines


def cell(rows: list[Row], notes: list[str]) -> str:
    """One number of a table with its interval, and the number of its footnote, which is added to ``notes``."""
    if not rows:
        return "-"
    row = rows[0] if len(rows) == 1 else pool_rows(rows)
    mark = ""
    if row.note:
        if row.note not in notes:
            notes.append(row.note)
        mark = f" [{notes.index(row.note) + 1}]"
    if row.value is None:
        return "n/a" + mark
    return f"{_digits(row.value, row)}{_bounds(row)}{mark}"


def _bounds(row: Row) -> str:
    if row.low is None or row.high is None:
        return ""
    return f" [{_digits(row.low, row)}, {_digits(row.high, row)}]"


def _digits(value: float, row: Row) -> str:
    """As many decimals as the interval supports: the half-width's leading digit, or one beyond."""
    if row.unit == "count":
        return f"{value:,.0f}"
    if row.low is None or row.high is None:
        return f"{value:.3g}"
    half = max((row.high - row.low) / 2, 1e-6)
    return f"{value:.{min(max(1 - math.floor(math.log10(half)), 0), 4)}f}"


_NUMBERS = ("value", "low", "high", "interval", "n")
_KEPT = ("task", "defenses", "measure", "unit", "claims", "device", "threads", "version", "schema")


def _mean(rows: Sequence[Row], values: Sequence[float]) -> Estimate:
    """The mean over victims: a t interval, and for proportions no narrower than one victim's examples allow.

    Victims may be tested on the same examples, which the spread over victims does not show. A share stays in
    [0, 1], a time above 0.
    """
    mean = over_seeds(values)
    if all(row.interval == "Clopper-Pearson" for row in rows):
        n = min(row.n for row in rows)
        alone = clopper_pearson(round(mean.value * n), n)
        method = f"{mean.method}, at least Clopper-Pearson of {n}"
        mean = replace(mean, low=min(mean.low, alone.low), high=max(mean.high, alone.high), method=method)
    low, high = (0.0, 1.0) if rows[0].unit == "share" else (0.0 if rows[0].unit in TIMES else -math.inf, math.inf)
    return replace(mean, low=max(mean.low, low), high=min(mean.high, high))


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    known = {k: getattr(estimate, k) for k in ("value", "low", "high")}
    return {
        **{k: v if math.isfinite(v) else None for k, v in known.items()},
        "interval": estimate.method,
        "n": estimate.n,
    }
