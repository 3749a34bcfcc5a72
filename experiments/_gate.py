"""The gate of a run: what was asked of its rows, what became of it, and the files that a CI server reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import tyro

from attacks.scrutiny import _contract, _strength
from experiments._gate_files import junit, sarif
from experiments._provenance import now
from secure_ml.gate import Verdict, conditions, judge
from secure_ml.rows import Row, package_version

FailIf: TypeAlias = tyro.conf.UseAppendAction[tuple[str, ...]]
"""The option of a command: one condition each time that it is given."""
GROUPS = {
    "gradient_masking": (_contract.GRADIENTS, _strength.ORDER, _strength.CURVE, _strength.BLACK_BOX),
}
"""Names for several checks: here, those that fail where gradients are hidden rather than the model robust."""


def apply(rows: Sequence[Row], texts: Sequence[str], out: Path) -> int:
    """Judge conditions on rows, print the verdicts to stderr, and write gate.json, junit.xml and gate.sarif.

    Returns 1 if one of them failed, else 0. Without conditions nothing is written. Raises `UsageError` for a condition
    that cannot be read; ``secure_ml.gate.conditions`` says so before anything is run.
    """
    if not texts:
        return 0
    verdicts = judge(rows, conditions(texts), GROUPS)
    failed = sum(verdict.failed for verdict in verdicts)
    for verdict in verdicts:
        print(f"{'FAILED' if verdict.failed else 'passed'}  {_line(verdict)}", file=sys.stderr)
    print(f"the gate: {failed} of {len(verdicts)} failed; {out / 'gate.json'}, junit.xml, gate.sarif", file=sys.stderr)
    (out / "gate.json").write_text(json.dumps(record(verdicts), indent=1) + "\n")
    (out / "junit.xml").write_bytes(junit(verdicts, package_version(), now()))
    told = sarif(verdicts, out / "gate.json", package_version())
    (out / "gate.sarif").write_text(json.dumps(told, indent=1) + "\n")
    return int(failed > 0)


def record(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts as JSON: each condition, where it was judged, the row that decided and why."""
    return {
        "schema": 1,
        "failed": any(verdict.failed for verdict in verdicts),
        "version": package_version(),
        "verdicts": [
            {
                "condition": verdict.condition.text,
                "on": verdict.condition.on,
                "failed": verdict.failed,
                "why": verdict.why,
                "task": verdict.task,
                "defenses": verdict.defenses,
                "row": asdict(verdict.row) if verdict.row else None,
            }
            for verdict in verdicts
        ],
    }


def _line(verdict: Verdict) -> str:
    where = f" ({verdict.task}, {verdict.defenses})" if verdict.task else ""
    return f"{verdict.condition.text}{where}: {verdict.why}".encode(errors="replace").decode()
