"""How the records about privacy are shown in the documents."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tabulate import tabulate

from experiments.privacy import leak_table, price_table
from secure_ml.rows import cell, row_from

Records = list[dict[str, Any]]
BRIEF = 60
"""Characters of a stack's name that a table holds."""


def privacy(records: Records) -> str:
    """The two tables of ``secure-ml privacy``; of settings that the command above them names, epsilon alone."""
    rows = [row_from(record) for record in records if record["unit"] != "verdict"]
    rows = [replace(row, defenses=_brief(row.defenses)) for row in rows]
    return "\n".join([*price_table(rows), "", *leak_table(rows)])


def _brief(stack: str) -> str:
    """A stack's name with epsilon as its only setting, where it is long."""

    def kept(settings: re.Match[str]) -> str:
        return f"({', '.join(part for part in settings[1].split(', ') if part.startswith('epsilon'))})"

    return stack if len(stack) <= BRIEF else re.sub(r"\(([^()]*)\)", kept, stack)


def membership(records: Records) -> str:
    """One line for each protection and attack."""
    rates = ("membership AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR")
    lines = [
        [r["task"], r["protection"], r["name"], f"{r['accuracy']:.3f}", *(_interval(r[rate]) for rate in rates)]
        for r in records
    ]
    headers = ["model", "protection", "attack", "accuracy", *rates]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def shadows(records: Records) -> str:
    """One line a task: both sides' seconds, the ratio, and the accuracies that each arrives at."""
    lines = []
    for r in records:
        one, side = r["one by one"], r["side by side"]
        lines.append(
            [
                f"`{r['task']}`",
                r["models"],
                min(one["processor seconds"]),
                min(side["processor seconds"]),
                f"{r['faster, by the wall']:.1f}",
                f"{r['faster, by processor time']:.1f}",
                f"{one['mean accuracy']:.4f} ({one['sd of accuracies']:.4f})",
                f"{side['mean accuracy']:.4f} ({side['sd of accuracies']:.4f})",
                f"{r['Kolmogorov-Smirnov p']:.2f}",
            ]
        )
    headers = [
        *("task", "models", "processor seconds, one by one", "side by side", "faster, by the wall"),
        *("faster, by processor", "accuracy (sd), one by one", "side by side", "KS p"),
    ]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def accountants(records: Records) -> str:
    """One line a setting: what each accountant says."""
    lines = [{**record["setting"], **record["found"]} for record in records]
    return tabulate(lines, headers="keys", tablefmt="github", floatfmt=".4f")


SHOWN = ("PSNR gain", "identified", "attribute gain", "exposure", "member gain", "skew told")


def reconstruction(records: Records) -> str:
    """One line a task and attack, a column for each protection: the gain over a guess without access."""
    rows = [row_from(record) for record in records]
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if row.value is None or not any(word in row.measure for word in SHOWN):
            continue
        line = lines.setdefault((row.task, row.attack, row.measure), {})
        line[row.defenses] = cell([row], [])
    table = [{"model": m, "attack": a, "measure": what, **cells} for (m, a, what), cells in lines.items()]
    return tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)


def _interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "n/a"
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
