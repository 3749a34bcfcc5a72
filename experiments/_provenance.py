"""Where a run's numbers come from: the command, versions, hardware, seeds and time, in run.json."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secure_ml.cells import PACKAGES
from secure_ml.rows import Row, package_version

HOME = ("--data-dir", "--out", "--key-file")
"""Options that say where things lie on one machine; the command that is shown leaves their values out."""


def provenance(command: str, argv: Sequence[str], rows: Sequence[Row], started: datetime, out: Path) -> dict[str, Any]:
    """Write ``run.json`` into the run's folder, and return what it says."""
    said = {
        "command": " ".join(["secure-ml", command, *_shown(argv)]),
        "versions": {package: package_version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "hardware": hardware(),
        "seeds": sorted({seed for row in rows for seed in row.seeds}),
        "threads": sorted({row.threads for row in rows}),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }
    (out / "run.json").write_text(json.dumps(said, indent=1) + "\n")
    return said


def now() -> datetime:
    """When a run starts."""
    return datetime.now(UTC)


def hardware() -> dict[str, Any]:
    """The processor, its cores and the GPU, as far as they tell."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model or platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu}


def _shown(argv: Sequence[str]) -> list[str]:
    """The arguments as a shell takes them, places of this machine replaced by a word."""
    shown, place = [], ""
    for argument in argv:
        name, given, _ = argument.partition("=")
        option = name.replace("_", "-")
        if place:
            shown.append(place)
        elif given and option in HOME:
            shown.append(f"{name}={option.removeprefix('--').upper()}")
        else:
            shown.append(shlex.quote(argument))
        place = option.removeprefix("--").upper() if not given and option in HOME else ""
    return shown
