"""How the records about extraction are shown in the documents."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from experiments._fidelity import offers
from experiments.extraction import fidelity_table
from secure_ml.rows import row_from

Records = list[dict[str, Any]]


def curves(records: Records) -> str:
    """The table of ``secure-ml extraction``."""
    rows = [row_from(record) for record in records]
    return "\n".join(fidelity_table(rows, offers(rows), 1.0))


def copies(records: Records) -> str:
    """One line for each pool, attack and budget."""
    lines = [
        [
            r["pool"],
            f"`{r['attack']}`",
            f"{r['queries']:,}",
            *(_interval(r.get(name)) for name in ("fidelity", "copy's accuracy", "transfer")),
            f"{r['seconds']:.0f}",
            r["bar"] or "",
        ]
        for r in records
    ]
    headers = ["pool", "attack", "queries", "fidelity", "copy's accuracy", "transfer", "seconds", "at least"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def exact(records: Records) -> str:
    """One line for each case: how far the worst answer and weight are off, and what it took."""
    names = ("worst answer", "worst weight", "missed", "width")
    lines = []
    for r in records:
        shown = [f"{r[name]:.2g}" if isinstance(r.get(name), float) else r.get(name, "") for name in names]
        took = f"{r['seconds']:.2f}" if "seconds" in r else ""
        case = f"{r.get('what', '')}, {r.get('task', '')}" + (f", {r['decimals']} decimals" if "decimals" in r else "")
        lines.append([case, f"`{r.get('attack', '')}`", *shown, r.get("queries", ""), took])
    headers = ["case", "attack", *names, "queries", "seconds"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def ownership(records: Records) -> str:
    """One line for each protection and test: how many thieves and how many innocents it accuses."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for r in (r for r in records if r["unit"] != "verdict" and r["attack"]):
        line = lines.setdefault((r["defenses"] or "none", r["attack"]), {})
        line[r["measure"].split(",")[0]] = _interval(r)
    names = dict.fromkeys(name for line in lines.values() for name in line)
    shown = [[f"`{who}`", f"`{test}`", *(line.get(n, "") for n in names)] for (who, test), line in lines.items()]
    return tabulate(shown, ["protection", "test", *names], tablefmt="github", disable_numparse=True)


def obfuscation(records: Records) -> str:
    """One line for each share of hidden weights and number of labelled examples."""
    lines = [
        [
            r["task"],
            r["what"],
            r["hidden"] or "",
            r["labelled"] or "",
            f"{r['accuracy']:.3f} [{max(r['low'], 0):.3f}, {min(r['high'], 1):.3f}]",
        ]
        for r in records
    ]
    headers = ["task", "what", "weights hidden", "labelled examples", "accuracy"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _interval(value: dict[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return ""
    if value["low"] is None:
        return f"{value['value']:.4f}"
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
