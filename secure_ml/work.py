"""One piece of a run's work, done wherever it is sent: a model to train, or a cell to compute."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from typing import Literal

from secure_ml.attack import Result
from secure_ml.defense import stack_name
from secure_ml.errors import NotApplicable
from secure_ml.modes import threaded
from secure_ml.report import card, with_usage
from secure_ml.rows import Row, package_version
from secure_ml.store import Cell, CorruptStore, Job, Store


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one worker does at a time."""

    kind: Literal["train", "attack"]
    job: Job

    def __str__(self) -> str:
        """As progress names it."""
        cell = self.job.cell
        if self.kind == "train":
            return f"training {cell.task!r}, {stack_name(cell.trained)}, seed {cell.seed}"
        tried = repr(cell.attack) if cell.attack else "report"
        return f"{tried} on {cell.task!r}, {stack_name(cell.defenses)}, seed {cell.seed}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a piece. Of a failure, ``failure`` says in a line which and ``trace`` where."""

    result: Result | None = None
    obstacle: str = ""
    failure: str = ""
    trace: str = ""
    fatal: str = ""
    """Why the whole run ends, where it must."""
    seconds: float = 0.0


def perform(store: Store, piece: Piece) -> Outcome:
    """Do it. Whatever goes wrong becomes part of the outcome, except an interruption."""
    start = time.perf_counter()
    outcome = _attempt(store, piece)
    return Outcome(**{**vars(outcome), "seconds": time.perf_counter() - start})


def _attempt(store: Store, piece: Piece) -> Outcome:
    try:
        with threaded(store.threads):
            if piece.kind == "train":
                store.victim(piece.job)
                return Outcome()
            return Outcome(result=_compute(store, piece.job))
    except NotApplicable as why:
        return Outcome(obstacle=str(why))
    except CorruptStore as error:
        return Outcome(fatal=str(error))
    except (Exception, SystemExit) as error:  # whatever a method does, the other cells go on
        return Outcome(failure=f"{type(error).__name__}: {_first_line(error)}", trace=traceback.format_exc())


def _compute(store: Store, job: Job) -> Result:
    cell, victim = job.cell, store.victim(job)
    try:
        if cell.attack is None:
            result = card(victim)
        else:
            result = cell.attack.evaluate(victim, threat=cell.threat, seed=cell.seed, examples=cell.examples)
        result = with_usage(victim, result)
    except NotApplicable as why:
        result = without_meaning(cell, str(why))
    store.write(job, result)
    return result


def without_meaning(cell: Cell, why: str) -> Result:
    """The result of a cell that has nothing to measure: a row that says why."""
    return Result((_bare_row(cell, why),), obstacle=why)


def failed(cell: Cell, why: str) -> Result:
    """The result of a cell that went wrong: a row that says how, and which is not kept."""
    note = f"failed: {why}"
    return Result((_bare_row(cell, note),), obstacle=note, failed=True)


def _bare_row(cell: Cell, note: str) -> Row:
    return Row(
        task=repr(cell.task),
        defenses=stack_name(cell.defenses),
        attack=repr(cell.attack) if cell.attack else "",
        seeds=(cell.seed,),
        measure=cell.attack.family if cell.attack else cell.task.score.name,
        note=note,
        version=package_version(),
    )


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else "it says no more"
