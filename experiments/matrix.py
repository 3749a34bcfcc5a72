"""Every stack of defenses against every attack, in one table: what each protection cost and what it bought."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments._catalog import Catalog, attacks, parse, set_data_directory, threat_of
from experiments._plots import draw
from secure_ml.attack import Attack, Result
from secure_ml.cells import Cell, Store, run_cells
from secure_ml.defense import stack_name
from secure_ml.errors import require
from secure_ml.report import verdict
from secure_ml.rows import Row, save_rows, table
from secure_ml.task import Task
from secure_ml.victim import resolve_device, writable

DEFENSES = (
    "none",
    "adversarial_training",
    "dp_sgd",
    "homomorphic",
    "label_only",
    "adversarial_training+dp_sgd",
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
    attack: tuple[str, ...] = ()
    """Attacks: pgd, or pgd(steps=100); all of them unless given."""
    threat: str | None = None
    """What evasion may change: Linf(0.1), L2(1.5), Edits(2); the task's own unless given."""
    seeds: int = 5
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


def main(argv: Sequence[str]) -> int:
    """Run the matrix, keep rows and plots, print the tables."""
    options, catalog = parse(Matrix, argv, "secure-ml matrix")
    set_data_directory(options.data_dir)
    for name in ("seeds", "examples", "threads", "workers"):
        given = getattr(options, name)
        require(given is None or given >= 1, f"--{name} must be at least 1; given {given}")
    cells = make_cells(options, catalog)
    device = resolve_device(options.device).type
    store = Store(folder=writable(options.out), device=device, threads=options.threads)
    workers = options.workers or (1 if device == "cuda" else max(1, (os.cpu_count() or 1) // options.threads))
    with _progress() as progress:
        bar = progress.add_task("training", total=len(cells))
        results = run_cells(cells, store, workers, lambda doing, n: progress.update(bar, description=doing, advance=n))
    pooled = judge(cells, results)
    rows = [row for result in results for row in (*result.rows, *result.usage)]
    save_rows([*rows, *pooled], options.out / "rows.jsonl")
    text = "\n\n".join(f"{task}\n{table([row for row in pooled if row.task == task])}" for task in _tasks(pooled))
    (options.out / "table.md").write_text(text + "\n")
    draw(pooled, options.out)
    print("\n".join(json.dumps(asdict(row)) for row in pooled) if options.json else text)
    print(f"rows, models and plots are in {options.out}", file=sys.stderr)
    return 0


def make_cells(options: Matrix, catalog: Catalog) -> list[Cell]:
    """All cells in the order of the table, the plain report of each victim first; `UsageError` for unknown names."""
    tasks = {repr(task): task for task in map(catalog.task, options.task)}.values()
    stacks = dict.fromkeys(catalog.stack(name) for name in options.defense)
    tried = dict.fromkeys(catalog.attack(name) for name in options.attack or attacks())
    threat = threat_of(options.threat) if options.threat else None
    return [
        Cell(task=task, defenses=stack, attack=attack, seed=seed, threat=threat, examples=options.examples)
        for task in tasks
        for stack in stacks
        for attack in (None, *tried)
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def judge(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """The pooled rows of every stack; a cell without meaning keeps its reason."""
    groups: dict[tuple[str, str], tuple[Task, list[tuple[Attack | None, Result]]]] = {}
    rows: list[Row] = []
    for cell, result in zip(cells, results, strict=True):
        key = (repr(cell.task), stack_name(cell.defenses))
        groups.setdefault(key, (cell.task, []))[1].append((cell.attack, result))
    for task, attempts in groups.values():
        rows += verdict(task, attempts)
    return rows


def _tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.task for row in rows))


def _progress() -> Progress:
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
