"""Pieces of work as bytes, for workers in other processes and on other machines.

A task goes in a parcel of its own, which a worker opens once: what it keeps by a task (shadow models, say) is then
found by the task's next cell.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import cast

import cloudpickle

from secure_ml.errors import UsageError
from secure_ml.store import Store, machine_of
from secure_ml.task import Task
from secure_ml.work import Outcome, Piece, perform

KEPT = 4
"""Tasks that a worker holds."""
_TASKS: OrderedDict[str, Task] = OrderedDict()


@dataclass(frozen=True)
class Packer:
    """Makes parcels; a task's is made once."""

    store: Store
    tasks: dict[int, tuple[Task, bytes]] = field(default_factory=dict)

    def pack(self, piece: Piece) -> tuple[bytes, bytes]:
        """The parcel of the task, and that of everything else."""
        task = piece.job.cell.task
        if id(task) not in self.tasks:
            self.tasks[id(task)] = task, cloudpickle.dumps(task)
        bare = replace(piece, job=replace(piece.job, cell=replace(piece.job.cell, task=cast("Task", None))))
        return self.tasks[id(task)][1], cloudpickle.dumps((self.store, bare))


def perform_packed(task: bytes, rest: bytes) -> bytes:
    """Do the piece in these parcels; the outcome as bytes. Both were made by this run: nothing else is unpacked."""
    store, bare = cloudpickle.loads(rest)
    piece = replace(bare, job=replace(bare.job, cell=replace(bare.job.cell, task=_open(task))))
    outcome = perform(store, piece)
    if outcome.result is not None:  # whoever asked may have no GPU
        evidence = {name: tensor.cpu() for name, tensor in outcome.result.evidence.items()}
        outcome = replace(outcome, result=replace(outcome.result, evidence=evidence))
    return bytes(cloudpickle.dumps(outcome))


def _open(parcel: bytes) -> Task:
    name = hashlib.sha256(parcel).hexdigest()
    task = _TASKS.pop(name, None) or cast("Task", cloudpickle.loads(parcel))
    _TASKS[name] = task
    while len(_TASKS) > KEPT:
        _TASKS.popitem(last=False)
    return task


def check_machine(store: Store) -> None:
    """Raise `UsageError` where this process would not compute what the store's names promise."""
    if store.machine is None:
        return
    here = machine_of(store.device, store.threads)
    other = [f"{mine}, expected {asked}" for mine, asked in zip(here, store.machine, strict=True) if mine != asked]
    if other:
        raise UsageError(f"a node of the cluster differs from the others: {'; '.join(other)}; install the same there")


def unpack(outcome: bytes) -> Outcome:
    """The outcome that `perform_packed` gave."""
    return cast("Outcome", cloudpickle.loads(outcome))
