"""Cells: one attack on one victim each, kept on disk as they finish, so that a killed run loses one at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from secure_ml.attack import Result
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.executors import UNLIMITED, Executor, Here, Limits, Processes
from secure_ml.store import PACKAGES, Cell, CorruptStore, Job, Stack, Store
from secure_ml.work import Outcome, Piece, failed, without_meaning

__all__ = [
    "PACKAGES",
    "Agenda",
    "Cell",
    "CorruptStore",
    "Event",
    "Job",
    "Limits",
    "Stack",
    "Store",
    "carry_out",
    "local",
    "plan",
    "run_cells",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that progress tells: a piece was started in a place, or finished there, and with it some cells."""

    kind: Literal["found", "started", "trained", "attacked", "failed"]
    cells: int = 0
    """How many cells are finished by it."""
    piece: Piece | None = None
    place: str = ""
    outcome: Outcome | None = None


Progress = Callable[[Event], None]


@dataclass
class Agenda:
    """What is done of a run and what is left: models to train, cells whose model is being trained, cells to compute."""

    jobs: list[Job]
    done: dict[int, Result]
    found: int
    """Cells that the store held, those without meaning not counted."""
    untrained: dict[str, Job]
    """A job for each model that is still to be trained."""
    blocked: dict[str, list[int]]
    """The cells that wait for a model."""
    ready: list[int]
    doing: dict[str, tuple[Piece, int | None]] = field(default_factory=dict)
    """By place: a piece, and its cell where it is one."""

    @property
    def meaningless(self) -> int:
        """Cells that have no meaning."""
        return sum(bool(result.obstacle) and not result.failed for result in self.done.values())

    @property
    def failed(self) -> int:
        """Cells that went wrong."""
        return sum(result.failed for result in self.done.values())

    def waiting(self) -> list[Piece]:
        """Every piece that was not started yet."""
        cells = [i for several in self.blocked.values() for i in several] + self.ready
        return [
            *(Piece(kind="train", job=job) for job in self.untrained.values()),
            *(Piece(kind="attack", job=self.jobs[i]) for i in cells),
        ]

    def next(self, place: str, last: str | None) -> Piece | None:
        """The next piece for a place; of cells that are ready, one on the model that the place met last."""
        if self.untrained:
            model = next(iter(self.untrained))
            self.doing[place] = Piece(kind="train", job=self.untrained.pop(model)), None
        elif self.ready:
            near = (i for i in self.ready if last is not None and self.jobs[i].model == last)
            i = next(near, self.ready[0])
            self.ready.remove(i)
            self.doing[place] = Piece(kind="attack", job=self.jobs[i]), i
        else:
            return None
        return self.doing[place][0]

    def finish(self, place: str, outcome: Outcome) -> Event:
        """Note what became of the piece of a place; raises `CorruptStore` where the run cannot go on."""
        piece, i = self.doing.pop(place)
        if outcome.fatal:
            raise CorruptStore(outcome.fatal)
        if i is not None:
            self.done[i] = _result(piece.job.cell, outcome)
            kind: Literal["failed", "attacked"] = "failed" if outcome.failure else "attacked"
            return Event(kind=kind, cells=1, piece=piece, place=place, outcome=outcome)
        cells = self.blocked.pop(piece.job.model or "")
        if not outcome.failure and not outcome.obstacle:
            self.ready = sorted([*self.ready, *cells])
            return Event(kind="trained", piece=piece, place=place, outcome=outcome)
        for cell in cells:
            self.done[cell] = _result(self.jobs[cell].cell, outcome)
        kind = "failed" if outcome.failure else "attacked"
        return Event(kind=kind, cells=len(cells), piece=piece, place=place, outcome=outcome)


def _result(cell: Cell, outcome: Outcome) -> Result:
    if outcome.result is not None:
        return outcome.result
    return failed(cell, outcome.failure) if outcome.failure else without_meaning(cell, outcome.obstacle)


def plan(cells: Sequence[Cell], store: Store) -> Agenda:
    """What there is to do for these cells: those without meaning and those that the store holds are done."""
    done = {i: met for i, cell in enumerate(cells) if (met := _obstacle(cell)) is not None}
    jobs = store.jobs(cells)
    kept = {i: old for i, job in enumerate(jobs) if i not in done and (old := store.read(job)) is not None}
    done |= kept
    store.shelf.sweep()
    found = sum(not result.obstacle for result in kept.values())
    agenda = Agenda(jobs=jobs, done=done, found=found, untrained={}, blocked={}, ready=[])
    trained: dict[str, bool] = {}
    for i, job in enumerate(jobs):
        if i in done:
            continue
        if job.model is None or trained.setdefault(job.model, store.trained(job)):
            agenda.ready.append(i)
        else:
            agenda.untrained.setdefault(job.model, job)
            agenda.blocked.setdefault(job.model, []).append(i)
    return agenda


def carry_out(agenda: Agenda, pool: Executor, progress: Progress) -> list[Result]:
    """Do what is left, in the places of an executor that was opened; the result of every cell, in their order."""
    last: dict[str, str | None] = {}
    try:
        while True:
            for place in pool.free():
                if piece := agenda.next(place, last.get(place)):
                    last[place] = piece.job.model
                    pool.start(place, piece)
                    progress(Event(kind="started", piece=piece, place=place))
            if not agenda.doing:
                return [agenda.done[i] for i in range(len(agenda.jobs))]
            for place, outcome in pool.finished():
                progress(agenda.finish(place, outcome))
    finally:
        pool.close()


def local(workers: int, limits: Limits = UNLIMITED) -> Executor:
    """This process where one worker without limits is enough, which any user can debug; else worker processes."""
    return Here() if workers == 1 and not limits else Processes(workers, limits)


def run_cells(
    cells: Sequence[Cell], store: Store, workers: int, progress: Progress, limits: Limits = UNLIMITED
) -> list[Result]:
    """The result of every cell. Models that several cells share are trained once, first.

    Workers are processes and change no result. A cell that goes wrong is a row that says how, and is tried again by
    the next call; raises `CorruptStore` where what is on disk cannot be read.
    """
    pool = local(workers, limits)
    agenda = plan(cells, pool.open(store))
    progress(Event(kind="found", cells=len(agenda.done)))
    return carry_out(agenda, pool, progress)


def _obstacle(cell: Cell) -> Result | None:
    """The result of a cell that has no meaning, or whose check fails, as far as it can be told without training."""
    try:
        for defense in cell.defenses:
            defense.check(cell.task)
        if cell.attack is not None:
            cell.attack.check(cell.task, cell.threat)
    except NotApplicable as why:
        return without_meaning(cell, str(why))
    except UsageError:
        raise
    except Exception as error:  # whatever a method does, the other cells go on
        return failed(cell, f"{type(error).__name__}: {error}")
    return None
