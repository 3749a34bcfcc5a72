"""What a matrix of 4 defenses x 6 attacks x 3 seeds on digits_cnn takes, again, and what of it is the machinery.

    python -m benchmarks.matrix

takes ten minutes on two cores and writes ``benchmarks/results/matrix-overhead.json``. Runs, each a process of its own:
on two workers, into an empty folder (wall time and processor time); the same call again, the fastest of three; and in
one process, where the processor time inside ``fit``, ``evaluate`` and ``card`` is the work, that of imports is told
apart, and the rest is the machinery: naming, storing and loading cells and models, rows, progress, tables, plots, the
report. Processor time is what a busy machine leaves alone; wall time is not, so the load while it ran is recorded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, hardware

DEFENSES = ("none", "adversarial_training", "dp_sgd", "label_only")
ATTACKS = ("auto_attack", "pgd", "knockoff", "loss_threshold", "certified", "evasion_checks")
SEEDS = 3
ARGV = ("matrix", "--task", "digits_cnn", "--defense", *DEFENSES, "--attack", *ATTACKS, "--seeds", str(SEEDS))
VERSIONS = ("secure-ml", "torch", "opacus", "cloudpickle", "rich", "tyro")


def main(*phases: str) -> None:
    """Run the phases that are named, or all; keep what others have recorded."""
    path = RESULTS / "matrix-overhead.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {name: value for name, value in known.items() if name in ("run", "again", "overhead")}
    if not phases or "wall" in phases:
        with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as compiled:
            found["run"] = _timed([*ARGV, "--workers", "2", "--out", out], compiled)
            found["again"] = min(
                (_timed([*ARGV, "--workers", "2", "--out", out], compiled) for _ in range(3)), key=_wall
            )
    if not phases or "overhead" in phases:
        command = [sys.executable, "-m", "benchmarks.matrix", "inside"]
        found["overhead"] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603
    from secure_ml.rows import package_version

    record = {
        "command": "python -m benchmarks.matrix",
        "matrix": " ".join(("secure-ml", *ARGV)),
        "versions": {name: package_version(name) for name in VERSIONS},
        "hardware": hardware(),
        **found,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _wall(found: dict[str, Any]) -> float:
    return float(found["wall seconds"])


def _timed(argv: list[str], compiled: str) -> dict[str, Any]:
    """Wall and processor seconds of one call, workers included, and the load of the machine after it.

    Modules are compiled once and kept, as Python does unless it is told not to.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "experiments._main", *argv]
    env = {**kept, "PYTHONPYCACHEPREFIX": compiled}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    load = round(os.getloadavg()[1], 1)
    return {"wall seconds": round(time.perf_counter() - start, 1), "cpu seconds": round(spent, 1), "load": load}


def inside() -> dict[str, Any]:
    """The matrix in this process: processor seconds of the work, of imports, and of everything else."""
    from importlib import import_module

    from experiments import _catalog, _main
    from secure_ml import store, work

    for name in ("sklearn.datasets", "scipy.stats", "matplotlib.pyplot", "torch._dynamo", "opacus.accountants"):
        import_module(name)
    matrix = import_module("experiments.matrix")
    families = {base for kind in _catalog.attacks().values() for base in kind.__mro__ if "evaluate" in vars(base)}
    imported = time.process_time()
    spent = [0.0]
    inner = [False]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            if inner[0]:  # a shadow that an attack trains is part of the attack
                return function(*given, **named)
            inner[0], start = True, time.process_time()
            try:
                return function(*given, **named)
            finally:
                inner[0] = False
                spent[0] += time.process_time() - start

        return timed

    for base in families:
        base.evaluate = watched(vars(base)["evaluate"])  # type: ignore[attr-defined]
    store.fit = watched(store.fit)
    work.card = watched(work.card)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        code = _main.main([*ARGV, "--workers", "1", "--out", out])
    assert code == 0
    assert matrix is not None
    whole = time.process_time() - imported
    return {
        "work, cpu seconds": round(spent[0], 1),
        "machinery, cpu seconds": round(whole - spent[0], 1),
        "machinery, share of the work": round((whole - spent[0]) / spent[0], 4),
        "imports, cpu seconds": round(imported, 1),
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["inside"]:
        print(json.dumps(inside()))
    else:
        Path(RESULTS).mkdir(exist_ok=True)
        main(*sys.argv[1:])
