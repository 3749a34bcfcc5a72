"""What every script that fills a table of cells does: train and attack, show how it goes on, and resume."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments._board import Board
from secure_ml.attack import Attack, Result
from secure_ml.cells import Agenda, Cell, Event, Limits, Store, carry_out, local, plan
from secure_ml.costs import Costs, counted, duration
from secure_ml.defense import stack_name
from secure_ml.errors import UsageError
from secure_ml.executors import UNLIMITED, Executor
from secure_ml.report import verdict
from secure_ml.rows import Row
from secure_ml.shelf import Local
from secure_ml.task import Task
from secure_ml.victim import resolve_device, writable


def run(
    cells: Sequence[Cell],
    out: Path | str,
    device: str,
    threads: int,
    workers: int | None,
    limits: Limits = UNLIMITED,
    executor: Executor | None = None,
) -> list[Result]:
    """The result of each cell; those that an earlier call finished are found again in ``out``.

    What it will take is said first, as far as earlier cells of the folder tell.
    """
    store = Store(folder=out, device=device, threads=threads)  # of a cluster's device, which need not be here
    if executor is None:
        store = store_at(out, device, threads)
        executor = local(workers_of(store, workers), limits)
    pool, store = executor, executor.open(store)
    places = len(pool.free())
    agenda, costs = plan(cells, store), Costs.read(store.shelf, store.device, store.threads)
    board = Board(agenda, costs, places)
    if agenda.waiting():
        print(announcement(agenda, costs, places), file=sys.stderr)
    try:
        with board.showing():
            results = carry_out(agenda, pool, lambda event: _note(event, board, store))
    finally:
        costs.write(store.shelf)
    _refuse_what_says_nothing(results)
    return results


def store_at(out: Path | str, device: str, threads: int) -> Store:
    """The store of a run on this machine; `UsageError` for a device that is not there, or a place not to be written."""
    store = Store(folder=out, device=resolve_device(device).type, threads=threads)
    if isinstance(store.shelf, Local):
        writable(store.shelf.folder)
    return store


def workers_of(store: Store, workers: int | None) -> int:
    """As many as the cores hold threads unless given, 1 on a GPU."""
    return workers or (1 if store.device == "cuda" else max(1, (os.cpu_count() or 1) // store.threads))


def announcement(agenda: Agenda, costs: Costs, places: int) -> str:
    """What there is to do, and what it will take."""
    waiting = agenda.waiting()
    models = sum(piece.kind == "train" for piece in waiting)
    parts = {
        "found": agenda.found,
        "n/a": agenda.meaningless,
        "to compute": len(waiting) - models,
    }
    said = ", ".join(f"{number} {what}" for what, number in parts.items())
    trained = f", after training {counted(models, 'model')}" if models else ""
    forecast = costs.forecast(waiting, [], places)
    return f"{counted(len(agenda.jobs), 'cell')}: {said}{trained}; on {counted(places, 'worker')}: {forecast}"


def crashed(results: Sequence[Result]) -> int:
    """The exit code of a run, 2 where cells went wrong, which is then said on stderr; else 0."""
    lost = sum(result.failed for result in results)
    if not lost:
        return 0
    print(
        f"secure-ml: {lost} of {len(results)} cells failed; their rows say how, and the same command tries them again",
        file=sys.stderr,
    )
    return 2


def _refuse_what_says_nothing(results: Sequence[Result]) -> None:
    """Raise `UsageError` where the request was wrong for every cell that has a meaning: there is no table to show."""
    meant = [result for result in results if result.failed or not result.obstacle]
    said = [result.obstacle.removeprefix(WRONG) for result in meant if result.obstacle.startswith(WRONG)]
    if meant and len(said) == len(meant):
        raise UsageError(said[0])


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


def _note(event: Event, board: Board, store: Store) -> None:
    """Tell the board; keep where a failure came from."""
    board.hear(event)
    if event.outcome and event.outcome.trace and event.piece and isinstance(store.shelf, Local):
        with (store.shelf.folder / "failures.txt").open("a") as file:
            file.write(f"{event.piece}, after {duration(event.outcome.seconds)}\n{event.outcome.trace}\n")


WRONG = f"failed: {UsageError.__name__}: "
