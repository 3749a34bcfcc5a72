"""A matrix that is killed again and again ends with the rows of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from secure_ml.rows import TIMES

ROOT = Path(__file__).parent.parent
ARGV = [
    *("matrix", "--task", "digits_mlp(tiny=True)", "--defense", "none", "dp_sgd(noise=1.0)", "label_only"),
    *("--attack", "pgd(steps=5)", "knockoff(queries=20)", "lira(shadows=4)", "loss_threshold"),
    *("--seeds", "3", "--workers", "2", "--examples", "100"),
]
KILLS = 10


def start(out: Path) -> subprocess.Popen[bytes]:
    """The run, in a process group of its own."""
    command = [sys.executable, "-m", "experiments._main", *ARGV, "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)


def rows(out: Path) -> list[dict[str, Any]]:
    """Everything that came out, without the time it took."""
    found = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    kept = [row for row in found if row["unit"] not in TIMES]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in kept]


@pytest.mark.slow
def test_killed_ten_times(tmp_path: Path) -> None:
    """At moments drawn over the whole run, with everything that it has started; no number moves."""
    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - begun
    rng = random.Random(0)
    killed = 0
    while killed < KILLS:
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=rng.uniform(0.2, 0.7) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        assert process.returncode == 0  # it was faster: what is there is thrown away in part, and killing goes on
        for i, cell in enumerate(sorted((tmp_path / "killed" / "cells").iterdir())):
            if i % 2:
                for path in (*cell.iterdir(), cell):
                    path.rmdir() if path.is_dir() else path.unlink()
    assert start(tmp_path / "killed").wait() == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) > 100
