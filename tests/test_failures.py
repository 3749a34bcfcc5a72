"""A cell that goes wrong is a row that says how: errors, crashes and limits, alone and among workers."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import secure_ml as sm
from attacks.membership.loss_threshold import LossThreshold
from experiments._board import Board
from experiments._run import announcement, crashed, judge, run
from secure_ml.attack import Attack, Result
from secure_ml.cells import Cell, Limits, Store, plan, run_cells
from secure_ml.costs import Costs
from secure_ml.executors import UNLIMITED
from secure_ml.rows import table
from secure_ml.task import Task
from tests.laws import same, timeless, tiny_task


@dataclass(frozen=True, kw_only=True)
class Broken(sm.Membership):
    """An attack that goes wrong in one of several ways."""

    reveal: str = "probabilities"
    how: str = "raise"
    marker: str = ""
    """A file; once it is there, nothing goes wrong."""

    def score(self, access: object, batch: sm.Batch, aux: sm.Batch, rng: object) -> object:
        if self.marker and Path(self.marker).exists():
            return -access.loss(batch)
        if self.how == "raise":
            raise ValueError("no such thing\nand more")
        if self.how == "usage":
            raise sm.UsageError("3 shadows, not 2")
        if self.how == "exit":
            raise SystemExit(3)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "grow":
            self.hold = [bytearray(b"1") * 2**20 for _ in range(3000)]  # never whole: it is ended before
        time.sleep(60)
        raise AssertionError


def cells(*attacks: Attack | None, seeds: Sequence[int] = (0,), task: Task | None = None) -> list[Cell]:
    task = task or tiny_task("logistic_regression")
    return [Cell(task=task, defenses=(), attack=a, seed=s) for a in attacks for s in seeds]


def results(some: list[Cell], folder: Path, workers: int = 1, limits: Limits = UNLIMITED) -> list[Result]:
    return run_cells(some, Store(folder=folder), workers, lambda event: None, limits)


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ("raise", "failed: ValueError: no such thing"),
        ("usage", "failed: UsageError: 3 shadows, not 2"),
        ("exit", "failed: SystemExit: 3"),
    ],
)
def test_an_error_is_a_row(tmp_path: Path, how: str, note: str) -> None:
    """The other cells have their numbers, and the table says what is missing."""
    some = cells(None, Broken(how=how), LossThreshold(), seeds=(0, 1))
    found = results(some, tmp_path)
    assert [result.failed for result in found] == [False, False, True, True, False, False]
    assert found[2].rows[0].note == found[2].obstacle == note
    assert len(list((tmp_path / "cells").iterdir())) == 4, "a failed cell was kept"
    shown = table(judge(some, found))
    assert f"2 of 4 are missing: Broken(how={how!r}), seed 0, {note}".replace("how='raise'", "") in shown


def test_an_error_alone_is_shown(tmp_path: Path) -> None:
    some = cells(None, Broken())
    shown = table(judge(some, results(some, tmp_path)))
    assert "failed: ValueError: no such thing" in shown
    assert "n/a [1]" in shown


def test_a_failed_cell_is_tried_again(tmp_path: Path) -> None:
    some = cells(Broken(marker=str(tmp_path / "fixed")))
    assert results(some, tmp_path)[0].failed
    (tmp_path / "fixed").touch()
    assert not results(some, tmp_path)[0].failed


def test_an_interruption_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        results(cells(Broken(how="interrupt")), tmp_path)


def test_a_training_that_fails(tmp_path: Path) -> None:
    """Each cell on that model is a row, and the training is tried once."""
    from dataclasses import replace

    tried = []

    def augment(batch: sm.Batch, rng: object) -> sm.Batch:
        tried.append(1)
        raise ZeroDivisionError("in the data")

    task = replace(tiny_task("logistic_regression"), augment=augment)
    found = results(cells(None, LossThreshold(), task=task), tmp_path)
    assert [r.obstacle for r in found] == ["failed: ZeroDivisionError: in the data"] * 2
    assert len(tried) == 1


def test_a_corrupt_model_ends_the_run(tmp_path: Path) -> None:
    results(cells(None), tmp_path)
    (weights,) = tmp_path.glob("models/*/weights.safetensors")
    weights.write_bytes(b"")
    with pytest.raises(sm.UsageError, match="is corrupt: delete it"):
        results(cells(LossThreshold()), tmp_path)


@pytest.mark.slow
def test_workers_that_crash_and_grow(tmp_path: Path) -> None:
    """Each costs its own cell; another worker goes on, with the numbers of this process."""
    some = cells(None, Broken(how="die"), Broken(how="grow"), LossThreshold())
    found = results(some, tmp_path / "a", workers=2, limits=Limits(gib=2.0))
    assert "ended by SIGKILL" in found[1].obstacle
    assert found[2].obstacle == "failed: it used more than 2 GiB of memory (--cell-gib), and was ended"
    alone = results(cells(None, LossThreshold()), tmp_path / "b")
    assert same([timeless(found[0]), timeless(found[3])], [timeless(r) for r in alone])


@pytest.mark.slow
def test_a_worker_that_hangs(tmp_path: Path) -> None:
    """It is ended after its time, with one worker as with several, and the rest goes on."""
    found = results(cells(None, Broken(how="sleep"), LossThreshold()), tmp_path, limits=Limits(minutes=0.4))
    assert found[1].obstacle == "failed: it took longer than 0.4 minutes (--cell-minutes), and was ended"
    assert not found[0].failed
    assert not found[2].failed


def test_the_exit_code_is_honest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 where a cell failed, with how many; the trace is kept; what it took is known the next time."""
    some = cells(None, Broken(), LossThreshold())
    found = run(some, tmp_path, "cpu", 1, 1)
    assert crashed(found) == 2
    said = capsys.readouterr().err
    assert "1 of 3 cells failed" in said
    assert "FAILED (ValueError: no such thing)" in said
    assert "3 cells: 0 found, 0 n/a, 3 to compute, after training 1 model; on 1 worker: of unknown cost" in said
    assert "raise ValueError" in (tmp_path / "failures.txt").read_text()
    assert crashed([found[0]]) == 0
    store = Store(folder=tmp_path)
    agenda, costs = plan(cells(None, LossThreshold(), seeds=(0, 1)), store), Costs.read(store.shelf, "cpu", 1)
    assert "4 cells: 2 found, 0 n/a, 2 to compute, after training 1 model; on 2 workers: about" in announcement(
        agenda, costs, 2
    )


def test_the_board_shows_states(tmp_path: Path) -> None:
    """Every cell is in one state, and what goes on is named with its place."""
    from rich.console import Console

    from secure_ml.cells import Event

    some = [*cells(None, LossThreshold()), *cells(None, task=tiny_task("linear_regression"))]
    agenda = plan(some, Store(folder=tmp_path))
    board = Board(agenda, Costs("cpu", 1), 1, Console(width=200, record=True))
    piece = agenda.next("worker 1", None)
    board.hear(Event(kind="started", piece=piece, place="worker 1"))
    board.console.print(board.render())
    shown = board.console.export_text()
    assert "0 done   0 running   3 waiting   0 failed   0 n/a" in shown
    assert "worker 1  training logistic_regression(tiny=True), none, seed 0" in shown


@pytest.mark.parametrize("limits", [{"minutes": 0.0}, {"gib": -1.0}])
def test_limits_are_above_0(limits: dict[str, float]) -> None:
    with pytest.raises(sm.UsageError, match="must be above 0"):
        Limits(**limits)
