"""A run as people read it: one HTML file, Markdown, tables, and sections for a model card."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments._provenance import provenance
from experiments._report._files import keep, read
from experiments._report._material import Run, gather
from experiments._report._page import page
from experiments._report._text import can_write_parquet, csv_text, markdown, model_card, write_parquet
from secure_ml.attack import Result
from secure_ml.rows import Row

__all__ = ["Run", "draw", "publish", "read", "write"]


def publish(
    command: str,
    argv: Sequence[str],
    rows: Sequence[Row],
    results: Sequence[Result],
    started: datetime,
    out: Path,
) -> None:
    """What a command of ``secure-ml`` does at its end: say in run.json where rows come from, and draw the report."""
    write(rows, results, out, provenance(command, argv, rows, started, out))


def write(
    rows: Sequence[Row], results: Sequence[Result] | None, out: Path, provenance: dict[str, Any] | None = None
) -> list[Path]:
    """Draw a run's report into its folder, and keep what is drawn so that ``secure-ml report`` can do it again.

    ``results`` are the cells behind the rows; without them there are no curves of rates and no examples.
    """
    run = gather(rows, results or (), out.resolve().name, provenance or {})
    keep(run, out)
    return draw([run], out)


def draw(runs: Sequence[Run], out: Path) -> list[Path]:
    """The report on the last run, compared with the first where there are several; what was written."""
    run = runs[-1]
    tables = _tables(run, out)
    texts = {
        "report.html": page(runs),
        "report.md": markdown(runs),
        "model-card.md": model_card(run),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [*(out / name for name in texts), *tables]


def _tables(run: Run, out: Path) -> list[Path]:
    """All rows as CSV and, where it can be written, as Parquet; what says the same already is left as it is."""
    text, plain, packed = csv_text(run.rows), out / "rows.csv", out / "rows.parquet"
    whole = packed.is_file() or not can_write_parquet()
    if whole and plain.is_file() and plain.read_text(encoding="utf-8") == text:
        return [path for path in (plain, packed) if path.is_file()]
    for path in (plain, packed):  # until both are written, neither speaks for the other
        path.unlink(missing_ok=True)
    written = write_parquet(run.rows, packed)
    plain.write_text(text, encoding="utf-8")
    return [plain, packed] if written else [plain]
