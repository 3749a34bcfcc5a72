"""Draw the tables of the documents from the records and from what there is.

    python -m benchmarks.tables

rewrites what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` in the documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import _encryption_views, _extraction_views, _privacy_views
from benchmarks.record import RESULTS
from experiments.list import catalogue, not_applicable
from secure_ml.rows import Row, cell, row_from, table

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def main() -> None:
    """Rewrite the documents."""
    torch.set_num_threads(1)  # many small models are built, where a second thread on a busy machine costs minutes
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
        record = json.loads((RESULTS / f"{name}.json").read_text())
        measured = iter(record.get("measured", {}).values())
        about = record if "versions" in record else next(measured, None) or record["rows"][0]
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        where = ", ".join(
            f"{v} {k}" if k in ("cores", "threads", "processes") else str(v) for k, v in about["hardware"].items() if v
        )
        drawn = VIEWS.get(name, _matrix)(record["rows"] if "rows" in record else record["settings"])
        drawn += _changes(record["effects"]) if "effects" in record else ""
        return f"`{record['command']}` on {where} ({versions}):\n\n{drawn}"
    if name == "not-applicable":
        return tabulate(not_applicable(), ["task", "method", "reason"], tablefmt="github")
    if name == "tasks":
        return _declared(catalogue()[name])
    entries = catalogue()[name]
    return tabulate([[f"`{e['name']}`", e["description"]] for e in entries], ["name", "what it is"], tablefmt="github")


def _declared(entries: list[dict[str, Any]]) -> str:
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


def _matrix(records: list[dict[str, Any]]) -> str:
    """The table as it is printed, with its checks in short: what did not pass, and where."""
    rows = [row_from(record) for record in records]
    text = table([row for row in rows if row.unit != "verdict"])
    return text + _in_short([row for row in rows if row.unit == "verdict"])


def _changes(effects: list[dict[str, Any]]) -> str:
    """One line for each difference between stacks: the means, the difference with its interval, what it says."""
    lines = [
        {
            "protection": e["protection"],
            "against": e["against"],
            "measure": e["measure"],
            "by": e["attack"] or "-",
            "from": "-" if e["before"] is None else f"{e['before']:.3f}",
            "to": "-" if e["after"] is None else f"{e['after']:.3f}",
            "change": "-" if e["low"] is None else f"{e['change']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]",
            "verdict": e["verdict"],
        }
        for e in effects
    ]
    return "\n\n" + tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def _in_short(checks: list[Row]) -> str:
    """How many checks pass, and the stacks of which the others do not."""
    noted: dict[str, list[str]] = {}
    checks = [row for row in checks if row.pooled] or checks  # single victims' findings are in the pooled ones
    for row in checks:
        if not row.note.startswith("PASS"):
            name = (
                "SKIP what rests on one that failed" if row.note.startswith("SKIP") else f"{row.note[:4]} {row.measure}"
            )
            stacks = noted.setdefault(name, [])
            stacks += [f"`{row.defenses}`"] if f"`{row.defenses}`" not in stacks else []
    if not checks:
        return ""
    passed = sum(row.note.startswith("PASS") for row in checks)
    others = [f"- {name}: {', '.join(stacks)}" for name, stacks in noted.items()]
    return "\n".join(["", "", f"{passed} of {len(checks)} checks pass; the others:", "", *others])


def _all_models(records: list[dict[str, Any]]) -> str:
    """One line a model: its score, what attacks make of it, and its score under DP-SGD; reasons as footnotes."""
    rows = [row_from(record) for record in records]
    notes: list[str] = []
    headers = [
        *("model", "score", "value", "under attack", "threat", "membership AUC", "fidelity of a copy"),
        *("under DP-SGD", "seconds", "seconds under DP-SGD"),
    ]
    lines = []
    for task in dict.fromkeys(row.task for row in rows):
        bare = [row for row in rows if row.task == task and row.defenses == "none"]
        private = [row for row in rows if row.task == task and row.defenses != "none"]
        evasion = _first(bare, " under ") or _first(bare, "evasion")
        cells = [
            bare[0],
            evasion,
            _first(bare, "membership AUC") or _first(bare, "membership"),
            _first(bare, "fidelity") or _first(bare, "extraction"),
            private[0] if private else None,
            _first(bare, "training seconds"),
            _first(private, "training seconds"),
        ]
        value, attacked, *rest = [cell([row] if row else [], notes) for row in cells]
        threat = evasion.measure.partition(" under ")[2] if evasion else ""
        lines.append([f"`{task}`", bare[0].measure, value, attacked, threat, *rest])
    text = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return "\n".join([text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def _curves(records: list[dict[str, Any]]) -> str:
    """One line a stack and attack, a column for each radius; then the checks that did not pass."""
    rows = [row_from(record) for record in records]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row.unit == "verdict":
            continue
        kind, _, radius = row.measure.partition(" under ")
        attack = "certified" if kind.startswith("certified") else row.attack
        line = lines.setdefault((row.defenses, "worst case" if " | " in attack else attack), {})
        line[radius] = cell([row], [])
    drawn = [{"protection": stack, "attack": attack, **cells} for (stack, attack), cells in lines.items()]
    text = tabulate(drawn, headers="keys", tablefmt="github", disable_numparse=True)
    return text + _in_short([row for row in rows if row.unit == "verdict"])


def _flat(records: list[dict[str, Any]]) -> str:
    """Records as they are, without their lists."""
    lines = [{k: v for k, v in record.items() if not isinstance(v, list)} for record in records]
    return tabulate(lines, headers="keys", tablefmt="github", floatfmt=".3f")


def _encrypted(records: list[dict[str, Any]]) -> str:
    """One line for each net, engine and ring: parameters, seconds, bytes, errors and decisions."""
    lines = [
        {
            "net": r["net"],
            "engine": r["engine"] + (", compact keys" if r["compact"] else ""),
            "parameters": r["parameters"],
            "server seconds a query": f"{r['server seconds a query, best']:.4f}",
            "keys, MB": f"{r['key bytes'] / 1e6:.1f}",
            "largest error": f"{r['largest error']:.1e}",
            "equal decisions": f"{r['equal decisions']:,} of {r['queries']:,}",
            "encrypted accuracy": f"{r['encrypted accuracy']:.4f}",
        }
        for r in records
        if "parameters" in r and "queries" in r
    ]
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def _by_measure(records: list[dict[str, Any]]) -> str:
    """One line a model and history, a column for each measure of each kind of films."""
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for r in records:
        places = 0 if "place" in r["measure"] else 3
        shown = f"{r['value']:.{places}f} [{r['low']:.{places}f}, {r['high']:.{places}f}]"
        if r["where"] != "cold, among all":
            lines.setdefault((r["model"], r["history"]), {})[f"{r['measure']}, {r['where']} ({r['n']})"] = shown
    table = [{"model": model, "films of history": history, **cells} for (model, history), cells in lines.items()]
    return tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)


def _of_art(records: list[dict[str, Any]]) -> str:
    """One line for each of ART's attacks: whether it runs, what it leaves right, and what ours leaves right."""
    notes: list[str] = []
    headers = ["ART's attack", "outcome", "threat", "leaves right", "seconds", "ours", "leaves right", "seconds"]
    lines = []
    for record in records:
        if "why" in record:
            notes.append(f"[{len(notes) + 1}] {record['why']}")
            lines.append([f"`{record['attack']}`", f"{record['outcome']} [{len(notes)}]"])
            continue
        theirs, ours = (f"{record[name]:.2f}" for name in ("accuracy", "our accuracy"))
        cells = [record["outcome"], record["threat"], theirs, f"{record['seconds']:.1f}"]
        lines.append([f"`{record['attack']}`", *cells, record["ours"], ours, f"{record['our seconds']:.1f}"])
    return "\n".join([tabulate(lines, headers, tablefmt="github", disable_numparse=True), "", *notes])


