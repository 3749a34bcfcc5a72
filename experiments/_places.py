"""Where a run works and where it writes: this machine or a cluster, a folder or a URL."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

from experiments._run import announcement, store_at, workers_of
from secure_ml.cells import Agenda, Cell, Limits, Store, local, plan
from secure_ml.costs import Costs, duration
from secure_ml.defense import stack_name
from secure_ml.errors import require
from secure_ml.executors import Executor
from secure_ml.shelf import Local, shelf_at
from secure_ml.victim import resolve_device
from secure_ml.work import Piece


def executor_of(
    kind: str, address: str | None, gpus: float, place: tuple[Path | str, str, int, int | None], limits: Limits
) -> Executor:
    """The executor that was asked for; raises `UsageError` for options of another one."""
    out, device, threads, workers = place
    if kind == "ray":
        from secure_ml.on_ray import OnRay

        return OnRay(address, gpus, workers, limits)
    require(address is None and not gpus, "--address and --gpus-per-cell are for --executor ray")
    return local(workers_of(store_at(out, device, threads), workers), limits)


@contextmanager
def reports(out: Path | str) -> Iterator[Path]:
    """A directory for what is written at the end of a run: the run's folder, or one that is sent to its URL."""
    shelf = shelf_at(out)
    if isinstance(shelf, Local):
        shelf.folder.mkdir(parents=True, exist_ok=True)
        yield shelf.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        shelf.send(Path(folder))


def preview(cells: Sequence[Cell], out: Path | str, device: str, threads: int, workers: int | None) -> str:
    """Every cell and how it stands, then what is to be trained and what the rest will take; nothing is written."""
    store = Store(folder=out, device=resolve_device(device).type, threads=threads)
    agenda, costs = plan(cells, store), Costs.read(store.shelf, store.device, store.threads)
    lines = [
        [
            repr(cell.task),
            stack_name(cell.defenses),
            repr(cell.attack) if cell.attack else "report",
            cell.seed,
            _standing(agenda, costs, i),
        ]
        for i, cell in enumerate(cells)
    ]
    text = tabulate(lines, ["task", "protection", "attack", "seed", "stands"], tablefmt="github")
    return f"{text}\n{announcement(agenda, costs, workers_of(store, workers))}"


def _standing(agenda: Agenda, costs: Costs, i: int) -> str:
    if i in agenda.done:
        result = agenda.done[i]
        if result.failed:
            return result.obstacle
        return f"n/a: {result.obstacle}" if result.obstacle else "found"
    seconds = costs.of(Piece(kind="attack", job=agenda.jobs[i]))
    return "waiting, " + ("of unknown cost" if seconds is None else f"about {duration(seconds)}")
