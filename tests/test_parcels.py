"""Pieces of work as bytes do what they do in this process, and only on a machine like the one that was promised."""

from dataclasses import replace
from pathlib import Path

import pytest

import secure_ml as sm
from attacks.membership.loss_threshold import LossThreshold
from secure_ml.cells import Cell, Store, plan, run_cells
from secure_ml.on_ray import _said
from secure_ml.parcels import Packer, check_machine, perform_packed, unpack
from secure_ml.store import machine_of
from secure_ml.work import Piece
from tests.laws import same, timeless, tiny_task


def test_a_piece_in_a_parcel(tmp_path: Path) -> None:
    """The same result; tasks with closures travel, once for all of their pieces."""
    some = [Cell(task=tiny_task("logistic_regression"), defenses=(), attack=LossThreshold(), seed=s) for s in (0, 1)]
    store = Store(folder=tmp_path / "there")
    packer = Packer(store)
    parcels = [packer.pack(Piece(kind="attack", job=job)) for job in plan(some, store).jobs]
    assert parcels[0][0] is packer.pack(Piece(kind="attack", job=store.jobs(some)[0]))[0]
    there = [unpack(perform_packed(*parcel)) for parcel in parcels]
    here = run_cells(some, Store(folder=tmp_path / "here"), 1, lambda event: None)
    assert same([timeless(outcome.result) for outcome in there], [timeless(result) for result in here])
    assert all(store.read(job) is not None for job in store.jobs(some)), "it was not kept"


def test_another_machine_is_refused() -> None:
    """Where it has other versions than a cell's name says, and not where they are the same."""
    here = machine_of("cpu", 1)
    check_machine(Store(folder="x", machine=here))
    other = (*here[:3], "torch 1.0", *here[4:])
    with pytest.raises(sm.UsageError, match=r"a node of the cluster differs .*expected torch 1.0; install the same"):
        check_machine(replace(Store(folder="x"), machine=other))


def test_what_a_node_raised_is_told_as_it_said_it() -> None:
    """Ray wraps it in an account of several lines that begins with where it was."""

    class WrappedError(RuntimeError):
        cause = sm.UsageError("a node of the cluster differs\nin this")

    assert _said(WrappedError("\x1b[36mray::_do()\x1b[39m (pid=1)")) == "UsageError: a node of the cluster differs"
    assert _said(RuntimeError("lost\nfor good")) == "RuntimeError: lost"
    assert _said(RuntimeError()) == "RuntimeError: it says no more"
