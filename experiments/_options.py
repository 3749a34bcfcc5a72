"""What every script that fills one table is told besides its question, and what it does at its beginning and end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from experiments._catalog import set_data_directory
from experiments._gate import FailIf, apply
from experiments._report import publish
from experiments._run import crashed, run
from secure_ml.attack import Result
from secure_ml.cells import Cell
from secure_ml.errors import require
from secure_ml.gate import conditions
from secure_ml.rows import Row


@dataclass(frozen=True)
class Running:
    """How the table is filled, and where it is kept."""

    seed: int = 0
    """The first seed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and attack."""
    threads: int = 1
    """Threads of each worker on the CPU; may change results in the last digits."""
    workers: int | None = None
    """Processes; as many as the cores hold threads unless given, 1 on a GPU. Changes no result; times may suffer."""
    out: Path = Path("runs")
    """Folder of the run: cells, models, rows, tables and plots."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""
    json: bool = False
    """Print the rows as JSON Lines instead of text."""
    fail_if: FailIf = ()
    """A condition under which the run has failed, exit code 1: 'robust_accuracy@linf:0.1 < 0.6'; may be repeated."""

    def begin(self, **counts: int) -> None:
        """Look for data where they are said to lie; `UsageError` for counts below 1 and conditions that are none."""
        set_data_directory(self.data_dir)
        conditions(self.fail_if)
        for name, given in {**counts, "threads": self.threads, "workers": self.workers}.items():
            require(given is None or given >= 1, f"--{name} must be at least 1; given {given}")

    def seeds(self, count: int) -> range:
        """So many seeds from the first."""
        return range(self.seed, self.seed + count)

    def fill(self, cells: Sequence[Cell]) -> list[Result]:
        """The result of each cell."""
        return run(cells, self.out, self.device, self.threads, self.workers)

    def finish(
        self,
        name: str,
        argv: Sequence[str],
        started: datetime,
        rows: Sequence[Row],
        results: Sequence[Result],
        text: str,
    ) -> int:
        """Keep and print the tables, publish the report; the exit code, 1 where a condition holds, 2 after a crash."""
        (self.out / "table.md").write_text(text + "\n")
        print("\n".join(json.dumps(asdict(row)) for row in rows) if self.json else text)
        print(f"rows, models and plots are in {self.out}", file=sys.stderr)
        publish(name, argv, rows, results, started, self.out)
        return max(crashed(results), apply(rows, self.fail_if, self.out))