def _each(records: list[dict[str, Any]]) -> str:
    """One line a row: what was measured, with which attack, on how many."""
    lines = [
        [row.measure, row.attack or "-", cell([replace(row, note="")], []), row.n, row.note]
        for row in map(row_from, records)
    ]
    return tabulate(lines, ["measure", "attack", "value", "n", "note"], tablefmt="github", disable_numparse=True)


VIEWS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "models": _all_models,
    "recommenders": _by_measure,
    "adult-baselines": _flat,
    "adversarial_training": _flat,
    "certified": _each,
    "robustness-digits_cnn": _curves,
    "robustness-mnist_cnn": _curves,
    "art_attacks": _of_art,
    "evasion_speed": _flat,
    "encryption": _encrypted,
    "encryption-digits_cnn": _encryption_views.costs,
    "encryption-mnist_mlp": _encryption_views.costs,
    "encrypted_attacks": _encryption_views.through_the_endpoint,
    "encrypted_head": _encryption_views.head,
    "false_answers": _encryption_views.lies,
    "exact_extraction": _extraction_views.exact,
    "extraction": _extraction_views.copies,
    "extraction-digits_cnn": _extraction_views.curves,
    "extraction-mnist_cnn": _extraction_views.curves,
    "extraction-curves-mnist_cnn": _extraction_views.curves,
    "obfuscation": _extraction_views.obfuscation,
    "ownership": _extraction_views.ownership,
    "evasion_strength": _flat,
    "speech-speakers": _flat,
    "text-baselines": _flat,
    "accountants": _privacy_views.accountants,
    "audits": _flat,
    "private_steps": _flat,
    "private_accuracy": _flat,
    "membership": _privacy_views.membership,
    "privacy-digits_cnn": _privacy_views.privacy,
    "privacy-mnist_cnn": _privacy_views.privacy,
    "reconstruction": _privacy_views.reconstruction,
    "shadow_training": _privacy_views.shadows,
}


def _first(rows: list[Row], words: str) -> Row | None:
    return next((row for row in rows if words in row.measure), None)


if __name__ == "__main__":
    main()
