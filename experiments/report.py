"""Draw a run's report again from its rows, or compare several runs: nothing is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments._catalog import ask
from experiments._report import Run, draw, read
from experiments._report._page import moved
from secure_ml.errors import require
from secure_ml.victim import writable


@dataclass(frozen=True)
class Report:
    """Draw a run's report again from its rows, without running anything.

    Of several runs, the first is what the others are compared with: before and after a change.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs (--out of matrix, robustness, privacy ...), rows.jsonl files, or records."""
    out: Path | None = None
    """Folder for the report; the run's own unless given, or runs/report for several or for files."""


def main(argv: Sequence[str]) -> int:
    """Read the runs, draw the report, say where it is."""
    options = ask(Report, argv, "secure-ml report")
    require(len(options.runs) > 0, "name at least one run: the folder that --out named, runs/matrix say")
    runs = _named([read(path) for path in options.runs], options.runs)
    own = len(runs) == 1 and options.runs[0].is_dir()
    out = writable(options.out or (options.runs[0] if own else Path("runs/report")))
    written = draw(runs, out)
    print(f"{out / 'report.html'} (and {', '.join(path.name for path in written[1:])})")
    if len(runs) > 1:
        for run in runs[1:]:
            print(f"{run.name} against {runs[0].name}: {moved(run, runs[0]).said}", file=sys.stderr)
    return 0


def _named(runs: Sequence[Run], paths: Sequence[Path]) -> list[Run]:
    """Runs by the names of their folders, or by their whole paths where these do not tell them apart."""
    apart = len({run.name for run in runs}) == len(runs)
    return list(runs) if apart else [replace(run, name=str(path)) for run, path in zip(runs, paths, strict=True)]
