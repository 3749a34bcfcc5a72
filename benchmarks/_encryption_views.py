"""How the records about encryption are shown in the documents."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from experiments.encryption import audits, cost_table
from secure_ml.rows import row_from

Records = list[dict[str, Any]]


def costs(records: Records) -> str:
    """The table of ``secure-ml encryption``, and its audits in short."""
    rows = [row_from(record) for record in records]
    found = [line.strip() for line in audits(rows) if line.strip()[:4] in ("PASS", "WARN", "FAIL")]
    said = []
    for kind in ("WARN", "FAIL"):
        names = sorted({line.partition(":")[0][6:] for line in found if line.startswith(kind)})
        said += [f"{kind}: {', '.join(names)}"] if names else []
    passed = sum(line.startswith("PASS") for line in found)
    short = f"{passed} of {len(found)} checks pass on every program" + (f"; {'; '.join(said)}" if said else "") + "."
    return "\n".join([*cost_table(rows), "", short])


def through_the_endpoint(records: Records) -> str:
    """One line for each measure of each attack: in the clear, and over HTTP on ciphertexts."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for r in records:
        shown = f"{r['value']:.4f} [{r['low']:.4f}, {r['high']:.4f}]"
        lines.setdefault((r["attack"], r["measure"]), {})[r["where"]] = shown
    table = [{"attack": f"`{attack}`", "measure": measure, **cells} for (attack, measure), cells in lines.items()
             if not measure.startswith("answers")]  # fmt: skip
    return tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)


def lies(records: Records) -> str:
    """One line for each lie: how much of the secret it gives, after how many answers, beside a guess."""
    rows = [row_from(record) for record in records]
    lines = []
    for told, blind in zip(rows[::2], rows[1::2], strict=True):
        secret, values = told.measure.partition(" ")[0], [f"{row.value:.4f}" for row in (told, blind)]
        lines.append([f"`{told.attack}`", secret, told.queries, *values, f"{told.n:,}", f"{told.seconds:.0f}"])
    headers = ["a server's lies", "secret", "answers", "recovered", "guessed", "numbers", "seconds"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def head(records: Records) -> str:
    """One line for each figure of the head on frozen features."""
    lines = [[name, f"{value:.4g}" if isinstance(value, float) else value] for name, value in records[0].items()]
    return tabulate(lines, ["head on frozen features", ""], tablefmt="github", disable_numparse=True)
