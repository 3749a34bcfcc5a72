"""Draw the tables of the documents from the records and from what there is.

    python -m benchmarks.tables

rewrites what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` in the documents.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.record import RESULTS, read
from experiments.list import catalogue, not_applicable
from secure_ml.rows import table

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "not-applicable.md")


def main() -> None:
    """Rewrite the documents."""
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))


def filled(text: str) -> str:
    """A document with each of its tables drawn anew."""
    return re.sub(
        r"(<!-- table (\S+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{draw(match[2])}\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def draw(name: str) -> str:
    """A table by name: a record, or one of the generated lists."""
    if (RESULTS / f"{name}.json").exists():
        record, rows = read(name)
        versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        where = ", ".join(f"{v} {k}" if k == "cores" else str(v) for k, v in record["hardware"].items() if v)
        return f"`{record['command']}` on {where} ({versions}):\n\n{table(rows)}"
    if name == "not-applicable":
        return tabulate(not_applicable(), ["task", "method", "reason"], tablefmt="github")
    if name == "tasks":
        return _models(catalogue()[name])
    entries = catalogue()[name]
    return tabulate([[f"`{e['name']}`", e["description"]] for e in entries], ["name", "what it is"], tablefmt="github")


def _models(entries: list[dict[str, Any]]) -> str:
    """The document models as they declare themselves."""
    headers = ["name", "what it is", "scores", "answers", "default threat", "privacy unit", "`sample`"]
    lines = [
        [
            f"`{e['name']}`",
            e["description"],
            ", ".join(e["scores"]),
            e["answers"],
            f"`{e['threat']}`",
            e["unit"],
            "yes" if e["samples"] else "",
        ]
        for e in entries
    ]
    return tabulate(lines, headers, tablefmt="github")


if __name__ == "__main__":
    main()
