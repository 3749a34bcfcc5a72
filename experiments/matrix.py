"""Every stack of defenses against every attack, in one table: what each protection cost and what it bought."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from experiments._catalog import Catalog, groups, parse, set_data_directory, threat_of
from experiments._gate import FailIf, apply
from experiments._mlflow import check_mlflow, log
from experiments._places import executor_of, preview, reports
from experiments._plots import draw
from experiments._provenance import now
from experiments._report import publish
from experiments._run import crashed, judge, run
from experiments._study import as_options, read_study, split_file, write_study
from secure_ml.attack import Result
from secure_ml.cells import Cell, Limits
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

    A finished cell is kept and found again by the next call; a killed call resumes; a cell that goes wrong is a row
    that says how. A study is a TOML file with the same options: ``secure-ml matrix study.toml``.
    """

    file: str | None = None
    """A TOML file with these options, or the name of a study that comes along; options given beside it count more."""
    save_file: Path | None = None
    """Where to write these options as such a file."""
    dry_run: bool = False
    """Only show the cells, which of them are done, and what the rest will take."""

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
    cell_minutes: float | None = None
    """Minutes that a training or a cell may take; what takes longer is ended, and its row says so."""
    cell_gib: float | None = None
    """GiB of memory that a worker may hold; what needs more is ended, and its row says so."""
    executor: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks of a Ray cluster (the extra 'cluster'). Changes no result."""
    address: str | None = None
    """Of the Ray cluster: auto, or ray://host:10001; a new one on this machine unless given."""
    gpus_per_cell: float = 0.0
    """The share of a GPU that each task of the cluster takes."""
    mlflow: str | None = None
    """Where to log the pooled rows with MLflow as well (the extra 'mlflow'): http://host:5000, say."""
    out: str = "runs/matrix"
    """Folder of the run: cells, models, rows, table and plots; or a URL, s3://bucket/run (the extra 'cluster')."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""
    json: bool = False
    """Print the pooled rows as JSON Lines instead of a table."""
    fail_if: FailIf = ()
    """A condition under which the run has failed, exit code 1: 'robust_accuracy@linf:0.1 < 0.6'; may be repeated."""


def main(argv: Sequence[str]) -> int:
    """Run the matrix, keep rows and plots, print the tables."""
    started = now()
    options, catalog = _asked(argv)
    set_data_directory(options.data_dir)
    conditions(options.fail_if)
    check_mlflow(options.mlflow)
    for name in ("seeds", "examples", "threads", "workers"):
        given = getattr(options, name)
        require(given is None or given >= 1, f"--{name} must be at least 1; given {given}")
    cells = make_cells(options, catalog)
    if options.save_file:
        options.save_file.write_text(write_study(options, catalog.configured))
    place = (options.out, options.device, options.threads, options.workers)
    if options.dry_run:
        print(preview(cells, *place))
        return 0
    limits = Limits(minutes=options.cell_minutes, gib=options.cell_gib)
    executor = executor_of(options.executor, options.address, options.gpus_per_cell, place, limits)
    results = run(cells, *place, executor=executor)
    pooled = judge(cells, results)
    with reports(options.out) as folder:
        gate = _report(options, results, pooled, folder)
        publish("matrix", argv, pooled, results, started, folder)
    return max(crashed(results), gate)


def _asked(argv: Sequence[str]) -> tuple[Matrix, Catalog]:
    """The options of the study that is named, if one is, and of the command line, which count more."""
    name, rest = split_file(argv)
    study = as_options(*read_study(name), Matrix, groups()) if name is not None else []
    return parse(Matrix, [*study, *rest], "secure-ml matrix")


def _report(options: Matrix, results: Sequence[Result], pooled: list[Row], folder: Path) -> int:
    """Write and print what came out; the exit code of the gate."""
    rows = [row for result in results for row in (*result.rows, *result.usage)]
    save_rows([*rows, *pooled], folder / "rows.jsonl")
    text = "\n\n".join(f"{task}\n{table([row for row in pooled if row.task == task])}" for task in _tasks(pooled))
    (folder / "table.md").write_text(text + "\n")
    draw(pooled, folder)
    log(pooled, vars(options), folder, options.mlflow, "matrix")
    print("\n".join(json.dumps(asdict(row)) for row in pooled) if options.json else text)
    print(f"rows, models, plots and report.html are in {options.out}", file=sys.stderr)
    return apply(pooled, options.fail_if, folder)


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
