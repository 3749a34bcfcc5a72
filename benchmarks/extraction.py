"""How faithful a copy of an MNIST classifier becomes: inputs of another domain and of its own, labels, and ART beside.

    python -m benchmarks.extraction RUN --data-dir DATA [--seeds 3]

copies LeNet-5 on MNIST from answers about Fashion-MNIST images, as they are and turned, zoomed and moved, and about
images of MNIST that it was not trained on; then, about the same images at the same number of epochs and the same
batch size, by ART's KnockoffNets and CopycatCNN. Every victim and every attack is a cell in RUN: a killed call goes on.
Means and intervals over the seeds, each a victim and a copy of its own, go to ``benchmarks/results/extraction.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attacks import ArtExtraction, Knockoff
from benchmarks.record import RESULTS, hardware
from experiments._catalog import Catalog, set_data_directory
from experiments._fidelity import at
from secure_ml.attack import Result
from secure_ml.cells import Cell, Store, run_cells
from secure_ml.families.extraction import AT, Extraction
from secure_ml.rows import Row, package_version, pool_rows
from secure_ml.victim import writable

OTHER = "fashion_mnist_cnn"
VICTIM = "mnist_cnn(net='lenet')"
SHARED = "mnist_cnn(net='lenet', aux=20000)"
"""20,000 images of MNIST are the adversary's, 36,000 the victim's."""
EQUAL = 10
"""Epochs of both sides where libraries are compared, in batches of 128."""


@dataclass(frozen=True)
class Line:
    """One kind of adversary: the pool in words, the task, the attack, and the least fidelity at each budget."""

    pool: str
    task: str
    attack: Extraction
    bars: dict[int, float]


LINES = (
    Line(
        "Fashion-MNIST, turned",
        VICTIM,
        Knockoff(queries=20_000, budgets=(1_000, 10_000), source=OTHER, varied=True),
        {1_000: 0.6, 10_000: 0.95, 20_000: 0.975},
    ),
    Line("Fashion-MNIST", VICTIM, Knockoff(queries=20_000, budgets=(1_000, 10_000), source=OTHER), {}),
    Line(
        "Fashion-MNIST, turned; labels",
        VICTIM,
        Knockoff(queries=20_000, source=OTHER, varied=True, reveal="label"),
        {20_000: 0.94},
    ),
    Line(
        "Fashion-MNIST, turned; dense copy",
        VICTIM,
        Knockoff(queries=20_000, source=OTHER, varied=True, net="dense"),
        {},
    ),
    Line("MNIST", SHARED, Knockoff(queries=1_000, nudged=True, epochs=500), {1_000: 0.975}),
    Line("MNIST", SHARED, Knockoff(queries=20_000, nudged=True, epochs=60), {20_000: 0.99}),
    Line("MNIST", SHARED, Knockoff(queries=20_000, nudged=True, epochs=60, rate=0.1), {20_000: 0.99}),
)
ART = ("KnockoffNets", "CopycatCNN")
PEERS = (
    Line("Fashion-MNIST, equal", VICTIM, Knockoff(queries=10_000, source=OTHER, epochs=EQUAL, rate=0.1), {}),
    *(
        Line(
            "Fashion-MNIST, equal",
            VICTIM,
            ArtExtraction(attack=name, queries=10_000, source=OTHER, epochs=EQUAL),
            {},
        )
        for name in ART
    ),
    Line("MNIST, equal", SHARED, Knockoff(queries=10_000, nudged=True, epochs=EQUAL, rate=0.1), {}),
    *(Line("MNIST, equal", SHARED, ArtExtraction(attack=name, queries=10_000, epochs=EQUAL), {}) for name in ART),
)
POOLS = tuple(dict.fromkeys(line.pool for line in (*LINES, *PEERS)))


def main() -> int:
    """Run what is not there yet, print, record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction")
    parser.add_argument("run", type=Path, help="folder that keeps victims and every attack's rows")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(POOLS), choices=POOLS, help="pools; other rows stay")
    options = parser.parse_args()
    set_data_directory(options.data_dir)
    torch.set_num_threads(options.threads)
    store = Store(folder=writable(options.run), device="cpu", threads=options.threads)
    rows: list[dict[str, Any]] = []
    for line in (line for line in (*LINES, *PEERS) if line.pool in options.only):
        task = Catalog.plain().task(line.task)
        seeds = range(options.seeds)
        cells = [Cell(task=task, defenses=(), attack=line.attack, seed=s, examples=10_000) for s in seeds]
        made = _rows(line, run_cells(cells, store, 1, lambda *_: None))
        print("\n".join(map(json.dumps, made)), flush=True)
        rows += made
    rows = _with_the_others(rows)
    passed = [*(row["passed"] for row in rows if row["passed"] is not None), *_beside(rows)]
    record = {
        "command": "python -m benchmarks.extraction RUN --data-dir DATA",
        "versions": {name: package_version(name) for name in ("secure-ml", "torch", "adversarial-robustness-toolbox")}
        | {"python": platform.python_version()},
        "hardware": {**hardware(), "threads": options.threads},
        "rows": rows,
    }
    (RESULTS / "extraction.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(not all(passed))


def _with_the_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows and, of the pools that were not run now, those of the last record."""
    path = RESULTS / "extraction.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    now = {row["pool"] for row in rows}
    return sorted([*rows, *(row for row in kept if row["pool"] not in now)], key=lambda row: POOLS.index(row["pool"]))


def _rows(line: Line, results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each budget, with means over victims."""
    pooled = [pool_rows(same) for same in zip(*(result.rows for result in results), strict=True)]
    along = [row for row in pooled if AT in row.measure]
    made = []
    for budget in dict.fromkeys(map(at, along)):
        same = {row.measure.split(AT)[0]: row for row in along if at(row) == budget}
        bar = line.bars.get(budget)
        made.append(
            {
                "pool": line.pool,
                "attack": repr(line.attack),
                "queries": budget,
                **{name: _numbers(row) for name, row in same.items()},
                "seconds": round(same["fidelity"].seconds / len(results), 1),
                "bar": bar,
                "passed": None if bar is None else (same["fidelity"].value or 0.0) >= bar,
            }
        )
    return made


def _numbers(row: Row) -> dict[str, float | None]:
    return {name: None if (v := getattr(row, name)) is None else round(v, 4) for name in ("value", "low", "high")}


def _beside(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether ours is 2 points above each of ART's copies, or disagrees 30 % less above 95 %, and takes no longer."""
    verdicts: list[bool] = []
    for pool in dict.fromkeys(line.pool for line in PEERS):
        same = [row for row in rows if row["pool"] == pool]
        for ours, row in ((same[0], row) for row in same[1:]):
            mine, other = ours["fidelity"]["value"], row["fidelity"]["value"]
            enough = 1 - mine <= 0.7 * (1 - other) if other > 0.95 else mine >= other + 0.02
            row["ours is better"] = enough and ours["seconds"] <= row["seconds"]
            verdicts.append(row["ours is better"])
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
