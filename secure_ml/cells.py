"""Cells: one attack on one victim each, kept on disk as they finish, so that a killed run loses one at most."""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secure_ml.attack import Attack, Result
from secure_ml.defense import Defense, stack_name
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.identity import Unidentifiable, digest, ground_floor, identify
from secure_ml.report import card, with_usage
from secure_ml.rows import Row, package_version, row_from
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.training import fit
from secure_ml.victim import Victim, atomic_folder, resolve_device

Stack = tuple[Defense, ...]
PACKAGES = (
    "secure-ml",
    "torch",
    "torchvision",
    "opacus",
    "tenseal",
    "numpy",
    "scikit-learn",
    "transformers",
    "gymnasium",
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack (or, without one, the plain report) on one victim."""

    task: Task
    defenses: Stack
    attack: Attack | None
    seed: int
    threat: Threat | None = None
    examples: int = 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with the names, in a store, of its trained model and of itself; None where it cannot be cached."""

    cell: Cell
    model: str | None
    name: str | None


@dataclass(frozen=True, kw_only=True)
class Store:
    """A run's folder, and the settings of the machine that are part of every name in it."""

    folder: Path
    device: str = "cpu"
    threads: int = 1

    def jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """The cells by name. A task's data is hashed once; a name changes with anything that may change a result."""
        data: dict[int, str] = {}
        return [self._job(cell, data) for cell in cells]

    def _job(self, cell: Cell, data: dict[int, str]) -> Job:
        task = cell.task
        try:
            if id(task) not in data:
                data[id(task)] = digest(identify(task), task.draw(0).fingerprint())
            base = (*_machine(self.device, self.threads), data[id(task)], str(cell.seed))
            trained = tuple(defense for defense in cell.defenses if defense.trains())
            rest = (cell.defenses, cell.attack, cell.threat or task.threat, cell.examples)
            return Job(cell=cell, model=digest(*base, identify(trained)), name=digest(*base, identify(rest)))
        except Unidentifiable as what:
            warnings.warn(f"{task}: {what} has no readable source, so its cells are not cached", stacklevel=2)
            return Job(cell=cell, model=None, name=None)

    def trained(self, job: Job) -> bool:
        """Whether the job's model is here."""
        return job.model is not None and self._model(job).exists()

    def victim(self, job: Job) -> Victim:
        """The job's victim: loaded if its model is here, else trained and, where it has a name, kept."""
        cell = job.cell
        if self.trained(job):
            return Victim.load(self._model(job), cell.task, cell.defenses, device=self.device)
        unfinished = self.folder / "checkpoints" / job.model if job.model else None
        victim = fit(cell.task, cell.defenses, seed=cell.seed, device=self.device, checkpoint=unfinished)
        if job.model:
            victim.save(self._model(job))
        return victim

    def read(self, job: Job) -> Result | None:
        """The job's result if it is done; `UsageError` if its files are corrupt."""
        folder = self.folder / "cells" / (job.name or "")
        if job.name is None or not folder.exists():
            return None
        try:
            rows = json.loads((folder / "rows.json").read_text())
            known, usage = (tuple(row_from(row) for row in rows[part]) for part in ("rows", "usage"))
            return Result(known, load_file(folder / "evidence.safetensors"), usage, rows["obstacle"])
        except (OSError, SafetensorError, ValueError, TypeError, KeyError):
            raise UsageError(f"the cell {folder} is corrupt: delete that folder, and it is computed again") from None

    def write(self, job: Job, result: Result) -> None:
        """Keep a result, all or nothing."""
        if job.name is None:
            return
        rows: dict[str, object] = {"rows": [asdict(row) for row in result.rows]}
        rows |= {"usage": [asdict(row) for row in result.usage], "obstacle": result.obstacle}
        with atomic_folder(self.folder / "cells" / job.name) as draft:
            (draft / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
            save_file({k: v.contiguous() for k, v in result.evidence.items()}, draft / "evidence.safetensors")

    def _model(self, job: Job) -> Path:
        assert job.model is not None
        return self.folder / "models" / job.model


def run_cells(cells: Sequence[Cell], store: Store, workers: int, progress: Callable[[str, int], None]) -> list[Result]:
    """The result of every cell. Models that several cells share are trained once, first.

    Workers are processes and change no result. ``progress`` hears what was done and how many cells it finished.
    """
    done = {i: met for i, cell in enumerate(cells) if (met := _obstacle(cell)) is not None}
    jobs = store.jobs(cells)
    done |= {i: kept for i, job in enumerate(jobs) if i not in done and (kept := store.read(job)) is not None}
    progress("found", len(done))
    _sweep(store.folder)
    waiting = [i for i in range(len(jobs)) if i not in done]
    owners = {jobs[i].model: jobs[i] for i in reversed(waiting) if jobs[i].model and not store.trained(jobs[i])}
    for _ in _each(_train, store, list(enumerate(reversed(owners.values()))), workers):
        progress("trained", 0)
    for i, result in _each(_compute, store, [(i, jobs[i]) for i in waiting], workers):
        done[i] = result
        progress("attacked", 1)
    return [done[i] for i in range(len(jobs))]


T = TypeVar("T")


def _sweep(folder: Path) -> None:
    """Remove drafts that killed runs left behind more than an hour ago."""
    for draft in (*folder.glob("cells/.*"), *folder.glob("models/.*")):
        if time.time() - draft.stat().st_mtime > 3600:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _each(
    work: Callable[[Store, int, Job], tuple[int, T]], store: Store, jobs: list[tuple[int, Job]], workers: int
) -> Iterator[tuple[int, T]]:
    if workers == 1 or len(jobs) < 2:
        yield from (work(store, i, job) for i, job in jobs)
        return
    pool = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="all", batch_size=1)
    yield from pool(delayed(_in_worker)(os.getpid(), work, store, i, job) for i, job in jobs)


def _in_worker(
    parent: int, work: Callable[[Store, int, Job], tuple[int, T]], store: Store, index: int, job: Job
) -> tuple[int, T]:
    if parent == os.getppid():
        _end_with(parent)
    return work(store, index, job)


@cache
def _end_with(parent: int) -> None:
    """End this worker soon after its parent, however that ended; otherwise it would work through the whole queue."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(store: Store, index: int, job: Job) -> tuple[int, None]:
    with _threads(store.threads), suppress(NotApplicable):  # the cells that need this victim will say why
        store.victim(job)
    return index, None


def _compute(store: Store, index: int, job: Job) -> tuple[int, Result]:
    cell = job.cell
    try:
        with _threads(store.threads):
            victim = store.victim(job)
            if cell.attack is None:
                result = card(victim)
            else:
                result = cell.attack.evaluate(victim, threat=cell.threat, seed=cell.seed, examples=cell.examples)
            result = with_usage(victim, result)
    except NotApplicable as why:
        result = _without_meaning(cell, str(why))
    store.write(job, result)
    return index, result


def _obstacle(cell: Cell) -> Result | None:
    """The result of a cell that has no meaning, as far as it can be told without training."""
    try:
        for defense in cell.defenses:
            defense.check(cell.task)
        if cell.attack is not None:
            cell.attack.check(cell.task, cell.threat)
    except NotApplicable as why:
        return _without_meaning(cell, str(why))
    return None


def _without_meaning(cell: Cell, why: str) -> Result:
    row = Row(
        task=repr(cell.task),
        defenses=stack_name(cell.defenses),
        attack=repr(cell.attack) if cell.attack else "",
        seeds=(cell.seed,),
        measure=cell.attack.family if cell.attack else cell.task.score.name,
        note=why,
        version=package_version(),
    )
    return Result((row,), obstacle=why)


def _machine(device: str, threads: int) -> tuple[str, ...]:
    """What may change a number besides the settings."""
    place = resolve_device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    return name, str(threads), *(f"{package} {package_version(package)}" for package in PACKAGES), ground_floor()
