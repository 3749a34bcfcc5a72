"""What every script that fills a table of cells does: train and attack, with a progress bar, and resume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from secure_ml.attack import Attack, Result
from secure_ml.cells import Cell, Store, run_cells
from secure_ml.defense import stack_name
from secure_ml.report import verdict
from secure_ml.rows import Row
from secure_ml.task import Task
from secure_ml.victim import resolve_device, writable


def run(cells: Sequence[Cell], out: Path, device: str, threads: int, workers: int | None) -> list[Result]:
    """The result of each cell; those that an earlier call finished are found again in ``out``."""
    place = resolve_device(device).type
    store = Store(folder=writable(out), device=place, threads=threads)
    workers = workers or (1 if place == "cuda" else max(1, (os.cpu_count() or 1) // threads))
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("training", total=len(cells))
        return run_cells(
            cells, store, workers, lambda event: progress.update(bar, description=event.kind, advance=event.cells)
        )


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
