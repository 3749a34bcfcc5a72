"""The report as text and tables: Markdown, CSV, Parquet, and a section for a model card."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments._report import _style
from experiments._report._material import Run
from experiments._report._page import moved, origin
from experiments._report._pooled import shown
from experiments._report._trust import Check
from experiments._report._view import Chapter, chapters, cited
from secure_ml.direction import direction
from secure_ml.interactions import Effect
from secure_ml.rows import Row, table


def markdown(runs: Sequence[Run]) -> str:
    """The report of the last run, with what moved since the first where there are several."""
    run = runs[-1]
    lines = [f"# Report card: {', '.join(chapter.task for chapter in chapters(run))}", ""]
    for other in runs[1:]:
        move = moved(other, runs[0])
        lines += [f"## {other.name} against {runs[0].name}", "", move.said, "", *_changes(move.told, "before", "after")]
    for chapter in chapters(run):
        lines += _chapter(run, chapter)
    lines += ["## Methods", ""]
    lines += [f"- `{m.name}` ({m.kind}): {m.summary} {' '.join(f'<{link}>' for link in m.links)}" for m in cited(run)]
    lines += ["", "## Provenance", ""]
    if run.provenance.get("command"):
        lines += ["```", str(run.provenance["command"]).replace("```", ""), "```", ""]
    lines += [f"- {name}: {value}" for name, value in origin(run)]
    return _safe(lines)


def _chapter(run: Run, chapter: Chapter) -> list[str]:
    rows = [row for row in run.rows if row.task == chapter.task]
    lines = [
        f"## {chapter.task}",
        "",
        *(f"- **{t.risk.title}**: {t.said} {_names(t.risk)}" for t in chapter.tiles),
    ]
    pooled = [row for row in shown(rows) if row.unit != "verdict"]
    lines += ["", "### The matrix", "", table(pooled), ""]
    if chapter.changes:
        lines += ["### What each defense changed", "", *_changes(chapter.changes, "bare", "with it")]
    if chapter.together:
        lines += ["### Do stacked defenses add up?", "", *_changes(chapter.together, "sum of parts", "together")]
    if chapter.promises:
        lines += ["### Claims beside measurements", "", "| stack | claims | measured |", "| --- | --- | --- |"]
        for p in chapter.promises:
            measured = "; ".join(f"{value} {name}" for name, value in p.measured) or "nothing that bears on it"
            lines.append(f"| {_cell(p.defenses)} | {_cell(p.statement)} | {_cell(measured)} {p.verdict} |")
        lines.append("")
    if chapter.checks:
        lines += ["### Can the numbers be believed?", ""]
        for name, _, checks in chapter.checks:
            lines += [f"- `{name}`"]
            lines += [f"  - {_finding(check)}" for check in checks]
        lines.append("")
    return lines


def _finding(check: Check) -> str:
    remedy = f" -> {check.remedy}" if check.remedy else ""
    return f"{check.verdict} {check.name}: {check.evidence}{remedy}"


def _changes(found: Iterable[Effect], before: str, after: str) -> list[str]:
    head = ["stack", "measure", "attack", before, after, "difference", "95 % interval", "worth"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for e in found:
        numbers = _style.plain(e.before, e), _style.plain(e.after, e), _style.signed(e), _style.interval(e)
        parts = (e.defenses, e.measure, e.attack, *numbers, f"{_style.glyph(e)} {e.verdict}")
        lines.append("| " + " | ".join(map(_cell, parts)) + " |")
    return [*lines, ""]


def _names(risk: Any) -> str:
    said = ", ".join(f"[{name.identifier}]({name.link})" for name in risk.names)
    return f"({said})" if said else ""


def _safe(lines: Iterable[str]) -> str:
    """Markdown in which nothing that a row says is taken for HTML; what stands between fences stays as it is."""
    safe, fenced = [], False
    for line in "\n".join(lines).splitlines():
        fenced ^= line == "```"
        safe.append(line if fenced else re.sub(r"<(?!https://)", "&lt;", line))
    return "\n".join(safe) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def csv_text(rows: Iterable[Row]) -> str:
    """All rows as CSV: seeds apart by spaces, claims as JSON."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_flat, rows))
    return out.getvalue()


def can_write_parquet() -> bool:
    """Whether pyarrow is installed (``pip install 'secure-ml[parquet]'``)."""
    return find_spec("pyarrow") is not None


def write_parquet(rows: Sequence[Row], path: Path) -> bool:
    """All rows as Parquet, where pyarrow is installed; whether it is."""
    if not can_write_parquet():
        return False
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([_flat(row) for row in rows]), path)
    return True


def _flat(row: Row) -> dict[str, Any]:
    claims = json.dumps([asdict(claim) for claim in row.claims]) if row.claims else ""
    return {**asdict(row), "seeds": " ".join(map(str, row.seeds)), "claims": claims}


def model_card(run: Run) -> str:
    """Sections for a model card (https://huggingface.co/docs/hub/model-cards): metadata, risks, evaluation."""
    whole = chapters(run)
    lines = ["---", "library_name: pytorch", "tags:", "- secure-ml", "- robustness", "- privacy", "---", ""]
    lines += ["## Bias, Risks, and Limitations", ""]
    lines += ["What an adversary gets out of this model, as measured by secure-ml. Intervals cover 95 %.", ""]
    for chapter in whole:
        lines += [f"- **{t.risk.title}** ({t.measure}): {t.said} {_names(t.risk)}" for t in chapter.tiles[1:]]
        worst = [(name, check) for name, _, checks in chapter.checks for check in checks if check.verdict == "FAIL"]
        lines += [f"- **Do not believe**: {name}, {_finding(check)}" for name, check in worst]
    lines += ["", "## Evaluation", "", "### Testing Data, Factors & Metrics", "", "#### Testing Data", ""]
    lines += [f"The test split of `{chapter.task}`, drawn anew for each seed." for chapter in whole]
    lines += ["", "#### Factors", "", *(f"- `{name}`" for chapter in whole for name in chapter.stacks), ""]
    lines += ["#### Metrics", ""]
    columns = dict.fromkeys((c.measure, c.way) for chapter in whole for c in chapter.matrix.columns)
    lines += [f"- {measure} ({way})" for measure, way in columns]
    lines += ["", "### Results", ""]
    for chapter in whole:
        rows = [row for row in shown([r for r in run.rows if r.task == chapter.task]) if row.unit != "verdict"]
        lines += [table([row for row in rows if direction(row.measure, row.unit)]), ""]
    lines += ["#### Summary", "", *(_summary(chapter) for chapter in whole), ""]
    if run.provenance.get("command"):
        command = str(run.provenance["command"]).replace("```", "")
        lines += ["## Technical Specifications", "", "Reproduce with", "", "```", command, "```", ""]
    return _safe(lines)


def _summary(chapter: Chapter) -> str:
    better, worse = chapter.moved("better"), chapter.moved("worse")
    checks = f"{chapter.count('PASS')} checks passed, {chapter.count('WARN')} warned, {chapter.count('FAIL')} failed"
    tested = f"Of {len(chapter.changes)} comparisons with the bare model, corrected together (Holm),"
    return f"{tested} {better} are better and {worse} worse for the defender beyond noise. {checks}."
