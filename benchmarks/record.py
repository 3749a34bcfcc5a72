"""Keep a run's pooled rows, with versions and hardware, as a record that documents draw their tables from.

    python -m benchmarks.record RUN NAME COMMAND...

writes ``benchmarks/results/NAME.json`` from ``RUN/rows.jsonl``; COMMAND is what printed them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secure_ml.cells import PACKAGES
from secure_ml.rows import Row, package_version, row_from

RESULTS = Path(__file__).parent / "results"


def main(run: str, name: str, *command: str) -> None:
    """Write the record."""
    rows = [row_from(json.loads(line)) for line in (Path(run) / "rows.jsonl").read_text().splitlines()]
    record = record_of(rows, " ".join(command))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def record_of(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """What is kept of rows: the pooled ones and the findings, with versions, hardware and what printed them."""
    return {
        "command": command,
        "versions": {package: package_version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "hardware": hardware(),
        "rows": [asdict(row) for row in rows if row.pooled or row.unit == "verdict"],
    }


def hardware() -> dict[str, Any]:
    """The processor, its cores and the GPU, as far as they tell."""
    import torch

    cpu = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu}


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main(*sys.argv[1:])
