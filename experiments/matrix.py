"""Every stack of defenses against every attack, in one table: what each protection cost and what it bought."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from experiments._catalog import Catalog, parse, set_data_directory, threat_of
from experiments._gate import FailIf, apply
from experiments._plots import draw
from experiments._run import judge, run
from secure_ml.cells import Cell
from secure_ml.errors import require
from secure_ml.gate import conditions
from secure_ml.rows import Row, save_rows, table

DEFENSES = (
    "none",
    "adversarial_training",
    "dp_sgd",
    "homomorphic",
    "label_only",
    "adversarial_training+dp_sgd",
)
ATTACKS = (
    "auto_attack",
    "pgd",
    "token_swap",
    "relay",
    "knockoff",
    "loss_threshold",
    "certified",
    "evasion_checks",
)


@dataclass(frozen=True)
class Matrix:
    """Every stack of defenses against every attack, in one table: what each protection cost and what it bought.

    A finished cell is kept and found again by the next call; a killed call resumes.
    """

    task: tuple[str, ...] = ("digits_cnn",)
    """Tasks: digits_cnn, or digits_cnn(width=8)."""
    defense: tuple[str, ...] = DEFENSES
    """Stacks of defenses: none, dp_sgd(epsilon=1), adversarial_training+dp_sgd."""
    attack: tuple[str, ...] = ATTACKS
    """Attacks and checks: pgd, or pgd(steps=100)."""
    threat: str | None = None
    """What evasion may change: Linf(0.1), L2(1.5), Edits(2); the task's own unless given."""
    seeds: int = 3
    """Independent victims of each stack, each with its own split of the data."""
    seed: int = 0
    """The first seed."""
    examples: int = 1000
    """Test examples that are attacked, at most."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and attack."""
    threads: int = 1
    """Threads of each worker on the CPU; may change results in the last digits."""
    workers: int | None = None
    """Processes; as many as the cores hold threads unless given, 1 on a GPU. Changes no result."""
    out: Path = Path("runs/matrix")
    """Folder of the run: cells, models, rows, table and plots."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""
    json: bool = False
    """Print the pooled rows as JSON Lines instead of a table."""
    fail_if: FailIf = ()
    """A condition under which the run has failed, exit code 1: 'robust_accuracy@linf:0.1 < 0.6'; may be repeated."""


def main(argv: Sequence[str]) -> int:
    """Run the matrix, keep rows and plots, print the tables."""
    options, catalog = parse(Matrix, argv, "secure-ml matrix")
    set_data_directory(options.data_dir)
    conditions(options.fail_if)
    for name in ("seeds", "examples", "threads", "workers"):
        given = getattr(options, name)
        require(given is None or given >= 1, f"--{name} must be at least 1; given {given}")
    cells = make_cells(options, catalog)
    results = run(cells, options.out, options.device, options.threads, options.workers)
    pooled = judge(cells, results)
    rows = [row for result in results for row in (*result.rows, *result.usage)]
    save_rows([*rows, *pooled], options.out / "rows.jsonl")
    text = "\n\n".join(f"{task}\n{table([row for row in pooled if row.task == task])}" for task in _tasks(pooled))
    (options.out / "table.md").write_text(text + "\n")
    draw(pooled, options.out)
    print("\n".join(json.dumps(asdict(row)) for row in pooled) if options.json else text)
    print(f"rows, models and plots are in {options.out}", file=sys.stderr)
    return apply(pooled, options.fail_if, options.out)


def make_cells(options: Matrix, catalog: Catalog) -> list[Cell]:
    """All cells in the order of the table, the plain report of each victim first; `UsageError` for unknown names."""
    tasks = {repr(task): task for task in map(catalog.task, options.task)}.values()
    stacks = dict.fromkeys(catalog.stack(name) for name in options.defense)
    tried = dict.fromkeys(catalog.attack(name) for name in options.attack)
    threat = threat_of(options.threat) if options.threat else None
    return [
        Cell(task=task, defenses=stack, attack=attack, seed=seed, threat=threat, examples=options.examples)
        for task in tasks
        for stack in stacks
        for attack in (None, *tried)
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def _tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.task for row in rows))
