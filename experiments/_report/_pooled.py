"""Which rows a report shows: those that stand for several victims."""

from __future__ import annotations

from collections.abc import Sequence

from secure_ml.rows import Row, pool_rows


def shown(rows: Sequence[Row]) -> list[Row]:
    """The rows that stand for several victims: as the run pooled them, or the mean of each attack where it did not."""
    pooled = [row for row in rows if row.pooled]
    if any(row.unit != "verdict" for row in pooled):
        return pooled
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.defenses, row.attack, row.measure), []).append(row)
    return [same[0] if len(same) == 1 else pool_rows(same) for same in groups.values() if same[0].unit != "verdict"]


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """What checks found: pooled where it was, else all."""
    found = [row for row in rows if row.unit == "verdict"]
    pooled = {(row.task, row.defenses, row.attack, row.measure) for row in found if row.pooled}
    return [r for r in found if r.pooled or (r.task, r.defenses, r.attack, r.measure) not in pooled]
